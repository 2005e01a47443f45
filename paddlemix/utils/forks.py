# SPDX-License-Identifier: Apache-2.0
"""What a forked process must not take over from its parent: the handles of locks, and a life of its own."""

import contextlib
import ctypes
import functools
import os
import signal
from collections.abc import Iterator

_HELD: set[int] = set()
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@contextlib.contextmanager
def kept_from_children(handle: int) -> Iterator[None]:
    """While the block runs, every process that is forked from this one closes its copy of the file ``handle``.

    A lock (flock) holds as long as any process has the file open, so a child that outlives this process would go on
    holding it.
    """
    _watch_forks()
    _HELD.add(handle)
    try:
        yield
    finally:
        _HELD.discard(handle)


@functools.cache
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_close_held)


def _close_held() -> None:
    for handle in _HELD:
        with contextlib.suppress(OSError):
            os.close(handle)
    _HELD.clear()


def end_with_parent(parent: int) -> None:
    """Called in a child: the system kills it when ``parent``, the number of its parent process, has ended.

    Linux only; elsewhere nothing happens. The link is to the thread that forked.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)
