# SPDX-License-Identifier: Apache-2.0
"""Files that are complete or absent, and the one function that reads from the network."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from paddlemix.utils import addresses, env, foreign, leftovers
from paddlemix.utils.errors import CheckpointError, ConfigError, DataError, TrainingError
from paddlemix.utils.leftovers import TEMPORARY_PREFIX
from paddlemix.utils.logging import get_logger
from paddlemix.utils.shown import shown

if TYPE_CHECKING:
    from urllib3 import HTTPResponse

MANIFEST = "manifest.json"
MIB = 1 << 20

PAUSES = (1.0, 4.0, 15.0, 40.0)
"""Seconds between the tries to write into a folder that cannot be written."""

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sha256(path: str | Path) -> str:
    """Hex digest of a file, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(4 * MIB):
            digest.update(block)
    return digest.hexdigest()


def atomic_write(path: str | Path, data: bytes | str) -> None:
    """Write a file so that a reader sees the old content or the new, also after a crash. Text is written as UTF-8.

    TrainingError when the disk is full; the old file is then untouched.
    """
    with atomic_stream(path) as stream:
        stream.write(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def atomic_stream(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write ``path`` by parts: what was written takes its place when the block ends without an error."""
    target = Path(path)
    temporary = leftovers.temporary_of(target)
    leftovers.remove_dead(target)
    with leftovers.ending_on_sigterm(), explained_when_full(target, temporary):
        with open(temporary, "wb") as stream, leftovers.held(temporary):
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            os.replace(temporary, target)
        _sync_folder(target.parent)


def write_small(path: Path, text: str) -> None:
    """Replace a file in one step, without waiting for the disk: for what is of no use after a power cut."""
    temporary = leftovers.temporary_of(path)
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


@contextlib.contextmanager
def publish_folder(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """Fill a folder that is then published under ``path`` as a whole.

    Yields an empty temporary folder beside the target. At the end every file is flushed to disk and listed with size
    and SHA-256 in ``manifest.json``, and the folder gets its name in one rename. When the body raises, the temporary
    folder is removed and an older ``path`` is left as it was.

    ``replace=False`` raises CheckpointError when ``path`` holds anything. A disk that runs full raises TrainingError.
    """
    target = Path(path).absolute()
    if not replace and _occupied(target):
        raise CheckpointError(f"{target}: exists already; choose another folder or remove it")
    temporary = leftovers.temporary_of(target)
    leftovers.remove_dead(target)
    with leftovers.ending_on_sigterm(), explained_when_full(target, temporary):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        with leftovers.held(temporary):
            yield temporary
            write_manifest(temporary)
            _swap_in(temporary, target)


class _DiskFullError(TrainingError):
    """A disk ran full; the error of the system is the cause of this one."""

    written = 0
    """Bytes that had been written."""


@contextlib.contextmanager
def explained_when_full(target: Path, temporary: Path) -> Iterator[None]:
    """Remove ``temporary`` at the end, and turn a disk that runs full into TrainingError: path, size, free space."""
    try:
        yield
    except (OSError, _DiskFullError) as error:
        # Of a writer inside another one, the outer one knows the name that a person knows.
        cause = error.__cause__ if isinstance(error, _DiskFullError) else error
        size = leftovers.size_of(temporary) + getattr(error, "written", 0)
        leftovers.remove(temporary)  # first, so that the free space is what the next try will find
        raise _explained(cause, target, size) from cause
    finally:
        leftovers.remove(temporary)


@contextlib.contextmanager
def adding_to(path: Path) -> Iterator[None]:
    """Around what adds to the end of a file: a disk that runs full becomes TrainingError with its name."""
    try:
        yield
    except OSError as error:
        raise _explained(error, path, leftovers.size_of(path)) from error


def write_manifest(folder: Path) -> None:
    """Flush every file under ``folder`` and list it in ``manifest.json``."""
    entries: dict[str, dict[str, Any]] = {}
    for file in sorted(item for item in folder.rglob("*") if item.is_file() and item != folder / MANIFEST):
        _sync_file(file)
        entries[file.relative_to(folder).as_posix()] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"files": entries}, indent=1) + "\n", encoding="utf-8")
    _sync_file(manifest)
    for directory in sorted(item for item in folder.rglob("*") if item.is_dir()):
        _sync_folder(directory)
    _sync_folder(folder)


def read_manifest(folder: str | Path) -> dict[str, dict[str, Any]]:
    """The files that ``manifest.json`` lists: name -> ``bytes`` and ``sha256``. CheckpointError says what is wrong."""
    path = Path(folder) / MANIFEST
    entries = foreign.read_json(path, CheckpointError, unique=True).get("files")
    if not isinstance(entries, dict) or not entries:
        raise CheckpointError(f'{path}: expected "files" with a name for each file')
    for name, facts in entries.items():
        place = PurePosixPath(name)
        if not name or "\0" in name or place.is_absolute() or ".." in place.parts:
            raise CheckpointError(f'{path}: "{shown(name)}" is no file of this folder')
        fits = isinstance(facts, dict) and type(facts.get("bytes")) is int and isinstance(facts.get("sha256"), str)
        if not fits:
            raise CheckpointError(f'{path}: "{shown(name)}" comes without its size and SHA-256')
    return entries


def verify_folder(folder: str | Path, *, content: bool = True, needed: Iterable[str] = ()) -> list[str]:
    """What is wrong with a published folder, one line per file; empty when all is well.

    ``content=False`` compares names and sizes only and does not read the files. ``needed``: files without which the
    folder is not whole, whatever its manifest lists.
    """
    root = Path(folder)
    try:
        entries = read_manifest(root)
    except CheckpointError as error:
        return [str(error)]
    problems = [f"{root / name}: not in the manifest" for name in needed if name not in entries]
    for name, facts in entries.items():
        file = root / name
        if not file.is_file():
            problems.append(f"{file}: missing")
        elif file.stat().st_size != facts["bytes"]:
            problems.append(f"{file}: {file.stat().st_size} bytes, the manifest says {facts['bytes']}")
        elif content and sha256(file) != facts["sha256"]:
            problems.append(f"{file}: its SHA-256 differs from the manifest")
    return problems


def wait_until_writable(folder: str | Path) -> None:
    """Return when a file can be made in ``folder``; TrainingError when it still cannot after about a minute.

    File servers go away for a while, or mount read-only. The folder is made again if it is gone.
    """
    root = Path(folder)
    for pause in (*PAUSES, None):
        try:
            root.mkdir(parents=True, exist_ok=True)
            probe = leftovers.temporary_of(root / "probe")
            probe.write_bytes(b"\0" * 4096)
            probe.unlink()
            return
        except OSError as error:
            if error.errno in _DISK_FULL or pause is None:
                raise TrainingError(f"{root}: cannot be written ({error.strerror}); nothing was lost there") from error
            get_logger(__name__).warning(f"{root}: cannot be written ({error.strerror}); next try in {pause:g} s")
            time.sleep(pause)


def remove_leftovers(folder: str | Path) -> list[Path]:
    """Remove every temporary folder and file in ``folder``, which the caller holds alone. Returns what was removed."""
    found = sorted(Path(folder).glob(f"{TEMPORARY_PREFIX}*"))
    for item in found:
        leftovers.remove(item)
    return found


def fetch(url: str, max_bytes: int = 20 * MIB, timeout: float = 10.0, *, private: bool = False) -> bytes:
    """Content of an http(s) address. ``timeout`` is the limit of the whole transfer in seconds.

    Only hosts of the public internet are read unless ``private``; each host is looked up once, and the address that
    was checked is the one that is connected to. At most 3 redirects, each checked like the first; no credentials, no
    proxies but that of ``PADDLEMIX_FETCH_PROXY``, never more than ``max_bytes`` in memory. DataError names the address
    and the reason.
    """
    from paddlemix.utils import exchange

    proxy = _proxy()
    deadline = exchange.Deadline(timeout)
    address = addresses.parse(url)
    for _ in range(4):
        try:
            answer = exchange.get(address, deadline, max_bytes, private=private, proxy=proxy)
            if isinstance(answer, bytes):
                return answer
            address = addresses.redirected(address, answer)
        except DataError as error:
            if str(error).startswith(shown(url)):
                raise
            raise DataError(f"{shown(url)} leads to {error}") from error
    raise DataError(f"{shown(url)}: more than 3 redirects")


def _proxy() -> addresses.Address | None:
    named = env.get("PADDLEMIX_FETCH_PROXY")
    if not named:
        return None
    try:
        proxy = addresses.parse(named)
    except DataError as error:
        raise ConfigError(f"environment variable PADDLEMIX_FETCH_PROXY: {error}") from error
    if proxy.scheme != "http" or proxy.target != "/":
        raise ConfigError(f'environment variable PADDLEMIX_FETCH_PROXY="{shown(named)}": expected http://HOST:PORT')
    return proxy


@dataclass(frozen=True)
class Answer:
    """An HTTP answer whose body is still to be read. ``headers`` go by their names in small letters.

    ``read(n)`` gives what is there, up to n bytes, and an empty value at the end.
    """

    status: int
    headers: Mapping[str, str]
    read: Callable[[int], bytes]


@contextlib.contextmanager
def stream(url: str, *, headers: Mapping[str, str] | None = None, timeout: float = 30.0) -> Iterator[Answer]:
    """Open an http(s) address for reading in pieces; ``timeout`` limits each wait, not the whole transfer.

    For the model hub that the user names (``download``), which may lie in a private network or behind a proxy: the
    policy of ``fetch`` for addresses out of foreign files does not hold here, and digests check what comes.
    At most 5 redirects, each address checked like the first. DataError when the transfer breaks, also while the body
    of the ``with`` reads; what a status means is the caller's decision.
    """
    import requests
    import urllib3

    address = url
    wanted = {"User-Agent": "paddlemix", "Accept-Encoding": "identity", **(headers or {})}
    try:
        for _ in range(6):
            addresses.parse(address)
            waits = (min(timeout, 10.0), timeout)
            with requests.get(address, headers=wanted, stream=True, allow_redirects=False, timeout=waits) as response:
                if response.is_redirect:
                    address = urllib.parse.urljoin(address, response.headers["location"])
                    continue
                found = {name.lower(): value for name, value in response.headers.items()}
                yield Answer(response.status_code, found, _reader(response.raw))
                return
        raise DataError(f"{url}: more than 5 redirects")
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise DataError(f"{url}: {_network_reason(error)}") from error


@dataclass(frozen=True)
class Reply:
    """The whole answer to a request of ours. ``headers`` go by their names in small letters."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def post(url: str, body: bytes, headers: Mapping[str, str], timeout: float, max_bytes: int = 8 * MIB) -> Reply:
    """Send ``body`` to a service that the user names (a judge model), and read what it answers within ``timeout`` s.

    As with ``stream`` the service may lie in a private network or behind the environment's proxy, which addresses of
    this machine never go through. Redirects are not followed, since they would take the key to another host, and
    credentials of ``.netrc`` do not replace those in ``headers``. DataError when there is no whole answer.
    """
    import requests
    import urllib3

    address = addresses.parse(url)
    end = time.monotonic() + timeout
    found = bytearray()
    try:
        with requests.Session() as session:
            session.trust_env = not addresses.is_loopback(address.host)
            session.auth = lambda request: request  # else requests takes the password of .netrc for the key
            waits = (min(timeout, 10.0), timeout)
            with session.post(
                url, data=body, headers=dict(headers), timeout=waits, allow_redirects=False, stream=True
            ) as response:
                while block := response.raw.read1(64 * 1024, decode_content=True):
                    found += block
                    if len(found) > max_bytes:
                        raise DataError(f"{shown(url)}: the answer is larger than {max_bytes} bytes")
                    if time.monotonic() > end:
                        raise DataError(f"{shown(url)}: the answer is not complete after {timeout:g} s")
                names = {name.lower(): value for name, value in response.headers.items()}
                return Reply(response.status_code, names, bytes(found))
    except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
        raise DataError(f"{shown(url)}: {_network_reason(error)}") from error


def _reader(raw: "HTTPResponse") -> Callable[[int], bytes]:
    return lambda count: raw.read1(count, decode_content=False)


def _network_reason(error: Exception) -> str:
    kinds = {
        "ConnectTimeout": "no connection in time",
        "ReadTimeout": "no answer in time",
        "ReadTimeoutError": "the transfer stopped",
        "ProtocolError": "the transfer broke off",
        "SSLError": "TLS failed",
    }
    return kinds.get(type(error).__name__, "the server cannot be reached")


def _occupied(target: Path) -> bool:
    return target.exists() and (not target.is_dir() or any(target.iterdir()))


def _swap_in(temporary: Path, target: Path) -> None:
    aside = leftovers.aside_of(target)
    if target.exists():
        os.rename(target, aside)
    try:
        os.rename(temporary, target)
    except OSError:
        if aside.exists():
            os.rename(aside, target)
        raise
    _sync_folder(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _sync_file(path: Path) -> None:
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot flush a folder; the rename is then as safe as they make it.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _explained(error: OSError, path: Path, size: int) -> Exception:
    """The error; if the disk is full, with the path, the ``size`` in bytes written so far and the free space."""
    if error.errno not in _DISK_FULL:
        return error
    folder = next((item for item in (path, *path.parents) if item.exists()), Path("/"))
    free = shutil.disk_usage(folder).free
    told = _DiskFullError(
        f"{path}: cannot be written ({error.strerror}); {free / MIB:.0f} MiB are free, and {size / MIB:.0f} MiB of it "
        "had been written. Free some space or choose another folder; what was there before is untouched"
    )
    told.written = size
    return told
