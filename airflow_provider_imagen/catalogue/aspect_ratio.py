"""Aspect ratios: read the one requested, and find a model's size with exactly that ratio. Pure."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from airflow_provider_imagen.api.fields import read_whole_number

if TYPE_CHECKING:
    from collections.abc import Mapping

COMMON_RATIOS = ("1:1", "16:9", "9:16", "4:3", "3:4", "3:2", "2:3", "5:4", "4:5", "21:9", "9:21", "2:1", "1:2")

_RATIO = r"([0-9]{1,4}(?:\.[0-9]{1,2})?):([0-9]{1,4}(?:\.[0-9]{1,2})?)"
_PRESET = r"(?:(square)(?:_hd)?|(portrait|landscape)_([0-9]+)_([0-9]+))"
_SIDES = r"([0-9]{2,5})[xX]([0-9]{2,5})"
_K_SIDE = r"([0-9](?:\.[0-9])?)[Kk]"
_ONE_MEGAPIXEL = 1024 * 1024
_DEFAULT_STEPS_PIXELS = (32, 16, 8)
_DEFAULT_LIMITS_PIXELS = (64, 4096)


def read_ratio(text: Any) -> Fraction | None:
    """Return a ratio such as ``16:9`` as width divided by height; ``None`` if the value is not a ratio."""
    match = re.fullmatch(_RATIO, text.strip()) if isinstance(text, str) else None
    if not match or not Fraction(match[1]) or not Fraction(match[2]):
        return None
    return Fraction(match[1]) / Fraction(match[2])


def requested_ratio(body: Mapping[str, Any]) -> Fraction | None:
    """Return the requested width divided by height; ``None`` if the request leaves the ratio to the model."""
    for value in (body, body.get("image_size"), body.get("size"), body.get("aspect_ratio")):
        if isinstance(value, dict):
            width, height = read_whole_number(value.get("width")), read_whole_number(value.get("height"))
            if width and height and width > 0 and height > 0:
                return Fraction(width, height)
        elif (ratio := ratio_of(value) or read_ratio(value)) is not None:
            return ratio
    return None


def size_for(ratio: Fraction, schema: Mapping[str, Any]) -> Any:
    """
    Return the value of a size field for exactly this ratio; ``None`` if the model has no such size.

    Prefers a named size: the default if it fits, else the largest. Otherwise returns ``{"width": …, "height": …}`` or
    ``WIDTHxHEIGHT`` in multiples of the model's own step, else of 32 pixels (16 or 8 if the limits leave no choice).
    Its area is as close as the limits allow to that of the model's default size, or to one megapixel if that is
    unknown.

    :param schema: JSON Schema of ``image_size`` or ``size``
    """
    choices = schema.get("anyOf", (schema,))
    names = [name for choice in choices for name in choice.get("enum", ()) if ratio_of(name) == ratio]
    if names:
        return schema["default"] if schema.get("default") in names else max(names, key=_rank)
    for choice in choices:
        if "properties" in choice:
            sides = choice["properties"]
            limits = [(sides[name].get("minimum"), sides[name].get("maximum")) for name in ("width", "height")]
            step = sides["width"].get("multipleOf")
            found = _nearest_size(ratio, _default_area(schema, choice), limits, step)
            return {"width": found[0], "height": found[1]} if found else None
        if "sides" in choice:
            found = _nearest_size(ratio, _ONE_MEGAPIXEL, [tuple(choice["sides"])] * 2, None)
            return f"{found[0]}x{found[1]}" if found else None
    return None


def ratio_of(name: Any) -> Fraction | None:
    """Return the ratio of a named size such as ``landscape_16_9`` or ``1024x1536``; ``2K`` and ``auto`` have none."""
    if not isinstance(name, str):
        return None
    if match := re.fullmatch(_SIDES, name):
        return Fraction(int(match[1]), int(match[2])) if int(match[2]) else None
    match = re.fullmatch(_PRESET, name)
    if match is None:
        return None
    if match[1]:
        return Fraction(1)
    longer, shorter = sorted((int(match[3]), int(match[4])), reverse=True)
    return Fraction(longer, shorter) if match[2] == "landscape" else Fraction(shorter, longer)


def ratios_offered(schema: Mapping[str, Any]) -> list[str]:
    """Return the ratios a size field supports: the common ones first, then any others among its named sizes."""
    offered = [text for text in COMMON_RATIOS if size_for(read_ratio(text) or Fraction(1), schema) is not None]
    named = [
        ratio
        for choice in schema.get("anyOf", (schema,))
        for name in choice.get("enum", ())
        if (ratio := ratio_of(name))
    ]
    known = {read_ratio(text) for text in offered}
    return offered + [ratio_text(ratio) for ratio in dict.fromkeys(named) if ratio not in known]


def ratio_text(ratio: Fraction) -> str:
    """Return a ratio as text, such as ``16:9``."""
    return f"{ratio.numerator}:{ratio.denominator}"


def _rank(name: str) -> tuple[int, bool]:
    match = re.fullmatch(_SIDES, name)
    return (int(match[1]) * int(match[2]) if match else 0, name.endswith("_hd"))


def _default_area(schema: Mapping[str, Any], choice: Mapping[str, Any]) -> int:
    """Return the area of the default size in pixels: ``2K`` is 2048 squared, presets are about a megapixel."""
    default = schema.get("default")
    if isinstance(default, str):
        match = re.fullmatch(_K_SIDE, default)
        return round(float(match[1]) * 1024) ** 2 if match else _ONE_MEGAPIXEL
    sides = [choice["properties"][name].get("default") for name in ("width", "height")]
    return sides[0] * sides[1] if all(sides) else _ONE_MEGAPIXEL


def _nearest_size(
    ratio: Fraction, area: int, limits: list[tuple[Any, ...]], step: int | None
) -> tuple[int, int] | None:
    """Return the width and height of exactly this ratio whose area is nearest, within the limits; else ``None``."""
    for multiple in (step,) if step else _DEFAULT_STEPS_PIXELS:
        width, height = ratio.numerator * multiple, ratio.denominator * multiple
        lows = [low if low is not None else _DEFAULT_LIMITS_PIXELS[0] for low, _ in limits]
        highs = [high if high is not None else _DEFAULT_LIMITS_PIXELS[1] for _, high in limits]
        lowest = max(-(-lows[0] // width), -(-lows[1] // height), 1)
        highest = min(highs[0] // width, highs[1] // height)
        if lowest <= highest:
            ideal = (area / (width * height)) ** 0.5
            times = min(range(lowest, highest + 1), key=lambda count: abs(count - ideal))
            return width * times, height * times
    return None
