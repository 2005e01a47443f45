# SPDX-License-Identifier: Apache-2.0
"""The objects of a batch run: input files, their parts, and where the views of an object lie."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL.Image import Image

from paddlemix.datasets.multiview import CAP3D_FOLDER, CAP3D_VIEWS
from paddlemix.generation.scripts import missing_key, value_of
from paddlemix.imaging.load import DATASET_LIMITS, load_image
from paddlemix.imaging.views import split_sheet
from paddlemix.utils.errors import ConfigError, DataError

ENDINGS = ("", ".jpg", ".png", ".jpeg", ".webp")
"""The original's tool takes an id as a file name as it stands, its training adds ".jpg": both are found."""

PER_SPLIT = 1000
SYN_SPLITS = 256

Item = TypeVar("Item")


@dataclass(frozen=True)
class Source:
    """Where the views of objects come from. ``sheet`` 0: one file a view, in the folders of Cap3D; n: sheets of n x n.

    ``order`` is that of ``imaging.views`` (None: as the model was trained).
    """

    root: Path
    sheet: int = 0
    order: str | None = None

    def key(self) -> str:
        """The key of an input record that names the object's pictures."""
        return "image_pth" if self.sheet else "id"

    def views(self, record: dict[str, Any]) -> list[Image]:
        """The views of an object in order. DataError names the file that is missing or damaged."""
        name = value_of(record, self.key())
        if self.sheet:
            path = self.root / name
            try:
                return split_sheet(load_image(path, DATASET_LIMITS), self.sheet, self.order)
            except DataError as error:
                raise error if str(path) in str(error) else DataError(f"{path}: {error}") from error
        folders = [self.root / CAP3D_FOLDER.format(view) for view in CAP3D_VIEWS]
        return [load_image(_file(folder, name), DATASET_LIMITS) for folder in folders]


def _file(folder: Path, name: str) -> Path:
    found = (folder / f"{name}{ending}" for ending in ENDINGS)
    return next((path for path in found if path.is_file()), folder / f"{name}.jpg")


def read_objects(path: Path, key: str) -> list[dict[str, Any]]:
    """The records of a .csv, .json or .jsonl file; every one has ``key`` (its correct spelling counts too).

    A CSV holds ``name,caption`` a line, cut at the first comma as the original does, so captions need no quotes; a
    first line that names ``key`` is a header. A JSON list may hold names instead of records.
    DataError names the line or the record.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such input file; give a .csv, .json or .jsonl file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({type(error).__name__})") from error
    ending = path.suffix.lower()
    if ending == ".csv":
        records = _csv(text, key)
    elif ending in (".jsonl", ".ndjson"):
        records = [_json(line, f"{path}:{n}") for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    else:
        records = _json(text, str(path))
    if not isinstance(records, list) or not records:
        raise DataError(f"{path}: expected a list of objects that is not empty")
    return [_record(record, key, f"{path}: record {index}") for index, record in enumerate(records)]


def _csv(text: str, key: str) -> list[dict[str, Any]]:
    rows = [line.rstrip("\r").partition(",") for line in text.split("\n") if line.strip()]
    if rows and rows[0][0].strip().strip('"').lower() in (key, "image_path"):
        rows = rows[1:]
    return [{key: _unquoted(name)} | ({"caption": _unquoted(rest)} if comma else {}) for name, comma, rest in rows]


def _unquoted(cell: str) -> str:
    cell = cell.strip()
    return next(csv.reader([cell]))[0] if cell.startswith('"') and cell.endswith('"') and len(cell) > 1 else cell


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: line {error.lineno}, column {error.colno}: not JSON ({error.msg})") from error


def _record(record: Any, key: str, where: str) -> dict[str, Any]:
    if isinstance(record, str):
        record = {key: record}
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected an object with {key!r}, or a text")
    name = value_of(record, key)
    if not isinstance(name, str) or not name:
        raise DataError(f"{where}: {missing_key(record, key)}; it names the object's pictures")
    return record


def split_count(rows: int, sheets: bool) -> int:
    """Into how many parts the original cuts its input: about 1000 objects each, or 256 parts of sheets."""
    return SYN_SPLITS if sheets else rows // PER_SPLIT + 1


def part_of(rows: Sequence[Item], count: int, index: int) -> list[Item]:
    """Part ``index`` of ``count`` parts of ``ceil(rows / count)`` rows each; the last ones may be short or missing."""
    size = math.ceil(len(rows) / count)
    parts = math.ceil(len(rows) / size) if size else 0
    if not 0 <= index < parts:
        raise ConfigError(f"split index {index}: {len(rows)} objects have the parts 0 to {parts - 1}")
    return list(rows[index * size : (index + 1) * size])
