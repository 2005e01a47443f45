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

from paddlemix.datasets.build import make_collator
from paddlemix.datasets.preference import EncodedPair
from paddlemix.datasets.preprocess import Encoded
from paddlemix.models.llava import LlavaForCausalLM, build_empty, init_weights
from paddlemix.settings.memory_cpu import BatchSize, memory_on_cpu
from paddlemix.settings.run.training import TrainingSettings
from paddlemix.trainer import dry_run
from paddlemix.trainer.arguments import training_arguments
from paddlemix.trainer.lora_targets import add_adapters
from paddlemix.trainer.preference import PreferenceTrainer
from paddlemix.trainer.stages import plan_stage
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


class Pairs:
    """Rows whose second answer differs from the first in one id; ``single``: one answer each."""

    def __init__(self, rows: Rows, single: bool) -> None:
        self.rows, self.single, self.lengths = rows, single, rows.lengths

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> EncodedPair:
        chosen = self.rows[index]
        answer = int(np.argmax(chosen.labels != -100))
        if self.single:
            return EncodedPair(chosen, None, answer, desirable=index % 2 == 0)
        ids, labels = chosen.ids.copy(), chosen.labels.copy()
        ids[-1] = labels[-1] = 2
        return EncodedPair(chosen, dataclasses.replace(chosen, ids=ids, labels=labels, pixels=None), answer)

    where = Rows.where


def preference_trainer(run: TrainingSettings, rows: Pairs, model: LlavaForCausalLM) -> PreferenceTrainer:
    """As a run of preference tuning builds it."""
    return PreferenceTrainer(
        model, training_arguments(run), run, plan_stage(model, run), make_collator(run, model.config),
        trainer_kit.PlainWeights(), train_dataset=rows, order=lambda epoch: list(range(len(rows))),
    )  # fmt: skip


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
    rows = Rows(length, packed)
    if run.preference.loss_type is None:
        trainer = trainer_kit.make_trainer(run, rows=rows, model=model)
    else:
        trainer = preference_trainer(run, Pairs(rows, single=run.preference.loss_type == "kto"), model)
        trainer.before_training(lambda line: None)
    trainer.train()
    images = run.training.per_device_train_batch_size
    count = images * run.preference.answers
    size = BatchSize(count, length, images, count * ((length - trainer_kit.PATCHES + 1) // 2), packed)
    need = memory_on_cpu(config, run, size, dry_run._numbers(trainer.plan.parts))
    peak = paddle.base.core.host_memory_stat_peak_value("Allocated", 0)
    print(json.dumps({"peak": peak, "need": need.total, "parts": need.named}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
