# SPDX-License-Identifier: Apache-2.0
"""May a run go on with the settings and the data that there are now, and what has changed since? Needs no paddle."""

import dataclasses
import json
from pathlib import Path

from paddlemix.checkpoint.folders import PROJECTOR_FILES
from paddlemix.datasets import packing
from paddlemix.datasets.multiview import NAME as MULTIVIEW
from paddlemix.datasets.preprocess import Rows
from paddlemix.datasets.resumed import ResumedDataset, numbered
from paddlemix.settings.run.loader import settings_to_json
from paddlemix.settings.run.training import KNOWN, TrainingSettings
from paddlemix.trainer.arguments import readers_together
from paddlemix.trainer.batches import fingerprint, step_counts, total_steps
from paddlemix.trainer.checkpointing import RunState
from paddlemix.utils.errors import ConfigError
from paddlemix.utils.foreign import JsonValue
from paddlemix.utils.shown import shown

MAY_CHANGE = frozenset((
    "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "run_name", "do_eval", "logging_dir",
    "logging_strategy", "logging_first_step", "logging_steps", "log_on_each_node", "save_strategy", "save_steps",
    "save_total_limit", "evaluation_strategy", "eval_steps", "minimum_eval_times",
    "per_device_eval_batch_size", "eval_accumulation_steps", "max_evaluate_steps", "load_best_model_at_end",
    "metric_for_best_model", "greater_is_better", "disable_tqdm", "report_to", "wandb_api_key", "wandb_http_proxy",
    "metrics_output_path", "benchmark", "skip_memory_metrics", "skip_profile_timer", "dataloader_num_workers",
    "dataloader_timeout", "device", "recompute", "release_grads", "use_flash_attention", "image_folder", "check_images",
    "allow_outside_root", "allow_image_urls", "max_image_bytes", "max_image_pixels", "max_image_side",
    "max_image_aspect", "max_image_memory", "on_bad_sample", "skip_limit", "loss_jump", "stop_at_loss_jump",
    "dry_run", "strict_config", "eval_generate", "eval_generate_tokens",
    "do_predict", "max_new_tokens", "eval_benchmarks",
))  # fmt: skip
"""Keys that may differ between the first part of a run and its continuation: they change no number of the training, or
they say how a run goes on after a row that cannot be used."""

ACCUMULATION = "gradient_accumulation_steps"

LENGTH = ("max_steps", "num_train_epochs")
"""Keys that may grow: the learning rate then follows the curve of the longer run."""

_PLACES = ("output_dir", "overwrite_output_dir", "resume_from_checkpoint")
"""What differs because the run is continued, and needs no line."""

Change = tuple[str, JsonValue, JsonValue]


def changes(state: RunState, settings: TrainingSettings) -> list[Change]:
    """Every key whose value differs from that of the checkpoint: (name, before, now)."""
    now = settings_to_json(settings)
    found = []
    for name, known in KNOWN.items():
        default = list(known.default) if isinstance(known.default, tuple) else known.default
        old, new = state.settings.get(name, default), now.get(name)
        if _compared(name, old) != _compared(name, new):
            found.append((name, old, new))
    return found


def _compared(name: str, value: JsonValue) -> JsonValue:
    """Of ``dataset`` only what makes other samples of the same rows; the rows themselves are compared by content."""
    if name != "dataset" or not isinstance(value, dict):
        return value
    entries = value.get("train") or []
    found = list(dict.fromkeys((entry.get("name") == MULTIVIEW, entry.get("chat_template")) for entry in entries))
    amounts = [(entry.get("repeat") or 1, entry.get("weight")) for entry in entries]
    return [found, amounts if set(amounts) != {(1, None)} else []]


def require_same_run(
    state: RunState, settings: TrainingSettings, world_size: int, rows: Rows, folder: Path
) -> list[str]:
    """A continued run must compute what the straight run would have: ConfigError lists every key that differs.

    Returns lines about what has changed and does no harm. ``rows`` is the training data set.
    """
    if settings.data.mixtoken and state.settings.get("mixtoken") and state.packing != packing.RULE:
        raise ConfigError(
            f"{folder}: its packs (mixtoken) were made by another version, and this one would make others of the same "
            "rows; go on with that version, or start a new run in another output_dir with "
            f"{_beginning(state, folder)}"
        )
    found = changes(state, settings)
    other = None
    if state.world_size != world_size:
        other = OtherProcesses(state, settings, world_size, len(rows))
        if other.why_not() is None:
            found = [change for change in found if change[0] != ACCUMULATION]
    longer = [change for change in found if change[0] in LENGTH]
    wrong: list[Change] = []
    if longer and not _is_longer(state, settings, len(rows), world_size):
        wrong, longer = longer, wrong
    wrong += [change for change in found if change[0] not in MAY_CHANGE and change[0] not in LENGTH]
    why_not = other and other.why_not()
    wrong += [("number of processes", state.world_size, world_size)] if why_not else []
    data = fingerprint(rows)
    wrong += [("the training data (fingerprint)", state.data[:12], data[:12])] if state.data != data else []
    if wrong:
        back = why_not or "Set the old values again"
        raise ConfigError(
            f"{folder}: the run cannot go on with other settings ({_told(wrong)}). {back}, or start "
            f"a new run in another output_dir with {_beginning(state, folder)}"
        )
    return [*([other.note] if other else []), *_lines(folder, found, longer, settings, rows)]


@dataclasses.dataclass(frozen=True)
class OtherProcesses:
    """A run over ``rows`` rows that goes on with another number of processes than it was saved by.

    It may where every process holds whole tensors of the optimizer (data parallel, stage1, stage2), and where a step
    has the micro-batches that it had: then each step is a mean over the same numbers, summed in another order.
    """

    state: RunState
    settings: TrainingSettings
    world_size: int
    rows: int

    def why_not(self) -> str | None:
        """What to do in place of it, as the begin of a sentence; None when the run may go on."""
        training = self.settings.training
        if training.tensor_parallel_degree > 1 or "stage3" in training.sharding:
            return f"Start {self.state.world_size} processes: each has saved slices of the optimizer's tensors"
        together = readers_together(self.settings)
        now, before = self.world_size // together, self.state.world_size // together
        was = self._steps(before, int(self.state.settings.get(ACCUMULATION, KNOWN[ACCUMULATION].default)))
        if self._steps(now, training.gradient_accumulation_steps) == was:
            return None
        unit = was[1]
        divisors = [count for count in range(1, unit + 1) if unit % count == 0]
        fitting = [count for count in divisors if self._steps(count, unit // count) == was]
        if now in fitting:
            return f'Write "{ACCUMULATION}": {unit // now}, which keeps the rows of a step together'
        choice = " or ".join(f'{count * together} with "{ACCUMULATION}": {unit // count}' for count in fitting)
        return f"The {unit} micro-batches of a step do not divide among the {self.world_size} processes: start {choice}"

    @property
    def note(self) -> str:
        """What a person should know when the run goes on."""
        return (
            f"processes: {self.world_size} go on with what {self.state.world_size} have saved; each step has the same "
            "rows, and its numbers differ by their order of summation (and by the noise of dropout)"
        )

    def _steps(self, world: int, accumulate: int) -> tuple[int, int]:
        """(micro-batches of an epoch, of a step), all together; ``world``: how many read rows of their own."""
        training = self.settings.training
        shape = dict(world=world, accumulate=accumulate, drop_last=training.dataloader_drop_last)
        batches, step = step_counts(self.rows, training.per_device_train_batch_size, **shape)
        return world * batches, world * step


def _beginning(state: RunState, folder: Path) -> str:
    """The key and value with which a new run begins where the checkpoint in ``folder`` stands."""
    if state.settings.get("lora"):
        return f"lora_path {folder}"
    if state.settings.get("tune_mm_mlp_adapter"):
        return f"pretrain_mm_mlp_adapter {folder / PROJECTOR_FILES[0]}"
    return f"model_name_or_path {folder}"


def _is_longer(state: RunState, settings: TrainingSettings, rows: int, world_size: int) -> bool:
    training = settings.training
    world = max(1, world_size // readers_together(settings))
    values = {name: state.settings.get(name, KNOWN[name].default) for name in LENGTH}
    return total_steps(training, rows, world) >= total_steps(dataclasses.replace(training, **values), rows, world)


def _lines(
    folder: Path, found: list[Change], longer: list[Change], settings: TrainingSettings, rows: Rows
) -> list[str]:
    lines = []
    harmless = [change for change in found if change[0] in MAY_CHANGE and change[0] not in _PLACES]
    if harmless:
        lines.append(f"changed since {folder.name}: {_told(harmless)}")
    if longer:
        flat = settings.training.lr_scheduler_type.startswith("constant")
        curve = "" if flat else "; the learning rate follows the curve of the longer run from here on"
        lines.append(f"the run is longer than at {folder.name}: {_told(longer)}{curve}")
    rows = numbered(rows)
    if isinstance(rows, ResumedDataset) and rows.gone:
        lines.append(f"{rows.gone} of {len(rows)} training rows are gone since {folder.name}: they count as skipped")
    if isinstance(rows, ResumedDataset) and rows.changed:
        lines.append(f"{rows.changed} of {len(rows)} training rows say something else than at {folder.name}")
    return lines


def _told(found: list[Change]) -> str:
    return "; ".join(f"{name} was {shown(json.dumps(old))}, is {shown(json.dumps(new))}" for name, old, new in found)
