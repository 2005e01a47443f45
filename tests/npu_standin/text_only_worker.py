# SPDX-License-Identifier: Apache-2.0
"""Runs that meet steps without an image and go on from them, in the two processes of ``parallel_worker.py``."""

from pathlib import Path
from typing import Any

import numpy as np

from tests.npu_standin.parallel_worker import TEXT, paddle_device, values
from tests.trainer.trainer_kit import Rows, losses, make_trainer, settings, tiny

CASES: dict[str, dict[str, Any]] = {
    "stage1": {"sharding": "stage1", "tune_entire_model": True},
    "stage2": {"sharding": "stage2", "lora": True},
    "stage3": {"sharding": "stage3"},
}

ORDER = (
    (2, 5, 8, 11),  # no image anywhere
    (0, 1, 3, 4),
    (2, 5, 0, 1),  # one process has images, however the rows are dealt out
    (5, 0, 8, 1),
    (11, 2, 5, 8),
)
"""Rows of each step; those of a remainder of two by three have no image."""

AGAIN = {"stage1": (1, 2, 3, 4), "stage2": (1, 3), "stage3": (1, 3)}
"""Steps that a run goes on from: one without an image and one with images in one process; with stage1 all."""


def train(folder: Path, device: str, keys: dict[str, Any], resume: Path | None = None) -> Any:
    """The trainer after one run."""
    import paddle

    paddle.set_device(device)
    run = settings(folder, device=device, num_train_epochs=1.0, save_total_limit=None, **keys)
    model = None if run.model.lora else tiny(**TEXT)
    order = [row for step in ORDER for row in step]
    trainer = make_trainer(run, rows=Rows(len(order)), model=model, order=lambda _: order)
    trainer.train(resume)
    return trainer


def case(folder: Path, device: str, keys: dict[str, Any], again: tuple[int, ...]) -> dict[str, Any]:
    """From which of the steps ``again`` a run goes on bit for bit, and what the optimizer holds after the first one."""
    trainer = train(folder, device, {**keys, "save_strategy": "steps", "save_steps": 1})
    straight, wanted = values(trainer), losses(trainer)
    found: dict[str, Any] = {"device": paddle_device(), "steps": trainer.state.global_step, "equal": []}
    for step in again:
        trainer = train(folder, device, keys, folder / f"checkpoint-{step}")
        resumed = values(trainer)
        same = all(np.array_equal(straight[name], resumed[name]) for name in straight)
        if same and straight.keys() == resumed.keys() and losses(trainer) == wanted:
            found["equal"].append(step)
    return {**found, "weights": len(straight), "trained": sorted(trainer.plan.rules)}


def cases(folder: Path, device: str) -> dict[str, Any]:
    """All cases one after the other, and what was found."""
    return {name: case(folder / name, device, keys, AGAIN[name]) for name, keys in CASES.items()}
