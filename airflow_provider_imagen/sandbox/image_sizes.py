"""Width and height of the images of a request, in pixels."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_imagen.sandbox.model_specs import SandboxModel

_RATIOS = {
    "1:1": (1024, 1024),
    "16:9": (1408, 768),
    "9:16": (768, 1408),
    "4:3": (1280, 896),
    "3:4": (896, 1280),
}
"""Imagen's sizes: 1:1 and 16:9 from the docs (imagen-3.0 page, 2025-05), the others from Google's documentation."""

_PRESETS = {
    "square_hd": (1024, 1024),
    "square": (512, 512),
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (1024, 576),
    "1.5K": (1536, 1536),
    "2K": (2048, 2048),
    "4K": (4096, 4096),
}
_SCALES = {"1k": 1, "2k": 2, "4k": 4}
_MEGAPIXEL = 1024 * 1024


def image_size(model: SandboxModel, body: dict[str, Any]) -> tuple[int, int]:
    """Return the width and height for a validated body, from the model's size field."""

    def value(name: str) -> Any:
        return body.get(name, model.fields[name].get("default")) if name in model.fields else None

    size = value("image_size") or value("size")
    if isinstance(size, dict):
        return _side(model, size, "width"), _side(model, size, "height")
    if size in _PRESETS:
        return _PRESETS[size]
    if isinstance(size, str) and (sides := re.fullmatch(r"(\d+)x(\d+)", size)):
        return int(sides[1]), int(sides[2])
    if limit := value("max_resolution"):
        return int(limit) * 16 // 9, int(limit)
    width, height = _from_ratio(value("aspect_ratio"))
    scale = _SCALES.get(str(value("resolution")).lower(), 1)
    return width * scale, height * scale


def _side(model: SandboxModel, size: dict[str, Any], side: str) -> int:
    """Return a side of a ``{width, height}`` size, or its default."""
    if side in size:
        return int(size[side])
    forms = model.fields["image_size"]["anyOf"]
    return next((int(form["properties"][side].get("default", 1024)) for form in forms if "properties" in form), 1024)


def _from_ratio(ratio: Any) -> tuple[int, int]:
    """Return Imagen's size for its ratios, else about a megapixel with sides divisible by 32."""
    if ratio in _RATIOS:
        return _RATIOS[ratio]
    if not isinstance(ratio, str) or ":" not in ratio:
        return _RATIOS["1:1"]
    across, down = map(float, ratio.split(":"))
    height = math.sqrt(_MEGAPIXEL * down / across)
    return 32 * round(height * across / down / 32), 32 * round(height / 32)
