# SPDX-License-Identifier: Apache-2.0
"""SIGUSR1 before the first step of a training: it ends the run at once, with the exit code of a stopped run.

Launchers send SIGUSR1 to the ranks when a job has to leave its machines (deploy/npu), and start them with that signal
ignored, because paddle's launcher has no handler for it. A rank that reads a model for minutes must not lose it.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

EXIT_STOPPED = 75
"""Exit code of a run that a signal ended, after saving what there was (EX_TEMPFAIL: the same command goes on)."""

_before: list[Any] = []
_received: list[str] = []


@contextlib.contextmanager
def ending_on_sigusr1() -> Iterator[None]:
    """Inside, until ``training_begins``, SIGUSR1 ends the process with ``EXIT_STOPPED``; on the main thread only."""
    number = getattr(signal, "SIGUSR1", None)
    if number is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _received.clear()
    _before.append(signal.signal(number, _end) or signal.SIG_DFL)
    try:
        yield
    finally:
        if _before:
            signal.signal(number, _before.pop())


def training_begins() -> Any:
    """Called by the training once it has its own handler: the handler that was there before this module's, or None.

    Ends the process when a signal came and a library has swallowed the exit.
    """
    if _received:
        raise SystemExit(EXIT_STOPPED)
    return _before.pop() if _before else None


def _end(number: int, frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    _received.append(name)
    sys.stderr.write(f"{name} before the first step: nothing to save; the same command starts again\n")
    raise SystemExit(EXIT_STOPPED)
