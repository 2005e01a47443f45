# SPDX-License-Identifier: Apache-2.0
"""A PNG of objects with their views, captions and scores, because people would rather look."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from paddlemix.annotate.scripts import QUALITY, value_of
from paddlemix.utils.files import atomic_write

PAPER, CARD, INK, FAINT, EDGE, GOOD, ODD = (
    "#fbfaf7", "#ffffff", "#22262e", "#6d7480", "#dfe2e6", "#1f8f4d", "#c8322f",
)  # fmt: skip
_BEST = max(QUALITY.values())
_VIEW, _GAP, _PAD, _TEXT, _COLUMNS = 112, 6, 14, 380, 2
_LINE = 17
_ROWS = 6
"""Lines of caption that fit beside a view."""
_LETTERS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "Arial.ttf", "arial.ttf")
_WIDE = (
    "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "NotoSansSC-Regular.otf", "wqy-microhei.ttc",
    "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf", "PingFang.ttc", "msyh.ttc",
)  # fmt: skip
FONTS = {"ascii": (), "letters": _LETTERS, "wide": _WIDE + _LETTERS}
"""Font files by what a text needs, looked for where the system keeps fonts. Pillow's own font, which has no accents, is
for plain text and for when none is there: what it cannot draw shows as boxes."""


def draw(path: Path, entries: Sequence[tuple[Mapping[str, Any], Sequence[Image.Image]]], title: str) -> None:
    """Write ``path`` with one card for each (record, views); records are those of a batch run's file.

    A card shows the name, the score (of 6), scale and style, and the caption (or else the description), cut to what
    fits. An answer that could not be read is red, as is an object without images.
    """
    views = max([len(pictures) for _, pictures in entries] + [1])
    columns = max(1, min(_COLUMNS, len(entries)))
    card = (2 * _PAD + views * (_VIEW + _GAP) + _TEXT, 2 * _PAD + _VIEW + 8)
    rows = -(-len(entries) // columns)
    sheet = Image.new("RGB", (columns * (card[0] + _PAD) + _PAD, 48 + rows * (card[1] + _PAD)), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_PAD, 14), title, INK, _font(18))
    for index, (record, pictures) in enumerate(entries):
        row, column = divmod(index, columns)
        left, top = _PAD + column * (card[0] + _PAD), 48 + row * (card[1] + _PAD)
        pen.rounded_rectangle([left, top, left + card[0], top + card[1]], 8, CARD, EDGE)
        for number, picture in enumerate(pictures):
            small = picture.resize((_VIEW, _VIEW), Image.Resampling.BILINEAR)
            sheet.paste(small, (left + _PAD + number * (_VIEW + _GAP), top + _PAD))
        _words(pen, (left + _PAD + views * (_VIEW + _GAP) + 8, top + _PAD - 2), record)
    atomic_write(path, _png(sheet))


def _words(pen: ImageDraw.ImageDraw, at: tuple[int, int], record: Mapping[str, Any]) -> None:
    x, y = at
    name = str(record.get("id") or value_of(record, "image_pth") or "")
    pen.text((x, y), _cut(name, _TEXT - 90, 13), FAINT, _font(13, name))
    if record.get("error"):
        _lines(pen, (x, y + _LINE), str(record["error"]), ODD)
        return
    unknown = record.get("unknown", {})
    if "score" in record:
        score, odd = record["score"], record["score"] is None or "score" in unknown
        text = f"{'?' if odd else score} / {_BEST}"
        pen.text((x + _TEXT - 20, y), text, ODD if odd else GOOD, _font(15), "ra")
    kinds = [str(record[key]) for key in ("level", "style") if record.get(key)]
    if kinds:
        odd = any(key in unknown for key in ("level", "style"))
        line = "  ·  ".join(kinds)
        pen.text((x, y + _LINE), _cut(line, _TEXT - 20, 13), ODD if odd else FAINT, _font(13, line))
    words = value_of(record, "caption") or value_of(record, "desciption") or ""
    _lines(pen, (x, y + _LINE * (2 if kinds else 1)), str(words), INK)


def _lines(pen: ImageDraw.ImageDraw, at: tuple[int, int], text: str, colour: str) -> None:
    for number, line in enumerate(wrapped(text, _TEXT - 20, _ROWS)):
        pen.text((at[0], at[1] + number * _LINE), line, colour, _font(13, text))


def wrapped(text: str, width: float, rows: int) -> list[str]:
    """``text`` in at most ``rows`` lines of ``width`` pixels; the last one ends with "..." when more would follow.

    Lines break at spaces; a word that is wider than a line (and text without spaces, such as Chinese) breaks anywhere.
    """
    font = _font(13, text)
    lines: list[str] = []
    rest = " ".join(text.split())
    while rest and len(lines) < rows:
        size = _fitting(rest, width, font)
        if size < len(rest) and rest[size] != " " and " " in rest[:size]:
            size = rest.rindex(" ", 0, size)
        lines.append(rest[:size])
        rest = rest[size:].lstrip()
    if rest:
        lines[-1] = _cut(f"{lines[-1]} {rest}", width, 13)
    return lines


def _fitting(text: str, width: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    """How many characters of ``text`` fit into ``width`` pixels, at least one."""
    # No glyph is narrower than a pixel: the search never measures more of a long text than could fit.
    low, high = 1, min(len(text), int(width))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle]) <= width else (low, middle - 1)
    return low


def _cut(text: str, width: float, size: int) -> str:
    """The beginning of ``text`` that fits, with "..." where something was cut."""
    font = _font(size, text)
    if len(text) <= width and font.getlength(text) <= width:
        return text
    return text[: _fitting(text, width - font.getlength("..."), font)].rstrip() + "..."


def _font(size: int, text: str = "") -> Any:
    """The font that ``text`` needs."""
    last = ord(max(text, default=" "))
    return _found("wide" if last >= 0x2E80 else "letters" if last > 0xB7 else "ascii", size)


@cache
def _found(kind: str, size: int) -> Any:
    for name in FONTS[kind]:
        with contextlib.suppress(OSError):
            return ImageFont.truetype(name, size)
    return ImageFont.load_default(size)


def _png(sheet: Image.Image) -> bytes:
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    return stream.getvalue()
