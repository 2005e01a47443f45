# SPDX-License-Identifier: Apache-2.0
"""One of two processes that train on the stand-in and go on from a checkpoint: ``parallel_worker.py FOLDER DEVICE``."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.trainer.trainer_kit import Rows, losses, make_trainer, settings, tiny, weights

TEXT = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
"""Heads of 64, which the fused operators take."""


def train(folder: Path, device: str, resume: Path | None = None, **changes: Any) -> dict[str, Any]:
    """Losses, loss of the evaluation and weights of one run."""
    import paddle

    paddle.set_device(device)
    run = settings(folder, device=device, bf16=False, learning_rate=1e-3, **changes)
    trainer = make_trainer(run, rows=Rows(12, equal=True), eval_rows=Rows(5), model=tiny(**TEXT))
    trainer.train(resume)
    return {"losses": losses(trainer), "eval": trainer.evaluate()["eval_loss"], "weights": weights(trainer.model)}


def main(folder: Path, device: str) -> None:
    """Train, go on from step 4 in the same process, and write what the first process found."""
    import paddle

    from tests.npu_standin.worker import Calls

    calls = Calls()
    calls.reset()
    straight = train(folder, device, save_strategy="steps", save_steps=4)
    counted = calls.read()
    resumed = train(folder, device, folder / "checkpoint-4", save_strategy="steps", save_steps=4)
    if paddle.distributed.get_rank() == 0:
        np.savez(folder / "straight.npz", **straight.pop("weights"))
        np.savez(folder / "resumed.npz", **resumed.pop("weights"))
        told = {"straight": straight, "resumed": resumed, "calls": counted, "device": paddle.get_device()}
        (folder / "told.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
