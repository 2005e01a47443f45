# SPDX-License-Identifier: Apache-2.0
"""Does a run fit the memory of its cards? Asked before the weights are read, with the attention that will serve."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddlemix.settings.memory import GB, Memory, expected_memory, most_tiles
from paddlemix.settings.model import LlavaConfig
from paddlemix.settings.run.keys import SettingValue
from paddlemix.settings.run.training import TrainingSettings
from paddlemix.utils import env, files, npu_cards
from paddlemix.utils.errors import ConfigError

if TYPE_CHECKING:
    from paddle import nn

    from paddlemix.trainer.stages import StagePlan

FLAG = "PADDLEMIX_MEMORY_CHECK"


def check_memory(config: LlavaConfig, settings: TrainingSettings, cards: int) -> str | None:
    """ConfigError when the run on ``cards`` npus needs more than one of them has; else a line to show, or None.

    The message names the keys to change. Nothing is known, and None given, where npu-smi shows no card.
    """
    free = npu_cards.free_bytes()
    if free is None or not settings.training.do_train:
        return None
    reason = why_plain_attention(config, settings)
    need = _need(config, settings, cards, reason)
    line = f"memory: about {_parts(need)} of {free / GB:.1f} GB a card, for rows of full length"
    if need.total <= free or env.get(FLAG) == "0":
        return line
    because = f" The fused attention does not serve: {reason}." if reason else ""
    raise ConfigError(
        f"the run needs about {_parts(need)} on each card, {free / GB:.1f} GB are there.{because} "
        f"{_remedy(config, settings, cards, reason, free)}. Rows of {settings.data.max_length} positions are counted "
        f'("max_length"); {FLAG}=0 starts it all the same'
    )


def why_plain_attention(config: LlavaConfig, settings: TrainingSettings) -> str | None:
    """Why the fused attention of the plug-in will not serve the decoder of this run; None when it will.

    Flags, form, dtype and head width are asked as the layers ask them, and the operator is called once on a few rows.
    """
    from paddlemix.ops.attention import select

    training, text = settings.training, config.text
    dtype = "bfloat16" if training.bf16 else "float16" if training.fp16 else "float32"
    return select.why_not_fused(dtype, text.num_attention_heads, text.num_key_value_heads, text.width_per_head)


def _need(config: LlavaConfig, settings: TrainingSettings, cards: int, reason: str | None) -> Memory:
    return expected_memory(config, settings, cards, tiles=most_tiles(config), plain_attention=reason is not None)


def _parts(need: Memory) -> str:
    named = ", ".join(f"{name} {size / GB:.1f}" for name, size in need.named.items() if size)
    return f"{need.total / GB:.1f} GB ({named})"


def _remedy(config: LlavaConfig, settings: TrainingSettings, cards: int, reason: str | None, free: int) -> str:
    for change in _changes(settings, cards, tied=config.text.tie_word_embeddings):
        total = _need(config, settings.with_changes(**change), cards, reason).total
        if total <= free:
            keys = ", ".join(f'"{name}": {_json(value)}' for name, value in change.items())
            return f"Write {keys} ({total / GB:.1f} GB)"
    return 'No change of rows, recompute or sharding makes it fit: train with "lora": true, or on more cards'


def _changes(settings: TrainingSettings, cards: int, *, tied: bool) -> Iterator[dict[str, Any]]:
    """What leaves the result of the training as it is, from the cheapest on: each alone, then on top of each other."""
    training = settings.training
    together = max(training.tensor_parallel_degree, 1)
    fewer = list(_fewer_rows(training.per_device_train_batch_size, training.gradient_accumulation_steps))
    saving = [] if training.recompute else [{"recompute": True}]
    if not training.fuses_head_and_loss and "stage3" not in training.sharding:
        saving.append({"use_fused_head_and_loss_fn": True})
    stages = ["stage2"] if together > 1 else ["stage2", "stage3"]
    if cards // together > 1 and "offload" not in training.sharding:
        whole_head = tied or bool(training.use_fused_head_and_loss_fn)
        wanted = [stage for stage in stages if not (stage == "stage3" and whole_head)]
        later = wanted[wanted.index(training.sharding) + 1 :] if training.sharding in wanted else wanted
        saving += [{"sharding": stage} for stage in later]
    yield from saving
    yield from fewer
    sofar: dict[str, Any] = {}
    for change in saving:
        sofar = {**sofar, **change}
        if "stage3" in sofar.get("sharding", ""):
            sofar.pop("use_fused_head_and_loss_fn", None)  # the two do not go together
        yield sofar
        for rows in fewer:
            yield {**sofar, **rows}


def _fewer_rows(rows: int, steps: int) -> Iterator[dict[str, int]]:
    """The same rows for an update in smaller portions."""
    while rows % 2 == 0:
        rows, steps = rows // 2, steps * 2
        yield {"per_device_train_batch_size": rows, "gradient_accumulation_steps": steps}
    if rows > 1:
        yield {"per_device_train_batch_size": 1, "gradient_accumulation_steps": steps * rows}


def _json(value: SettingValue) -> str:
    return {True: "true"}.get(value, f'"{value}"') if isinstance(value, bool | str) else str(value)


def check_disk(model: "nn.Layer", plan: "StagePlan", settings: TrainingSettings, output: Path) -> None:
    """ConfigError when the disk cannot hold one checkpoint beside the result: told before the first step."""
    from paddlemix.ops.parallel import whole_shape

    sizes = {name: math.prod(whole_shape(value)) * value.element_size() for name, value in model.named_parameters()}
    trained = sum(sizes[name] for name in plan.rules)
    saved = trained if plan.stage == "lora" else sum(sizes.values())
    moments = 8 * sum(part.trainable for part in plan.parts)
    needed = saved + (saved + moments if settings.training.save_strategy != "no" else 0)
    free = shutil.disk_usage(output).free
    if free < needed:
        raise ConfigError(
            f'"output_dir": {output} needs about {needed / files.MIB:,.0f} MiB for the result and one checkpoint, '
            f"{free / files.MIB:,.0f} MiB are free; free some space or choose another folder"
        )
