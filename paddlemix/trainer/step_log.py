# SPDX-License-Identifier: Apache-2.0
"""The numbers of a log entry: what was trained since the last one, how fast, and on how many processes."""

import dataclasses
import math
import resource
import time
from typing import Any

import paddle
from paddle import Tensor

from paddlemix.ops import compat
from paddlemix.trainer.batches import Batch
from paddlemix.trainer.stages import PROJECTOR_PART, TOWER_PART, StagePlan
from paddlemix.trainer.throughput import Done, device_peak, operations


class StepLog:
    """The part of the trainer that logs; everything else it uses belongs to PaddleNLP's Trainer or to ours.

    Contract: every number of an entry reaches the console, ``train_log.jsonl`` and ``report_to``. What a method adds
    to a step (rewards, accuracies) it hands to ``note``.
    """

    def begin_counting(self) -> None:
        """Nothing was trained so far."""
        self.tokens = self._tokens_done = 0
        self.done, self._done_logged = Done(), Done()
        self._noted: dict[str, list[float]] = {}
        self._began: tuple[float, int] | None = None

    def count(self, inputs: Batch) -> None:
        """Count a micro-batch that is about to be trained on."""
        if self._began is None:
            self._began = (time.monotonic(), self.state.global_step)
        self.done.add(inputs)
        self.tokens = self._tokens_before + int(self.done.tokens)

    _tokens_before = 0
    """Positions that the parts of the run before this one have trained."""

    def note(self, **numbers: float) -> None:
        """Numbers of a micro-batch for the next log entry, which holds their means over micro-batches and processes.

        Every process must note the same names.
        """
        for name, value in numbers.items():
            self._noted.setdefault(name, []).append(float(value))

    def _log_step(self, tr_loss: Tensor) -> None:
        steps = self.state.global_step - self._globalstep_last_logged - self._skip_steps_since_last_logged
        self._skip_steps_since_last_logged = 0
        self.control.should_log = False
        if steps <= 0:
            return
        total = self._mean_over_ranks(tr_loss)
        logs = {
            "loss": total / steps,
            "learning_rate": self.last_rate,
            **({"grad_norm": self.last_norm} if math.isfinite(self.last_norm) else {}),
            **self._taken_notes(),
            **({"skipped_updates": self.skipped_updates} if self.skipped_updates else {}),
            **({"loss_jumps": self.losses.jumps} if self.losses.jumps else {}),
            "global_step": int(self.state.global_step),
            **self._speeds(steps),
            **peak_memory(),
        }
        tr_loss.subtract_(tr_loss)
        self._total_loss_scalar += total
        self._globalstep_last_logged = self.state.global_step
        self._globalstep_last_start_time = time.time()
        self._done_logged = dataclasses.replace(self.done)
        self.log(logs)

    def _taken_notes(self) -> dict[str, float]:
        noted = {name: sum(values) / len(values) for name, values in self._noted.items()}
        self._noted = {}
        return {name: self._mean_over_ranks(paddle.to_tensor(noted[name])) for name in sorted(noted)}

    def _speeds(self, steps: int) -> dict[str, float]:
        seconds = max(time.time() - self._globalstep_last_start_time, 1e-9)
        samples = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.dataset_world_size
        done = self.done.since(self._done_logged)
        numbers = paddle.to_tensor(dataclasses.astuple(done), dtype="float32")
        if self.args.world_size > 1:
            paddle.distributed.all_reduce(numbers)
        together = self.args.dataset_world_size / self.args.world_size  # a tensor parallel group counts the same rows
        done = Done(*(value * together for value in numbers.tolist()))
        mfu = self._mfu(done, seconds)
        return {
            "interval_runtime": round(seconds, 4),
            "interval_samples_per_second": round(samples * steps / seconds, 4),
            "interval_steps_per_second": round(steps / seconds, 4),
            "interval_tokens_per_second": round(done.tokens / seconds, 1),
            "padding": round(done.padding, 4),
            **({} if mfu is None else {"mfu": round(mfu, 4)}),
            **self._time_left(),
        }

    def _mfu(self, done: Done, seconds: float) -> float | None:
        """Share of the devices' bfloat16 peak; None where that is not known, or not what the run computes in."""
        peak = device_peak(paddle.get_device()) if self.args.bf16 or self.args.fp16 else None
        config = getattr(self.model, "config", None)
        if peak is None or config is None:
            return None
        return operations(done, config, trained_numbers(self.plan)) / (seconds * peak * self.args.world_size)

    def _time_left(self) -> dict[str, int]:
        if self._began is None:
            return {}
        begun, step = self._began
        each = (time.monotonic() - begun) / max(self.state.global_step - step, 1)
        return {"eta_seconds": round(each * max(self.state.max_steps - self.state.global_step, 0))}

    def log(self, logs: dict[str, float], **kwargs: Any) -> None:
        """Tell the callbacks, and keep the entry: the base class forgets all entries before the last."""
        history = self.state.log_history
        super().log(logs, **kwargs)
        self.state.log_history = [*history, {**logs, "step": self.state.global_step}]

    def _mean_over_ranks(self, value: Tensor) -> float:
        if self.args.world_size > 1:
            value = value.clone()
            paddle.distributed.all_reduce(value)
            return float(value) / self.args.world_size
        return float(value)


def trained_numbers(plan: StagePlan) -> dict[str, int]:
    """Numbers that train, as ``throughput.operations`` takes them."""
    found = {"decoder": 0, "projector": 0, "tower": 0}
    for part in plan.parts:
        name = {TOWER_PART: "tower", PROJECTOR_PART: "projector"}.get(part.name, "decoder")
        found[name] += part.trainable
    return found


def peak_memory() -> dict[str, float]:
    """Largest memory so far in GiB: of the device, or on a CPU of this process."""
    device = paddle.get_device()
    if device != "cpu":
        return {"max_memory_allocated": compat.peak_memory(device) / 2**30}
    return {"max_memory_resident": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)}
