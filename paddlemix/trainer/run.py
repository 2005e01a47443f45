# SPDX-License-Identifier: Apache-2.0
"""A whole training run from its settings: check, load, train, evaluate, save a folder that the chat opens."""

import dataclasses
from typing import Any

from paddlemix.settings.training import KNOWN, OWN_TRAINING_KEYS, TrainingSettings


def training_arguments(settings: TrainingSettings, device: str = "cpu") -> Any:
    """PaddleNLP's TrainingArguments for a run. Keys whose work is done here are given to it switched off."""
    from paddlenlp.trainer import TrainingArguments

    theirs = {item.name for item in dataclasses.fields(TrainingArguments)}
    values = {
        name: _plain(getattr(settings.training, name))
        for name, known in KNOWN.items()
        if known.group == "training" and known.facts.fixed is None and name in theirs and name not in OWN_TRAINING_KEYS
    }
    training = settings.training
    on_cpu = device == "cpu"
    values.update(
        device=device,
        disable_tqdm=True,
        load_best_model_at_end=False,
        resume_from_checkpoint=None,
        report_to=list(training.report_to or ()),
        do_eval=training.evaluation_strategy != "no",
        bf16=training.bf16 and not on_cpu,
        fp16=training.fp16 and not on_cpu,
        amp_master_grad=training.amp_master_grad and not on_cpu,
        unified_checkpoint=False,
    )
    return TrainingArguments(**{name: value for name, value in values.items() if value is not None})


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
