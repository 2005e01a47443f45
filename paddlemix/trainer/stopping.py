# SPDX-License-Identifier: Apache-2.0
"""When a run cannot go on: every process stops before the same update, and what was reached is saved if it is sound."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import paddle
from paddle import Tensor

from paddlemix.trainer import checkpointing
from paddlemix.trainer.batches import Batch
from paddlemix.trainer.callbacks import StopOnSignal
from paddlemix.utils.errors import PaddleMixError, TrainingError
from paddlemix.utils.logging import get_logger

T = TypeVar("T")

_UNREAD, _NOT_FINITE, _JUMPED, _HEALTHY = 0.0, 1.0, 2.0, 3.0


class NotFiniteError(TrainingError):
    """A loss or a gradient is not finite: the weights are sound by number only, an older checkpoint may be better."""


class Stopping:
    """The part of the trainer that stops; everything it uses belongs to PaddleNLP's Trainer or to ours."""

    saved_step = 0
    """Step of the newest checkpoint of this run (0: none yet)."""
    saving = False
    """Whether a checkpoint is being written."""
    stop_signal: StopOnSignal | None = None
    """Tells whether a signal has come."""
    _together = False

    @property
    def saved_at_a_signal(self) -> bool:
        """Whether a signal ends the run and this step is saved.

        PaddleNLP's loop then reports the end of an epoch, which asks for a checkpoint and an evaluation once more.
        """
        stopped = self.stop_signal is not None and self.stop_signal.before_the_end
        return stopped and self.saved_step == self.state.global_step

    @property
    def within_an_epoch(self) -> bool:
        """Whether steps of the present epoch are still to come."""
        return float(self.state.epoch or 0.0) % 1.0 != 0.0

    def _check_loss_valid(self, loss: Tensor) -> None:
        """Called before every update, on every process. Raises the error of a batch that a process could not read.

        NotFiniteError when the loss is not finite on any process, or jumped where the settings stop then.
        """
        value, unread = float(loss), self.batches.failed
        state = _UNREAD if unread is not None else self._state_of(value)
        if self.args.world_size > 1:
            everywhere = paddle.to_tensor(state)
            paddle.distributed.all_reduce(everywhere, op=paddle.distributed.ReduceOp.MIN)
            state = float(everywhere)
        if state == _UNREAD:
            self.stop_together(unread)
        if state == _NOT_FINITE:
            raise self._not_finite(f"the loss is {value}")
        if state == _JUMPED:
            raise self._not_finite("the loss jumped (stop_at_loss_jump)")
        self.running_loss = value / (self.state.global_step + 1 - self._globalstep_last_logged)

    def _state_of(self, total: float) -> float:
        """Of this process; warns of a loss that jumped."""
        if not np.isfinite(total):
            return _NOT_FINITE
        times = self.losses.times_above(total, self.state.global_step + 1 - self._globalstep_last_logged)
        if times is None:
            return _HEALTHY
        get_logger(__name__).warning(
            f"step {self.state.global_step + 1}: the loss is {times:.0f} times that of the steps before it. Rows of "
            f"this step: {self.batches.describe_recent()}"
        )
        return _JUMPED if self.settings.training.stop_at_loss_jump else _HEALTHY

    def _note_norm(self, norm: float) -> None:
        """Called by the clip, right before the update, with the norm of all gradients of the run.

        NotFiniteError when it is not finite.
        """
        # With loss scaling an overflow of the gradients is normal: a scaler that has seen it skips the update itself.
        if not np.isfinite(norm) and not (self.do_grad_scaling and bool(self.scaler._found_inf)):
            raise self._not_finite(f"the loss is {self.running_loss:g}, the gradient norm {norm}")
        self.last_norm, self.last_rate = norm, float(self.optimizer.get_lr())

    def _not_finite(self, what: str) -> NotFiniteError:
        kept = checkpointing.newest_valid(self.args.output_dir)
        return NotFiniteError(
            f"step {self.state.global_step + 1}: {what}; stopped before the update, so no weight is spoiled. "
            f"Rows of this step: {self.batches.describe_recent() if self.batches else 'unknown'}. Try a lower "
            f"learning_rate, bf16 in place of fp16, or look at these rows; "
            + (f"the last good checkpoint is {kept}" if kept else "there is no checkpoint yet")
        )

    def out_of_memory(self, inputs: Batch) -> TrainingError:
        """What to lower when a step does not fit."""
        rows, length = inputs["token_ids"].shape
        tiles = len(inputs["pixels"]) if inputs.get("pixels") is not None else 0
        return TrainingError(
            f"step {self.state.global_step + 1}: out of memory with {rows} rows of {length} positions and {tiles} "
            f"image tiles ({self.batches.describe_recent()}). Lower per_device_train_batch_size and raise "
            "gradient_accumulation_steps by the same factor, switch recompute on, or lower max_length"
        )

    def gathered(self, value: T) -> list[T]:
        """The value that each process of the run has; every process must call it."""
        found = [value]
        if self.args.world_size > 1:
            found = []
            paddle.distributed.all_gather_object(found, value)
        return found

    def stop_together(self, problem: PaddleMixError | None) -> None:
        """Called by every process: raises the first problem that one of them has, on all of them."""
        first = next((error for error in self.gathered(problem) if error is not None), None)
        if first is not None:
            self._together = True
            raise first

    def checkpoint_folder(self) -> Path:
        """Where a checkpoint of the present step belongs."""
        return Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"

    @contextlib.contextmanager
    def saving_at_an_error(self) -> Iterator[None]:
        """Save the last whole step when an error ends the run, as a signal does; the error is raised again.

        Not when the numbers themselves are in doubt, nor where a process stops alone and the others would wait.
        """
        try:
            yield
        except NotFiniteError:
            raise
        except PaddleMixError:
            alone = self.args.world_size == 1
            if (alone or self._together) and not self.saving and self.state.global_step > self.saved_step:
                self._save_last_step()
            raise

    def _save_last_step(self) -> None:
        try:
            self._save_checkpoint(self.model)
        except (PaddleMixError, OSError) as error:
            get_logger(__name__).warning(f"{self.checkpoint_folder()}: not saved ({error})")
            return
        self.callback_handler.on_save(self.args, self.state, self.control)
        if self.is_world_process_zero():
            get_logger(__name__).info("once the cause is removed, the same command goes on from there")
