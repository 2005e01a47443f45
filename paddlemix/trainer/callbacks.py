# SPDX-License-Identifier: Apache-2.0
"""What a person sees while a run goes on, and how a signal ends it without loss."""

import signal
import threading
import time
from collections.abc import Iterable
from types import FrameType
from typing import Any, Protocol, TypeAlias

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.optimizer import Optimizer
from paddle.optimizer.lr import LRScheduler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from paddlemix.trainer.batches import Batch
from paddlemix.trainer.checkpointing import RunState
from paddlemix.trainer.library import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from paddlemix.trainer.library import logger as library_log
from paddlemix.trainer.log_line import console_lines
from paddlemix.trainer.reports import Reports
from paddlemix.trainer.run_log import RunLog
from paddlemix.utils import early_stop
from paddlemix.utils.logging import console, get_logger

Given: TypeAlias = (
    nn.Layer | Optimizer | LRScheduler | Iterable[Batch] | dict[str, Tensor] | dict[str, float] | float | None
)
"""What PaddleNLP gives to every event beside its three states: model, optimizer, schedule, batches, numbers."""


class Running(Protocol):
    """The numbers of a trainer that the bar shows: positions trained so far, and the newest loss."""

    tokens: int
    running_loss: float


class Continued(Protocol):
    """What a trainer goes on with after a checkpoint (PaddleNLP's names and ours)."""

    args: TrainingArguments
    _carried: RunState | None
    _total_loss_scalar: float
    _globalstep_last_logged: int


class ProgressBar(TrainerCallback):
    """A bar with steps, ETA, loss and tokens per second on a terminal; one line per log everywhere."""

    def __init__(self, show_bar: bool | None = None) -> None:
        self.show_bar = console().is_terminal if show_bar is None else show_bar
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._started = (0.0, 0)
        self._trainer: Running | None = None

    def watch(self, trainer: Running) -> None:
        """Show the ``running_loss`` and the ``tokens`` of this trainer."""
        self._trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Given) -> None:
        """Show the bar, with the steps of a resumed run done already."""
        if not state.is_world_process_zero:
            return
        self._started = (time.monotonic(), self._trainer.tokens if self._trainer else 0)
        if self.show_bar:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeElapsedColumn(), TextColumn("ETA"))
            self._bar = Progress(*columns, TimeRemainingColumn(), TextColumn("{task.description}"), console=console())
            self._task = self._bar.add_task("", total=state.max_steps, completed=state.global_step)
            self._bar.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Given) -> None:
        """Advance the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step, description=self._speed())

    def _speed(self) -> str:
        if self._trainer is None:
            return ""
        since, before = self._started
        speed = (self._trainer.tokens - before) / max(time.monotonic() - since, 1e-9)
        return f"loss {self._trainer.running_loss:.4f}  {speed:,.0f} tokens/s"

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Given,
    ) -> None:
        """Lines of at most 100 columns; the log file gets every number under its own name."""
        if not state.is_world_process_zero or not logs:
            return
        library_log.info(", ".join(f"{name}: {_short(value)}" for name, value in logs.items()))
        for line in console_lines(logs, state.global_step, state.max_steps):
            console().print(line, markup=False, soft_wrap=True)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Given) -> None:
        """Say which checkpoint there is now."""
        if state.is_world_process_zero:
            console().print(f"saved checkpoint-{state.global_step}")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Given) -> None:
        """Take the bar away."""
        self.close()

    def close(self) -> None:
        """Give the terminal back, also after an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _short(value: float | str) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


class StopOnSignal(TrainerCallback):
    """SIGTERM, SIGINT, SIGHUP, SIGUSR1: finish the step, save, stop. The second signal ends the process at once.

    Every process of a run agrees on the step, whichever of them got the signal. A SIGHUP or SIGINT that was ignored
    before stays so: nohup and background jobs ask for it, and the run has to outlive its terminal. After the last step
    the signals stay here until ``restore``, so that the result is written to its end.
    """

    SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
    LEFT_IGNORED = ("SIGINT", "SIGHUP")

    def __init__(self) -> None:
        self.received: str | None = None
        self.before_the_end = False
        self._done = False
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Given) -> None:
        """Take over the signals (only the main thread of a process can)."""
        if threading.current_thread() is threading.main_thread():
            for name in self.SIGNALS:
                number = getattr(signal, name, None)
                if number is None or (name in self.LEFT_IGNORED and signal.getsignal(number) == signal.SIG_IGN):
                    continue
                self._before[number] = signal.signal(number, self._note)
            self._before.update(early_stop.training_begins())

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        self.restore()  # the next one acts as if we were not here
        what = "writing the result to its end" if self._done else "saving after this step"
        get_logger(__name__).warning(f"{self.received}: {what}; once more ends the run at once")

    def restore(self) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def agreed(self, world_size: int) -> bool:
        """Whether any process of the run got a signal up to now; every process must ask."""
        wanted = self.received is not None
        if world_size > 1:
            flag = paddle.to_tensor(float(wanted))
            paddle.distributed.all_reduce(flag, op=paddle.distributed.ReduceOp.MAX)
            wanted = float(flag) > 0
        if wanted:
            self.received = self.received or "a signal to another process"
        return wanted

    def stop(self, control: TrainerControl, world_size: int) -> None:
        """Ask the loop to save and to stop when any process of the run got a signal; every process must call it."""
        if self.agreed(world_size):
            self.before_the_end = True
            control.should_save = control.should_training_stop = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Given
    ) -> TrainerControl:
        """Stop if a signal has come."""
        self.stop(control, args.world_size)
        return control

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Given) -> None:
        """From here on there is a result to write, unless a signal has ended the training."""
        self._done = not self.before_the_end


class Reporting(TrainerCallback):
    """Hands every log line on to the programs of ``report_to``."""

    def __init__(self, reports: Reports) -> None:
        self.reports = reports

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Given,
    ) -> None:
        """The numbers of the line."""
        if logs:
            self.reports.log(logs, state.global_step)


class Recording(TrainerCallback):
    """Writes ``train_log.jsonl`` and ``loss.png``; without a log (the other processes) nothing."""

    def __init__(self, log: RunLog | None) -> None:
        self.log = log

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Given,
    ) -> None:
        """Every entry as a line."""
        if self.log is not None and logs:
            self.log.add(logs, state.global_step, state.epoch)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Given) -> None:
        """The picture so far."""
        if self.log is not None:
            self.log.draw()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Given) -> None:
        """The whole picture."""
        if self.log is not None:
            self.log.end_training()
            self.log.draw()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Given) -> None:
        """An evaluation after the training belongs to the picture, too."""
        if self.log is not None and self.log.ended:
            self.log.draw()


class SeedEachStep(TrainerCallback):
    """Dropout of step n depends on (seed, n, rank) only; and the sums of a continued run go on where they were."""

    def __init__(self, trainer: Continued) -> None:
        self.trainer = trainer
        self.restored = False

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Given) -> None:
        """The loop has set its sums to zero by now; put back those of the checkpoint."""
        carried = self.trainer._carried
        if carried is not None and not self.restored:
            self.restored = True
            self.trainer._total_loss_scalar = carried.logged_loss
            self.trainer._globalstep_last_logged = carried.last_logged_step

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Given) -> None:
        """A seed per optimizer step, mixed so that neighbouring steps and ranks share nothing.

        Processes that hold one model together (tensor parallel) draw the same noise for what they all compute.
        """
        rank = self.trainer.args.dataset_rank
        mixed = np.random.SeedSequence([self.trainer.args.seed, state.global_step, rank]).generate_state(1)[0]
        paddle.seed(int(mixed))
