# SPDX-License-Identifier: Apache-2.0
"""Reads data files: LLaVA rows, chatml pairs and OpenAI messages, as one JSON list or as JSON lines.

The form is found row by row, so a file may mix them. Errors name the file and the JSON pointer of what is wrong
(``train.json: /12/conversations/0/value``; for JSON lines ``train.jsonl:13: /conversations/0/value``).
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from paddlemix.datasets.multiview import views_of
from paddlemix.datasets.preference_rows import PreferenceRow, read_preference
from paddlemix.datasets.records import Place, RepeatedKeys, UnreadKeys, kind_of, whole_number
from paddlemix.datasets.rows import STRICT, MarkRules, read_row
from paddlemix.datasets.sample import BadSamples, Sample, id_note
from paddlemix.imaging.load import is_address
from paddlemix.imaging.views import Views
from paddlemix.text.messages import Conversation
from paddlemix.utils.errors import DataError
from paddlemix.utils.foreign import JsonValue, refuse_pointer
from paddlemix.utils.paths import begins_at

LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class DatasetEntry:
    """One entry of ``dataset.train``: its files, the folder of its images, its chat template if it has one.

    ``multiview`` above 0: the rows are MV-LLaVA's, and a lone image stands so many times at its place.
    ``preference``: rows have two answers (``pair``), or one and what is thought of it (``single``).
    """

    data_files: tuple[str, ...]
    image_folder: str | None = None
    chat_template: str | None = None
    multiview: int = 0
    rules: MarkRules = STRICT
    preference: Literal["pair", "single"] | None = None

    def row(self, row: JsonValue, place: Place, unread: UnreadKeys) -> PreferenceRow:
        """One row in the form that the entry has. DataError: ``read_row``, ``read_preference``."""
        if self.preference is None:
            return PreferenceRow(read_row(row, place, self.rules, unread))
        return read_preference(row, place, self.rules, unread, single=self.preference == "single")


def read(entry: DatasetEntry, bad: BadSamples | None = None, unread: UnreadKeys | None = None) -> list[Sample]:
    """All samples of an entry in the order of its files. Bad rows go to ``bad`` (default: the first one raises).

    ``unread`` counts the keys of rows that nothing reads.
    """
    bad, unread = bad or BadSamples(), unread or UnreadKeys()
    samples = [sample for path in entry.data_files for sample in _read_file(path, entry, bad, unread)]
    if not samples:
        raise DataError(f"{', '.join(entry.data_files)}: no rows; expected a list of conversations")
    return samples


def _read_file(path: str, entry: DatasetEntry, bad: BadSamples, unread: UnreadKeys) -> Iterator[Sample]:
    keys = RepeatedKeys()
    root = entry.image_folder or ""
    for place, row in _rows_of(path, bad, keys):
        try:
            keys.check(row, place)
            found = entry.row(row, place, unread)
            talk = found.talk
            paths, views = _placed(talk, root, entry, place)
        except DataError as error:
            bad.add(error, place.text)
            continue
        where = place.text + id_note(talk.id)
        own = entry.chat_template, views, found.rejected, found.desirable
        yield Sample(talk.messages, paths, talk.id, where, root, *own)


def raw_rows(path: str) -> Iterator[tuple[str, Any]]:
    """Each row of a data file as it is written, and the place that errors name; without lines that are no JSON."""
    for place, row in _rows_of(path, BadSamples("skip"), RepeatedKeys()):
        yield place.text, row


def _rows_of(path: str, bad: BadSamples, keys: RepeatedKeys) -> Iterator[tuple[Place, Any]]:
    text = _read_text(path)
    return _lines(path, text, bad, keys) if path.lower().endswith(LINES) else _list(path, text, keys)


def _placed(talk: Conversation, root: str, entry: DatasetEntry, place: Place) -> tuple[tuple[str, ...], Views | None]:
    """Paths of a row's images, and how they become views."""
    if not entry.multiview or not talk.images:
        return tuple(image if is_address(image) else os.path.join(root, image) for image in talk.images), None
    try:
        return views_of(talk.id, talk.images, root, entry.multiview)
    except DataError as error:
        raise place.fault("/image", str(error)) from error


def _read_text(path: str) -> str:
    if is_address(path):
        raise DataError(f"{path}: data files are read from disk; download the file and give its path")
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such data file{begins_at(path)}") from error
    except IsADirectoryError as error:
        raise DataError(f"{path}: is a folder; give the path of a .json or .jsonl file") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not a path'})") from error
    refuse_pointer(data[:64], path, DataError)
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path}: byte 0: this is UTF-16; save the file as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start}: not UTF-8 ({error.reason}); save the file as UTF-8") from error


def _list(path: str, text: str, keys: RepeatedKeys) -> Iterator[tuple[Place, Any]]:
    try:
        rows = json.loads(text, parse_int=whole_number, object_pairs_hook=keys)
    except json.JSONDecodeError as error:
        hint = "; is this JSON lines? Then name it .jsonl" if error.msg == "Extra data" else ""
        raise DataError(f"{path}:{error.lineno}:{error.colno}: not JSON ({error.msg}){hint}") from error
    except RecursionError as error:
        raise DataError(f"{path}: nested too deeply; expected a list of conversations") from error
    if not isinstance(rows, list):
        raise DataError(f"{path}: {kind_of(rows)} at the top; expected a list of conversations")
    for index, row in enumerate(rows):
        yield Place(path, f"/{index}"), row


def _lines(path: str, text: str, bad: BadSamples, keys: RepeatedKeys) -> Iterator[tuple[Place, Any]]:
    # Only "\n" ends a line: U+2028 and its like may stand inside a JSON text, and splitlines() would cut there.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = Place(f"{path}:{number}", "")
        try:
            yield place, json.loads(line, parse_int=whole_number, object_pairs_hook=keys)
        except json.JSONDecodeError as error:
            bad.add(DataError(f"{path}:{number}:{error.colno}: not JSON ({error.msg})"), place.text)
        except RecursionError:
            bad.add(DataError(f"{path}:{number}: nested too deeply"), place.text)
