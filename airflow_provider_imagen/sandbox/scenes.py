"""The motifs the sandbox can draw; each paints on a canvas and takes every decision from the canvas's chance."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from airflow_provider_imagen.sandbox.palettes import mix, words_of

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from airflow_provider_imagen.sandbox.canvas import Canvas, Pen

    Point = tuple[float, float]


def scene_for(prompt: str, chance: random.Random) -> Callable[[Canvas], None]:
    """Choose a motif: by a word of the prompt that names one, else by chance."""
    for word in words_of(prompt):
        for scene, words in _WORDS.items():
            if {word, word.removesuffix("s")} & set(words.split()):
                return scene
    return chance.choice(list(_WORDS))


def mountains(canvas: Canvas) -> None:
    """Ridges behind one another, paler with distance, above a lake or a line of trees."""
    chance, palette, unit = canvas.chance, canvas.palette, canvas.unit
    canvas.sky()
    _sun(canvas, canvas.width * chance.uniform(0.2, 0.8), canvas.height * chance.uniform(0.16, 0.38))
    lake = chance.random() < 0.6
    shore = canvas.height * (chance.uniform(0.68, 0.76) if lake else 1.0)
    layers = 5
    for layer in range(layers):
        nearness = layer / (layers - 1)
        base = shore * (0.50 + 0.40 * nearness)
        rise = unit * (0.22 - 0.09 * nearness)
        points = _ridge(canvas, base, rise, roughness=0.58 - 0.08 * nearness)
        color = mix(palette.far, palette.near, nearness**1.2)
        haze = mix(color, palette.sky[2], 0.55 * (1 - nearness) + 0.08)
        top = min(y for _, y in points) - unit * 0.06
        with canvas.layer((0, top, canvas.width, shore), (color, haze)) as pen:
            pen.polygon([(0, shore), *points, (canvas.width, shore)])
            if layer == layers - 1:
                _trees(canvas, pen, points)
    if lake:
        canvas.mirror_below(shore, mix(palette.sky[0], palette.near, 0.3), 0.28)
    _birds(canvas)


def sea(canvas: Canvas) -> None:
    """Waves below a low sun, with a sail."""
    chance, palette, unit = canvas.chance, canvas.palette, canvas.unit
    canvas.sky()
    horizon = canvas.height * chance.uniform(0.44, 0.54)
    sun_x = canvas.width * chance.uniform(0.25, 0.75)
    _sun(canvas, sun_x, horizon - unit * chance.uniform(0.06, 0.22))
    canvas.mirror_below(horizon, mix(palette.sky[0], palette.near, 0.45), 0.5)
    with canvas.layer((0, horizon, canvas.width, canvas.height), palette.glow) as pen:
        for _ in range(70):
            depth = chance.random() ** 1.6
            y = horizon + depth * (canvas.height - horizon)
            x = sun_x + chance.gauss(0, 0.05 + 0.10 * depth) * unit
            half = unit * (0.006 + 0.05 * depth) * chance.uniform(0.4, 1)
            pen.line([(x - half, y), (x + half, y)], unit * (0.0012 + 0.0022 * depth), 0.5 * (1 - depth) + 0.08)
    _boat(canvas, canvas.width * chance.uniform(0.15, 0.85), horizon + unit * 0.035, unit * chance.uniform(0.07, 0.12))
    layers = 6
    for layer in range(layers):
        nearness = (layer + 1) / layers
        base = horizon + (canvas.height - horizon) * (0.24 + 0.66 * nearness**1.15)
        swell = unit * (0.006 + 0.022 * nearness)
        points = _swell(canvas, base, swell, length=unit * (0.16 + 0.40 * nearness))
        color = mix(mix(palette.sky[0], palette.far, 0.35), palette.near, nearness)
        with canvas.layer(
            (0, base - swell * 2, canvas.width, canvas.height), (mix(color, palette.sky[2], 0.22), color)
        ) as pen:
            pen.polygon([(0, canvas.height), *points, (canvas.width, canvas.height)], 0.9)
        with canvas.layer((0, base - swell * 2.2, canvas.width, base + swell * 2.2), palette.sky[2]) as pen:
            pen.line(points, unit * 0.0016 * (1 + nearness), 0.35 + 0.3 * nearness)
    _birds(canvas)


def city(canvas: Canvas) -> None:
    """Rows of towers with lit windows."""
    chance, palette, unit = canvas.chance, canvas.palette, canvas.unit
    canvas.sky()
    if palette.light == "night":
        canvas.stars(120, canvas.height * 0.5)
    _sun(canvas, canvas.width * chance.uniform(0.15, 0.85), canvas.height * chance.uniform(0.14, 0.34))
    ground = canvas.height * 0.84
    layers = 4
    for layer in range(layers):
        nearness = layer / (layers - 1)
        color = mix(palette.far, palette.near, 0.15 + 0.85 * nearness)
        haze = mix(color, palette.sky[2], 0.5 * (1 - nearness))
        towers: list[tuple[float, float, float]] = []
        x = -unit * 0.05
        while x < canvas.width:
            wide = unit * chance.uniform(0.05, 0.11) * (0.8 + 0.5 * nearness)
            tall = canvas.height * (0.22 + 0.32 * chance.random() ** 1.6) * (1.25 - 0.62 * nearness)
            towers.append((x, wide, tall))
            x += wide * chance.uniform(0.92, 1.25)
        with canvas.layer((0, 0, canvas.width, ground), (color, haze)) as pen:
            for left, wide, tall in towers:
                pen.box(left, ground - tall, left + wide, ground)
                crown = chance.random()
                if crown < 0.25:
                    pen.polygon(
                        [
                            (left, ground - tall),
                            (left + wide / 2, ground - tall - wide * 0.7),
                            (left + wide, ground - tall),
                        ]
                    )
                elif crown < 0.45:
                    pen.box(left + wide * 0.2, ground - tall - wide * 0.35, left + wide * 0.8, ground - tall)
                    pen.line(
                        [(left + wide / 2, ground - tall), (left + wide / 2, ground - tall - wide * 1.3)], unit * 0.003
                    )
        if nearness > 0.3:
            _windows(canvas, towers, ground, nearness)
    canvas.mirror_below(ground, palette.near, 0.35)


def planets(canvas: Canvas) -> None:
    """A large planet with a ring and moons, before stars and a nebula."""
    chance, palette, unit = canvas.chance, canvas.palette, canvas.unit
    deep = (9, 10, 24)
    tints = (mix(deep, palette.accent, 0.42), mix(deep, palette.sky[0], 0.45), mix(deep, palette.far, 0.35))
    canvas.mesh([[mix(deep, chance.choice(tints), chance.random() ** 1.5) for _ in range(6)] for _ in range(5)])
    canvas.stars(420, canvas.height)
    for _ in range(5):
        canvas.glow(
            chance.uniform(0, canvas.width), chance.uniform(0, canvas.height), unit * 0.02, (255, 255, 255), 0.8
        )
    x, y = canvas.width * chance.uniform(0.34, 0.66), canvas.height * chance.uniform(0.34, 0.50)
    radius = unit * chance.uniform(0.19, 0.26)
    canvas.glow(x, y, radius * 1.9, mix(palette.accent, (255, 255, 255), 0.25), 0.45)
    tilt = chance.uniform(-0.4, 0.4)
    _ring(canvas, x, y, radius, tilt, behind=True)
    canvas.ball(x, y, radius, mix(palette.accent, (255, 255, 255), 0.30), mix(palette.accent, deep, 0.86))
    _ring(canvas, x, y, radius, tilt, behind=False)
    for _ in range(3):
        turn, away = chance.uniform(0, math.tau), chance.uniform(1.7, 2.6)
        small = radius * chance.uniform(0.08, 0.2)
        canvas.ball(
            x + math.cos(turn) * radius * away,
            y + math.sin(turn) * radius * away * 0.7,
            small,
            mix(palette.far, (255, 255, 255), 0.4),
            mix(palette.far, deep, 0.85),
        )


def blossoms(canvas: Canvas) -> None:
    """Large translucent flowers on a soft ground."""
    chance, palette, unit = canvas.chance, canvas.palette, canvas.unit
    pale = mix(palette.sky[2], (255, 255, 255), 0.35) if palette.light != "night" else palette.sky[0]
    canvas.mesh(
        [
            [
                mix(pale, chance.choice((palette.far, palette.sky[1], palette.accent)), chance.uniform(0, 0.45))
                for _ in range(4)
            ]
            for _ in range(4)
        ]
    )
    blooms: list[Point] = []
    for _ in range(9):
        candidates = [
            (chance.uniform(0.05, 0.95) * canvas.width, chance.uniform(0.06, 0.74) * canvas.height) for _ in range(8)
        ]
        blooms.append(max(candidates, key=lambda at: min((math.dist(at, other) for other in blooms), default=0)))
    blooms.sort(key=lambda at: at[1])
    with canvas.layer((0, 0, canvas.width, canvas.height), (mix(palette.near, palette.far, 0.4), palette.near)) as pen:
        for x, y in blooms:
            bend = chance.uniform(-0.12, 0.12) * unit
            stem = [(x + bend * (step / 16) ** 2, y + (canvas.height - y) * step / 16) for step in range(17)]
            pen.line(stem, unit * 0.006, 0.9)
            for step in (6, 10):
                _leaf(
                    pen,
                    stem[step],
                    chance.choice((-1, 1)) * chance.uniform(0.5, 1.1),
                    unit * chance.uniform(0.07, 0.12),
                )
    for x, y in blooms:
        size = unit * chance.uniform(0.09, 0.16)
        petals = chance.choice((6, 8, 9, 12))
        color = mix(
            palette.accent, chance.choice((palette.glow, palette.far, palette.accent)), chance.uniform(0.05, 0.5)
        )
        turn = chance.uniform(0, math.tau)
        for ring, shade in (
            (1.0, mix(color, palette.near, 0.22)),
            (0.78, color),
            (0.52, mix(color, (255, 255, 255), 0.35)),
        ):
            reach = size * ring
            with canvas.layer((x - reach, y - reach, x + reach, y + reach), shade) as pen:
                for petal in range(petals):
                    angle = turn + math.tau * petal / petals + (math.pi / petals if ring == 0.78 else 0)
                    pen.polygon(_petal(x, y, angle, reach, reach * 2.1 / petals), 0.9)
        with canvas.layer((x - size, y - size, x + size, y + size), mix(palette.glow, palette.accent, 0.3)) as pen:
            pen.disc(x, y, size * 0.17)


def currents(canvas: Canvas) -> None:
    """Long strands that follow an invisible current."""
    chance, palette, unit = canvas.chance, canvas.palette, canvas.unit
    dark = palette.light == "night"
    ground = mix(palette.near, (0, 0, 0), 0.25) if dark else mix(palette.sky[2], (255, 255, 255), 0.4)
    canvas.mesh(
        [
            [mix(ground, chance.choice((palette.sky[0], palette.far)), chance.uniform(0, 0.4)) for _ in range(4)]
            for _ in range(4)
        ]
    )
    waves = [
        (chance.uniform(0.8, 2.6) / unit * math.pi, chance.uniform(0, math.tau), chance.uniform(0, math.tau))
        for _ in range(3)
    ]

    def direction(x: float, y: float) -> float:
        return (
            sum(math.sin(x * pace * math.cos(lean) + y * pace * math.sin(lean) + phase) for pace, lean, phase in waves)
            * 0.9
        )

    strand_colors = (
        palette.sky[0],
        palette.accent,
        palette.far,
        mix(palette.accent, palette.glow, 0.5),
        palette.near,
        palette.sky[1],
    )
    drift = chance.uniform(-0.6, 0.6)
    for color in strand_colors:
        with canvas.layer((0, 0, canvas.width, canvas.height), color) as pen:
            for _ in range(26):
                x, y = chance.uniform(-0.2, 1.0) * canvas.width, chance.uniform(-0.05, 1.05) * canvas.height
                strand = [(x, y)]
                pace = unit / 44
                for _ in range(chance.randrange(14, 44)):
                    angle = drift + direction(x, y)
                    x, y = x + math.cos(angle) * pace, y + math.sin(angle) * pace
                    strand.append((x, y))
                pen.line(strand, unit * 0.0125 * chance.random() ** 2.2 + unit * 0.0012, chance.uniform(0.55, 1.0))
                pen.disc(*strand[-1], unit * 0.004, 1.0)


_WORDS: dict[Callable[[Canvas], None], str] = {
    mountains: "mountain alps hill valley landscape forest lake autumn desert volcano tree wood meadow fox cabin",
    sea: "sea ocean wave harbour harbor beach coast boat ship sail sailing lighthouse island surf bay whale fish",
    city: "city skyscraper street skyline building tower town bridge market neon cafe house roof architecture train",
    planets: "planet space galaxy star moon rocket astronaut cosmos nebula universe orbit",
    blossoms: "flower garden blossom rose tulip spring bouquet petal plant leaf butterfly bee bird orchid",
    currents: "abstract pattern flow texture poster logo wallpaper wind music dream data",
}
"""The words that choose each motif, in the singular."""


def _sun(canvas: Canvas, x: float, y: float) -> None:
    palette, unit = canvas.palette, canvas.unit
    if palette.light == "night":
        canvas.stars(160, canvas.height * 0.55)
    radius = unit * canvas.chance.uniform(0.045, 0.075)
    canvas.glow(x, y, radius * 8, palette.glow, 0.55)
    canvas.glow(x, y, radius * 2.6, palette.glow, 0.75)
    with canvas.layer((x - radius, y - radius, x + radius, y + radius), palette.glow) as pen:
        pen.disc(x, y, radius)


def _ridge(canvas: Canvas, base: float, rise: float, roughness: float) -> list[Point]:
    """Break a line again and again, less each time: a skyline of rock."""
    chance = canvas.chance
    heights = [chance.uniform(-0.5, 0.5), chance.uniform(-0.5, 0.9), chance.uniform(-0.5, 0.5)]
    spread = 0.9
    while len(heights) < 200:
        finer = []
        for left, right in pairwise(heights):
            finer += [left, (left + right) / 2 + chance.uniform(-spread, spread) * 0.5]
        heights = [*finer, heights[-1]]
        spread *= roughness
    last = len(heights) - 1
    return [(canvas.width * place / last, base - rise * height) for place, height in enumerate(heights)]


def _swell(canvas: Canvas, base: float, height: float, length: float) -> list[Point]:
    chance = canvas.chance
    phases = [chance.uniform(0, math.tau) for _ in range(3)]
    steps = 140
    points = []
    for step in range(steps + 1):
        x = canvas.width * step / steps
        turn = x / max(length, 1) * math.tau
        crest = (
            math.sin(turn + phases[0])
            + 0.35 * math.sin(1.7 * turn + phases[1])
            + 0.12 * math.sin(3.1 * turn + phases[2])
        )
        points.append((x, base - height * crest))
    return points


def _trees(canvas: Canvas, pen: Pen, ridge: list[Point]) -> None:
    chance = canvas.chance
    for _ in range(80):
        x, y = chance.choice(ridge)
        x += chance.uniform(-1, 1) * canvas.unit * 0.006
        tall = canvas.unit * chance.uniform(0.018, 0.052)
        for tier in range(3):
            top, wide = y - tall * (1 - 0.24 * tier), tall * (0.12 + 0.07 * tier)
            pen.polygon([(x, top), (x + wide, top + tall * 0.44), (x - wide, top + tall * 0.44)])
        pen.box(x - tall * 0.02, y - tall * 0.2, x + tall * 0.02, y + tall * 0.1)


def _birds(canvas: Canvas) -> None:
    chance, unit = canvas.chance, canvas.unit
    x, y = canvas.width * chance.uniform(0.2, 0.7), canvas.height * chance.uniform(0.10, 0.26)
    with canvas.layer((0, 0, canvas.width, canvas.height * 0.5), canvas.palette.near) as pen:
        for _ in range(chance.choice((0, 3, 5))):
            at_x, at_y = x + chance.gauss(0, 0.07) * unit, y + chance.gauss(0, 0.03) * unit
            span = unit * chance.uniform(0.008, 0.016)
            wing = [
                (at_x - span, at_y - span * 0.4),
                (at_x - span * 0.4, at_y - span * 0.5),
                (at_x, at_y),
                (at_x + span * 0.4, at_y - span * 0.5),
                (at_x + span, at_y - span * 0.4),
            ]
            pen.line(wing, unit * 0.0018, 0.85)


def _boat(canvas: Canvas, x: float, y: float, size: float) -> None:
    palette = canvas.palette
    with canvas.layer((x - size, y - size * 1.7, x + size, y), mix(palette.glow, palette.accent, 0.18)) as pen:
        pen.polygon(
            [(x + size * 0.04, y - size * 1.6), (x + size * 0.04, y - size * 0.22), (x + size * 0.72, y - size * 0.22)]
        )
    with canvas.layer((x - size, y - size * 1.7, x + size, y), mix(palette.accent, palette.near, 0.2)) as pen:
        pen.polygon(
            [(x - size * 0.04, y - size * 1.4), (x - size * 0.04, y - size * 0.22), (x - size * 0.5, y - size * 0.22)]
        )
    with canvas.layer((x - size, y - size * 1.7, x + size, y + size * 0.1), palette.near) as pen:
        pen.polygon(
            [
                (x - size * 0.7, y - size * 0.16),
                (x + size * 0.8, y - size * 0.16),
                (x + size * 0.5, y + size * 0.08),
                (x - size * 0.5, y + size * 0.08),
            ]
        )
        pen.line([(x, y - size * 1.65), (x, y - size * 0.1)], size * 0.035)


def _windows(canvas: Canvas, towers: list[tuple[float, float, float]], ground: float, nearness: float) -> None:
    chance, palette = canvas.chance, canvas.palette
    share = {"night": 0.55, "dusk": 0.38, "day": 0.22}[palette.light]
    step = canvas.unit * (0.011 + 0.006 * nearness)
    with canvas.layer((0, 0, canvas.width, ground), mix(palette.glow, (255, 208, 120), 0.5)) as pen:
        for left, wide, tall in towers:
            columns = int((wide - step) / step)
            margin = (wide - columns * step) / 2
            for row in range(int((tall - step) / (step * 1.35))):
                for column in range(columns):
                    if chance.random() < share:
                        x, y = left + margin + column * step, ground - tall + step * 0.7 + row * step * 1.35
                        pen.box(x + step * 0.2, y, x + step * 0.75, y + step * 0.72, chance.uniform(0.35, 0.95))


def _ring(canvas: Canvas, x: float, y: float, radius: float, tilt: float, *, behind: bool) -> None:
    start, color = (math.pi if behind else 0.0), mix(canvas.palette.far, (255, 255, 255), 0.45)
    reach = radius * 2.1
    with canvas.layer((x - reach, y - reach, x + reach, y + reach), color) as pen:
        for away, opacity in ((1.42, 0.45), (1.52, 0.8), (1.62, 0.6), (1.76, 0.3), (1.84, 0.5)):
            arc = []
            for step in range(61):
                turn = start + math.pi * step / 60
                flat_x, flat_y = math.cos(turn) * radius * away, math.sin(turn) * radius * away * 0.26
                arc.append(
                    (
                        x + flat_x * math.cos(tilt) - flat_y * math.sin(tilt),
                        y + flat_x * math.sin(tilt) + flat_y * math.cos(tilt),
                    )
                )
            pen.line(arc, radius * 0.05, opacity)


def _leaf(pen: Pen, at: Point, lean: float, length: float) -> None:
    angle = -math.pi / 2 + lean
    pen.polygon(_petal(*at, angle, length, length * 0.26), 0.9)


def _petal(x: float, y: float, angle: float, length: float, width: float) -> list[Point]:
    """Outline of a petal that begins at a point and leans by an angle."""
    outline = []
    for side in (1, -1):
        steps = range(9) if side == 1 else range(8, -1, -1)
        for step in steps:
            along = step / 8
            across = side * width * math.sin(math.pi * along**0.75) * 0.5
            outline.append(
                (
                    x + math.cos(angle) * length * along - math.sin(angle) * across,
                    y + math.sin(angle) * length * along + math.cos(angle) * across,
                )
            )
    return outline
