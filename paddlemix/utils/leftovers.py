# SPDX-License-Identifier: Apache-2.0
"""Temporary files and folders: held by a lock while their writer lives, removed by the next run once it is dead.

A process number in the name would not do: in a container the number comes again, and on a shared file system it may
belong to another machine. A lock (flock) on the temporary itself ends with its process, however that ended.
"""

import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from paddlemix.utils.logging import get_logger

TEMPORARY_PREFIX = ".tmp-"
_ASIDE = ".old"
TERMINATED = 143
"""Exit code after SIGTERM, as shells expect it (128 + SIGTERM)."""


def temporary_of(target: Path) -> Path:
    """The name that this process writes ``target`` under."""
    return target.with_name(f"{TEMPORARY_PREFIX}{target.name}-{os.getpid()}")


def aside_of(target: Path) -> Path:
    """The name that an older ``target`` has while the new one takes its place."""
    return target.with_name(f"{temporary_of(target).name}{_ASIDE}")


@contextlib.contextmanager
def held(temporary: Path) -> Iterator[None]:
    """Lock an existing temporary file or folder for as long as the body runs."""
    handle = os.open(temporary, os.O_RDONLY)
    try:
        _lock(handle)
        yield
    finally:
        os.close(handle)


def remove_dead(target: Path) -> list[Path]:
    """Remove what earlier writers of ``target`` left behind and no living process holds; says so, with the size.

    A writer that died between the two renames of a replacement left the older ``target`` under its other name: that one
    gets its name back. What cannot be locked (some network file systems) is named and left alone.
    """
    removed = []
    for item in _leftovers(target):
        state = _state_of(item)
        if state == "unknown":
            get_logger(__name__).warning(f"{item} may be left by a run that was killed; remove it by hand if so")
        elif state == "dead" and item.name.endswith(_ASIDE) and not target.exists():
            os.rename(item, target)
            get_logger(__name__).warning(f"{target}: got its name back; the run that was replacing it was killed")
        elif state == "dead":
            size = size_of(item)
            remove(item)
            get_logger(__name__).warning(f"removed {item} ({size / 1e6:.1f} MB), left by a run that was killed")
            removed.append(item)
    return removed


def _leftovers(target: Path) -> list[Path]:
    """Temporaries of other processes for ``target``: what was set aside first."""
    start = f"{TEMPORARY_PREFIX}{target.name}-"
    own = (temporary_of(target), aside_of(target))
    try:
        items = sorted(target.parent.iterdir(), key=lambda item: (not item.name.endswith(_ASIDE), item.name))
    except OSError:
        return []
    named = [item for item in items if item.name.startswith(start) and item not in own]
    return [item for item in named if item.name.removeprefix(start).removesuffix(_ASIDE).isdigit()]


def remove(item: Path) -> None:
    """Remove a file or a folder; nothing happens when it is gone."""
    if item.is_dir() and not item.is_symlink():
        shutil.rmtree(item, ignore_errors=True)
    else:
        item.unlink(missing_ok=True)


def size_of(item: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = item.rglob("*") if item.is_dir() else [item]
    total = 0
    for file in files:
        with contextlib.suppress(OSError):
            total += file.lstat().st_size
    return total


@contextlib.contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Inside, SIGTERM ends the process by an exception (exit code 143), so that what is half written is removed.

    Nothing changes where the program has a handler of its own (a training saves first), or outside of the main thread.
    Paddle's own handler, set when it is imported, prints a trace and exits at once; it does not count as one.
    """
    ours = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    if not ours or before not in (signal.SIG_DFL, None, _end):
        yield
        return
    signal.signal(signal.SIGTERM, _end)  # also when it is ours already: an import of paddle may have taken its place
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(TERMINATED)


def _state_of(item: Path) -> str:
    try:
        handle = os.open(item, os.O_RDONLY)
    except FileNotFoundError:
        return "gone"
    except OSError:
        return "unknown"
    try:
        return {True: "dead", False: "living", None: "unknown"}[_lock(handle)]
    finally:
        os.close(handle)


def _lock(handle: int) -> bool | None:
    """Whether the lock was had; None where the file system has no such locks."""
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
