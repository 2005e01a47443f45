# SPDX-License-Identifier: Apache-2.0
"""How far a download is: a bar where there is a terminal, else a line now and then. Bytes, rate, time that is left."""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from paddlemix.utils.logging import get_logger

EVERY_SECONDS = 10.0
"""Without a terminal, a line this often."""


class Meter:
    """Progress of a download of several files; a context manager, since a bar must be taken away at the end.

    ``expect`` says how many bytes are to come, ``receive`` how many came: what an earlier call left does not count.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self.total = self.received = 0
        self._clock = clock
        self._begun = self._said = clock()
        self._bar: Any = None

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar[0].stop()

    def expect(self, count: int) -> None:
        """So many more bytes are to come."""
        self.total += count

    def receive(self, count: int) -> None:
        """So many bytes came; the bar or the line follows."""
        self.received += count
        self._tell()

    def line(self) -> str:
        """``1.20 of 13.50 GB, 35.0 MB/s, 5 min 51 s left``."""
        rate = self.received / max(self._clock() - self._begun, 1e-9)
        left = self.total - self.received
        whole = f" of {_size(self.total)}" if left >= 0 else ""
        time_left = f", {_time(left / rate)} left" if left > 0 and rate > 0 else ""
        return f"{_size(self.received)}{whole}, {rate / 1e6:.1f} MB/s{time_left}"

    def _tell(self) -> None:
        if sys.stderr is not None and sys.stderr.isatty():
            self._draw()
        elif self._clock() - self._said >= EVERY_SECONDS:
            self._said = self._clock()
            get_logger(__name__).info(f"{self.name}: {self.line()}")

    def _draw(self) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            bars = Progress(TextColumn("{task.description}"), BarColumn(), console=Console(stderr=True), transient=True)
            bars.start()
            self._bar = bars, bars.add_task(self.name, total=None)
        bars, task = self._bar
        bars.update(task, completed=self.received, total=self.total or None, description=f"{self.name}: {self.line()}")


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
