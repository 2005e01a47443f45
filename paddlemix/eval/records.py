# SPDX-License-Identifier: Apache-2.0
"""Records of foreign JSON, JSON-lines and TSV files, whose values are asked for by name and kind.

An error names the file, the JSON pointer and the value: ``answers.jsonl:13: /text: expected a text, got null``.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddlemix.utils.errors import DataError
from paddlemix.utils.foreign import JsonValue, parse_json, read_text
from paddlemix.utils.shown import as_json, shown

MAX_BYTES = 2 << 30
"""Largest file of a benchmark. MMBench with its images has 60 MB, the annotations of VQAv2 400 MB."""


@dataclass(frozen=True)
class Record:
    """An object of a file. ``place`` names the file, for JSON lines with the line; ``pointer`` leads to the object."""

    value: Mapping[str, Any]
    place: str
    pointer: str = ""

    @property
    def where(self) -> str:
        """The record by its place, for messages."""
        return f"{self.place}: {shown(self.pointer)}" if self.pointer else self.place

    def fault(self, key: str, message: str) -> DataError:
        """An error about the value of ``key``."""
        return DataError(f"{self.place}: {shown(self.pointer)}/{shown(key, 80)}: {message}")

    def get(self, key: str) -> Any:
        """The value of a key that has to be there."""
        if key not in self.value:
            has = ", ".join(map(str, list(self.value)[:12])) or "nothing"
            raise self.fault(key, f"missing; this record has {shown(has)}")
        return self.value[key]

    def text(self, key: str, default: str | None = None) -> str:
        """A text; ``default`` when the key is absent."""
        if default is not None and key not in self.value:
            return default
        value = self.get(key)
        if not isinstance(value, str):
            raise self.fault(key, _no_text(value))
        return value

    def name(self, key: str) -> str:
        """An id: a text, or a whole number as a text."""
        value = self.get(key)
        if not isinstance(value, str) and type(value) is not int:
            raise self.fault(key, f"expected a text or a whole number, got {as_json(value)}")
        return str(value)

    def number(self, key: str) -> int:
        """A whole number."""
        value = self.get(key)
        if type(value) is not int:
            raise self.fault(key, f"expected a whole number, got {as_json(value)}")
        return value

    def items(self, key: str) -> list[Any]:
        """A list."""
        value = self.get(key)
        if not isinstance(value, list):
            raise self.fault(key, f"expected a list, got {as_json(value)}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts."""
        found = self.items(key)
        for number, value in enumerate(found):
            if not isinstance(value, str):
                raise self.fault(f"{key}/{number}", _no_text(value))
        return tuple(found)

    def record(self, key: str) -> "Record":
        """An object inside."""
        return _object(self.get(key), self.place, f"{self.pointer}/{key}")

    def records(self, key: str) -> Iterator["Record"]:
        """The objects of a list."""
        for number, value in enumerate(self.items(key)):
            yield _object(value, self.place, f"{self.pointer}/{key}/{number}")


def _no_text(value: JsonValue) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"expected a text, got {as_json(value)}" + (f'; write it in quotes: "{as_json(value)}"' if number else "")


def _object(value: JsonValue, place: str, pointer: str) -> Record:
    if not isinstance(value, dict):
        raise DataError(f"{place}: {shown(pointer) or '/'}: expected an object {{...}}, got {as_json(value)}")
    return Record(value, place, pointer)


def read_lines(path: Path) -> Iterator[Record]:
    """The records of a JSON-lines file; empty lines are passed over."""
    for number, line in enumerate(read_text(path, DataError, MAX_BYTES).split("\n"), 1):
        if line.strip():
            place = f"{path}:{number}"
            value = parse_json(line, place, DataError, halves=True)
            if isinstance(value, list):
                raise DataError(f"{place}: a list; expected one object {{...}} a line (JSON lines)")
            yield _object(value, place, "")


def read_object(path: Path) -> Record:
    """The object of a JSON file."""
    value = parse_json(read_text(path, DataError, MAX_BYTES), str(path), DataError, max_values=None, halves=True)
    return _object(value, str(path), "")


def read_list(path: Path) -> Iterator[Record]:
    """The records of a JSON file that holds a list, or of a JSON-lines file."""
    text = read_text(path, DataError, MAX_BYTES)
    if not text.lstrip().startswith("["):
        yield from read_lines(path)
        return
    values = parse_json(text, str(path), DataError, max_values=None, halves=True)
    for number, value in enumerate(values):
        yield _object(value, str(path), f"/{number}")


def read_table(path: Path, needed: Sequence[str]) -> list[Record]:
    """The rows of a TSV file with a header, all values as texts; ``needed`` columns have to be there."""
    text = read_text(path, DataError, MAX_BYTES)
    limit = csv.field_size_limit(len(text) + 1)  # an image in base64 is longer than Python's limit
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t")
        header = next(reader, [])
        missing = [name for name in needed if name not in header]
        if missing:
            has = shown(", ".join(header)) or "nothing"
            raise DataError(f"{path}:1: no column {', '.join(missing)}; the header has {has}. Is it tab-separated?")
        rows = []
        for row in reader:
            if row:
                rows.append(_row(header, row, f"{path}:{reader.line_num}"))
    except csv.Error as cause:
        raise DataError(f"{path}:{reader.line_num}: not a table ({cause})") from cause
    finally:
        csv.field_size_limit(limit)
    return rows


def _row(header: list[str], row: list[str], place: str) -> Record:
    if len(row) != len(header):
        raise DataError(f"{place}: {len(row)} columns, the header has {len(header)}; download the file again")
    return Record(dict(zip(header, row, strict=True)), place)
