# SPDX-License-Identifier: Apache-2.0
"""One run for each output folder: a lock (flock) that ends with its process, however that ended."""

import contextlib
import fcntl
import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from paddlemix.utils.errors import ConfigError
from paddlemix.utils.forks import kept_from_children
from paddlemix.utils.logging import get_logger

LOCK_FILE = ".lock"
_LETTING_GO = 30.0
"""Seconds that the processes of a killed run have for their first line, in which they let go of its folder."""
_READ = 4096
_CONTENT = re.compile(r"process ([0-9]{1,10}) on ([^\n]*)(?:\nstarted at tick ([0-9]{1,20})\n)?")


@dataclass(frozen=True)
class _Holder:
    """What the lock file says of the run that holds it. ``started``: as ``/proc`` counts it; "" when not known."""

    number: int
    host: str
    started: str

    def __str__(self) -> str:
        return f"process {self.number} on {self.host}"

    def may_run(self) -> bool:
        """False when it is certain that the process has ended. One of another machine may run."""
        if self.host != os.uname().nodename:
            return True
        try:
            os.kill(self.number, 0)
        except ProcessLookupError:
            return False
        except (PermissionError, OverflowError):
            pass
        state, started = _state_of(self.number)
        # A number comes again; a process that was killed keeps its own until its parent has asked for its code.
        return state not in ("Z", "X") and (not self.started or started in ("", self.started))


@contextlib.contextmanager
def lock(output_dir: str | Path) -> Iterator[None]:
    """Hold ``output_dir`` for this run. ConfigError names the process that holds it.

    A kill frees it, whatever processes the run has started: they let go with their first line, which is waited for.
    """
    root = Path(output_dir)
    root.mkdir(parents=True, exist_ok=True)
    with (
        _opened(_regular(root / LOCK_FILE), os.O_RDWR | os.O_CREAT) as file,
        kept_from_children(file),
        _opened(root, os.O_RDONLY) as folder,
        kept_from_children(folder),
    ):
        given_up = time.monotonic() + _LETTING_GO
        while not (_locked(file, root / LOCK_FILE) and _locked(folder)):  # the folder's holds when the file is removed
            holder = _holder(file)
            if holder is None or holder.may_run() or time.monotonic() >= given_up:
                raise ConfigError(
                    f'"output_dir": {root} is in use by {holder or "another run"}; '
                    "wait for it, stop it, or choose another folder"
                )
            time.sleep(0.05)
        _write(file)
        yield


def _regular(path: Path) -> Path:
    """A link would have its target overwritten, and a pipe has no content."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ConfigError(f'"output_dir": {path} is not a regular file; remove it, or choose another folder')
    return path


def _locked(handle: int, named: Path | None = None) -> bool:
    """Whether this process holds the file or folder from now on. Where the file system has no such locks it counts as
    held, and a warning says so of the file that is ``named``; some lock files and no folders."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if named is not None:
            get_logger(__name__).warning(
                f"{named} cannot be locked ({error.strerror}): nothing notices a second run in this folder"
            )
    return True


def _holder(file: int) -> _Holder | None:
    """None when the file does not say: the run has begun just now, or somebody else has written into it."""
    found = _CONTENT.fullmatch(os.pread(file, _READ, 0).decode("utf-8", "replace"))
    return _Holder(int(found[1]), found[2], found[3] or "") if found else None


def _write(file: int) -> None:
    started = _state_of(os.getpid())[1]
    line = f"\nstarted at tick {started}\n" if started else ""
    with contextlib.suppress(OSError):  # a full disk: the lock holds all the same, without a name
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {os.uname().nodename}{line}".encode(), 0)


def _state_of(number: int) -> tuple[str, str]:
    """State and start of a process (proc(5): fields 3 and 22 of its ``stat``); empty where the system has no such."""
    try:
        fields = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return "", ""


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    handle = os.open(path, flags | os.O_CLOEXEC, 0o666)
    try:
        yield handle
    finally:
        os.close(handle)
