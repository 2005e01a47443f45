# SPDX-License-Identifier: Apache-2.0
"""A pen for the sheets and charts that commands leave: lines, text and cards on a page, drawn with Pillow alone."""

import io
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
        self.draw.text((at[0] * _SHARP, at[1] * _SHARP), text, colour, _font_for(text, size * _SHARP), anchor)

    def wrapped(self, text: str, size: int, width: float, most: int) -> list[str]:
        """``text`` in at most ``most`` lines of ``width`` units; what does not fit ends in three dots."""
        font = _font_for(text, size * _SHARP)
        lines, rest = [], " ".join(text.split())
        while rest and len(lines) < most:
            fits = _fitting(rest, font, width * _SHARP)
            if fits < len(rest) and len(lines) == most - 1:
                cut = _fitting(rest, font, width * _SHARP - font.getlength("..."))
                return [*lines, f"{rest[:cut].rstrip()}..."]
            at = rest.rfind(" ", 0, fits + 1) if fits < len(rest) else fits
            at = at if at > fits // 3 else fits  # a long word, or a script without spaces
            lines.append(rest[:at].rstrip())
            rest = rest[at:].lstrip()
        return lines

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
        path.write_bytes(self.png())

    def png(self, *, photos: bool = False) -> bytes:
        """The page as a PNG; with ``photos`` in all its colours."""
        stream = io.BytesIO()
        if photos:
            self.image.save(stream, "PNG", compress_level=4)
            return stream.getvalue()
        # A palette of 256 colours is enough for flat shapes and text, and makes the file a third as large.
        self.image.quantize(256, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
        return stream.getvalue()


_WIDE_FONTS = ("NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf",
               "msyh.ttc", "PingFang.ttc", "DejaVuSans.ttf")  # fmt: skip
"""Fonts of a machine with letters that Pillow's own does not have (it has Latin alone); the first one found serves."""


def _font_for(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return _font(size) if all(ord(letter) < 0x250 for letter in text) else _wide_font(size)


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> int:
    """How many letters of ``text`` fit, at least one."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle]) <= width else (low, middle - 1)
    return low


@cache
def _wide_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    for name in _WIDE_FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return _font(size)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
