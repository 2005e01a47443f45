# SPDX-License-Identifier: Apache-2.0
"""A PNG of objects with their views, captions and scores, because people would rather look."""

import io
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from paddlemix.generation.scripts import QUALITY, value_of
from paddlemix.utils.files import atomic_write

PAPER, CARD, INK, FAINT, EDGE, GOOD, ODD = (
    "#fbfaf7", "#ffffff", "#22262e", "#6d7480", "#dfe2e6", "#1f8f4d", "#c8322f",
)  # fmt: skip
_BEST = max(QUALITY.values())
_VIEW, _GAP, _PAD, _TEXT, _COLUMNS = 112, 6, 14, 380, 2
_LINE = 17
_ROWS = 6
"""Lines of caption that fit beside a view."""


def draw(path: Path, entries: Sequence[tuple[Mapping[str, Any], Sequence[Image.Image]]], title: str) -> None:
    """Write ``path`` with one card for each (record, views); records are those of a batch run's file.

    A card shows the name, the score (of 6), scale and style, and the caption (or else the description), cut to what
    fits. An answer that could not be read is red, as is an object without pictures.
    """
    views = max([len(pictures) for _, pictures in entries] + [1])
    card = (2 * _PAD + views * (_VIEW + _GAP) + _TEXT, 2 * _PAD + _VIEW + 8)
    rows = -(-len(entries) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * (card[0] + _PAD) + _PAD, 48 + rows * (card[1] + _PAD)), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_PAD, 14), title, INK, _font(18))
    for index, (record, pictures) in enumerate(entries):
        row, column = divmod(index, _COLUMNS)
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
    pen.text((x, y), _cut(name, _TEXT - 90, 13), FAINT, _font(13))
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
        pen.text((x, y + _LINE), _cut("  ·  ".join(kinds), _TEXT - 20, 13), ODD if odd else FAINT, _font(13))
    words = value_of(record, "caption") or value_of(record, "desciption") or ""
    _lines(pen, (x, y + _LINE * (2 if kinds else 1)), str(words), INK)


def _lines(pen: ImageDraw.ImageDraw, at: tuple[int, int], text: str, colour: str) -> None:
    for number, line in enumerate(wrapped(text, _TEXT - 20, _ROWS)):
        pen.text((at[0], at[1] + number * _LINE), line, colour, _font(13))


def wrapped(text: str, width: float, rows: int) -> list[str]:
    """``text`` in at most ``rows`` lines of ``width`` pixels; the last one ends with "..." when more would follow."""
    lines: list[str] = []
    words = text.split()
    while words and len(lines) < rows:
        line = words.pop(0)
        while words and _font(13).getlength(f"{line} {words[0]}") <= width:
            line = f"{line} {words.pop(0)}"
        lines.append(_cut(line, width, 13))
    if words:
        lines[-1] = _cut(f"{lines[-1]} {words[0]}...", width, 13, always=True)
    return lines


def _cut(text: str, width: float, size: int, *, always: bool = False) -> str:
    """The beginning of ``text`` that fits, with "..." where something was cut (or ``always``)."""
    if _font(size).getlength(text) <= width:
        return text
    kept = text.removesuffix("...") if always else text
    while kept and _font(size).getlength(f"{kept}...") > width:
        kept = kept[:-1]
    return f"{kept}..."


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _png(sheet: Image.Image) -> bytes:
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    return stream.getvalue()
