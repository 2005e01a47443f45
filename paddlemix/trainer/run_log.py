# SPDX-License-Identifier: Apache-2.0
"""``train_log.jsonl``: every log entry of a run as one JSON object, and the picture of its losses (``loss.png``).

Keys of every line: ``event``, ``step``, ``epoch``, ``time`` (seconds since 1970). Events:

    step        ``loss``, ``learning_rate``, ``grad_norm``, speeds and memory of the steps since the line before, and
                what a method notes (rewards)
    eval        ``eval_loss`` and the other metrics of an evaluation during the training
    end         ``train_loss``, ``train_runtime`` and speeds of the whole run
    final_eval  as eval, after the training (``do_eval``)

A line is written in one piece and ends with a line end: a killed run leaves at most one broken line, the last one.
"""

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from paddlemix.trainer.loss_plot import Curves, draw
from paddlemix.utils import files
from paddlemix.utils.logging import get_logger
from paddlemix.utils.shown import shown

LOG_FILE = "train_log.jsonl"
PLOT_FILE = "loss.png"

STEP, EVAL, END, FINAL_EVAL = "step", "eval", "end", "final_eval"

Event: TypeAlias = dict[str, Any]


class RunLog:
    """The log of one run, in its first process.

    ``begin`` opens it, ``add`` appends an entry, ``draw`` makes the picture of all entries so far.
    """

    def __init__(self, output: Path) -> None:
        self.path = output / LOG_FILE
        self.picture = output / PLOT_FILE
        self.curves = Curves()
        self._training = False
        self._broken = False

    def begin(self, step: int | None) -> None:
        """Go on behind ``step``: what a run that was killed has logged after its checkpoint is taken away.

        Step 0 begins anew; None keeps all of a training (a run that only evaluates, or is finished already).
        """
        self._training = step is not None
        kept = []
        for event in read_events(self.path) if step != 0 else ():
            trained = event["event"] != END and step is not None and event["step"] <= step
            if event["event"] != FINAL_EVAL and (step is None or trained):
                kept.append(event)
                self._note(event)
        text = "".join(_line(event) for event in kept)
        if text or self.path.exists():
            files.atomic_write(self.path, text)

    def add(self, numbers: dict[str, Any], step: int, epoch: float | None) -> None:
        """Append an entry. A file that cannot be written is warned of once and ends nothing."""
        event = {
            "event": self._kind(numbers),
            "step": step,
            "epoch": round(float(epoch or 0), 6),
            "time": round(time.time(), 3),
            **{name: value for name, value in numbers.items() if name not in ("epoch", "global_step", "step")},
        }
        self._note(event)
        try:
            number = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(number, _line(event).encode("utf-8"))
            finally:
                os.close(number)
        except OSError as error:
            self._warn(error)

    @property
    def ended(self) -> bool:
        """Whether an evaluation would be that after the training."""
        return not self._training

    def end_training(self) -> None:
        """What is evaluated from here on is the result."""
        self._training = False

    def _kind(self, numbers: dict[str, Any]) -> str:
        if any(name.startswith("eval_") for name in numbers):
            return EVAL if self._training else FINAL_EVAL
        return END if "train_runtime" in numbers else STEP

    def _note(self, event: Event) -> None:
        self.curves.add(event["step"], {name: event.get(name) for name in ("loss", "eval_loss", "learning_rate")})

    def draw(self) -> None:
        """Write ``loss.png``; without a number to show there is none."""
        if not self.curves.empty:
            try:
                draw(self.picture, self.curves)
            except OSError as error:
                self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._broken:
            self._broken = True
            get_logger(__name__).warning(f"the log of the run cannot be written: {shown(error)}")


def step_of(checkpoint: Path | None) -> int:
    """The step that a run goes on behind, by the folder's name: 0 without one."""
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint is not None else 0


def read_events(path: Path) -> Iterator[Event]:
    """The events of a ``train_log.jsonl``, in order; torn lines (of a killed run) are left out."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    for line in text.split("\n"):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        known = isinstance(event, dict) and isinstance(event.get("event"), str)
        if known and isinstance(event.get("step"), int):
            yield event


def _line(event: Event) -> str:
    """One line of strict JSON: numbers that are not finite become null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in event.items()
    }
    return json.dumps(finite, ensure_ascii=False) + "\n"
