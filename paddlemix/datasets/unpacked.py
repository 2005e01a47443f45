# SPDX-License-Identifier: Apache-2.0
"""Data files that hold their images, written out once as JSON lines and image files, then read as those.

A training takes rows in any order, and of such a file a row cannot be had without those around it.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddlemix.utils import leftovers, paths
from paddlemix.utils.errors import DataError
from paddlemix.utils.files import explained_when_full
from paddlemix.utils.logging import get_logger

ROWS, IMAGES = "rows.jsonl", "images"

_FORMAT = 1

Rows = Callable[[], Iterator[dict[str, Any]]]
"""Gives the rows of a file. ``{"bytes": ..., "path": ...}`` in one of them is an image."""


@dataclass(frozen=True)
class Written:
    """``rows``: the file of JSON lines. ``images``: the folder that their images are in, or none of the file's own."""

    rows: Path
    images: str | None


def written_out(path: str, kind: str, rows: Rows) -> Written:
    """The rows of a file of this ``kind`` below ``PPMIX_HOME``; made when the file is new or was changed.

    An image ``{"bytes", "path"}`` with bytes becomes a file, one without them its path. DataError for a row that mixes
    both kinds of images, and what ``rows`` raises; TrainingError for a full disk.
    """
    target = _place(path, kind)
    if not (target / ROWS).is_file():
        _write(rows, path, target)
    images = target / IMAGES
    return Written(target / ROWS, str(images) if images.is_dir() else None)


def _place(path: str, kind: str) -> Path:
    stat = os.stat(path)
    facts = [os.path.realpath(path), _FORMAT, stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]
    name = hashlib.sha256(json.dumps(facts).encode("utf-8", "surrogatepass")).hexdigest()
    return paths.home(kind, name[:32])


def _write(rows: Rows, path: str, target: Path) -> None:
    temporary = leftovers.temporary_of(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{path}: its rows are written to {target.parent}, which cannot be made ({error.strerror}); set PPMIX_HOME "
            "to a folder that can be written"
        ) from error
    with _alone(target.with_suffix(".lock")):
        if (target / ROWS).is_file():  # another process of the run has made it meanwhile
            return
        leftovers.remove_dead(target)
        get_logger(__name__).warning(f"{path}: its rows and images are written to {target}, once; later runs read them")
        with leftovers.ending_on_sigterm(), explained_when_full(target, temporary):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            with leftovers.held(temporary):
                _write_rows(rows(), path, temporary)
                os.rename(temporary, target)


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process at a time; the others wait. Where the file system has no locks each writes, and one is in time."""
    import fcntl

    with lock.open("a") as handle:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _write_rows(rows: Iterator[dict[str, Any]], path: str, folder: Path) -> None:
    images = folder / IMAGES
    own = None
    with (folder / ROWS).open("w", encoding="utf-8", errors="backslashreplace") as stream:
        for number, row in enumerate(rows):
            kinds: set[bool] = set()
            plain = {key: _plain(value, images, kinds) for key, value in row.items()}
            if len(kinds | ({own} if own is not None else set())) > 1:
                raise DataError(
                    f"{path}: /{number}: some images of this file hold their bytes and others only a path; "
                    "write it as JSON lines (.jsonl) and its images as files"
                )
            own = next(iter(kinds), own)
            stream.write(json.dumps(plain, ensure_ascii=False, default=str) + "\n")


def _plain(value: object, images: Path, kinds: set[bool]) -> object:
    """A value without bytes. ``kinds`` notes whether images hold bytes (True) or a path."""
    if isinstance(value, bytes):
        return _image_file(value, images, kinds)
    if isinstance(value, list):
        return [_plain(one, images, kinds) for one in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"bytes", "path"}:
        if value["bytes"] is not None:
            return _image_file(value["bytes"], images, kinds)
        if value["path"] is not None:
            kinds.add(False)
        return value["path"]
    return {key: _plain(one, images, kinds) for key, one in value.items() if one is not None}


def _image_file(content: bytes, images: Path, kinds: set[bool]) -> str:
    """Write an image that is not there yet; its name is its digest, so the same image is there once."""
    name = hashlib.sha256(content).hexdigest()[:32]
    place = images / name[:2] / name
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    kinds.add(True)
    return f"{name[:2]}/{name}"
