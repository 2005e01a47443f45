# SPDX-License-Identifier: Apache-2.0
"""What PaddleNLP's trainer is told of a run, and this process's place among the others.

Paddle and PaddleNLP are imported inside the functions.
"""

import dataclasses
from typing import TYPE_CHECKING

from paddlemix.settings.run.keys import SettingValue
from paddlemix.settings.run.training import KNOWN, OWN_TRAINING_KEYS, TrainingSettings
from paddlemix.utils import env
from paddlemix.utils.errors import ConfigError
from paddlemix.utils.foreign import JsonValue
from paddlemix.utils.options import Options

if TYPE_CHECKING:
    from paddlenlp.trainer import TrainingArguments

    from paddlemix.ops.parallel import TensorParallel


def check_processes(settings: TrainingSettings) -> None:
    """ConfigError when the processes that were started cannot be divided as ``tensor_parallel_degree`` wants."""
    degree, started = settings.training.tensor_parallel_degree, env.processes()
    if degree > 1 and started % degree:
        were = "1 process was" if started == 1 else f"{started} processes were"
        raise ConfigError(
            f'"tensor_parallel_degree" is {degree}, but {were} started; '
            f"start a multiple of {degree}, for example with DEVICES={','.join(map(str, range(degree)))} sh "
            "paddlemix/tools/train.sh CONFIG.json (deploy/npu/launch.sh does it)"
        )


def place_in_run(settings: TrainingSettings) -> tuple[int, int]:
    """(rank, world): number of this process, and how many processes read rows of their own; before paddle knows them.

    Those that hold one model together (tensor parallel) read the same rows.
    """
    return env.rank(), max(1, env.processes() // max(1, settings.training.tensor_parallel_degree))


def names_of_keys(settings: TrainingSettings) -> Options:
    """What errors about the model call its parts in a training: the keys of its settings."""
    return Options(
        base='"model_name_or_path": "FOLDER"' if settings.model.lora_path else '"base": "FOLDER"',
        vision_tower='"vision_tower": "FOLDER"',
        projector='"pretrain_mm_mlp_adapter": "FILE"',
        device='"device": "cpu"',
        template='"template": "NAME"',
        target='another "output_dir"',
        new_projector='"vision_tower": "FOLDER", which lets the run begin a new one',
        strict_config='"strict_config": true',
    )


def training_arguments(settings: TrainingSettings, device: str = "cpu") -> "TrainingArguments":
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
        report_to=[],
        do_eval=training.evaluation_strategy != "no",
        bf16=training.bf16 and not on_cpu,
        fp16=training.fp16 and not on_cpu,
        amp_master_grad=training.amp_master_grad and not on_cpu,
        metrics_output_path=None,
        minimum_eval_times=training.minimum_eval_times if training.evaluation_strategy == "steps" else None,
        ddp_find_unused_parameters=False,  # every planned parameter takes part in every batch
    )
    return TrainingArguments(**{name: value for name, value in values.items() if value is not None})


def place_in_group(args: "TrainingArguments") -> "TensorParallel":
    """This process's ``TensorParallel``; the groups of processes were made with the training arguments."""
    from paddlemix.ops.parallel import ALONE, TensorParallel

    if args.tensor_parallel_degree <= 1:
        return ALONE
    from paddle.distributed import fleet

    group = fleet.get_hybrid_communicate_group().get_model_parallel_group()
    return TensorParallel(group.rank, group.nranks, group)


def _plain(value: SettingValue) -> JsonValue:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
