# SPDX-License-Identifier: Apache-2.0
"""Reads data files: LLaVA rows, chatml pairs and OpenAI messages, as one JSON list, JSON lines, parquet or tar.

The form is found row by row, so a file may mix them. Errors name the file and the JSON pointer of what is wrong
(``train.json: /12/conversations/0/value``; for JSON lines ``train.jsonl:13: /conversations/0/value``).
"""

import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from paddlemix.datasets import parquet, tars
from paddlemix.datasets.frames import frames_of
from paddlemix.datasets.index import LINES as LINES
from paddlemix.datasets.index import NotAListError, RowFile, open_rows
from paddlemix.datasets.multiview import views_of
from paddlemix.datasets.preference_rows import PreferenceRow, read_preference
from paddlemix.datasets.records import Place, RepeatedKeys, UnreadKeys, kind_of, whole_number
from paddlemix.datasets.rows import STRICT, MarkRules, read_row
from paddlemix.datasets.sample import BadSamples, Sample, id_note
from paddlemix.datasets.selection import ALL, ONCE, Portion, Selection
from paddlemix.imaging.load import is_address
from paddlemix.imaging.views import Film, Views
from paddlemix.text.messages import Conversation
from paddlemix.utils.errors import DataError
from paddlemix.utils.foreign import JsonValue, refuse_pointer
from paddlemix.utils.paths import begins_at

HOLDING_IMAGES = (parquet.ENDING, tars.ENDING)
"""Endings of data files that have their images in them."""
_TOGETHER = 1000
"""Rows that are read from the disk at once."""


@dataclass(frozen=True)
class DatasetEntry:
    """One entry of ``dataset.train``: its files, the folder of its images, its chat template if it has one.

    ``multiview`` above 0: the rows are MV-LLaVA's, and a lone image stands so many times at its place.
    ``preference``: rows have two answers (``pair``), or one and what is thought of it (``single``). ``selection``:
    which of the rows are used; ``portion``: how often in an epoch; ``name``: what the entry is called.
    """

    data_files: tuple[str, ...]
    image_folder: str | None = None
    chat_template: str | None = None
    multiview: int = 0
    rules: MarkRules = STRICT
    preference: Literal["pair", "single"] | None = None
    selection: Selection = ALL
    portion: Portion = ONCE
    name: str = ""

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
    require_rows(len(samples), entry)
    return samples


def require_rows(count: int, entry: DatasetEntry) -> None:
    """DataError for an entry without rows."""
    if not count:
        raise DataError(f"{', '.join(entry.data_files)}: no rows; expected a list of conversations")


def _read_file(path: str, entry: DatasetEntry, bad: BadSamples, unread: UnreadKeys) -> Iterator[Sample]:
    reader = RowReader(open_data(path), entry, unread)
    for number, raw in _all_raw(reader.file):
        try:
            sample = reader.sample(number, raw)
        except BrokenFileError:
            raise
        except DataError as error:
            if bad.policy == "error":
                require_whole(reader.file)
            bad.add(error, reader.place(number).text)
            continue
        if sample is not None:
            yield sample


class _RawRows(Protocol):
    """Rows of a file by numbers: ``lazy.Chosen``."""

    file: RowFile
    entry: DatasetEntry

    def __len__(self) -> int: ...

    def raw(self, start: int, stop: int) -> Iterator[tuple[int, bytes]]: ...


def raw_rows(chosen: _RawRows) -> Iterator[tuple[str, Any]]:
    """Each row as it is written, and the place that errors name; without lines that are no JSON."""
    reader = RowReader(chosen.file, chosen.entry)
    parts = (chosen.raw(start, min(start + _TOGETHER, len(chosen))) for start in range(0, len(chosen), _TOGETHER))
    for number, raw in itertools.chain.from_iterable(parts):
        try:
            found = reader.value(number, raw)
        except DataError:
            continue
        if found is not None:
            yield reader.place(number).text, found[0]


def _all_raw(file: RowFile) -> Iterator[tuple[int, bytes]]:
    for start in range(0, len(file), _TOGETHER):
        stop = min(start + _TOGETHER, len(file))
        yield from zip(range(start, stop), file.raw_range(start, stop), strict=True)


class RowReader:
    """Makes samples of the rows of one file of an ``entry``; ``unread`` counts the keys that nothing reads."""

    def __init__(self, file: RowFile, entry: DatasetEntry, unread: UnreadKeys | None = None) -> None:
        self.file = file
        self.entry = entry
        self._unread = unread or UnreadKeys()
        self._keys = RepeatedKeys()
        self._decode = json.JSONDecoder(parse_int=whole_number, object_pairs_hook=self._keys).decode

    def place(self, number: int) -> Place:
        """How errors name a row."""
        path = self.file.path
        return Place(f"{path}:{number + 1}", "") if self.file.lines else Place(path, f"/{number}")

    def value(self, number: int, raw: bytes) -> tuple[Any] | None:
        """The JSON of a row; None for an empty line. DataError for a line that is no JSON, or a file that is none."""
        path, lines = self.file.path, self.file.lines
        try:
            text = raw.decode("utf-8")
            return None if lines and not text.strip() else (self._decode(text),)
        except json.JSONDecodeError as error:
            fault = f"{path}:{number + 1}:{error.colno}: not JSON ({error.msg})" if lines else ""
        except RecursionError:
            fault = f"{path}:{number + 1}: nested too deeply" if lines else ""
        except UnicodeDecodeError:
            fault = ""
        raise DataError(fault) if fault else what_is_wrong(path)

    def sample(self, number: int, raw: bytes) -> Sample | None:
        """The sample of a row; None for an empty line. DataError with the JSON pointer of what is wrong."""
        found = self.value(number, raw)
        if found is None:
            return None
        place, entry = self.place(number), self.entry
        self._keys.check(found[0], place)
        row = entry.row(found[0], place, self._unread)
        talk, root = row.talk, self.file.images or entry.image_folder or ""
        paths, views = _placed(talk, root, entry, place)
        where, own = place.text + id_note(talk.id), (entry.chat_template, views, row.rejected, row.desirable)
        return Sample(talk.messages, paths, talk.id, where, root, *own)


class BrokenFileError(DataError):
    """A file as a whole cannot be read, whatever becomes of bad rows."""


def open_data(path: str) -> RowFile:
    """The rows of a data file by their numbers. BrokenFileError names file, line and column, or byte."""
    _check_kind(path)
    form = next((form for form in (parquet, tars) if path.lower().endswith(form.ENDING)), None)
    if form is not None:
        try:
            written = form.written_out(path)
        except DataError as error:
            raise BrokenFileError(str(error)) from error
        return open_rows(str(written.rows), path, written.images)
    try:
        return open_rows(path)
    except NotAListError as error:
        raise what_is_wrong(path) from error


def require_whole(file: RowFile) -> None:
    """BrokenFileError when a list has a piece that is no JSON: that is said before anything of its rows."""
    for _, raw in () if file.lines else _all_raw(file):
        try:
            json.loads(raw.decode("utf-8"), parse_int=whole_number)
        except (ValueError, RecursionError) as error:
            raise what_is_wrong(file.path) from error


def what_is_wrong(path: str) -> BrokenFileError:
    """Why a file cannot be read, found by reading it as a whole."""
    try:
        _whole_list(path, _read_text(path))
    except DataError as error:
        return BrokenFileError(str(error))
    return BrokenFileError(f"{path}: was changed while it was read; start again when it is complete")


def _check_kind(path: str) -> None:
    try:
        head = _read_bytes(path, 64)
    except DataError as error:
        raise BrokenFileError(str(error)) from error
    refuse_pointer(head, path, BrokenFileError)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise BrokenFileError(f"{path}: byte 0: this is UTF-16; save the file as UTF-8")


def _placed(
    talk: Conversation, root: str, entry: DatasetEntry, place: Place
) -> tuple[tuple[str, ...], Views | Film | None]:
    """Paths of a row's images, and how they become views, or that they are frames."""
    if talk.video:
        try:
            return frames_of(talk.images, root), Film()
        except DataError as error:
            raise place.fault("/video", str(error)) from error
    if not entry.multiview or not talk.images:
        return tuple(image if is_address(image) else os.path.join(root, image) for image in talk.images), None
    try:
        return views_of(talk.id, talk.images, root, entry.multiview)
    except DataError as error:
        raise place.fault("/image", str(error)) from error


def _read_bytes(path: str, count: int = -1) -> bytes:
    if is_address(path):
        raise DataError(f"{path}: data files are read from disk; download the file and give its path")
    try:
        with Path(path).open("rb") as stream:
            return stream.read(count)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such data file{begins_at(path)}") from error
    except IsADirectoryError as error:
        raise DataError(f"{path}: is a folder; give the path of a .json or .jsonl file") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not a path'})") from error


def _read_text(path: str) -> str:
    try:
        return _read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start}: not UTF-8 ({error.reason}); save the file as UTF-8") from error


def _whole_list(path: str, text: str) -> None:
    """DataError for what is no JSON list."""
    if path.lower().endswith(LINES):
        return
    try:
        rows = json.loads(text, parse_int=whole_number)
    except json.JSONDecodeError as error:
        hint = "; is this JSON lines? Then name it .jsonl" if error.msg == "Extra data" else ""
        raise DataError(f"{path}:{error.lineno}:{error.colno}: not JSON ({error.msg}){hint}") from error
    except RecursionError as error:
        raise DataError(f"{path}: nested too deeply; expected a list of conversations") from error
    if not isinstance(rows, list):
        raise DataError(f"{path}: {kind_of(rows)} at the top; expected a list of conversations")
