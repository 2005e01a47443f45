# SPDX-License-Identifier: Apache-2.0
"""What a forked process must not take over from its parent: the handles of locks, and a life of its own.

``forked_map`` lets such processes share a piece of work.
"""

import contextlib
import ctypes
import functools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

_HELD: set[int] = set()
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

Job = TypeVar("Job")
Result = TypeVar("Result")


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


def forked_map(work: Callable[[Job], Result], jobs: Sequence[Job], processes: int) -> Iterator[Result]:
    """``work(job)`` for every job in order, by so many forked processes; by this one with 1, or with a single job.

    What ``work`` reads beside its job are variables of its module that were set before: nothing of them is sent. They
    end with this process, and leave its Ctrl-C to it. BrokenProcessPool when one of them is ended from outside.
    """
    if processes == 1 or len(jobs) < 2:
        yield from map(work, jobs)
        return
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(min(processes, len(jobs)), context, _begin_work, (os.getpid(),))
    try:
        yield from pool.map(work, jobs)
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_work(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(parent)
