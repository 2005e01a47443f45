# SPDX-License-Identifier: Apache-2.0
"""How far a run over many records is: a bar where there is a terminal, else a line now and then. Rate and time left."""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

EVERY_SECONDS = 10.0
"""Without a terminal, a line this often."""


class Progress:
    """Progress of a run over ``total`` records, as a context manager: a bar must be taken away at the end.

    ``done`` records were there before this process began; they do not count for the rate. ``what`` names the records
    ("questions"). ``advance`` may carry a remark that the line ends with ("2 failed").
    """

    def __init__(
        self,
        name: str,
        total: int,
        what: str,
        *,
        done: int = 0,
        silent: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.total, self.what = name, total, what
        self.done, self._before, self._remark = done, done, ""
        self._clock, self._silent = clock, silent
        self._begun = clock()
        self._said = float("-inf")
        self._bar: Any = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar[0].stop()

    def advance(self, count: int, remark: str = "") -> None:
        """So many more records are done."""
        self.done += count
        self._remark = remark
        if self._silent:
            return
        if sys.stderr.isatty():
            self._draw()
        elif self._clock() - self._said >= EVERY_SECONDS or self.done >= self.total:
            self._said = self._clock()
            sys.stderr.write(f"{self.name}: {self.line()}\n")
            sys.stderr.flush()

    def line(self) -> str:
        """``120 of 1000 questions, 3.20 a second, 4 min 35 s left; 2 failed``."""
        made, seconds = self.done - self._before, self._clock() - self._begun
        rate = made / seconds if made and seconds > 0 else 0.0
        left = self.total - self.done
        speed = f", {rate:.2f} a second" if rate else ""
        speed += f", {duration(left / rate)} left" if rate and left else ""
        return f"{self.done} of {self.total} {self.what}{speed}" + (f"; {self._remark}" if self._remark else "")

    def _draw(self) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bars

            bars = Bars(TextColumn("{task.description}"), BarColumn(), console=Console(stderr=True), transient=True)
            bars.start()
            self._bar = bars, bars.add_task(self.name, total=self.total)
        bars, task = self._bar
        bars.update(task, completed=self.done, description=f"{self.name}: {self.line()}")


def duration(seconds: float) -> str:
    """``2 h 05 min``, ``4 min 35 s`` or ``35 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
