# SPDX-License-Identifier: Apache-2.0
"""One file from the network onto the disk: resumed where it broke off, checked, complete or absent."""

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from paddlemix.utils.errors import DataError
from paddlemix.utils.files import MIB, Answer, sha256, stream
from paddlemix.utils.meter import Meter

PART = ".part"
"""Ending of a file that is not complete yet."""

RETRIED = (408, 425, 429, 500, 502, 503, 504)
_PROGRESS = MIB
"""Bytes that count as a step ahead; a server that breaks off earlier each time is given up."""
_SLOW_BYTES, _SLOW_SECONDS = 1024, 30.0
"""Less than this many bytes in that many seconds is a stalled transfer, even if it never stops entirely."""


class MissingError(DataError):
    """The server has no such file."""


@dataclass(frozen=True)
class Limits:
    """How patient a download is. ``timeout``: seconds without a byte; ``pause``: before the first new attempt."""

    attempts: int = 5
    timeout: float = 30.0
    pause: float = 1.0
    slow_seconds: float = _SLOW_SECONDS


def download(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    digest: str | None = None,
    limits: Limits | None = None,
    note: Callable[[str], None] | None = None,
    meter: Meter | None = None,
) -> None:
    """Put the content of ``url`` into ``target``; a ``.part`` file beside it is gone on with.

    ``size`` in bytes and ``digest`` (SHA-256) are checked when they are known; without a size, the server's own
    Content-Length is. A wrong digest is tried once more from the start. MissingError when the server has no such file;
    DataError with the reason when it does not work in ``limits.attempts`` attempts in a row without a step ahead. The
    ``.part`` file then stays, and the next call goes on with it. ``meter`` is told the bytes; it expects those of a
    file of known ``size`` already.
    """
    limits = limits or Limits()
    told = _Told(meter, size is not None)
    part = target.with_name(target.name + PART)
    failures, wrong = 0, 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _receive(url, part, size, digest, limits, told)
        except MissingError:
            raise
        except DataError as error:
            ahead = part.exists() and part.stat().st_size >= before + _PROGRESS
            failures = 1 if ahead else failures + 1
            if failures >= limits.attempts:
                raise DataError(f"{error}; given up after {failures} attempts, call again to go on") from error
            if note:
                note(f"{error}; trying again")
            time.sleep(limits.pause * 2 ** (failures - 1))
            continue
        problem = _wrong(part, digest)
        if problem is None:
            os.replace(part, target)
            _tag(part).unlink(missing_ok=True)
            return
        part.unlink()
        wrong += 1
        if wrong == 2:
            raise DataError(f"{url}: {problem}; it is damaged on the server or changed on the way")


@dataclass
class _Told:
    """The meter of a file, and whether it expects the bytes."""

    meter: Meter | None
    expected: bool

    def expect(self, count: int | None) -> None:
        if self.meter is not None and not self.expected and count is not None:
            self.expected = True
            self.meter.expect(count)

    def receive(self, count: int) -> None:
        if self.meter is not None:
            self.meter.receive(count)


def _tag(part: Path) -> Path:
    """Keeps the server's mark of the version that a ``.part`` file belongs to."""
    return part.with_name(part.name + ".tag")


def _receive(url: str, part: Path, size: int | None, digest: str | None, limits: Limits, told: _Told) -> None:
    """Append to ``part`` until it is complete. DataError when it is not."""
    have = part.stat().st_size if part.exists() else 0
    mark = _tag(part).read_text(encoding="utf-8") if _tag(part).is_file() else ""
    if have and not digest and not mark:
        part.unlink()  # nothing would tell whether the rest belongs to the same file
        have = 0
    if size is not None and have > size:
        part.unlink()
        have = 0
    if size is not None and have == size and have:
        return
    headers = {"Range": f"bytes={have}-"} if have else {}
    if have and mark:
        headers["If-Range"] = mark
    with stream(url, headers=headers, timeout=limits.timeout) as answer:
        begin, whole = _begin(url, part, have, answer)
        whole = size if size is not None else whole
        if not begin:
            _tag(part).write_text(_mark(answer), encoding="utf-8")
        room = None if whole is None else whole - begin
        told.expect(room)
        with part.open("ab" if begin else "wb", buffering=0) as handle:

            def write(block: bytes) -> None:
                handle.write(block)
                told.receive(len(block))

            _copy(url, answer, write, limits, room)
    got = part.stat().st_size
    if whole is not None and got < whole:
        raise DataError(f"{url}: the transfer broke off after {got} of {whole} bytes")


def _mark(answer: Answer) -> str:
    """A strong ETag, or the date of the last change; nothing when the server tells neither."""
    found = answer.headers.get("etag", "")
    return found if found.startswith('"') else answer.headers.get("last-modified", "")


def _begin(url: str, part: Path, have: int, answer: Answer) -> tuple[int, int | None]:
    """Where the body of the answer begins in the file, and the size of the whole file."""
    if answer.status == 404:
        raise MissingError(f"{url}: the server has no such file")
    if answer.status in (401, 403):
        raise MissingError(f"{url}: the server does not give it to everybody ({answer.status}); download it by hand")
    if answer.status == 416:
        part.unlink()
        raise DataError(f"{url}: the file has changed since the transfer began")
    length = answer.headers.get("content-length", "")
    count = int(length) if length.isdigit() else None
    if answer.status == 206 and have:
        place, _, whole = answer.headers.get("content-range", "").removeprefix("bytes ").partition("/")
        if place.split("-")[0] == str(have):
            return have, int(whole) if whole.isdigit() else None
        part.unlink()
        raise DataError(f"{url}: the server continued at another place than was asked for")
    if answer.status == 200:
        return 0, count
    if answer.status in RETRIED:
        raise DataError(f"{url}: the server answers {answer.status}")
    raise MissingError(f"{url}: the server answers {answer.status}")


def _copy(url: str, answer: Answer, write: Callable[[bytes], object], limits: Limits, room: int | None) -> None:
    """Write the body. DataError when it is too slow or longer than ``room``."""
    since, count, total = time.monotonic(), 0, 0
    while block := answer.read(MIB):
        total += len(block)
        if room is not None and total > room:
            raise DataError(f"{url}: the server sends more than the {room} bytes that belong to the file")
        write(block)
        count += len(block)
        passed = time.monotonic() - since
        if passed > limits.slow_seconds:
            if count < _SLOW_BYTES * passed / _SLOW_SECONDS:
                raise DataError(f"{url}: only {count} bytes in {passed:.0f} s")
            since, count = time.monotonic(), 0


def _wrong(part: Path, digest: str | None) -> str | None:
    if digest is None:
        return None
    if not part.exists():
        part.touch()
    found = sha256(part)
    return None if found == digest.lower() else f"its SHA-256 is {found}, expected {digest}"


def git_digest(path: Path) -> str:
    """The name that git gives to the content of a file (SHA-1 of ``blob <size>`` and the bytes)."""
    found = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as handle:
        while block := handle.read(MIB):
            found.update(block)
    return found.hexdigest()
