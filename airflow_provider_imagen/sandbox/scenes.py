"""A landscape or a city by the water: silhouettes that fade with distance, mirrored below the shore."""

from __future__ import annotations

import math
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

from PIL import Image, ImageChops, ImageDraw, ImageOps

from airflow_provider_imagen.sandbox.palettes import WHITE, Color, Palette, choose_palette, mix

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence

    Point = tuple[float, float]

_NEAREST = Image.Resampling.NEAREST
_OVERSAMPLING = 2
"""Factor by which shapes are drawn larger before they are scaled down, for smooth edges."""


def paint(
    size: tuple[int, int], *, city: bool, style: random.Random, chance: random.Random, colors: tuple[Color, ...]
) -> Image.Image:
    """
    Return a new image.

    :param style: determines the colours, the size of the sun, the depth and the finish
    :param chance: determines the rest
    :param colors: colours to use instead, if any
    """
    scene = _Scene(size, choose_palette(style, chance, colors), chance)
    scene.add_sky(scene.unit * style.uniform(0.04, 0.16))
    shore, layers = scene.height * chance.uniform(0.70, 0.80), style.choice((3, 4, 6))
    for layer in range(layers):
        (scene.add_towers if city else scene.add_ridge)(shore, layer / (layers - 1))
    scene.mirror_below(round(shore))
    scene.add_finish(style.choice(("plain", "pixelated", "ruled")))
    return scene.image


class _Pen:
    """Draws on an oversampled mask, in pixels of the finished image."""

    def __init__(self, mask: Image.Image, top: int) -> None:
        self._draw = ImageDraw.Draw(mask)
        self._top = top

    def _scaled(self, points: Sequence[Point]) -> list[Point]:
        return [(x * _OVERSAMPLING, (y - self._top) * _OVERSAMPLING) for x, y in points]

    def polygon(self, *points: Point) -> None:
        self._draw.polygon(self._scaled(points), fill=255)

    def box(self, left: float, top: float, right: float, bottom: float, opacity: float = 1) -> None:
        self._draw.rectangle(self._scaled([(left, top), (right, bottom)]), fill=round(255 * opacity))

    def disc(self, x: float, y: float, radius: float, opacity: float = 1) -> None:
        corners = [(x - radius, y - radius), (x + radius, y + radius)]
        self._draw.ellipse(self._scaled(corners), fill=round(255 * opacity))


class _Scene:
    """An unfinished image; positions and lengths are pixels of the finished one."""

    def __init__(self, size: tuple[int, int], palette: Palette, chance: random.Random) -> None:
        self.width, self.height = size
        self.unit = min(size)
        self.palette = palette
        self.chance = chance
        self.image = Image.new("RGB", size)

    def add_sky(self, radius: float) -> None:
        """Fill the image with the sky, stars at night, and the glowing sun or moon."""
        palette, chance, unit = self.palette, self.chance, self.unit
        top, middle, horizon = palette.sky
        grid = Image.new("RGB", (5, 6))
        for row in range(6):
            color = mix(top, middle, row / 2.5) if row < 3 else mix(middle, horizon, row / 2.5 - 1)
            for column in range(5):
                grid.putpixel((column, row), mix(color, chance.choice((top, horizon)), chance.uniform(0, 0.18)))
        self.image = grid.resize(self.image.size, Image.Resampling.BICUBIC)
        if palette.starry:
            with self._layer(palette.glow, bottom=self.height * 0.7) as pen:
                for _ in range(200):
                    x, y = chance.uniform(0, self.width), self.height * 0.7 * chance.random()
                    pen.disc(x, y, unit * chance.choice((0.0008, 0.001, 0.002)), chance.uniform(0.35, 1))
        x, y = self.width * chance.uniform(0.2, 0.8), self.height * chance.uniform(0.16, 0.36)
        side = max(2, round(unit * 0.4 + radius * 5))
        fading = Image.radial_gradient("L").point([round(150 * max(0.0, 1 - part / 181) ** 2) for part in range(256)])
        self.image.paste(palette.glow, (round(x - side / 2), round(y - side / 2)), fading.resize((side, side)))
        with self._layer(palette.glow, top=y - radius, bottom=y + radius) as pen:
            pen.disc(x, y, radius)

    def add_ridge(self, shore: float, nearness: float) -> None:
        """Add a range of hills by midpoint displacement, the nearest with trees."""
        chance, unit = self.chance, self.unit
        heights, spread = [chance.uniform(-0.5, 0.9) for _ in range(3)], 0.9
        while len(heights) < 200:
            finer: list[float] = []
            for left, right in pairwise(heights):
                finer += [left, (left + right) / 2 + chance.uniform(-spread, spread) / 2]
            heights, spread = [*finer, heights[-1]], spread * (0.58 - 0.08 * nearness)
        base, rise = shore * (0.52 + 0.40 * nearness), unit * (0.22 - 0.11 * nearness)
        step = self.width / (len(heights) - 1)
        ridge = [(place * step, base - rise * height) for place, height in enumerate(heights)]
        with self._layer(*self._colors(nearness), top=min(y for _, y in ridge) - unit * 0.05, bottom=shore) as pen:
            pen.polygon((0, shore), *ridge, (self.width, shore))
            for x, y in chance.choices(ridge, k=80) if nearness == 1 else ():
                tall = unit * chance.uniform(0.02, 0.05)
                for tier in range(3):
                    top, wide = y - tall * (1 - 0.24 * tier), tall * (0.12 + 0.07 * tier)
                    pen.polygon((x, top), (x + wide, top + tall * 0.5), (x - wide, top + tall * 0.5))

    def add_towers(self, shore: float, nearness: float) -> None:
        """Add a row of towers, the nearer ones with lit windows."""
        chance, unit = self.chance, self.unit
        towers: list[tuple[float, float, float]] = []
        x = -unit * 0.05
        while x < self.width:
            wide = unit * chance.uniform(0.05, 0.11) * (0.8 + 0.5 * nearness)
            tall = shore * (0.26 + 0.36 * chance.random() ** 1.6) * (1.3 - 0.7 * nearness)
            towers.append((x, shore - tall, wide))
            x += wide * chance.uniform(0.92, 1.25)
        with self._layer(*self._colors(nearness), bottom=shore) as pen:
            for left, top, wide in towers:
                pen.box(left, top, left + wide, shore)
                roof = chance.random()
                if roof < 0.25:
                    pen.polygon((left, top), (left + wide / 2, top - wide * 0.7), (left + wide, top))
                elif roof < 0.45:
                    pen.box(left + wide * 0.2, top - wide * 0.35, left + wide * 0.8, top)
                    pen.box(left + wide * 0.48, top - wide * 1.3, left + wide * 0.52, top)
        if nearness < 0.3:
            return
        step = unit * (0.011 + 0.006 * nearness)
        with self._layer(mix(self.palette.glow, (255, 208, 120), 0.5), bottom=shore) as pen:
            for left, top, wide in towers:
                columns = int((wide - step) / step)
                for row in range(int((shore - top - step) / (step * 1.35))):
                    for column in range(columns):
                        if chance.random() < 0.4:
                            x = left + (wide - columns * step) / 2 + (column + 0.2) * step
                            y = top + (0.7 + row * 1.35) * step
                            pen.box(x, y, x + step * 0.55, y + step * 0.72, chance.uniform(0.35, 0.95))

    def mirror_below(self, shore: int) -> None:
        """Fill the image below the shore with water that mirrors what is above it."""
        depth = self.height - shore
        if depth < 4 or shore < 4:
            return
        above = self.image.crop((0, max(0, shore - depth * 2), self.width, shore))
        water = above.transpose(Image.Transpose.FLIP_TOP_BOTTOM).resize((self.width, depth))
        step = max(2, depth // 48)
        for row in range(0, depth, step):
            shift = round(self.chance.gauss(0, 1) * self.unit / 420 * (0.4 + 2.4 * row / depth))
            strip = water.crop((0, row, self.width, min(depth, row + step)))
            water.paste(ImageChops.offset(strip, shift, 0), (0, row))
        tint = Image.new("RGB", water.size, mix(self.palette.sky[0], self.palette.near, 0.4))
        self.image.paste(Image.blend(water, tint, 0.35), (0, shore))

    def add_finish(self, finish: str) -> None:
        """Pixelate the image or add ruled lines; ``plain`` leaves it unchanged."""
        if finish == "pixelated":
            small = [max(1, side * 96 // self.unit) for side in self.image.size]
            self.image = self.image.resize(small, _NEAREST).resize(self.image.size, _NEAREST)
        elif finish == "ruled":
            with self._layer(WHITE) as pen:
                for row in range(0, self.height, max(3, round(self.unit / 80))):
                    pen.box(0, row, self.width, row + self.unit / 500, 0.4)

    def _colors(self, nearness: float) -> tuple[Color, Color]:
        """Return the colours of a silhouette at its top and, in the haze, at its bottom."""
        color = mix(self.palette.far, self.palette.near, nearness**1.2)
        return color, mix(color, self.palette.sky[2], 0.6 - 0.5 * nearness)

    @contextmanager
    def _layer(self, *colors: Color, top: float = 0, bottom: float = math.inf) -> Iterator[_Pen]:
        """
        Yield a pen for shapes, which are then filled.

        :param colors: one colour, or those at the top and bottom of the layer
        """
        first = max(0, int(top))
        last = max(first + 1, int(min(self.height, bottom + 1)))
        mask = Image.new("L", (self.width * _OVERSAMPLING, (last - first) * _OVERSAMPLING))
        yield _Pen(mask, first)
        mask = mask.reduce(_OVERSAMPLING)
        column = ImageOps.colorize(Image.linear_gradient("L").resize((1, mask.height)), colors[0], colors[-1])
        self.image.paste(column.resize(mask.size, _NEAREST), (0, first), mask)
