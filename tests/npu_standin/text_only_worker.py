# SPDX-License-Identifier: Apache-2.0
"""One of two processes that meet steps without an image and go on from each: ``text_only_worker.py FOLDER DEVICE``."""

import functools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.npu_standin.parallel_worker import SLICED, TEXT, paddle_device, paddle_rank, values
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


def case(folder: Path, device: str, keys: dict[str, Any]) -> dict[str, Any]:
    """Which steps a run can be resumed from bit for bit, and what the optimizer holds after the first one."""
    trainer = train(folder, device, {**keys, "save_strategy": "steps", "save_steps": 1})
    straight, wanted = values(trainer), losses(trainer)
    found: dict[str, Any] = {"device": paddle_device(), "steps": trainer.state.global_step, "equal": []}
    for step in range(1, len(ORDER)):
        trainer = train(folder, device, keys, folder / f"checkpoint-{step}")
        resumed = values(trainer)
        same = all(np.array_equal(straight[name], resumed[name]) for name in straight)
        if same and straight.keys() == resumed.keys() and losses(trainer) == wanted:
            found["equal"].append(step)
    return {**found, "weights": len(straight), "trained": sorted(trainer.plan.rules)}


def main(folder: Path, device: str) -> None:
    """All cases one after the other; the first process writes what it found."""
    import paddle.distributed.sharding as sharding

    sharding.group_sharded_parallel = functools.partial(sharding.group_sharded_parallel, segment_size=SLICED)
    found = {name: case(folder / name, device, keys) for name, keys in CASES.items()}
    if paddle_rank() == 0:
        (folder / "told.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
