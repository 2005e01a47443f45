# SPDX-License-Identifier: Apache-2.0
"""Images of simple solids whose four sides have colours of their own, seen from four directions.

A solid is the part of space on the inner side of a few planes, so a ray hits it where it enters the last of them: the
whole renderer is one comparison of pixels and planes in numpy.
"""

import math
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from paddlemix.demo.shapes import COLOURS

SIDES = ("front", "right", "back", "left")
"""Sides of a solid in the order of the views: view k looks at side k."""

SIDE = 32
"""Side of an image in pixels."""

UNSEEN_OF = 6
"""One in this many combinations of solid and colours is kept away from the training."""

_OVERSAMPLE = 3
_TOP = (128, 130, 136)
_LIGHT = np.array([-0.35, -0.55, 0.76])
"""Where the light comes from, as seen by the camera, so that no view is darker than another."""


@dataclass(frozen=True)
class Solid:
    """A solid: how far its sides lean inwards, and its proportions."""

    name: str
    lean: float
    cut: float
    height: float


SOLIDS = (
    Solid("cube", lean=0.0, cut=0.8, height=0.8),
    Solid("tower", lean=0.0, cut=1.15, height=0.55),
    Solid("pyramid", lean=0.7, cut=9.0, height=0.9),
    Solid("stump", lean=0.45, cut=0.55, height=0.95),
)


@dataclass(frozen=True)
class Scene:
    """One object: a solid, the colours of its sides (front, right, back, left), and how it is looked at.

    ``turn`` and ``lift`` (degrees) move the camera a little to the side and up; ``size`` scales the object.
    """

    solid: Solid
    colours: tuple[str, str, str, str]
    turn: float
    lift: float
    size: float
    background: tuple[int, int, int]
    tint: tuple[int, int, int]

    @property
    def unseen(self) -> bool:
        """Whether its combination of solid and colours belongs to the objects that no training sees."""
        return zlib.crc32(repr((self.solid.name, self.colours)).encode()) % UNSEEN_OF == 0

    def colour(self, side: str) -> str:
        """The colour of a side."""
        return self.colours[SIDES.index(side)]


def draw_scene(rng: random.Random) -> Scene:
    """An object whose sides take their colours independently, so that no side tells anything about another."""
    colours = tuple(rng.choice(list(COLOURS)) for _ in SIDES)
    return Scene(
        solid=rng.choice(SOLIDS),
        colours=colours,
        turn=rng.uniform(-14, 14),
        lift=rng.uniform(18, 30),
        size=rng.uniform(0.85, 1.05),
        background=(rng.randint(8, 64), rng.randint(8, 64), rng.randint(16, 80)),
        tint=(rng.randint(-16, 16), rng.randint(-16, 16), rng.randint(-16, 16)),
    )


def draw_scenes(seed: int, name: str, *, unseen: bool) -> Iterator[Scene]:
    """Objects without end, all on one side of the split. ``seed`` and ``name`` decide them."""
    rng = random.Random(f"solids {name} {seed}")
    while True:
        scene = draw_scene(rng)
        if scene.unseen == unseen:
            yield scene


def views(scene: Scene, side: int = SIDE) -> list[Image.Image]:
    """The four views in order: from the front, the right, the back and the left."""
    return [_view(scene, 90.0 * quarter + scene.turn, side) for quarter in range(len(SIDES))]


def _view(scene: Scene, azimuth: float, side: int) -> Image.Image:
    normals, offsets, colours = _planes(scene)
    right, up, towards = _camera(azimuth, scene.lift)
    wide = side * _OVERSAMPLE
    across = (np.arange(wide) + 0.5) / wide * 3.0 - 1.5
    points = across[None, :, None] * right - (across[:, None, None] - 0.1) * up
    # A ray runs along -towards: it enters the half-space of a plane that faces the camera, and leaves the others.
    facing = normals @ towards
    distance = (offsets - points @ normals.T) / np.where(facing == 0, 1e-9, facing)
    entered = np.where(facing > 0, distance, np.inf)
    left = np.where(facing > 0, -np.inf, distance)
    face = entered.argmin(axis=-1)
    hit = entered.min(axis=-1) > left.max(axis=-1)
    light = np.clip(normals @ (right * _LIGHT[0] - towards * _LIGHT[1] + up * _LIGHT[2]), 0.0, 1.0)
    shaded = colours * (0.72 + 0.28 * light)[:, None]
    pixels = np.where(hit[..., None], shaded[face], np.asarray(scene.background, dtype=np.float64))
    fine = pixels.reshape(side, _OVERSAMPLE, side, _OVERSAMPLE, 3).mean(axis=(1, 3))
    return Image.fromarray(np.clip(fine, 0, 255).astype(np.uint8))


def _camera(azimuth: float, lift: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Directions to the right, upwards and towards the camera. At azimuth 0 the camera stands before the front (-y)."""
    a, e = math.radians(azimuth), math.radians(lift)
    towards = np.array([math.sin(a) * math.cos(e), -math.cos(a) * math.cos(e), math.sin(e)])
    right = np.array([math.cos(a), math.sin(a), 0.0])
    return right, np.cross(towards, right), towards


def _planes(scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outer normals [K, 3], offsets [K] and colours [K, 3] of the four sides, the top and the bottom."""
    solid, size = scene.solid, scene.size
    lean = math.sin(solid.lean), math.cos(solid.lean)
    normals = [(0, -lean[1], lean[0]), (lean[1], 0, lean[0]), (0, lean[1], lean[0]), (-lean[1], 0, lean[0])]
    # Each side runs through the edge of a square base of half width ``width``, ``height`` below the middle.
    width = size * (0.62 if solid.lean == 0 and solid.height < 0.7 else 0.85)
    base = size * solid.height * 0.75
    offsets = [lean[1] * width - lean[0] * base] * 4 + [size * solid.cut * 0.9, base]
    colours = [np.add(COLOURS[name], scene.tint) for name in scene.colours] + [_TOP, _TOP]
    return (
        np.array([*normals, (0, 0, 1), (0, 0, -1)], dtype=np.float64),
        np.array(offsets),
        np.clip(np.array(colours, dtype=np.float64), 0, 255),
    )
