# SPDX-License-Identifier: Apache-2.0
"""A signal while a run has nothing to save: it ends the run at once, with the exit code of a stopped run.

That is before the first step and in the evaluation after the result is written. Ctrl-C (SIGINT) needs no care here:
it is a KeyboardInterrupt, exit code 130.

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

SIGNALS = ("SIGTERM", "SIGHUP", "SIGUSR1")
NOTHING_YET = "before the first step: nothing to save; the same command starts again"

_before: dict[int, Any] = {}
_received: list[str] = []
_said = [NOTHING_YET]


@contextlib.contextmanager
def ending_early(what: str = NOTHING_YET) -> Iterator[None]:
    """Inside, until ``training_begins``, a signal ends the process with ``EXIT_STOPPED``; ``what`` is said then.

    On the main thread only. A SIGHUP that was ignored before (nohup) stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _received.clear()
    _said.append(what)
    mine = [number for number in _numbers() if number not in _before]
    for number in mine:
        _before[number] = signal.signal(number, _end) or signal.SIG_DFL
    try:
        yield
    finally:
        _said.pop()
        for number in mine:
            if number in _before:
                signal.signal(number, _before.pop(number))


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Inside, signals wait; used around the import of paddle, which sets a handler of its own for SIGTERM."""
    numbers, waiting = set(_before), []
    for number in numbers:  # a signal to the process may reach another thread, which does not block it
        signal.signal(number, lambda number, _: waiting.append(number))
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, _end)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if waiting:
            _end(waiting[0], None)


@contextlib.contextmanager
def on_the_way_out() -> Iterator[None]:
    """Inside, signals change nothing: the process ends anyway, and cleans up first."""
    before = {number: signal.signal(number, lambda *_: None) for number in _before}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def training_begins() -> dict[int, Any]:
    """Called by the training once it has its own handlers: those that were there before this module's.

    Ends the process when a signal came and a library has swallowed the exit.
    """
    if _received:
        raise SystemExit(EXIT_STOPPED)
    earlier = dict(_before)
    _before.clear()
    return earlier


def _numbers() -> list[int]:
    found = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    hangup = getattr(signal, "SIGHUP", None)
    return [number for number in found if number != hangup or signal.getsignal(number) != signal.SIG_IGN]


def _end(number: int, frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    _received.append(name)
    sys.stderr.write(f"{name} {_said[-1]}\n")
    raise SystemExit(EXIT_STOPPED)
