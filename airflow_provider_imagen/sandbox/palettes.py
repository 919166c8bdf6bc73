"""Choose the colours of a picture from the words of its prompt."""

from __future__ import annotations

import colorsys
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

Color = tuple[int, int, int]

_HUES = {
    "red": 0.99, "crimson": 0.97, "rose": 0.94, "pink": 0.92, "fox": 0.06, "orange": 0.07, "autumn": 0.07,
    "copper": 0.07, "desert": 0.09, "gold": 0.12, "golden": 0.12, "yellow": 0.14, "sand": 0.11, "lemon": 0.15,
    "green": 0.36, "forest": 0.38, "meadow": 0.30, "spring": 0.28, "jungle": 0.36, "mint": 0.43, "teal": 0.49,
    "turquoise": 0.49, "sea": 0.53, "ocean": 0.56, "lake": 0.55, "blue": 0.60, "winter": 0.57, "ice": 0.54,
    "snow": 0.57, "navy": 0.63, "violet": 0.74, "purple": 0.77, "lavender": 0.72, "magenta": 0.87, "neon": 0.84,
}  # fmt: skip
_NIGHT = frozenset(
    {
        "night",
        "midnight",
        "moon",
        "moonlit",
        "moonlight",
        "stars",
        "starry",
        "space",
        "galaxy",
        "dark",
        "neon",
        "cosmos",
        "planet",
    }
)
_DUSK = frozenset({"sunset", "dusk", "evening", "sunrise", "dawn", "twilight", "golden"})


@dataclass(frozen=True)
class Palette:
    """
    The colours of one picture.

    :param hue: its leading hue, 0 to 1 around the colour wheel
    :param light: whether it is ``day``, ``dusk`` or ``night``
    :param sky: from top to horizon
    :param far: land farthest away
    :param near: land nearest
    :param accent: what should stand out
    :param glow: sun, moon, lamps
    """

    hue: float
    light: str
    sky: tuple[Color, Color, Color]
    far: Color
    near: Color
    accent: Color
    glow: Color


def words_of(prompt: str) -> list[str]:
    """List the words of a prompt in lower case."""
    return re.findall(r"[a-z]+", prompt.lower())


def palette_for(prompt: str, chance: random.Random, given: tuple[Color, ...] = ()) -> Palette:
    """
    Choose a palette: by the colours given, else by words that name a colour or a time, else by chance.

    :param given: main colours of a picture to work from
    """
    words = words_of(prompt)
    named = [_HUES[word] for word in words if word in _HUES]
    hue = (named[0] if named else chance.random()) + chance.uniform(-0.02, 0.02)
    light = (
        "night"
        if _NIGHT & set(words)
        else "dusk"
        if _DUSK & set(words)
        else chance.choice(("day", "day", "dusk", "night"))
    )
    if given:
        hue = _hue_of(given)
        light = "night" if sum(map(sum, given)) / len(given) < 260 else "day"
    turned = chance.choice((0.42, 0.5, 0.58))
    across = hue if named and not given else hue + turned
    if light == "night":
        sky = (_hsv(hue + 0.06, 0.75, 0.13), _hsv(hue, 0.66, 0.30), _hsv(hue - 0.07, 0.50, 0.58))
        palette = Palette(
            hue,
            light,
            sky,
            _hsv(hue, 0.45, 0.42),
            _hsv(hue + 0.05, 0.70, 0.07),
            _hsv(across, 0.55, 0.95),
            (255, 246, 222),
        )
    elif light == "dusk":
        warm = chance.uniform(0.01, 0.08)
        sky = (_hsv(warm + 0.62, 0.55, 0.42), _hsv(warm + 0.96, 0.52, 0.84), _hsv(warm + 0.07, 0.48, 1.0))
        palette = Palette(
            hue,
            light,
            sky,
            _hsv(warm + 0.95, 0.40, 0.74),
            _hsv(hue if named else warm + 0.68, 0.62, 0.17),
            _hsv(across, 0.72, 1.0),
            (255, 238, 196),
        )
    else:
        sky = (_hsv(hue, 0.50, 0.82), _hsv(hue - 0.04, 0.28, 0.95), _hsv(hue - 0.10, 0.12, 1.0))
        palette = Palette(
            hue,
            light,
            sky,
            _hsv(hue + 0.01, 0.24, 0.84),
            _hsv(hue + 0.05, 0.68, 0.24),
            _hsv(across, 0.62, 0.97),
            (255, 252, 236),
        )
    if not given:
        return palette
    ranked = sorted(given, key=sum, reverse=True)
    return Palette(
        hue,
        light,
        (ranked[len(ranked) // 2], ranked[min(1, len(ranked) - 1)], ranked[0]),
        ranked[len(ranked) // 2],
        ranked[-1],
        ranked[min(1, len(ranked) - 1)],
        ranked[0],
    )


def mix(one: Color, other: Color, share: float) -> Color:
    """Blend two colours; ``share`` of the second, 0 to 1."""
    return tuple(round(a + (b - a) * share) for a, b in zip(one, other, strict=True))  # type: ignore[return-value]


def _hsv(hue: float, saturation: float, value: float) -> Color:
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue % 1, saturation, value))  # type: ignore[return-value]


def _hue_of(colors: tuple[Color, ...]) -> float:
    """Give the hue of the most colourful one."""
    by_color = [colorsys.rgb_to_hsv(*(part / 255 for part in color)) for color in colors]
    return max(by_color, key=lambda hsv: hsv[1] * hsv[2])[0]
