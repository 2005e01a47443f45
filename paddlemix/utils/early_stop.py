# SPDX-License-Identifier: Apache-2.0
"""SIGUSR1 before the first step of a training: it ends the run at once, with the exit code of a stopped run.

Launchers send SIGUSR1 to the ranks when a job has to leave its machines (deploy/npu), and start them with that signal
ignored, because paddle's launcher has no handler for it. A rank that reads a model for minutes must not lose it.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

EXIT_STOPPED = 75
"""Exit code of a run that a signal ended, after saving what there was (EX_TEMPFAIL: the same command goes on)."""

_before: list[Any] = []


@contextlib.contextmanager
def ending_on_sigusr1() -> Iterator[None]:
    """Inside, until ``training_begins``, SIGUSR1 ends the process with ``EXIT_STOPPED``; on the main thread only."""
    number = getattr(signal, "SIGUSR1", None)
    if number is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _before.append(signal.signal(number, _end) or signal.SIG_DFL)
    try:
        yield
    finally:
        if _before:
            signal.signal(number, _before.pop())


def training_begins() -> Any:
    """Called by the training once it has its own handler: the handler that was there before this module's, or None."""
    return _before.pop() if _before else None


def _end(number: int, frame: FrameType | None) -> None:
    sys.stderr.write(
        f"{signal.Signals(number).name} before the first step: nothing to save; the same command starts again\n"
    )
    sys.stderr.flush()
    # Not by an exception: libraries swallow one that comes while they are imported. Files are written under other
    # names first, and locks end with the process, so nothing is left half done.
    os._exit(EXIT_STOPPED)
