# SPDX-License-Identifier: Apache-2.0
"""Where the rows of a data file stand: byte offsets, so that a row is read and parsed when it is used.

A JSON list is cut at the commas between its elements, JSON lines at the ends of the lines. What stands between two cuts
is parsed by Python's json, so a file whose pieces all parse is a valid list, and any other one is read as a whole to
say what is wrong with it (``sources``). The offsets of a large file are kept below ``PPMIX_HOME``, where the next
process of a run and the next run find them.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paddlemix.utils import paths
from paddlemix.utils.errors import PaddleMixError
from paddlemix.utils.files import atomic_write

LINES = (".jsonl", ".ndjson")

_BLOCK = 16 << 20
"""Bytes that are looked at together."""
_LARGE = 8 << 20
"""Smaller files are held in memory as they are, and indexed faster than it is worth to keep the offsets."""
_FORMAT = 1
_BOM = b"\xef\xbb\xbf"
_LIST = re.compile(rb"[ \t\r\n]*\[")
_QUOTE, _COMMA, _BACKSLASH, _BAR, _OPEN, _CLOSE = 0x22, 0x2C, 0x5C, 0x7C, (0x5B, 0x7B), (0x5D, 0x7D)


class NotAListError(Exception):
    """The bytes of a file are no JSON list. Internal: who reads the file as a whole finds the words for it."""


@dataclass(frozen=True)
class RowFile:
    """A data file whose rows are read by number. ``bounds`` int64 [rows + 1]: row i is ``[bounds[i]: bounds[i+1]-1]``.

    ``source`` is the open file, or the bytes of a small one: a file that is replaced meanwhile does not change the
    rows of a run that has begun. ``images``: the folder of the images that the file itself has brought.
    """

    path: str
    source: int | bytes
    bounds: np.ndarray
    lines: bool
    images: str | None = None

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def raw(self, row: int) -> bytes:
        """The bytes of a row, with blanks around them."""
        start, end = self.bounds[row : row + 2].tolist()
        return _pread(self.source, start, end - 1 - start)

    def raw_range(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes of the rows ``start`` to ``stop - 1``, read together."""
        bounds = self.bounds[start : stop + 1].tolist()
        data = _pread(self.source, bounds[0], bounds[-1] - bounds[0])
        for begin, end in itertools.pairwise(bounds):
            yield data[begin - bounds[0] : end - 1 - bounds[0]]

    def __del__(self) -> None:
        if isinstance(self.source, int):
            with contextlib.suppress(OSError):
                os.close(self.source)


def open_rows(path: str, name: str | None = None, images: str | None = None) -> RowFile:
    """The rows of ``path``. NotAListError when it is no list (JSON lines are always some); OSError, ValueError.

    ``name``: the file that its rows were written out from, and that a person knows; ``images`` as in ``RowFile``.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    lines = path.lower().endswith(LINES)
    find = _line_bounds if lines else _list_bounds
    try:
        identity = _identity(handle, lines)
        if identity["size"] < _LARGE:
            content = _pread(handle, 0, _LARGE)
            os.close(handle)
            handle = -1
            return RowFile(name or path, content, find(content), lines and name is None, images)
        kept = _place(path)
        bounds = None if kept is None else _read_kept(kept, identity)
        if bounds is None:
            bounds = find(handle)
            if kept is not None and _identity(handle, lines) == identity:
                _keep(kept, identity, bounds)
    except BaseException:
        if handle >= 0:
            os.close(handle)
        raise
    return RowFile(name or path, handle, bounds, lines and name is None, images)


def _pread(source: int | bytes, start: int, count: int) -> bytes:
    if isinstance(source, bytes):
        return source[start : start + count]
    parts = []
    while count > 0:
        part = os.pread(source, count, start)
        if not part:
            break
        parts.append(part)
        start, count = start + len(part), count - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


# The cuts


def _line_bounds(source: int | bytes) -> np.ndarray:
    start = len(_BOM) if _pread(source, 0, len(_BOM)) == _BOM else 0
    found, at = [np.array([start], dtype=np.int64)], 0
    while block := _pread(source, at, _BLOCK):
        found.append(np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == 0x0A) + (at + 1))
        at += len(block)
    bounds = np.concatenate(found)
    return bounds if bounds[-1] >= at else np.append(bounds, at + 1)  # the last line may have no end of its own


def _list_bounds(source: int | bytes) -> np.ndarray:
    start = len(_BOM) if _pread(source, 0, len(_BOM)) == _BOM else 0
    opened = _LIST.match(_pread(source, start, _BLOCK))
    if opened is None:
        raise NotAListError
    at = start + opened.end()
    state = _State()
    found = [np.array([at], dtype=np.int64)]
    while block := _pread(source, at, state.size):
        taken = len(block)
        while taken and block[taken - 1] == _BACKSLASH:
            taken -= 1  # the backslash belongs to what follows it
        if not taken:
            if len(block) < state.size:
                raise NotAListError
            state.size *= 2
            continue
        cuts = state.look(block[:taken])
        found.append(cuts + (at + 1))
        at += taken
        if state.depth == 0:
            break
    if state.depth or _nothing_between(source, found):
        raise NotAListError
    _require_blank_after(source, int(found[-1][-1]))
    if len(bounds := np.concatenate(found)) == 2 and not _pread(source, *_span(bounds)).strip():
        return bounds[:1]
    return bounds


def _span(bounds: np.ndarray) -> tuple[int, int]:
    start, end = bounds[:2].tolist()
    return start, end - 1 - start


def _nothing_between(source: int | bytes, found: list[np.ndarray]) -> bool:
    """Whether the list has no end: the last cut must be its closing bracket."""
    last = next((int(cuts[-1]) for cuts in reversed(found) if len(cuts)), 0)
    return _pread(source, last - 1, 1) != b"]"


def _require_blank_after(source: int | bytes, at: int) -> None:
    while block := _pread(source, at, _BLOCK):
        if block.strip(b" \t\r\n"):
            raise NotAListError
        at += len(block)


class _State:
    """How deep the bytes that were looked at end, and whether inside of a text."""

    def __init__(self) -> None:
        self.depth = 1
        self.inside = 0
        self.size = _BLOCK

    def look(self, block: bytes) -> np.ndarray:
        """Offsets (int64) in ``block`` of the commas of the list itself, and of the bracket that ends it."""
        data = np.frombuffer(block, dtype=np.uint8)
        # { [ \ | ] } differ from "{" by at most 2 once bit 5 is set
        marks = np.flatnonzero(((data | 0x20) - np.uint8(0x7B) <= 2) | (data == _QUOTE) | (data == _COMMA))
        kinds = data[marks]
        slashes = marks[kinds == _BACKSLASH]
        keep = (kinds != _BACKSLASH) & (kinds != _BAR)
        if len(slashes):
            escaped = np.zeros(len(data) + 1, dtype=bool)
            escaped[_escaping(slashes) + 1] = True
            keep &= ~escaped[marks]
        marks, kinds = marks[keep], kinds[keep]
        quotes = kinds == _QUOTE
        inside = (np.cumsum(quotes) + self.inside) & 1
        self.inside = int(inside[-1]) if len(inside) else self.inside
        outside = (inside == 0) & ~quotes
        marks, kinds = marks[outside], kinds[outside]
        opens, commas = np.isin(kinds, _OPEN), kinds == _COMMA
        steps = np.where(opens, 1, np.where(commas, 0, -1))
        depth = np.cumsum(steps) + self.depth
        ends = np.flatnonzero(depth == 0)
        if len(ends):
            marks, commas, depth = (part[: ends[0] + 1] for part in (marks, commas, depth))
        self.depth = int(depth[-1]) if len(depth) else self.depth
        return marks[(commas & (depth == 1)) | (depth == 0)]


def _escaping(slashes: np.ndarray) -> np.ndarray:
    """Of the offsets of backslashes those that change the meaning of the next byte: every other one of a run."""
    numbers = np.arange(len(slashes))
    fresh = np.ones(len(slashes), dtype=bool)
    fresh[1:] = np.diff(slashes) != 1
    return slashes[(numbers - np.maximum.accumulate(np.where(fresh, numbers, 0))) % 2 == 0]


# What is kept


def _identity(handle: int, lines: bool) -> dict[str, int | bool]:
    """What changes with the content of a file: the time of its last change of any kind cannot be set by hand."""
    stat = os.fstat(handle)
    times = {"modified": stat.st_mtime_ns, "changed": stat.st_ctime_ns}
    return {"format": _FORMAT, "lines": lines, "size": stat.st_size, "inode": stat.st_ino, **times}


def _place(path: str) -> Path | None:
    name = hashlib.sha256(os.path.realpath(path).encode("utf-8", "surrogateescape")).hexdigest()
    try:
        return paths.home("row_index", f"{name[:32]}.index")
    except PaddleMixError:
        return None


def _read_kept(path: Path, identity: dict[str, int | bool]) -> np.ndarray | None:
    """The offsets, if the file is whole and belongs to these very bytes."""
    try:
        head, _, data = path.read_bytes().partition(b"\n")
        facts = json.loads(head)
        if facts != {"file": identity, "sum": _checksum(data)} or len(data) % 8:
            return None
    except (OSError, ValueError, RecursionError):
        return None
    return np.frombuffer(data, dtype="<i8").astype(np.int64, copy=False)


def _keep(path: Path, identity: dict[str, int | bool], bounds: np.ndarray) -> None:
    data = bounds.astype("<i8").tobytes()
    head = json.dumps({"file": identity, "sum": _checksum(data)}).encode()
    # A folder that cannot be written, or a full disk: the next run looks for the rows anew.
    with contextlib.suppress(OSError, PaddleMixError):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, head + b"\n" + data)


def _checksum(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
