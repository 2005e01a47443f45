# SPDX-License-Identifier: Apache-2.0
"""What PaddleNLP's trainer is told of a run, and this process's place among the others.

Paddle and PaddleNLP are imported inside the functions.
"""

import dataclasses
from typing import TYPE_CHECKING

from paddlemix.settings.run.keys import SettingValue
from paddlemix.settings.run.training import KNOWN, OWN_TRAINING_KEYS, TrainingGroup, TrainingSettings
from paddlemix.utils import env
from paddlemix.utils.errors import ConfigError
from paddlemix.utils.foreign import JsonValue
from paddlemix.utils.options import Options

if TYPE_CHECKING:
    from paddlemix.ops.parallel import TensorParallel
    from paddlemix.ops.sequence import SequenceParallel
    from paddlemix.trainer.library import TrainingArguments


def check_processes(settings: TrainingSettings) -> None:
    """ConfigError when the processes that were started cannot be divided as the settings want."""
    if settings.training.device == "cpu":
        refuse_on_cpu(settings.training)  # before the count: more processes would not help
    started = env.processes()
    for name in ("tensor_parallel_degree", "sep_parallel_degree"):
        degree = getattr(settings.training, name)
        if degree <= 1 or not started % degree:
            continue
        were = "1 process was" if started == 1 else f"{started} processes were"
        raise ConfigError(
            f'"{name}" is {degree}, but {were} started; '
            f"start a multiple of {degree}, for example with DEVICES={','.join(map(str, range(degree)))} sh "
            "paddlemix/tools/train.sh CONFIG.json (deploy/npu/launch.sh does it)"
        )


def refuse_on_cpu(training: TrainingGroup) -> None:
    """ConfigError for what needs more of the exchange between processes than a CPU has.

    2026-11, paddle 3.0 and 3.3: "ProcessGroupGLOO does not support all_to_all"; fleet takes no CPU group for layers.
    """
    for name, what in (("tensor_parallel_degree", "tensor parallel"), ("sep_parallel_degree", "sequence parallel")):
        degree = getattr(training, name)
        if degree > 1:
            raise ConfigError(
                f'"{name}" is {degree}, but the device is cpu, where paddle does not train in {what}; take the key '
                'away, or write "device": "npu" or "gpu"'
            )


def place_in_run(settings: TrainingSettings) -> tuple[int, int]:
    """(rank, world): number of this process, and how many processes read rows of their own; before paddle knows them.

    Those that hold one model together (tensor parallel) or share rows (sequence parallel) read the same rows.
    """
    return env.rank(), max(1, env.processes() // readers_together(settings))


def readers_together(settings: TrainingSettings) -> int:
    """How many processes read the same rows."""
    return max(1, settings.training.tensor_parallel_degree) * max(1, settings.training.sep_parallel_degree)


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
    from paddlemix.trainer.library import TrainingArguments

    sharing = max(1, settings.training.sep_parallel_degree)

    class Arguments(TrainingArguments):
        """With sequence parallel, which PaddleNLP takes for data parallel: ``sharing`` processes read the same rows."""

        @property
        def dataset_rank(self) -> int:
            """Number of this process's rows."""
            return super().dataset_rank // sharing

        @property
        def dataset_world_size(self) -> int:
            """How many processes read rows of their own."""
            return super().dataset_world_size // sharing

    theirs = {item.name for item in dataclasses.fields(TrainingArguments)}
    values = {
        name: _plain(getattr(settings.training, name))
        for name, known in KNOWN.items()
        if known.group == "training" and known.facts.fixed is None and name in theirs and name not in OWN_TRAINING_KEYS
    }
    training = settings.training
    on_cpu = device == "cpu"
    if on_cpu and env.processes() > 1:
        from paddlemix.ops.compat import keep_gloo_groups_apart

        keep_gloo_groups_apart()  # before fleet makes its groups
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
        sep_parallel_degree=None,  # the model's own; to PaddleNLP these processes are data parallel
        minimum_eval_times=training.minimum_eval_times if training.evaluation_strategy == "steps" else None,
        release_grads=training.releases_gradients,
        ddp_find_unused_parameters=False,  # every planned parameter takes part in every batch
    )
    return Arguments(**{name: value for name, value in values.items() if value is not None})


def place_in_group(args: "TrainingArguments") -> "TensorParallel":
    """This process's ``TensorParallel``; the groups of processes were made with the training arguments."""
    from paddlemix.ops.parallel import ALONE, TensorParallel

    if args.tensor_parallel_degree <= 1:
        return ALONE
    from paddle.distributed import fleet

    group = fleet.get_hybrid_communicate_group().get_model_parallel_group()
    return TensorParallel(group.rank, group.nranks, group)


def place_in_rows(settings: TrainingSettings) -> "SequenceParallel | None":
    """This process's ``SequenceParallel``, None without; every process must call it, after the training arguments."""
    size = settings.training.sep_parallel_degree
    if size <= 1:
        return None
    import paddle

    from paddlemix.ops.sequence import SequenceParallel

    world, rank = paddle.distributed.get_world_size(), paddle.distributed.get_rank()
    groups = [paddle.distributed.new_group(list(range(first, first + size))) for first in range(0, world, size)]
    return SequenceParallel(rank % size, size, groups[rank // size])


def _plain(value: SettingValue) -> JsonValue:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
