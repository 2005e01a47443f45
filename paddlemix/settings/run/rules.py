# SPDX-License-Identifier: Apache-2.0
"""What single keys cannot tell: conflicts between keys, the entries of ``dataset``, whether paths can be used."""

import contextlib
import dataclasses
import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paddlemix.settings.run import mixtures, without_effect
from paddlemix.settings.run.entries import check_dataset
from paddlemix.settings.run.preference import UNPAIRED
from paddlemix.settings.run.training import TrainingSettings
from paddlemix.utils.errors import ConfigError
from paddlemix.utils.shown import as_json


def _has_eval_rows(dataset: dict[str, Any]) -> bool:
    return bool(dataset.get("eval")) or any(entry.get("eval_split") for entry in dataset.get("train") or ())


def _lacks_eval_rows(settings: TrainingSettings) -> bool:
    training = settings.training
    return training.do_eval and not _has_eval_rows(settings.data.dataset or {}) and not training.eval_benchmarks


_REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected")


def _by_benchmark(settings: TrainingSettings) -> bool:
    """Whether the best checkpoint is known by a benchmark, whose metrics are looked at when its files are."""
    name = (settings.training.metric_for_best_model or "").removeprefix("eval_")
    labels = (str(one.get("label") or one["name"]) for one in settings.training.eval_benchmarks or ())
    return any(name.startswith(f"{label.replace('-', '_')}_") for label in labels)


def _is_measured(settings: TrainingSettings) -> bool:
    """Whether evaluations give ``metric_for_best_model``."""
    names = ["loss", *(("exact_match", "rouge_l") if settings.training.eval_generate else ())]
    preference = settings.preference
    if preference.loss_type is not None:
        names += [*_REWARDS, *(() if preference.loss_type == UNPAIRED else ("rewards/accuracies",))]
        names += ["kl"] if preference.loss_type == UNPAIRED else []
    name = (settings.training.metric_for_best_model or "loss").removeprefix("eval_")
    return name in names or _by_benchmark(settings)


Rule = tuple[tuple[str, ...], Callable[[TrainingSettings], bool], str]

CONFLICTS: tuple[Rule, ...] = (
    (("fp16", "bf16"), lambda s: s.training.fp16 and s.training.bf16, "choose one"),
    (
        ("fp16_opt_level", "fp16", "bf16"),
        lambda s: s.training.fp16_opt_level == "O2" and not (s.training.fp16 or s.training.bf16),
        'O2 needs "bf16": true or "fp16": true; without either write "fp16_opt_level": "O1"',
    ),
    (
        ("lora", "freeze_include"),
        lambda s: s.model.lora and "*" in (s.model.freeze_include or ()) and not s.model.freeze_exclude,
        "everything is frozen; name the parts in freeze_include",
    ),
    (
        ("lora", "tune_mm_mlp_adapter"),
        lambda s: s.model.lora and s.model.tune_mm_mlp_adapter,
        "adapters, or the projector alone: choose one",
    ),
    (
        ("lora_path", "lora"),
        lambda s: bool(s.model.lora_path) and not s.model.lora and s.training.do_train,
        'lora_path needs "lora": true',
    ),
    (
        ("modules_to_save", "lora"),
        lambda s: bool(s.model.modules_to_save) and not s.model.lora,
        'they go along with adapters; write "lora": true, or name what trains in freeze_include and freeze_exclude',
    ),
    (
        ("tune_mm_mlp_adapter", "freeze_mm_mlp_adapter"),
        lambda s: s.model.tune_mm_mlp_adapter and s.model.freeze_mm_mlp_adapter,
        "nothing would train",
    ),
    (
        ("freeze_mm_mlp_adapter", "mm_projector_lr"),
        lambda s: s.model.freeze_mm_mlp_adapter and s.training.mm_projector_lr is not None,
        "a frozen projector has no learning rate",
    ),
    (
        ("tune_entire_model", "tune_vision_tower"),
        lambda s: s.model.tune_entire_model and s.model.tune_vision_tower,
        "the tower with everything else, or alone: choose one",
    ),
    (
        ("tune_entire_model", "tune_mm_mlp_adapter"),
        lambda s: s.model.tune_entire_model and s.model.tune_mm_mlp_adapter,
        "everything, or the projector alone: choose one",
    ),
    (
        ("tune_vision_tower", "lora"),
        lambda s: s.model.tune_vision_tower and s.model.lora,
        'to train the tower beside the adapters write "tune_entire_model": true',
    ),
    (
        ("tune_vit_from_layer", "tune_entire_model", "tune_vision_tower"),
        lambda s: (
            s.model.tune_vit_from_layer is not None and not (s.model.tune_entire_model or s.model.tune_vision_tower)
        ),
        "layers of the tower train only with one of the two",
    ),
    (
        ("vision_tower_lr", "tune_entire_model", "tune_vision_tower"),
        lambda s: (
            s.training.vision_tower_lr is not None
            and not (s.model.tune_entire_model or s.model.tune_vision_tower or s.model.freeze_exclude)
        ),
        "the vision tower is frozen; let it train with one of the two, or name its parameters in freeze_exclude",
    ),
    (
        ("tensor_parallel_degree", "sharding"),
        lambda s: s.training.tensor_parallel_degree > 1 and "stage3" in s.training.sharding,
        "tensor parallel goes with stage1 and stage2",
    ),
    (
        ("sep_parallel_degree", "tensor_parallel_degree"),
        lambda s: s.training.sep_parallel_degree > 1 and s.training.tensor_parallel_degree > 1,
        "devices share the places of rows, or the layers of the model: choose one",
    ),
    (
        ("sep_parallel_degree", "eval_generate"),
        lambda s: s.training.sep_parallel_degree > 1 and s.training.eval_generate > 0,
        "answers are not generated by devices that share the places of rows; leave eval_generate out",
    ),
    (
        ("sep_parallel_degree", "neftune"),
        lambda s: s.training.sep_parallel_degree > 1 and s.model.neftune,
        "the noise is drawn for whole rows",
    ),
    (
        ("use_fused_head_and_loss_fn", "sharding"),
        lambda s: s.training.use_fused_head_and_loss_fn and "stage3" in s.training.sharding,
        "stage3 has the head at hand only while its own layer runs; use stage2",
    ),
    (
        ("resume_from_checkpoint", "overwrite_output_dir"),
        lambda s: s.training.resume_from_checkpoint is not None and s.training.overwrite_output_dir,
        "go on from a checkpoint, or start anew: choose one",
    ),
    (
        ("group_by_length", "group_by_modality_length"),
        lambda s: s.training.group_by_length and s.training.group_by_modality_length,
        "choose one",
    ),
    (
        ("image_aspect_ratio", "image_grid_pinpoints"),
        lambda s: bool(s.data.image_grid_pinpoints) and s.data.image_aspect_ratio in ("square", "pad"),
        "a grid belongs to anyres",
    ),
    (
        ("do_train", "do_eval", "do_predict"),
        lambda s: not s.training.do_train and not s.training.do_eval and not s.training.do_predict,
        'nothing to do; set "do_train": true, "do_eval": true or "do_predict": true',
    ),
    (
        ("do_predict", "dataset"),
        lambda s: s.training.do_predict and not (s.data.dataset or {}).get("test"),
        'prediction needs rows; add "test" to dataset',
    ),
    (
        ("do_predict", "eval_benchmarks", "sharding"),
        lambda s: (s.training.do_predict or s.training.eval_benchmarks) and "stage3" in s.training.sharding,
        'stage3 leaves no process a whole model to ask; write "stage2", or ask the result with paddlemix predict',
    ),
    (
        ("do_predict", "eval_benchmarks", "tensor_parallel_degree", "sep_parallel_degree"),
        lambda s: (
            (s.training.do_predict or s.training.eval_benchmarks)
            and max(s.training.tensor_parallel_degree, s.training.sep_parallel_degree) > 1
        ),
        "devices that compute together do not answer questions; ask the result with paddlemix predict",
    ),
    (
        ("do_predict", "benchmark"),
        lambda s: s.training.do_predict and s.training.benchmark and s.training.do_train,
        "a run that measures speed keeps no model; leave one of the two out",
    ),
    (
        ("do_train", "dataset"),
        lambda s: s.training.do_train and not (s.data.dataset or {}).get("train"),
        'training needs rows; add "train" to dataset, or give data_path',
    ),
    (
        ("do_train", "learning_rate"),
        lambda s: s.training.do_train and s.training.learning_rate == 0,
        "no weight would change; give a rate above 0. To train the projector alone write "
        '"tune_mm_mlp_adapter": true and give its rate as learning_rate',
    ),
    (
        ("do_eval", "dataset"),
        lambda s: _lacks_eval_rows(s) and s.training.do_train,
        'evaluation needs rows; add "eval" to dataset or "eval_split" to an entry of "train", '
        'or set "do_eval": false and "evaluation_strategy": "no"',
    ),
    (
        ("do_eval", "dataset"),
        _lacks_eval_rows,
        'evaluation needs rows; add "eval" to dataset, or "eval_split" to an entry of "train", or give eval_benchmarks',
    ),
    (
        ("load_best_model_at_end", "evaluation_strategy", "save_strategy"),
        lambda s: (
            s.training.load_best_model_at_end
            and (s.training.evaluation_strategy == "no" or s.training.evaluation_strategy != s.training.save_strategy)
        ),
        "the best checkpoint is known only if each one is evaluated: make both strategies equal, and not no",
    ),
    (
        ("load_best_model_at_end", "dataset", "metric_for_best_model"),
        lambda s: (
            s.training.load_best_model_at_end and not _has_eval_rows(s.data.dataset or {}) and not _by_benchmark(s)
        ),
        'this is measured on eval rows (without metric_for_best_model it is their loss); add "eval" to dataset, or '
        "name a metric of eval_benchmarks as metric_for_best_model",
    ),
    (
        ("load_best_model_at_end", "metric_for_best_model"),
        lambda s: s.training.load_best_model_at_end and not _is_measured(s),
        "an evaluation measures loss, with eval_generate exact_match and rouge_l, with loss_type TRL's measures such "
        "as rewards/accuracies, with eval_benchmarks LABEL_METRIC such as pope_accuracy; name one of these",
    ),
    (
        ("load_best_model_at_end", "save_steps", "eval_steps"),
        lambda s: (
            s.training.load_best_model_at_end
            and s.training.evaluation_strategy == "steps"
            and s.training.save_steps % (s.training.eval_steps or s.training.logging_steps) != 0
        ),
        "save_steps has to be a multiple of eval_steps",
    ),
    (
        ("loss_type", "mixtoken"),
        lambda s: s.preference.loss_type is not None and s.data.mixtoken,
        "pairs of answers are not packed; group_by_length saves padding",
    ),
    (
        ("loss_type", "tensor_parallel_degree"),
        lambda s: s.preference.loss_type is not None and s.training.tensor_parallel_degree > 1,
        'preference tuning does not divide a model; write "sharding": "stage2"',
    ),
    (
        ("loss_type", "sep_parallel_degree"),
        lambda s: s.preference.loss_type is not None and s.training.sep_parallel_degree > 1,
        'preference tuning does not divide rows; write "sharding": "stage2"',
    ),
    (
        ("loss_type", "per_device_train_batch_size"),
        lambda s: (
            s.preference.loss_type == "kto" and s.training.do_train and s.training.per_device_train_batch_size < 2
        ),
        "kto estimates a divergence from the answers of other rows of the batch: give at least 2",
    ),
    (
        ("loss_type", "precompute_ref_log_probs"),
        lambda s: s.preference.loss_type == "kto" and s.preference.precompute_ref_log_probs,
        "kto asks the reference about pairs that each batch makes anew; with lora the reference costs no memory",
    ),
    (
        ("loss_type", "sharding", "precompute_ref_log_probs"),
        lambda s: (
            s.preference.reference
            and "stage3" in s.training.sharding
            and not s.preference.precompute_ref_log_probs
            and s.training.do_train
        ),
        'stage3 leaves no whole model for the reference; write "precompute_ref_log_probs": true, or "stage2"',
    ),
)
"""Keys, when they disagree, and the way out."""


def check_conflicts(settings: TrainingSettings, where: str | None = None) -> None:
    """ConfigError that names the keys with their values for the first conflict. ``where``: the file they come from."""
    for names, disagree, remedy in CONFLICTS:
        if disagree(settings):
            flat = flat_values(settings)
            given = " and ".join(f'"{name}" = {as_json(flat[name])}' for name in names)
            raise ConfigError(f"{where + ': ' if where else ''}{given} do not go together: {remedy}")


def flat_values(settings: TrainingSettings) -> dict[str, Any]:
    """All keys of all groups in one dictionary."""
    groups = (settings.model, settings.data, settings.generate, settings.training, settings.preference)
    return {item.name: getattr(group, item.name) for group in groups for item in dataclasses.fields(group)}


def resolve(settings: TrainingSettings, given: set[str]) -> TrainingSettings:
    """Derived values and the notes that tell of them. ``given`` are the keys that the user wrote."""
    notes: list[str] = []
    changes: dict[str, Any] = {}
    training = settings.training
    if training.evaluation_strategy != "no" and not training.do_eval:
        if "do_eval" in given:
            changes["evaluation_strategy"] = "no"
            notes.append(f'evaluation_strategy "{training.evaluation_strategy}" is off, because do_eval is false')
        else:
            changes["do_eval"] = True
    elif training.do_eval and training.do_train and training.evaluation_strategy == "no":
        changes["evaluation_strategy"] = "steps"
        notes.append('evaluation_strategy is "steps", because do_eval is true')
    # Accepted spellings of what is done anyway; the trainer gets the one that it knows.
    changes |= {"optim": "adamw", "count_trained_tokens": False}
    changes.update(_resolved_data(settings))
    settings = settings.with_changes(**changes)
    notes.extend(without_effect.notes(settings, given))
    return dataclasses.replace(settings, notes=tuple(notes), given=frozenset(given))


def _resolved_data(settings: TrainingSettings) -> dict[str, Any]:
    data = settings.data
    dataset = data.dataset
    if data.data_path is not None:
        dataset = {"train": mixtures.entries_in(data.data_path) or [{"data_files": data.data_path}]}
        check_dataset(dataset, data.data_path)
    if dataset is None:
        return {}
    if data.chat_template is not None:
        dataset = {
            part: [{"chat_template": data.chat_template, **entry} for entry in entries]
            for part, entries in dataset.items()
        }
    return {"dataset": dataset, "data_path": None}


def check_paths(settings: TrainingSettings, where: str) -> None:
    """Can ``output_dir`` be written, and does it spare what is read? Nothing is left behind by the check."""
    output = Path(settings.training.output_dir or "").expanduser()
    at = f'{where}: "/output_dir" is "{output}"'
    if output.exists() and not output.is_dir():
        raise ConfigError(f"{at}: that is a file; give a folder")
    inside = _absolute(output)
    images = settings.data.image_folder
    if images is not None and _is_data_folder(Path(images)) and inside.is_relative_to(_absolute(images)):
        raise ConfigError(f'{at}: inside the data set ("/image_folder" is "{images}"); choose a folder outside of it')
    source = Path(settings.model.model_name_or_path or "").expanduser()
    if source.is_dir() and source.resolve() == inside:
        raise ConfigError(f"{at}: the same as model_name_or_path; the model would be overwritten")
    reason = _not_writable(output)
    if reason:
        raise ConfigError(f"{at}: cannot be written ({reason}); choose another folder")


def _absolute(path: str | Path) -> Path:
    return Path(path).expanduser().resolve()


def _is_data_folder(path: Path) -> bool:
    """The current folder and its parents hold more than images."""
    return not Path.cwd().is_relative_to(_absolute(path))


def _not_writable(folder: Path) -> str | None:
    """Why no file can be made in ``folder`` (or in its nearest parent that exists); None when it can."""
    try:
        existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        if not existing.is_dir():
            return f"{existing} is a file"
        if not os.access(existing, os.W_OK | os.X_OK):
            return f"no permission in {existing}"
        _probe(existing)
    except OSError as error:
        return f"{error.strerror or error} in {folder}"
    return None


def _probe(folder: Path) -> None:
    """Make a file without a name in ``folder``; where the file system has no such files, a folder that is removed."""
    flag = getattr(os, "O_TMPFILE", None)
    if flag is not None:
        with contextlib.suppress(_NoUnnamedFilesError):
            return _probe_unnamed(folder, flag)
    os.rmdir(tempfile.mkdtemp(prefix=".paddlemix-", dir=folder))
    return None


class _NoUnnamedFilesError(Exception):
    """The file system cannot make files without a name."""


def _probe_unnamed(folder: Path, flag: int) -> None:
    try:
        os.close(os.open(folder, flag | os.O_WRONLY, 0o600))
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
            raise _NoUnnamedFilesError from error
        raise
