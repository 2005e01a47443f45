# SPDX-License-Identifier: Apache-2.0
"""Files that anybody may have written: read within limits, and every odd form of theirs an error of ours."""

import contextlib
import json
import os
import re
import stat
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from paddlemix.utils.errors import DataError, PaddleMixError
from paddlemix.utils.paths import begins_at
from paddlemix.utils.shown import shown

JsonValue: TypeAlias = dict[str, Any] | list[Any] | str | int | float | bool | None
"""What a JSON text can hold."""

CONFIG_BYTES = 4 << 20
"""Largest JSON file that holds settings and no lists of tensors or tokens."""
MAX_VALUES = 1_000_000
"""Values of one JSON text. A large model has 10,000 for its tensors, a vocabulary of 64,000 pieces 300,000; each takes
up to 250 bytes while it is read, whatever its few characters say."""
MAX_DIGITS = 300
"""Digits of one number. Python takes quadratic time for long ones, and refuses more than 4,300."""

ODD = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    MemoryError,
    struct.error,
)
"""What code raises that meets a value of another form than it expects."""

_POINTER = b"version https://git-lfs"

_SPECIAL = "is not a regular file (a pipe or a device); put the file itself there"
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


@contextlib.contextmanager
def reading(where: str | Path, error: type[PaddleMixError], remedy: str = "replace the file") -> Iterator[None]:
    """The boundary around the code that takes a file of one kind apart: what it does not foresee is ``error``, too.

    ``where`` names what is read, with its verb: "FILE is".
    """
    try:
        yield
    except ODD as cause:
        reason = f"{type(cause).__name__}: {shown(cause)}" if str(cause) else type(cause).__name__
        raise error(f"{where} not of the expected form ({reason}); {remedy}") from cause


def read_bytes(path: str | Path, error: type[PaddleMixError], max_bytes: int) -> bytes:
    """The content of a regular file; a pipe or a device, which may never end, is refused without waiting for it."""
    path = Path(path)
    try:
        with open_regular(path, error) as stream:
            data = stream.read(max_bytes + 1)
            size = os.fstat(stream.fileno()).st_size
    except FileNotFoundError as cause:
        raise error(f"{path}: no such file{begins_at(path)}") from cause
    except (OSError, ValueError) as cause:
        raise error(f"{path}: cannot be read ({getattr(cause, 'strerror', None) or cause})") from cause
    if len(data) > max_bytes:
        raise error(f"{path}: {size} bytes; at most {max_bytes} are read")
    return data


def open_regular(path: str | Path, error: type[PaddleMixError]) -> BinaryIO:
    """Open a file for reading; ``error`` for a folder, a pipe, a device, a git-lfs pointer. OSError is the caller's."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        stream = open(handle, "rb")  # noqa: SIM115 - the caller's
        try:
            refuse_pointer(stream.read(len(_POINTER)), path, error)
            stream.seek(0)
        except BaseException:
            stream.close()
            raise
        return stream
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise error(f"{path}: is a folder; expected a file")
    raise error(f"{path}: {_SPECIAL}")


def refuse_pointer(head: bytes | str, path: str | Path, error: type[PaddleMixError]) -> None:
    """``error`` for a file that begins with ``head`` when it is what git leaves in the place of a large file."""
    if (head.encode("utf-8", "replace") if isinstance(head, str) else head).startswith(_POINTER):
        raise error(
            f"{path}: is a git-lfs pointer, not the file itself; run git lfs pull in its folder, or download the file"
        )


def require_regular(folder: Path, names: Iterable[str], error: type[PaddleMixError]) -> None:
    """``error`` for a file of these names that is there and is none: a pipe, a device, a folder, a link to nothing."""
    for name in names:
        path = folder / name
        if os.path.lexists(path) and not path.is_file():
            if not path.exists():
                raise error(f"{path}: a link to a file that is not there; put the file itself there")
            open_regular(path, error).close()


def refuse_special(folder: Path, error: type[PaddleMixError]) -> None:
    """``error`` for a pipe, a device or a socket among the files of a folder: left out, it would count as absent."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.exists() and not path.is_file() and not path.is_dir():
            raise error(f"{path}: {_SPECIAL}")


def read_text(path: str | Path, error: type[PaddleMixError], max_bytes: int = CONFIG_BYTES) -> str:
    """The text of a UTF-8 file; a byte order mark is left out."""
    data = read_bytes(path, error, max_bytes)
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise error(f"{path}: byte 0: this is UTF-16; save the file as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        raise error(f"{path}: byte {cause.start}: not UTF-8 ({cause.reason}); save the file as UTF-8") from cause


def read_json(
    path: str | Path, error: type[PaddleMixError], max_bytes: int = CONFIG_BYTES, *, unique: bool = False
) -> dict[str, Any]:
    """The object in a JSON file. ``error`` names the file and what is wrong with it."""
    value = parse_json(read_text(path, error, max_bytes), str(path), error, unique=unique)
    if not isinstance(value, dict):
        raise error(f"{path}: expected an object {{...}} at the top, got {type(value).__name__}")
    return value


def read_optional(path: Path, error: type[PaddleMixError], max_bytes: int = CONFIG_BYTES) -> dict[str, Any]:
    """``read_json``; an empty object when nothing of that name is there."""
    return read_json(path, error, max_bytes) if os.path.lexists(path) else {}


def parse_json(
    text: str,
    where: str,
    error: type[PaddleMixError],
    *,
    unique: bool = False,
    halves: bool = False,
    max_values: int | None = MAX_VALUES,
) -> Any:
    """The JSON value of a text. ``unique`` refuses a name that stands twice in an object.

    NaN, infinities and numbers without end are refused; so are halves of surrogate pairs unless ``halves``.
    """
    count = text.count(",") + text.count("[") + text.count("{")
    if max_values is not None and count > max_values:
        raise error(f"{where}: {count} values; at most {max_values} are read")
    try:
        value = json.loads(
            text,
            parse_int=_int,
            parse_float=_float,
            parse_constant=_no_number,
            object_pairs_hook=_unique if unique else None,
        )
        if not halves and _HALF.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as cause:
        raise error(f"{where}: it holds half of a surrogate pair, which is no character") from cause
    except json.JSONDecodeError as cause:
        place = f"line {cause.lineno}, column {cause.colno}"
        raise error(f"{where}: not valid JSON: {place} ({cause.msg})") from cause
    except (ValueError, RecursionError, MemoryError) as cause:
        raise error(f"{where}: not valid JSON ({shown(cause) or type(cause).__name__})") from cause
    return value


def require_characters(text: str) -> None:
    """DataError when a text holds half of a surrogate pair: no UTF-8, and no tokenizer, has a form for it."""
    try:
        text.encode()
    except UnicodeEncodeError as cause:
        around = shown(text[max(0, cause.start - 20) : cause.start + 20])
        raise DataError(
            f'the text holds half of a surrogate pair, which is no character: "{around}"; take it out'
        ) from cause


def _int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {shown(text, 40)} is out of range")
    return value


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not a number of JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f'the name "{shown(twice, 120)}" stands twice')
    return result
