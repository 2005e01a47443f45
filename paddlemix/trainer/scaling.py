# SPDX-License-Identifier: Apache-2.0
"""Half precision: what casts to it, and the loss scale of fp16 with the updates that it skips.

O1: weights are float32; AMP casts the inputs of matmuls and convolutions. O2: weights are half, and the model itself
says what is computed in float32 (norms, softmax, rotary tables, loss). PaddleNLP would switch on AMP there too, which
with O2 casts every operator but a few: those float32 parts would silently be half.
"""

from contextlib import AbstractContextManager
from types import MethodType
from typing import Any, Protocol

import numpy as np
import paddle
from paddle.amp import GradScaler
from paddle.optimizer import Optimizer

from paddlemix.trainer.library import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from paddlemix.utils.errors import TrainingError
from paddlemix.utils.logging import get_logger


class MixedPrecision:
    """The part of the trainer that knows of half precision; all it uses belongs to PaddleNLP's Trainer or to ours."""

    skipped_updates = 0
    """Updates that the loss scale has skipped, in the whole run."""

    def autocast_smart_context_manager(self) -> AbstractContextManager[None]:
        """AMP with O1 only."""
        if self.enable_autocast_context_manager and self.args.fp16_opt_level == "O2":
            # Off, and not left away: the dtype that is named here is the one by which a scaler decides to work at all.
            return paddle.amp.auto_cast(enable=False, dtype=self.amp_dtype)
        return super().autocast_smart_context_manager()

    def scale_master_gradients(self) -> None:
        """Let the scaler find the float32 gradients of ``amp_master_grad``, where PaddleNLP does not.

        2026-11, PaddleNLP 3.0.0b4: with one process and in data parallel it would unscale nothing and see no overflow.
        Paddle's own remedy (MixPrecisionScaler) asks for groups of processes, which such runs have not.
        """
        divided = bool(self.args.sharding) or self.args.tensor_parallel_degree > 1
        if self.do_grad_scaling and self.args.amp_master_grad and not divided:
            self.scaler._unscale = MethodType(_unscale_master_gradients, self.scaler)

    def note_update(self) -> None:
        """Called after each update: counts one that an overflow has skipped. TrainingError when no scale is left."""
        if not self.do_grad_scaling or not skipped(self.scaler):
            return
        self.skipped_updates += 1
        self.last_norm, self.last_rate = float("nan"), float(self.optimizer.get_lr())
        scale, step = float(self.scaler._scale), self.state.global_step + 1
        if scale < 1.0:
            raise TrainingError(
                f"step {step}: the gradients overflow float16 whatever the loss is scaled by (last by {2 * scale:g}): "
                'no update is made any more. Write "bf16": true in place of fp16, or a lower learning_rate'
            )
        get_logger(__name__).warning(
            f"step {step}: the gradients overflow float16; the update is skipped and the loss scale falls to {scale:g}"
        )


def _unscale_master_gradients(scaler: GradScaler, optimizer: Optimizer) -> None:
    """In place of the scaler's own way: divides the gradients by the scale, and notes whether one is not finite."""
    parameters = optimizer._parameter_list
    gradients = [parameter.main_grad for parameter in parameters if parameter.main_grad is not None]
    found = paddle.to_tensor(np.array([False]))
    if gradients:
        paddle._legacy_C_ops.check_finite_and_unscale(gradients, scaler._scale, gradients, found)
    scaler._found_inf = int(found)


class Training(Protocol):
    """The trainer as the callback needs it."""

    def note_update(self) -> None:
        """Called after each update."""


class AfterUpdate(TrainerCallback):
    """Tells the trainer that an update was made or skipped."""

    def __init__(self, trainer: Training) -> None:
        self.trainer = trainer

    def on_optimizer_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Right behind the update, before the step is counted."""
        self.trainer.note_update()


def skipped(scaler: GradScaler) -> bool:
    """Whether the scaler has skipped the last update (the attribute has two spellings)."""
    return bool(getattr(scaler, "_cache_founf_inf", getattr(scaler, "_cache_found_inf", False)))


def numbers(scaler: GradScaler) -> dict[str, Any]:
    """The state of a scaler as plain JSON, exactly: its scale and how many steps in a row were good or bad."""
    return {name: np.asarray(value).tolist() for name, value in scaler.state_dict().items()}


def restore(scaler: GradScaler, found: dict[str, Any]) -> None:
    """Inverse of ``numbers``."""
    like = scaler.state_dict()
    scaler.load_state_dict({name: np.asarray(value, np.asarray(like[name]).dtype) for name, value in found.items()})
