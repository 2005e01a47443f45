# SPDX-License-Identifier: Apache-2.0
"""Parquet files in the form of the HF hub: written out once as JSON lines and image files, then read as those.

A row of a parquet file cannot be had without the whole group of rows around it, images included; a training takes rows
in any order. pyarrow is asked for when such a file is read, and by nothing else.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddlemix.utils import env, leftovers
from paddlemix.utils.errors import DataError
from paddlemix.utils.files import explained_when_full
from paddlemix.utils.logging import get_logger
from paddlemix.utils.paths import expanded

if TYPE_CHECKING:
    import pyarrow.parquet

ENDING = ".parquet"
ROWS, IMAGES = "rows.jsonl", "images"

_FORMAT = 1
_TOGETHER = 16
"""Rows that are in memory at once: each may hold images."""


@dataclass(frozen=True)
class Written:
    """``rows``: the file of JSON lines. ``images``: the folder that their images are in, or none of the file's own."""

    rows: Path
    images: str | None


def written_out(path: str) -> Written:
    """The rows of a parquet file as JSON lines below ``PPMIX_HOME``; made when the file is new or was changed.

    An image ``{"bytes", "path"}`` with bytes becomes a file, one without them its path. DataError when pyarrow is
    missing (with the pip line), when the file is damaged, and for a row that mixes both kinds of images;
    TrainingError for a full disk.
    """
    reader = _opened(path)
    target = _place(path)
    if not (target / ROWS).is_file():
        _write(reader, path, target)
    images = target / IMAGES
    return Written(target / ROWS, str(images) if images.is_dir() else None)


def _opened(path: str) -> "pyarrow.parquet.ParquetFile":
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"{path}: parquet is read with pyarrow, which is not installed (pip install 'pyarrow<22'); or write its "
            "rows as JSON lines (.jsonl) and its images as files"
        ) from error
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a parquet file ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]


def _place(path: str) -> Path:
    stat = os.stat(path)
    facts = [os.path.realpath(path), _FORMAT, stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]
    name = hashlib.sha256(json.dumps(facts).encode("utf-8", "surrogatepass")).hexdigest()
    return Path(expanded(env.get("PPMIX_HOME"))) / "parquet" / name[:32]


def _write(reader: "pyarrow.parquet.ParquetFile", path: str, target: Path) -> None:
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
                _write_rows(reader, path, temporary)
                os.rename(temporary, target)


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process at a time; the others wait. Where the file system has no locks each writes, and one is in time."""
    import fcntl

    with lock.open("a") as handle:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _write_rows(reader: "pyarrow.parquet.ParquetFile", path: str, folder: Path) -> None:
    images = folder / IMAGES
    own = None
    with (folder / ROWS).open("w", encoding="utf-8", errors="backslashreplace") as stream:
        for number, row in enumerate(_rows(reader, path)):
            kinds: set[bool] = set()
            plain = {key: _plain(value, images, kinds) for key, value in row.items()}
            if len(kinds | ({own} if own is not None else set())) > 1:
                raise DataError(
                    f"{path}: /{number}: some images of this file hold their bytes and others only a path; "
                    "write it as JSON lines (.jsonl) and its images as files"
                )
            own = next(iter(kinds), own)
            stream.write(json.dumps(plain, ensure_ascii=False, default=str) + "\n")


def _rows(reader: "pyarrow.parquet.ParquetFile", path: str) -> Iterator[dict[str, Any]]:
    import pyarrow

    try:
        for batch in reader.iter_batches(batch_size=_TOGETHER):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read ({_first_line(error)})") from error


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
