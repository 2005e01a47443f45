# SPDX-License-Identifier: Apache-2.0
"""Objects in a CSV file as people have them: with or without a header, with any usual separator, and with captions
that hold separators (the original tool cuts at the first one), quotes or line breaks.

Cells in quotes follow RFC 4180, as Python's csv module reads them. That module is not used because it loses the quotes
of unquoted captions, and takes the rest of a file for one caption when somebody writes of 12" rulers.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from paddlemix.annotate.scripts import CORRECT
from paddlemix.utils.errors import DataError

SEPARATORS = ",;\t|"

NAMES = ("id", "uid", "uuid", "object_id", "model_id", "object", "name", "image_pth", "image_path", "image", "path",
         "file_name", "file", "sheet", "编号", "名称")  # fmt: skip
"""Header words for what names an object, the likeliest first. Case, spaces, dashes and underscores do not matter."""

TEXTS = ("caption", "captions", "description", "desciption", "text", "prompt", "label", "title", "描述", "说明")
"""Header words for what is said about an object."""

CAPTION = "caption"

_QUOTED = r'[ \t]*"((?:[^"]|"")*)"[ \t]*'
_FIRST = re.compile(rf"(?:{_QUOTED})?[^{SEPARATORS}]*([{SEPARATORS}])")
_EMPTY_LINES = re.compile(r"(?:[ \t]*\n)*(?:[ \t]*\Z)?")
_OPENS = re.compile(rf'(?:^|[{SEPARATORS}])[ \t]*"')


def read_csv(text: str, key: str, where: str) -> list[tuple[str, dict[str, Any]]]:
    """``file:line`` and values of each record. ``key`` names the column that tells an object's images: the one that
    the header has for it, without a header the first. DataError names the file and the line.
    """
    told = re.match(r"sep=(.)[ \t]*\n", text)  # Excel's own first line
    start = told.end() if told else 0
    table = _Table(text, told[1] if told else _separator(text), where)
    columns, place = table.columns(start, key)
    return list(table.records(place, columns))


def _separator(text: str) -> str:
    """What most lines have first. The first line counts only alone: a header may be written by other hands."""
    votes, inside = [], False
    for line in text.split("\n"):
        found = None if inside else _FIRST.match(line)
        if found:
            votes.append(found[2])
        if line.count('"') % 2 and (inside or _OPENS.search(line)):
            inside = not inside  # a caption of several lines
    return Counter(votes[1:] or votes).most_common(1)[0][0] if votes else ","


@dataclass(frozen=True)
class _Table:
    """The text of a file, read from places in it. Cells end at ``separator``."""

    text: str
    separator: str
    where: str

    def columns(self, place: int, key: str) -> tuple[list[str], int]:
        """Names of the columns, and where the first record begins."""
        place = self.filled(place)
        heads, after = self.heads(place)
        line = self.text[place:].partition("\n")[0]
        for cells in (heads, *([cell.strip(' "') for cell in line.split(other)] for other in SEPARATORS)):
            if _is_header(cells, key):
                return _columns(cells, key), after
        return [key, CAPTION], place

    def heads(self, place: int) -> tuple[list[str], int]:
        """The cells of what may be a header, and the place behind it. An open quote is no header's."""
        try:
            return self.row(place, None)
        except DataError:
            return [""], place

    def records(self, place: int, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """All records from ``place`` on."""
        most = len(columns) if columns[-1] == CAPTION else None
        line, counted = 1, 0
        while (begin := self.filled(place)) < len(self.text):
            line, counted = line + self.text.count("\n", counted, begin), begin
            here = f"{self.where}:{line}"
            cells, place = self.row(begin, most)
            if len(cells) > len(columns):
                raise DataError(
                    f"{here}: {len(cells)} cells where the header has {len(columns)}; "
                    f'put a text with "{self.separator}" in it in quotes'
                )
            other = _FIRST.match(self.text[begin : place - 1]) if len(cells) == 1 else None
            if other:
                raise DataError(
                    f'{here}: no "{self.separator}" in this line, but a "{other[2]}"; use one separator in the whole '
                    "file, or put a name with it in quotes"
                )
            yield here, dict(zip(columns, cells, strict=False))

    def filled(self, place: int) -> int:
        """The beginning of the next line that is not empty."""
        found = _EMPTY_LINES.match(self.text, place)
        return found.end() if found else place

    def row(self, place: int, most: int | None) -> tuple[list[str], int]:
        """The cells of a record and the place behind it. The last of ``most`` cells is all that is left of the line."""
        cells: list[str] = []
        while True:
            last = most is not None and len(cells) + 1 == most
            cell, place = self.cell(place, "\n" if last else f"{self.separator}\n")
            cells.append(cell)
            if place >= len(self.text) or self.text[place] == "\n":
                return cells, place + 1
            place += 1

    def cell(self, place: int, ends: str) -> tuple[str, int]:
        """One cell and the place of its end, which is one of ``ends`` or the end of the text."""
        stop = f"[{re.escape(ends)}]"
        found = re.compile(rf"{_QUOTED}(?={stop}|\Z)").match(self.text, place)
        if found:
            return found[1].replace('""', '"'), found.end()
        ended = re.compile(stop).search(self.text, place)
        end = ended.start() if ended else len(self.text)
        cell = self.text[place:end].strip()
        if cell.startswith('"') and cell.count('"') % 2:
            line = self.text.count("\n", 0, place) + 1
            raise DataError(
                f"{self.where}:{line}: a quote opens here that does not close where the cell ends; "
                'write a quote inside of a quoted text twice (""), or leave the quotes away'
            )
        return cell, end


def _plain(word: str) -> str:
    return re.sub(r"[\s_-]", "", word).casefold()


def _is_header(cells: Sequence[str], key: str) -> bool:
    """Whether these are names of columns. An object may be called "image" too: then the rest are no single words."""
    words = [_plain(cell) for cell in cells]
    if {_plain(key), _plain(CORRECT.get(key, key))}.intersection(words):
        return True
    if words[0] in map(_plain, NAMES):
        return all(re.fullmatch(r"[\w-]*", cell) for cell in cells[1:])
    known = set(map(_plain, TEXTS[:4]))
    return bool(known.intersection(words)) and not re.search(r"[\d./\\]", cells[0])


def _columns(heads: Sequence[str], key: str) -> list[str]:
    """Names of the columns: ``key`` for the best of ``NAMES``, "caption" for the best of ``TEXTS``, the rest as is."""
    words = [_plain(head) for head in heads]
    texts = [word for text in TEXTS if (word := _plain(text)) in words]
    text = words.index(texts[0]) if texts else None
    naming = [word for name in (key, CORRECT.get(key, key), *NAMES) if (word := _plain(name)) in words]
    name = words.index(naming[0]) if naming else next((n for n in range(len(words)) if n != text), 0)
    kept = [head or f"column {n}" for n, head in enumerate(heads, 1)]
    return [key if n == name else CAPTION if n == text else head for n, head in enumerate(kept)]
