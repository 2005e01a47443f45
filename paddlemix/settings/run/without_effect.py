# SPDX-License-Identifier: Apache-2.0
"""Keys that were given and do nothing beside the others: one table, one note each."""

from collections.abc import Callable, Collection, Iterator
from typing import Any

from paddlemix.settings.model import LlavaConfig
from paddlemix.settings.run.training import KNOWN, TrainingSettings
from paddlemix.utils import env
from paddlemix.utils.shown import as_json

Why = Callable[[TrainingSettings], str | None]
"""Why a key has no effect, or None when it has one."""


def _unless(works: Callable[[TrainingSettings], Any], why: str) -> Why:
    return lambda settings: None if works(settings) else why.format(settings=settings, training=settings.training)


def _schedule(name: str) -> Why:
    return _unless(lambda s: s.training.lr_scheduler_type == name, f'only "lr_scheduler_type": "{name}" has it')


def _adapter_key(settings: TrainingSettings) -> str | None:
    if not settings.model.lora:
        return "without lora"
    return 'the adapter of "lora_path" keeps its own' if settings.model.lora_path else None


def _warmup(settings: TrainingSettings) -> str | None:
    constant = settings.training.lr_scheduler_type == "constant"
    return (
        '"lr_scheduler_type": "constant" has no warmup; "constant_with_warmup" is the one that has'
        if constant
        else None
    )


def _warmup_ratio(settings: TrainingSettings) -> str | None:
    return "warmup_steps goes before it" if settings.training.warmup_steps else _warmup(settings)


def _wandb(settings: TrainingSettings) -> str | None:
    return None if "wandb" in (settings.training.report_to or ()) else "report_to does not name wandb"


def _own_templates(settings: TrainingSettings) -> str | None:
    entries = [entry for part in (settings.data.dataset or {}).values() for entry in part]
    all_own = bool(entries) and all(entry.get("chat_template") for entry in entries)
    return "every data set has a chat_template" if all_own else None


def _of_loss(*losses: str) -> Why:
    """Of preference tuning with one of these losses (none named: with any)."""
    named = f'of "loss_type" {" and ".join(losses)}' if losses else 'of preference tuning ("loss_type")'
    return _unless(
        lambda s: s.preference.loss_type in losses if losses else s.preference.loss_type is not None,
        f"it is a key {named}",
    )


_EVALUATION = _unless(lambda s: s.training.do_eval, "do_eval is false")
_BEST = _unless(lambda s: s.training.load_best_model_at_end, "load_best_model_at_end is false")
_HALF = _unless(lambda s: s.training.fp16 or s.training.bf16, "the run computes in float32")
_CAST = _unless(
    lambda s: (s.training.fp16 or s.training.bf16) and s.training.fp16_opt_level == "O1",
    "operators are cast with fp16 or bf16 and fp16_opt_level O1 only",
)
_SHARDED = _unless(lambda s: s.training.sharding and env.processes() > 1, "nothing is sharded")
_SEVERAL = _unless(lambda _: env.processes() > 1, "one process was started")
_REPORTS = _unless(lambda s: s.training.report_to, "report_to names nobody")

IDLE: dict[str, Why] = {
    # Schedule and length
    "num_cycles": _schedule("cosine"),
    "lr_end": _schedule("polynomial"),
    "power": _schedule("polynomial"),
    "warmup_steps": _warmup,
    "warmup_ratio": _warmup_ratio,
    "num_train_epochs": _unless(lambda s: s.training.max_steps < 0, "max_steps decides"),
    # Log, save, evaluate
    "logging_steps": _unless(
        lambda s: s.training.logging_strategy == "steps", 'the strategy is "{training.logging_strategy}"'
    ),
    "save_steps": _unless(lambda s: s.training.save_strategy == "steps", 'the strategy is "{training.save_strategy}"'),
    "eval_steps": _unless(
        lambda s: s.training.evaluation_strategy == "steps", 'the strategy is "{training.evaluation_strategy}"'
    ),
    "minimum_eval_times": _unless(
        lambda s: s.training.evaluation_strategy == "steps", 'the strategy is "{training.evaluation_strategy}"'
    ),
    "per_device_eval_batch_size": _unless(
        lambda s: s.training.do_eval or s.training.do_predict, "do_eval and do_predict are false"
    ),
    "eval_benchmarks": _EVALUATION,
    "max_new_tokens": _unless(lambda s: s.training.do_predict, "do_predict is false"),
    "max_evaluate_steps": _EVALUATION,
    "eval_generate": _EVALUATION,
    "eval_generate_tokens": _unless(lambda s: s.training.eval_generate, "eval_generate is 0"),
    "eval_accumulation_steps": lambda _: "evaluation keeps one number a batch",
    "metric_for_best_model": _BEST,
    "greater_is_better": _BEST,
    "log_on_each_node": lambda _: "the first process of a run logs",
    "run_name": _unless(lambda s: {"wandb", "swanlab"} & set(s.training.report_to or ()), "report_to names neither "
                        "wandb nor swanlab"),
    "logging_dir": _REPORTS,
    "wandb_api_key": _wandb,
    "wandb_http_proxy": _wandb,
    # Precision
    "scale_loss": _unless(lambda s: s.training.fp16, "without fp16"),
    "amp_custom_black_list": _CAST,
    "amp_custom_white_list": _CAST,
    "fp16_opt_level": _HALF,
    "amp_master_grad": _unless(lambda s: s.training.fp16_opt_level == "O2", "without fp16_opt_level O2"),
    "use_flash_attention": lambda _: (
        "every device takes its best attention kernel anyway; PADDLEMIX_ATTENTION forces one"
    ),
    # Devices and loader
    "sharding": _SEVERAL,
    "sharding_parallel_degree": _SHARDED,
    "sharding_parallel_config": _SHARDED,
    "sharding_comm_buffer_size_MB": _SHARDED,
    "data_parallel_config": _SEVERAL,
    "dataloader_timeout": _unless(lambda s: s.training.dataloader_num_workers, "the main process prepares the batches"),
    # Adapters and data
    "lora_path": _unless(lambda s: s.model.lora or not s.training.do_train, "without lora"),
    "lora_rank": _adapter_key,
    "lora_alpha": _adapter_key,
    "lora_dropout": _adapter_key,
    "lora_target_modules": _adapter_key,
    "rslora": _adapter_key,
    "use_dora": _adapter_key,
    "pissa": _adapter_key,
    "pissa_iter": lambda s: _adapter_key(s) or (None if s.model.pissa else "pissa is false"),
    "lora_plus_scale": _unless(lambda s: s.model.lora, "without lora"),
    "neftune_noise_alpha": _unless(lambda s: s.model.neftune, "neftune is false"),
    # Preference tuning
    "beta": _of_loss(),
    "label_smoothing": _of_loss("sigmoid", "simpo"),
    "simpo_gamma": _of_loss("simpo"),
    "rpo_alpha": _of_loss("sigmoid", "hinge", "ipo", "simpo"),
    "desirable_weight": _of_loss("kto"),
    "undesirable_weight": _of_loss("kto"),
    "precompute_ref_log_probs": _of_loss("sigmoid", "hinge", "ipo"),
    "use_fused_head_and_loss_fn": _unless(
        lambda s: s.preference.loss_type is None, "preference losses take the head in portions anyway"
    ),
    "template": _own_templates,
    "single_view_repeat": _unless(
        lambda s: any(entry.get("name") == "mv_dataset" for part in (s.data.dataset or {}).values() for entry in part),
        'no data set has the name "mv_dataset"',
    ),
}  # fmt: skip
"""By key: when it has no effect."""


def notes(settings: TrainingSettings, given: Collection[str]) -> Iterator[str]:
    """One line for each of the ``given`` keys that has no effect, and says something else than what happens.

    That is: another value than its default, or a key of an adapter beside an adapter that keeps its own.
    """
    for name, why in IDLE.items():
        value = getattr(getattr(settings, KNOWN[name].group), name)
        differs = value != KNOWN[name].default or (why is _adapter_key and settings.model.lora_path)
        reason = why(settings) if name in given and differs else None
        if reason is not None:
            yield f"{name} has no effect: {reason}"
    yield from _own_folders(settings)


def _own_folders(settings: TrainingSettings) -> Iterator[str]:
    entries = [entry for part in (settings.data.dataset or {}).values() for entry in part]
    own = [entry["image_folder"] for entry in entries if entry.get("image_folder")]
    if own and settings.data.image_folder is not None:
        share = "" if len(own) == len(entries) else f" on {len(own)} of {len(entries)} data sets"
        yield f'image_folder has no effect{share}: the "image_folder" in the data set ("{own[0]}") goes before it'


def notes_with(config: LlavaConfig, settings: TrainingSettings) -> Iterator[str]:
    """The same for keys whose effect depends on the model; ``config`` has the run's overrides applied."""
    grid = settings.data.image_grid_pinpoints
    if grid is not None and config.image is not None and not config.image.aspect.startswith("anyres"):
        yield (
            f"image_grid_pinpoints has no effect ({as_json(grid)}): the model's images are "
            f'{as_json(config.image.aspect)}; write "image_aspect_ratio": "anyres"'
        )
