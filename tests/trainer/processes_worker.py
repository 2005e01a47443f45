# SPDX-License-Identifier: Apache-2.0
"""One process of runs that go on with another number of processes: ``processes_worker.py FOLDER`` runs its cases."""

import json
import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.trainer.trainer_kit import Rows, losses, make_trainer, settings  # noqa: E402 - after the path

UNIT = 6
"""Micro-batches of a step, however many processes share them."""


def run(output: Path, processes: int, resume: Path | None = None, **keys: Any) -> list[float]:
    """Four steps in two passes; the losses of all steps, as the log has them at the end."""
    saving = dict(save_strategy="steps", save_steps=2, lora_dropout=0.0, learning_rate=1e-3, warmup_ratio=0.0)
    settled = settings(output, gradient_accumulation_steps=UNIT // processes, **saving, **keys)
    trainer = make_trainer(settled, rows=Rows(23))  # the last batch of a pass is short
    trainer.train(resume)
    return losses(trainer)


def main(folder: Path) -> None:
    """Cases: name, output and checkpoint to go on from, keys."""
    import paddle

    told = {}
    for name, (output, resume, keys) in json.loads((folder / "cases.json").read_text()).items():
        told[name] = run(folder / output, paddle.distributed.get_world_size(), resume and folder / resume, **keys)
    if paddle.distributed.get_rank() == 0:
        (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

    import paddle

    from paddlemix.trainer.ranks import leave_in_order

    leave_in_order(paddle.distributed.get_world_size())  # as a run does at its end
