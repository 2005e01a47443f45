# SPDX-License-Identifier: Apache-2.0
"""The frozen reference of preference losses: the model as it was at the start of the run, without a second model.

New adapters are switched off; of every other parameter that trains a copy of its start lies beside the model and takes
its place for a pass without gradients. Or the log-probabilities of all rows are computed before the run and kept.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import paddle
from paddle import Tensor

from paddlemix.models.llava import LlavaForCausalLM
from paddlemix.ops.linear import adapters_off, share_memory
from paddlemix.settings.run.training import TrainingSettings
from paddlemix.trainer.frozen import frozen_sample
from paddlemix.trainer.stages import StagePlan, is_adapter
from paddlemix.utils.journal import Journal
from paddlemix.utils.shown import amount

FILE = "reference_log_probs.jsonl"
PORTION = 64
"""Rows of a line of the file: what a kill can lose."""


class Reference:
    """The start of a run: ``taken`` before the first update and before a checkpoint is loaded."""

    def __init__(self, model: LlavaForCausalLM, copies: dict[str, Tensor], *, off: bool) -> None:
        self.model = model
        self.copies = copies
        self.off = off

    @classmethod
    def taken(cls, model: LlavaForCausalLM, plan: StagePlan, settings: TrainingSettings) -> "Reference | None":
        """That of ``model`` as it is now, whose adapters (unless they go on from ``lora_path``) have changed nothing.

        None for a loss without one; nothing is copied when the reference is asked before the first update only.
        """
        if not settings.preference.reference:
            return None
        if settings.preference.precompute_ref_log_probs or not settings.training.do_train:
            return cls(model, {}, off=False)
        new = settings.model.lora and not settings.model.lora_path
        copied = [name for name in plan.rules if not (new and is_adapter(name))]
        parameters = dict(model.named_parameters())
        return cls(model, {name: parameters[name].detach().clone() for name in copied}, off=bool(new))

    def cost(self) -> str:
        """A line about what the reference takes."""
        count = sum(int(np.prod(value.shape)) for value in self.copies.values())
        size = sum(int(np.prod(value.shape)) * value.element_size() for value in self.copies.values())
        kept = f"a frozen copy of {count:,} numbers, {amount(size)} on each device"
        if not self.off and not count:
            return "reference: the model as it is"
        if not self.off:
            return f'reference: {kept}; "precompute_ref_log_probs": true needs none'
        return f"reference: the model without its adapters{f', and {kept}' if count else ''}"

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the model is the reference, in evaluation mode; for passes without gradients."""
        model = self.model
        was_training = model.training
        off = adapters_off(model) if self.off else contextlib.nullcontext()
        if was_training:
            model.eval()
        try:
            with paddle.no_grad(), off, _swapped(model, self.copies):
                yield
        finally:
            if was_training:
                model.train()


@contextlib.contextmanager
def _swapped(model: LlavaForCausalLM, values: dict[str, Tensor]) -> Iterator[None]:
    """Within the block the named parameters have other ``values``; nothing is copied."""
    parameters = dict(model.named_parameters()) if values else {}
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        for name, value in values.items():
            own = paddle.empty([0], dtype=value.dtype)  # no detach(): what that gives is the parameter's own tensor
            share_memory(own, parameters[name])
            kept.append((parameters[name], own))
            share_memory(parameters[name], value)
        yield
    finally:
        for parameter, own in kept:
            share_memory(parameter, own)


def start_key(model: LlavaForCausalLM, data: str, settings: TrainingSettings, more: Sequence[str | int] = ()) -> str:
    """Changes with the rows, the start of the model, and whatever else the reference's numbers depend on."""
    preference, data_keys = settings.preference, settings.data
    facts = [data, frozen_sample(model, ()), repr(data_keys), settings.model.template, preference.loss_type, *more]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def kept_rows(
    path: Path, key: str, rows: Sequence[int], compute: Callable[[list[int]], np.ndarray]
) -> dict[int, np.ndarray]:
    """float32 [2] of each of the ``rows``: from the file at ``path`` what a run with the same ``key`` has left there.

    ``compute(rows) -> float32 [n, 2]`` is asked for the rest, whose numbers are written as they come.
    """
    portions = [list(rows[start : start + PORTION]) for start in range(0, len(rows), PORTION)]

    def fits(number: int, records: list[Any]) -> TypeGuard[list[dict[str, Any]]]:
        return number < len(portions) and [record.get("row") for record in records] == portions[number]

    if path.is_file() and f'"{key}"'.encode() not in path.open("rb").readline():
        path.unlink()
    journal: Journal[dict[str, Any]] = Journal(path, {"key": key}, fits, in_use='choose another "output_dir"')
    try:
        for number, portion in enumerate(portions):
            if number not in journal.done:
                found = compute(portion)
                records = [{"row": row, "logps": values} for row, values in zip(portion, found.tolist(), strict=True)]
                journal.add(number, records)
    finally:
        journal.close()
    return {
        record["row"]: np.array(record["logps"], np.float32) for records in journal.done.values() for record in records
    }
