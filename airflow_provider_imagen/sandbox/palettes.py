"""The colours of an image, derived from its model or its input image."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

Color = tuple[int, int, int]
WHITE: Color = (255, 252, 240)

_LIGHTS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "day": ((0, 0.50, 0.82), (-0.04, 0.28, 0.95), (-0.10, 0.12, 1), (0.01, 0.24, 0.84), (0.05, 0.68, 0.24)),
    "dusk": ((0, 0.55, 0.42), (0.34, 0.52, 0.84), (0.45, 0.48, 1), (0.33, 0.40, 0.74), (0.06, 0.62, 0.17)),
    "night": ((0.06, 0.75, 0.13), (0, 0.66, 0.30), (-0.07, 0.50, 0.58), (0, 0.45, 0.42), (0.05, 0.70, 0.07)),
    "ink": ((0.05, 0.05, 0.93), (0.02, 0.08, 0.97), (0, 0.14, 0.95), (0, 0.20, 0.82), (0, 0.55, 0.16)),
}
"""Hue (relative to the base hue), saturation and value of the sky from top to horizon, and of the far and near land."""


@dataclass(frozen=True)
class Palette:
    """
    The colours of an image.

    :param sky: from top to horizon
    :param far: the most distant land
    :param near: the nearest land
    :param glow: sun or moon
    :param starry: whether there are stars
    """

    sky: tuple[Color, Color, Color]
    far: Color
    near: Color
    glow: Color = WHITE
    starry: bool = False


def choose_palette(style: random.Random, chance: random.Random, given: tuple[Color, ...] = ()) -> Palette:
    """
    Return the palette of an image.

    :param style: determines the light and the base hue
    :param chance: varies the hue
    :param given: colours to use instead
    """
    light, hue = style.choice(list(_LIGHTS)), style.random() + chance.uniform(-0.08, 0.08)
    if given:
        ranked = sorted(given, key=sum, reverse=True)
        middle, bright = ranked[len(ranked) // 2], ranked[min(1, len(ranked) - 1)]
        return Palette((middle, bright, ranked[0]), middle, mix(ranked[-1], (0, 0, 0), 0.4), mix(ranked[0], WHITE, 0.5))
    if light == "dusk":
        hue = 0.45 + hue % 1 * 0.4  # from teal to purple, for a warm horizon
    top, middle, horizon, far, near = (_hsv(hue + shift, *tone) for shift, *tone in _LIGHTS[light])
    glow = _hsv(hue + 0.5, 0.70, 0.88) if light == "ink" else WHITE
    return Palette((top, middle, horizon), far, near, glow, starry=light == "night")


def mix(one: Color, other: Color, share: float) -> Color:
    """Return a blend of two colours; ``share`` is that of the second, 0 to 1."""
    return tuple(round(a + (b - a) * share) for a, b in zip(one, other, strict=True))  # type: ignore[return-value]


def _hsv(hue: float, saturation: float, value: float) -> Color:
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue % 1, saturation, value))  # type: ignore[return-value]
