# SPDX-License-Identifier: Apache-2.0
"""One of two processes that train on the stand-in and go on from a checkpoint: ``parallel_worker.py FOLDER DEVICE``."""

import functools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.trainer.trainer_kit import Rows, losses, make_trainer, settings, tiny, weights

TEXT = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
"""Heads of 64, which the fused operators take."""

CASES: dict[str, dict[str, Any]] = {
    "stage1": {"sharding": "stage1", "use_fused_head_and_loss_fn": True},
    "stage2": {"sharding": "stage2"},
    "stage3": {"sharding": "stage3", "recompute": True},
    "plain": {},  # last: a run without sharding sets paddle up in a way that none with it can follow in one process
}

SLICED = 300
"""Stage3 cuts parameters with more numbers than this (paddle's own limit, 2**20, would leave a tiny model whole)."""


def train(folder: Path, device: str, resume: Path | None = None, **changes: Any) -> Any:
    """The trainer after one run."""
    import paddle

    paddle.set_device(device)
    keys = {"save_strategy": "steps", "save_steps": 4, **changes}
    run = settings(folder, device=device, bf16=False, learning_rate=1e-3, **keys)
    trainer = make_trainer(run, rows=Rows(12, equal=True), eval_rows=Rows(5), model=tiny(**TEXT))
    trainer.train(resume)
    return trainer


def told(trainer: Any) -> dict[str, Any]:
    """Losses, norms, memory and the loss of an evaluation."""
    steps = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    return {
        "losses": losses(trainer),
        "norms": [entry["grad_norm"] for entry in steps],
        "memory": [entry.get("max_memory_allocated", 0.0) for entry in steps],
        "eval": trainer.evaluate()["eval_loss"],
    }


def values(trainer: Any) -> dict[str, np.ndarray]:
    """The weights; with stage3 as the first process gathers them (the others get nothing)."""
    from paddlemix.trainer import divided

    found: dict[str, np.ndarray] = {}

    def write(read: Any) -> None:
        found.update({name: read(value).copy() for name, value in trainer.model.named_parameters()})

    divided.write_whole(trainer.model, write if trainer.is_world_process_zero() else None)
    return found


def case(folder: Path, device: str, **keys: Any) -> dict[str, Any]:
    """Train, go on from step 4 in the same process, and write the weights of both."""
    trainer = train(folder, device, **keys)
    found = {"straight": told(trainer)}
    straight, where = values(trainer), paddle_device()
    trainer = train(folder, device, folder / "checkpoint-4", **keys)
    found["resumed"] = told(trainer)
    resumed = values(trainer)
    if trainer.is_world_process_zero():
        np.savez(folder / "straight.npz", **straight)
        np.savez(folder / "resumed.npz", **resumed)
    save_whole(trainer, folder / "model")
    return {**found, "device": where}


def save_whole(trainer: Any, folder: Path) -> None:
    """The model as the end of a run writes it."""
    from paddlemix.checkpoint.save import save_model
    from paddlemix.trainer import divided

    def write(read: Any) -> None:
        save_model(folder, trainer.model, trainer.model.config, None, read=read)

    divided.write_whole(trainer.model, write if trainer.is_world_process_zero() else None)


def paddle_device() -> str:
    """The device that paddle computes on."""
    import paddle

    return paddle.get_device()


def alone(folder: Path) -> dict[str, Any]:
    """One process on the CPU with twice the batch."""
    trainer = train(folder, "cpu", per_device_train_batch_size=4)
    return {**told(trainer), "weights": weights(trainer.model)}


def main(folder: Path, device: str) -> None:
    """All cases one after the other, those of ``text_only_worker`` first; the first process writes what it found."""
    import paddle.distributed.sharding as sharding

    from tests.npu_standin import text_only_worker
    from tests.npu_standin.worker import Calls

    sharding.group_sharded_parallel = functools.partial(sharding.group_sharded_parallel, segment_size=SLICED)
    calls, found = Calls(), {"text only": text_only_worker.cases(folder / "text only", device)}
    for name, keys in CASES.items():
        calls.reset()
        found[name] = {**case(folder / name, device, **keys), "calls": calls.read()}
    if paddle_rank() == 0:
        (folder / "told.json").write_text(json.dumps(found), encoding="utf-8")


def paddle_rank() -> int:
    """Number of this process."""
    import paddle

    return paddle.distributed.get_rank()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
