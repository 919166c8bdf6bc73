"""Captions: the prompt in a band at the bottom of an image, and a label in its upper right corner."""

from __future__ import annotations

import textwrap
import unicodedata
from functools import cache

from PIL import Image, ImageDraw, ImageFont

_MAX_CHARACTERS = 600
_MAX_LINES = 3
_FOLDED = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "„": '"', "–": "-", "—": "-", "ß": "ss", "æ": "ae", "ø": "o", "ł": "l"}
)
_INK, _PAPER = (10, 12, 20), (248, 247, 242)


def add_caption(image: Image.Image, prompt: str, labels: tuple[str, ...]) -> None:
    """
    Write a prompt and a label on an image.

    :param prompt: truncated to three lines
    :param labels: the first that fits is used, else the last
    """
    width, height = image.size
    unit = min(width, height)
    margin = round(unit * 0.05)
    draw = ImageDraw.Draw(image)
    size = max(7, round(unit / 30))
    font, leading = _font(size), round(size * 1.32)
    lines = _wrap(_fold(prompt[:_MAX_CHARACTERS]), font, width - 2 * margin)
    band = leading * len(lines) + round(size * 1.1)
    if lines and band < height * 0.6:
        _darken(image, (0, height - band, width, height), 0.66)
        for place, line in enumerate(lines):
            draw.text((margin, height - band + size // 2 + place * leading), line, fill=_PAPER, font=font)
    size = max(6, round(unit / 52))
    font = _font(size)
    label = next((label for label in labels if font.getlength(label) <= width - 2 * margin), labels[-1])
    left, pad = round(width - margin - font.getlength(label)), size // 2
    _darken(image, (left - pad, margin - pad // 2, width - margin + pad, margin + size + pad), 0.5)
    draw.text((left, margin), label, fill=_PAPER, font=font)


def _darken(image: Image.Image, area: tuple[int, int, int, int], strength: float) -> None:
    part = image.crop(area)
    image.paste(Image.blend(part, Image.new("RGB", part.size, _INK), strength), area[:2])


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)  # type: ignore[return-value]


def _fold(text: str) -> str:
    """Replace characters that the built-in font lacks (é by e, curly quotes by straight ones)."""
    folded = unicodedata.normalize("NFKD", " ".join(text.split()).translate(_FOLDED))
    return "".join(each for each in folded if unicodedata.category(each)[0] in "LNPSZ")


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Return a text broken into at most three lines of ``width`` pixels."""
    columns = int(1.5 * width * len(text) / max(1, font.getlength(text)))
    while columns > 0:
        lines = textwrap.wrap(text, columns, max_lines=_MAX_LINES, placeholder="…")
        if columns == 1 or all(font.getlength(line) <= width for line in lines):
            return lines
        columns = max(1, columns * 19 // 20)
    return []
