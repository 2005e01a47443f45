# SPDX-License-Identifier: Apache-2.0
"""``memory_worker.py CASE``: trains a small model on a CPU; the peak of paddle's counter and the estimate, as JSON."""

import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from paddlemix.datasets.preprocess import Encoded
from paddlemix.models.llava import build_empty, init_weights
from paddlemix.settings.memory_cpu import BatchSize, memory_on_cpu
from paddlemix.trainer.lora_targets import add_adapters
from paddlemix.utils.device import tune_cpu
from tests.trainer import trainer_kit


class Rows(trainer_kit.Rows):
    """Rows of one length with an image each; half of their places are learnt."""

    def __init__(self, length: int, packed: bool) -> None:
        super().__init__(12, equal=True)
        self.length, self.packed = length, packed

    def __getitem__(self, index: int) -> Encoded:
        row = super().__getitem__(index)
        ids = np.concatenate([row.ids, np.arange(self.length - row.length) % 60 + 3])
        labels = np.where(np.arange(len(ids)) < len(ids) // 2, -100, ids)
        segments = 1 + (np.arange(len(ids)) >= len(ids) // 3) if self.packed else None
        return dataclasses.replace(row, ids=ids, labels=labels, length=self.length, segments=segments)


def main(case: dict[str, Any]) -> None:
    """Three steps: from the second one on all that stays is there."""
    tune_cpu()
    length, packed = case.pop("length"), case.pop("packed", False)
    text = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4}
    text |= case.pop("text", {})
    config = trainer_kit.CONFIG.with_changes(text=dataclasses.replace(trainer_kit.CONFIG.text, **text))
    run = trainer_kit.settings(Path(tempfile.mkdtemp()), max_steps=3, **case)
    model = build_empty(config)
    init_weights(model)
    if run.model.lora:
        add_adapters(model, run)
    trainer = trainer_kit.make_trainer(run, rows=Rows(length, packed), model=model)
    trainer.train()
    rows = run.training.per_device_train_batch_size
    size = BatchSize(rows, length, rows, rows * ((length - trainer_kit.PATCHES + 1) // 2), packed)
    trained = sum(int(np.prod(value.shape)) for value in trainer.plan.trainable(model).values())
    need = memory_on_cpu(config, run, size, trained)
    peak = paddle.base.core.host_memory_stat_peak_value("Allocated", 0)
    print(json.dumps({"peak": peak, "need": need.total, "parts": need.named}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
