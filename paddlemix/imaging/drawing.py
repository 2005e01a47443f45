# SPDX-License-Identifier: Apache-2.0
"""A pen for the sheets and charts that commands leave: lines, text and cards on a page, drawn with Pillow alone."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

PAPER, INK, FAINT, LINE = "#fbfaf7", "#22262e", "#6d7480", "#dfe2e6"
RIGHT, WRONG, CURVE = "#1f8f4d", "#c8322f", "#3469d6"

_SHARP = 2
"""Pages are drawn with this many pixels per unit of length, so that text stays crisp on dense screens."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in units."""


class Pen:
    """Draws on a page of ``width`` x ``height`` units; places are (right, down) from its upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.image = Image.new("RGB", (round(width * _SHARP), round(height * _SHARP)), PAPER)
        self.draw = ImageDraw.Draw(self.image)

    def text(self, at: tuple[float, float], text: str, size: int, colour: str, anchor: str = "la") -> None:
        """One line of text; ``anchor`` as Pillow names it."""
        self.draw.text((at[0] * _SHARP, at[1] * _SHARP), text, colour, _font(size * _SHARP), anchor)

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float = 1) -> None:
        """A line through ``points``."""
        scaled = [(x * _SHARP, y * _SHARP) for x, y in points]
        self.draw.line(scaled, colour, round(width * _SHARP), joint="curve")

    def bar(self, box: Box, fill: str) -> None:
        """A filled rectangle."""
        self.draw.rectangle([side * _SHARP for side in box], fill)

    def card(self, box: Box, fill: str, edge: str) -> None:
        """A filled box with round corners."""
        self.draw.rounded_rectangle([side * _SHARP for side in box], 7 * _SHARP, fill, edge, _SHARP)

    def paste(self, picture: Image.Image, at: tuple[float, float], side: float) -> None:
        """The image as a square of ``side`` units."""
        size = round(side * _SHARP)
        smooth = picture.resize((size, size), Image.Resampling.LANCZOS)
        self.image.paste(smooth, (round(at[0] * _SHARP), round(at[1] * _SHARP)))

    def save(self, path: Path) -> None:
        """Write the page as a PNG."""
        # A palette of 256 colours is enough for flat shapes and text, and makes the file a third as large.
        self.image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
