# SPDX-License-Identifier: Apache-2.0
"""Tars as webdataset and img2dataset write them: files that follow each other and share a name make a row.

``000012.json`` holds the row, ``000012.txt`` a caption where the JSON is no conversation, ``000012.jpg`` (or
``000012.0.jpg``, ``000012.1.jpg``) its images. The rows are written out once.
"""

import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from paddlemix.datasets import unpacked
from paddlemix.utils.constants import IMAGE_TOKEN
from paddlemix.utils.errors import DataError
from paddlemix.utils.files import MIB
from paddlemix.utils.foreign import ODD, parse_json
from paddlemix.utils.shown import shown

ENDING = ".tar"

_IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif")
_LARGEST = 64 * MIB
"""Bytes of one member, which is in memory as a whole."""
_TURNS = ("conversations", "messages", "chosen", "question", "prompt")
"""Keys of which a row has one; JSON without them says something about the image."""


def written_out(path: str) -> unpacked.Written:
    """The rows of a tar, see ``unpacked.written_out``; DataError names a member that cannot be used."""
    return unpacked.written_out(path, "tar", lambda: _rows(path))


def _rows(path: str) -> Iterator[dict[str, Any]]:
    try:
        with tarfile.open(path, "r|") as archive:
            name: str | None = None
            parts: dict[str, bytes] = {}
            for member, key, kind in _members(archive, path):
                if key != name and parts:
                    yield _row(name, parts, path)
                    parts = {}
                name = key
                if kind in parts:
                    raise DataError(f"{path}: {shown(member.name)}: is there twice")
                parts[kind] = archive.extractfile(member).read()
            if parts:
                yield _row(name, parts, path)
    except (tarfile.TarError, OSError, EOFError, *ODD) as error:
        raise DataError(
            f"{path}: not a tar, or damaged ({shown(str(error))}); unpack a compressed one first"
        ) from error


def _members(archive: tarfile.TarFile, path: str) -> Iterator[tuple[tarfile.TarInfo, str, str]]:
    """Files with the name that they share with others of their row, and what follows it."""
    for member in archive:
        archive.members = []  # or the list of all of them would stay in memory
        if member.isdir():
            continue
        place = PurePosixPath(member.name)
        key, _, kind = place.name.partition(".")
        last = kind.lower().rpartition(".")[2]
        if not member.isreg() or not key or (kind.lower() not in ("json", "txt") and last not in _IMAGES):
            raise DataError(
                f"{path}: {shown(member.name)}: not read; a row is NAME.json or NAME.txt and images "
                f"(NAME.{', NAME.'.join(_IMAGES)})"
            )
        if member.size > _LARGEST:
            raise DataError(f"{path}: {shown(member.name)}: {member.size} bytes, the limit is {_LARGEST}")
        yield member, f"{place.parent}/{key}", kind.lower()


def _row(name: str, parts: dict[str, bytes], path: str) -> dict[str, Any]:
    """One row in LLaVA's form, or in that of its JSON."""
    images = [
        {"bytes": parts[kind], "path": None} for kind in sorted(parts, key=_number) if kind not in ("json", "txt")
    ]
    row: Any = {}
    if "json" in parts:
        row = parse_json(_text(parts["json"], f"{path}: {name}.json"), f"{path}: {name}.json", DataError)
    if not isinstance(row, dict):
        raise DataError(f"{path}: {shown(name)}.json: expected an object, the row")
    if not any(key in row for key in _TURNS):
        if "txt" not in parts:
            raise DataError(f"{path}: {shown(name)}: neither a conversation in .json nor a caption in .txt")
        said = _text(parts["txt"], f"{path}: {name}.txt").strip()
        asked = "\n".join([IMAGE_TOKEN] * len(images))
        row = {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": said}]}
    found = {key: value for key, value in row.items() if key not in ("image", "images")} if images else row
    images = images[0] if len(images) == 1 else images
    return {"id": PurePosixPath(name).name, **found, **({"image": images} if images else {})}


def _number(kind: str) -> tuple[int, str]:
    """Images in the order of their numbers: ``2.jpg`` before ``10.jpg``."""
    first = kind.partition(".")[0]
    return (int(first) if first.isdecimal() else -1), kind


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{shown(where)}: byte {error.start}: not UTF-8") from error
