# SPDX-License-Identifier: Apache-2.0
"""The images of the demo: scenes of one to four coloured shapes, drawn from numbers that a seed decides."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, ImageDraw

COLOURS = {
    "red": (222, 54, 51),
    "green": (52, 176, 76),
    "blue": (58, 104, 232),
    "yellow": (246, 206, 60),
    "purple": (160, 72, 200),
    "white": (244, 244, 240),
}
KINDS = ("circle", "square", "triangle", "star", "cross")
PLACES = ("top left", "top right", "bottom left", "bottom right")

SIDE = 96
"""Side of an image file in pixels."""

_OVERSAMPLE = 2
_CROSS = 0.36
"""Half the width of a cross's arm over its reach."""


@dataclass(frozen=True)
class Shape:
    """One thing in an image. ``radius`` and ``shift`` are parts of half a quarter's side, ``turn`` is in degrees."""

    kind: str
    colour: str
    place: str
    radius: float
    shift: tuple[float, float]
    turn: float
    tint: tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """An image before it is drawn: at most one shape in each quarter; kinds and colours do not repeat."""

    background: tuple[int, int, int]
    shapes: tuple[Shape, ...]

    @property
    def unseen(self) -> bool:
        """Whether it belongs to the images that no training sees: a shape stands in its ``held_out_place``."""
        return any(shape.place == held_out_place(shape.colour, shape.kind) for shape in self.shapes)


def held_out_place(colour: str, kind: str) -> str:
    """The one place in which no training image shows this thing. It is shown in the three others."""
    return PLACES[(list(COLOURS).index(colour) + KINDS.index(kind)) % len(PLACES)]


def draw_scene(rng: random.Random, count: int) -> Scene:
    """A scene of ``count`` shapes."""
    chosen = zip(rng.sample(PLACES, count), rng.sample(list(COLOURS), count), rng.sample(KINDS, count), strict=True)
    shapes = tuple(
        Shape(
            kind=kind,
            colour=colour,
            place=place,
            radius=rng.uniform(0.70, 0.90),
            shift=(rng.uniform(-1, 1), rng.uniform(-1, 1)),
            turn=rng.uniform(-12, 12),
            tint=(rng.randint(-18, 18), rng.randint(-18, 18), rng.randint(-18, 18)),
        )
        for place, colour, kind in chosen
    )
    return Scene((rng.randint(8, 64), rng.randint(8, 64), rng.randint(16, 80)), shapes)


def draw_scenes(seed: int, name: str, most: int = 1, *, unseen: bool) -> Iterator[Scene]:
    """Scenes of one to ``most`` shapes without end, on one side of the split. ``seed`` and ``name`` decide them."""
    rng = random.Random(f"{name} {seed}")
    while True:
        # The number is drawn first, so that it is spread alike on both sides of the split.
        count = rng.randint(1, most)
        scene = draw_scene(rng, count)
        while scene.unseen != unseen:
            scene = draw_scene(rng, count)
        yield scene


def paint(scene: Scene, side: int = SIDE) -> Image.Image:
    """The RGB image of ``side`` x ``side`` pixels, with smooth edges."""
    wide = side * _OVERSAMPLE
    picture = Image.new("RGB", (wide, wide), scene.background)
    pen = ImageDraw.Draw(picture)
    half = wide / 4
    for shape in scene.shapes:
        radius = half * shape.radius
        row, column = divmod(PLACES.index(shape.place), 2)
        x = half * (2 * column + 1) + shape.shift[0] * (half - radius) * 0.8
        y = half * (2 * row + 1) + shape.shift[1] * (half - radius) * 0.8
        tinted = zip(COLOURS[shape.colour], shape.tint, strict=True)
        colour = tuple(max(0, min(255, base + tint)) for base, tint in tinted)
        if shape.kind == "circle":
            pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)
        else:
            pen.polygon([(x + radius * a, y + radius * b) for a, b in _outline(shape.kind, shape.turn)], fill=colour)
    return picture.resize((side, side), Image.Resampling.BOX)


def _outline(kind: str, turn: float) -> list[tuple[float, float]]:
    """Corners of a shape of radius 1 around the origin, turned by ``turn`` degrees."""
    if kind == "cross":
        arm = [(-_CROSS, -1.0), (_CROSS, -1.0), (_CROSS, -_CROSS)]
        corners = [_quarter_turned(x, y, quarters) for quarters in range(4) for x, y in arm]
    else:
        corners = [_on_circle(angle, reach) for angle, reach in _RAYS[kind]]
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    return [(x * cos - y * sin, x * sin + y * cos) for x, y in corners]


_RAYS = {
    "square": [(45 + 90 * corner, 1.15) for corner in range(4)],
    "triangle": [(-90 + 120 * corner, 1.15) for corner in range(3)],
    "star": [(-90 + 36 * corner, 1.15 if corner % 2 == 0 else 0.48) for corner in range(10)],
}
"""Direction in degrees and distance of each corner."""


def _quarter_turned(x: float, y: float, quarters: int) -> tuple[float, float]:
    for _ in range(quarters):
        x, y = -y, x
    return x, y


def _on_circle(angle: float, reach: float) -> tuple[float, float]:
    return reach * math.cos(math.radians(angle)), reach * math.sin(math.radians(angle))
