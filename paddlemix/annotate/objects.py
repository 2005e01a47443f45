# SPDX-License-Identifier: Apache-2.0
"""The objects of a batch run: input files, their parts, and where the views of an object lie."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL.Image import Image

from paddlemix.annotate.objects_csv import read_csv
from paddlemix.annotate.scripts import missing_key, value_of
from paddlemix.datasets.multiview import CAP3D_FOLDER, CAP3D_VIEWS, picture_of
from paddlemix.imaging.load import OWN_LIMITS, load_image
from paddlemix.imaging.views import split_sheet
from paddlemix.utils.errors import ConfigError, DataError
from paddlemix.utils.foreign import JsonValue, parse_json, refuse_pointer
from paddlemix.utils.paths import begins_at

MOST_WITHOUT = 10_000
"""An input that begins with so many objects without an image is taken for a wrong folder."""

PER_SPLIT = 1000
SYN_SPLITS = 256

Item = TypeVar("Item")


@dataclass(frozen=True)
class ObjectImages:
    """Where the views of objects come from. ``sheet`` 0: one file a view, in the folders of Cap3D; n: sheets of n x n.

    ``order`` is that of ``imaging.views`` (None: as the model was trained). ``exif_rotation``: images are turned as
    their EXIF data say.
    """

    root: Path
    sheet: int = 0
    order: str | None = None
    exif_rotation: bool = False

    def key(self) -> str:
        """The key of an input record that names the object's images."""
        return "image_pth" if self.sheet else "id"

    def views(self, record: dict[str, Any]) -> list[Image]:
        """The views of an object in order. DataError names the file that is missing or damaged."""
        name = value_of(record, self.key())
        if self.sheet:
            (path,) = self._files(name)
            try:
                return split_sheet(self._open(path), self.sheet, self.order)
            except DataError as error:
                raise error if str(path) in str(error) else DataError(f"{path}: {error}") from error
        return [self._open(path) for path in self._files(name)]

    def _open(self, path: Path) -> Image:
        return load_image(path, OWN_LIMITS, transpose_exif=self.exif_rotation)

    def _files(self, name: str) -> list[Path]:
        if self.sheet:
            return [self.root / name]
        return [Path(picture_of(str(self.root / CAP3D_FOLDER.format(view)), name)) for view in CAP3D_VIEWS]

    def has_pictures(self, name: str) -> bool:
        """Whether every image of the object ``name`` is there."""
        return all(os.path.isfile(path) for path in self._files(name))

    def require_some(self, records: Sequence[dict[str, Any]]) -> None:
        """DataError when not one of the first objects has an image: then the folder is wrong, not the objects."""
        few = records[:MOST_WITHOUT]
        names = [value_of(record, self.key()) for record in few]
        # isfile, not Path.is_file: a name that is no possible file name is a file that is not there.
        if not any(os.path.isfile(path) for name in names for path in self._files(name)):
            raise DataError(
                f"none of the first {len(few)} objects has an image, for example {self._files(names[0])[0]}; "
                "check --image-root and the names in the input"
            )


def read_objects(path: Path, key: str) -> list[dict[str, Any]]:
    """The records of a .csv, .json or .jsonl file; every one has ``key`` (its correct spelling counts too).

    A CSV (``objects_csv``) holds name and caption a record, under a header or without one. A JSON list may hold names
    instead of records. DataError names the line or the record.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        remedy = f"give a .csv, .tsv, .json or .jsonl file{begins_at(path)}"
        raise DataError(f"{path}: no such input file; {remedy}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({type(error).__name__})") from error
    refuse_pointer(text[:64], path, DataError)
    ending = path.suffix.lower()
    if ending in (".csv", ".tsv"):
        records: list[tuple[str, Any]] = [*read_csv(text, key, str(path))]
    elif ending in (".jsonl", ".ndjson"):
        lines = [(f"{path}:{n}", line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        records = [(where, _json(line, where)) for where, line in lines]
    else:
        found = _json(text, str(path))
        records = [(f"{path}: record {n}", one) for n, one in enumerate(found)] if isinstance(found, list) else []
    if not records:
        raise DataError(f"{path}: expected a list of objects that is not empty")
    return [_record(record, key, where) for where, record in records]


def _json(text: str, where: str) -> Any:
    return parse_json(text, where, DataError, halves=True, max_values=None)


def _record(record: JsonValue, key: str, where: str) -> dict[str, Any]:
    if isinstance(record, str):
        record = {key: record}
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected an object with {key!r}, or a text")
    name = value_of(record, key)
    if name is None:
        raise DataError(f"{where}: {missing_key(record, key)}; it names the object's images")
    if not isinstance(name, str) or not name:
        raise DataError(f'{where}: "{key}" is {json.dumps(name)}; expected a text that names the object\'s images')
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
