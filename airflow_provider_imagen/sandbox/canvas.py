"""A picture in the making: smooth skies, glows, and shapes with clean edges."""

from __future__ import annotations

import math
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from PIL import Image, ImageChops, ImageDraw

from airflow_provider_imagen.sandbox.palettes import Color, Palette, mix

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence

    Point = tuple[float, float]

_FINER = 2
"""Edges are drawn this many times as large and then reduced, which makes them smooth."""


class Pen:
    """
    Draws on the mask of one layer, in pixels of the finished picture.

    :param left: where the mask begins in the picture
    :param top: where the mask begins in the picture
    """

    def __init__(self, mask: Image.Image, left: int, top: int) -> None:
        self._draw = ImageDraw.Draw(mask)
        self._left = left
        self._top = top

    def _at(self, points: Sequence[Point]) -> list[Point]:
        return [((x - self._left) * _FINER, (y - self._top) * _FINER) for x, y in points]

    def polygon(self, points: Sequence[Point], opacity: float = 1.0) -> None:
        """Fill a polygon."""
        self._draw.polygon(self._at(points), fill=round(255 * opacity))

    def disc(self, x: float, y: float, radius: float, opacity: float = 1.0) -> None:
        """Fill a circle."""
        self._draw.ellipse(self._at([(x - radius, y - radius), (x + radius, y + radius)]), fill=round(255 * opacity))

    def line(self, points: Sequence[Point], thickness: float, opacity: float = 1.0) -> None:
        """Draw a line through points."""
        self._draw.line(
            self._at(points), fill=round(255 * opacity), width=max(1, round(thickness * _FINER)), joint="curve"
        )

    def box(self, left: float, top: float, right: float, bottom: float, opacity: float = 1.0) -> None:
        """Fill a rectangle."""
        self._draw.rectangle(self._at([(left, top), (right, bottom)]), fill=round(255 * opacity))


class Canvas:
    """
    A picture and what its motifs need; positions and lengths are pixels of the finished picture.

    :param chance: source of every decision, so that a seed repeats a picture
    """

    def __init__(self, width: int, height: int, palette: Palette, chance: random.Random) -> None:
        self.width = width
        self.height = height
        self.unit = min(width, height)
        self.palette = palette
        self.chance = chance
        self.image = Image.new("RGB", (width, height), palette.sky[0])

    def mesh(self, rows: Sequence[Sequence[Color]]) -> None:
        """Fill the canvas with a smooth blend between colours laid out in a small grid."""
        grid = Image.new("RGB", (len(rows[0]), len(rows)))
        grid.putdata([color for row in rows for color in row])
        self.image = grid.resize((self.width, self.height), Image.Resampling.BICUBIC)

    def sky(self) -> None:
        """Paint the palette's sky, with soft drifts of colour."""
        top, middle, horizon = self.palette.sky
        rows = []
        for step in range(6):
            share = step / 5
            color = mix(top, middle, share * 2) if share < 0.5 else mix(middle, horizon, share * 2 - 1)
            rows.append(
                [mix(color, self.chance.choice((top, horizon)), self.chance.uniform(0, 0.18)) for _ in range(5)]
            )
        self.mesh(rows)

    def glow(self, x: float, y: float, radius: float, color: Color, strength: float) -> None:
        """Add light that fades outwards from a point; strength 0 to 1."""
        side = max(2, round(radius * 2))
        corner = (round(x - side / 2), round(y - side / 2))
        light = (
            _fading_disc()
            .resize((side, side), Image.Resampling.BILINEAR)
            .point([round(part * strength) for part in range(256)])
        )
        self.image.paste(color, corner, light)

    def stars(self, count: int, lowest: float) -> None:
        """Scatter stars down to a height."""
        with self.layer((0, 0, self.width, lowest), self.palette.glow) as pen:
            for _ in range(count):
                size = self.unit / 1000 * self.chance.choice((0.5, 0.7, 0.7, 0.9, 1.6))
                x, y = self.chance.uniform(0, self.width), lowest * self.chance.random() ** 1.3
                pen.disc(x, y, size, self.chance.uniform(0.35, 1.0))

    @contextmanager
    def layer(self, box: tuple[float, float, float, float], fill: Color | tuple[Color, Color]) -> Iterator[Pen]:
        """
        Draw with a pen whose marks become one layer of colour.

        :param box: left, top, right, bottom of all that will be drawn
        :param fill: a colour, or two: at the top and at the bottom of the box
        """
        left, top = max(0, math.floor(box[0])), max(0, math.floor(box[1]))
        right, bottom = min(self.width, math.ceil(box[2])), min(self.height, math.ceil(box[3]))
        width, height = max(1, right - left), max(1, bottom - top)
        mask = Image.new("L", (width * _FINER, height * _FINER))
        yield Pen(mask, left, top)
        if right <= left or bottom <= top:
            return
        mask = mask.reduce(_FINER)
        if isinstance(fill[0], tuple):
            self.image.paste(_gradient(width, height, *fill), (left, top), mask)
        else:
            self.image.paste(fill, (left, top, right, bottom), mask)

    def ball(self, x: float, y: float, radius: float, lit: Color, shade: Color) -> None:
        """Draw a sphere lit from the upper left."""
        side = max(4, round(radius * 2))
        light = _fading_disc().resize((side * 2, side * 2), Image.Resampling.BILINEAR)
        offset = round(side * 0.72)
        light = light.crop((offset, offset, offset + side, offset + side))
        face = Image.composite(Image.new("RGB", (side, side), lit), Image.new("RGB", (side, side), shade), light)
        mask = Image.new("L", (side * _FINER, side * _FINER))
        ImageDraw.Draw(mask).ellipse((0, 0, side * _FINER - 1, side * _FINER - 1), fill=255)
        self.image.paste(face, (round(x - radius), round(y - radius)), mask.reduce(_FINER))

    def mirror_below(self, horizon: float, tint: Color, strength: float) -> None:
        """Turn what lies below a height into water that mirrors what lies above."""
        top = round(horizon)
        depth = self.height - top
        if depth < 4 or top < 4:
            return
        source = self.image.crop((0, max(0, top - depth * 2), self.width, top)).transpose(
            Image.Transpose.FLIP_TOP_BOTTOM
        )
        water = source.resize((self.width, depth), Image.Resampling.BILINEAR)
        for row in range(0, depth, step := max(2, depth // 48)):
            shift = round(self.chance.gauss(0, 1) * self.unit / 420 * (0.4 + 2.4 * row / depth))
            strip = water.crop((0, row, self.width, min(depth, row + step)))
            water.paste(ImageChops.offset(strip, shift, 0), (0, row))
        self.image.paste(Image.blend(water, Image.new("RGB", water.size, tint), strength), (0, top))


@cache
def _fading_disc() -> Image.Image:
    """Make a disc that is bright in the middle and fades to nothing at its rim."""
    far = Image.radial_gradient("L")
    return far.point([round(255 * max(0.0, 1 - part / 181) ** 2) for part in range(256)])


def _gradient(width: int, height: int, top: Color, bottom: Color) -> Image.Image:
    column = Image.new("RGB", (1, 64))
    column.putdata([mix(top, bottom, step / 63) for step in range(64)])
    return column.resize((width, height), Image.Resampling.BILINEAR)
