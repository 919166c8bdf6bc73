"""
Draw a recipe: a motif and colours that fit the prompt, the prompt in a band below, "sandbox" in a corner.

Prompt, seed, size and place decide every pixel, so the same recipe gives the same bytes with the same Pillow.
"""

from __future__ import annotations

import hashlib
import io
import math
import random
import unicodedata
from bisect import bisect_right
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image, ImageFont

    from airflow_provider_imagen.sandbox.pictures import Recipe

_MOST_DRAWN_PIXELS = 2048 * 2048
_MOST_CAPTION_CHARACTERS = 600
_FOLDED = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "„": '"', "–": "-", "—": "-", "ß": "ss", "æ": "ae", "ø": "o", "ł": "l"}
)
_INK, _PAPER = (10, 12, 20), (248, 247, 242)
_SAVING: dict[str, dict[str, Any]] = {
    "png": {"compress_level": 1},
    "jpeg": {"quality": 90},
    "webp": {"quality": 85, "method": 0},
    "tiff": {"compression": "tiff_deflate"},
}


def draw(recipe: Recipe) -> bytes:
    """Draw a recipe and encode it."""
    from airflow_provider_imagen.sandbox.canvas import Canvas
    from airflow_provider_imagen.sandbox.palettes import palette_for
    from airflow_provider_imagen.sandbox.scenes import scene_for

    width, height = _drawn_size(recipe)
    theme = _chance(recipe.prompt, recipe.seed)
    palette = palette_for(recipe.prompt, theme, recipe.colors)
    scene = scene_for(recipe.prompt, theme)
    canvas = Canvas(width, height, palette, _chance(recipe.prompt, recipe.seed, recipe.index))
    scene(canvas)
    image = canvas.image
    _caption(image, recipe.prompt, recipe.index)
    if image.size != (recipe.width, recipe.height):
        image = image.resize((recipe.width, recipe.height))
    out = io.BytesIO()
    image.save(out, format=recipe.format.upper(), **_SAVING[recipe.format])
    return out.getvalue()


def main_colors(data: bytes, count: int = 5) -> tuple[tuple[int, int, int], ...]:
    """Find the main colours of a picture, most frequent first; none when it cannot be read."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            small = image.convert("RGB").resize((32, 32)).quantize(count)
    except (OSError, ValueError, Image.DecompressionBombError):
        return ()
    palette = small.getpalette() or []
    ranked = sorted(small.getcolors() or [], reverse=True)
    starts = [3 * index for _, index in ranked if isinstance(index, int)]
    return tuple((palette[start], palette[start + 1], palette[start + 2]) for start in starts)


def _chance(*facts: object) -> random.Random:
    return random.Random(hashlib.sha256(repr(facts).encode("utf-8", "backslashreplace")).digest())


def _drawn_size(recipe: Recipe) -> tuple[int, int]:
    """Give the size to draw at: very large pictures are drawn smaller and enlarged."""
    pixels = recipe.width * recipe.height
    share = min(1.0, math.sqrt(_MOST_DRAWN_PIXELS / pixels))
    return round(recipe.width * share), round(recipe.height * share)


def _caption(image: Image.Image, prompt: str, index: int) -> None:
    """Write the prompt in a band at the bottom, and where the picture comes from in the upper right corner."""
    from PIL import ImageDraw

    width, height = image.size
    unit = min(width, height)
    size = max(7, round(unit / 30))
    margin = round(unit * 0.035)
    font, small = _font(size), _font(max(6, round(unit / 52)))
    pen = ImageDraw.Draw(image)
    lines = _wrap(prompt, font, width - 2 * margin, most=3)
    leading = round(size * 1.32)
    band = leading * len(lines) + round(size * 1.1)
    if lines and band < height * 0.6:
        _veil(image, (0, height - band, width, height), 0.66)
        for place, line in enumerate(lines):
            pen.text((margin, height - band + round(size * 0.5) + place * leading), line, fill=_PAPER, font=font)
    mark = f"sandbox · {index + 1}"
    pad = round(size * 0.35)
    left, top = round(width - margin - small.getlength(mark)), round(margin * 0.8)
    _veil(image, (left - pad, top - pad // 2, width - margin + pad, top + round(size * 0.72) + pad // 2), 0.42)
    pen.text((left, top), mark, fill=_PAPER, font=small)


def _veil(image: Image.Image, area: tuple[int, int, int, int], strength: float) -> None:
    """Darken a part of the picture so that writing on it can be read."""
    from PIL import Image

    part = image.crop(area)
    image.paste(Image.blend(part, Image.new("RGB", part.size, _INK), strength), area[:2])


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.load_default(size=size)  # type: ignore[return-value]


def _plain(text: str) -> str:
    """Fold letters the built-in font lacks to their plain forms: é to e, curly quotes to straight ones."""
    folded = unicodedata.normalize("NFKD", text.translate(_FOLDED))
    return "".join(
        " " if character.isspace() else character
        for character in folded
        if unicodedata.category(character)[0] in "LNPSZ" or character.isspace()
    )


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: float, most: int) -> list[str]:
    """Break a text into lines that fit a width in pixels; what does not fit ends in an ellipsis."""
    lines: list[str] = []
    line = ""
    words = _plain(text[:_MOST_CAPTION_CHARACTERS]).split()
    while words:
        word = words.pop(0)
        longer = f"{line} {word}" if line else word
        if font.getlength(longer) <= width:
            line = longer
        elif line:
            lines.append(line)
            line = ""
            words.insert(0, word)
        else:
            fits = max(1, bisect_right(range(1, len(word)), width, key=lambda cut: font.getlength(word[:cut])))
            lines.append(word[:fits])
            words[:0] = [word[fits:]] if word[fits:] else []
        if len(lines) > most:
            break
    if line:
        lines.append(line)
    if len(lines) <= most:
        return lines
    last = lines[most - 1]
    while last and font.getlength(f"{last}…") > width:
        last = last[:-1]
    return [*lines[: most - 1], f"{last.rstrip()}…"]
