# SPDX-License-Identifier: Apache-2.0
"""``dry_run``: everything that a run would do, said before it; no weight is read and nothing is written.

Needs no paddle.
"""

import itertools
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from paddlemix.datasets.dataset import ChatDataset
from paddlemix.datasets.mixture import MixedDataset
from paddlemix.datasets.packing import PackedDataset
from paddlemix.datasets.preference import EncodedPair
from paddlemix.datasets.preprocess import Encoded
from paddlemix.datasets.resumed import ResumedDataset
from paddlemix.datasets.sampler import useful_share
from paddlemix.settings.memory import GB, Memory, count_parameters, expected_memory, most_tiles
from paddlemix.settings.memory_cpu import PROCESS, BatchSize, Numbers, computes_on_cpu, memory_on_cpu
from paddlemix.settings.run.training import TrainingSettings
from paddlemix.text.tokenizer import Tokenizer
from paddlemix.trainer.arguments import place_in_run
from paddlemix.trainer.batches import split_batches, step_counts, total_steps
from paddlemix.trainer.preparation import Opened, Prepared
from paddlemix.trainer.stages import ADAPTERS_PART, ModelPart, StagePlan, counted_parts, stage_of
from paddlemix.utils import env
from paddlemix.utils.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from paddlemix.utils.logging import console, say
from paddlemix.utils.shown import counted

if TYPE_CHECKING:
    from rich.text import Text

Rows = ChatDataset | ResumedDataset | MixedDataset | PackedDataset

LEARNT, MASKED, VISUAL = "learnt", "masked", "visual"
_STYLES = {LEARNT: "bold green", MASKED: "dim", VISUAL: "cyan"}
_SHOWN_ROWS = 2


def rehearse(opened: Opened, prepared: Prepared, settings: TrainingSettings) -> None:
    """Say what trains, the first and the longest batch, steps, memory and disk of the run that ``prepared`` is.

    DataError for a row of these two batches that cannot be used.
    """
    plan = StagePlan(stage_of(settings), {}, tuple(_parts(opened, settings)), {})
    console().print(plan.table())
    rows = prepared.data.train
    if rows is None:
        say("nothing trains: do_train is false")
        return
    _, processes = place_in_run(settings)
    training = settings.training
    batches = split_batches(
        prepared.data.order(0), training.per_device_train_batch_size, drop_last=training.dataloader_drop_last
    )
    lengths = [[int(rows.lengths[index]) for index in batch] for batch in batches]
    longest = max(range(len(batches)), key=lambda number: (len(batches[number]) * max(lengths[number]), -number))
    say(f"first batch: {_size(lengths[0])}; {_places(rows, batches[0])}")
    for index in batches[0][:_SHOWN_ROWS]:
        _show(rows, index, prepared.tokenizer)
    if longest == 0:
        say("longest batch: the first one")
    else:
        say(f"longest batch: {_size(lengths[longest])}; {_places(rows, batches[longest])}")
        _show(rows, max(batches[longest], key=lambda index: int(rows.lengths[index])), prepared.tokenizer)
    for line in _amounts(rows, lengths, settings, processes):
        say(line)
    for line in _needs(prepared, settings, plan.parts, [rows[index] for index in batches[longest]]):
        say(line)
    say("this was a dry run: no weight was read and nothing was written")


def _parts(opened: Opened, settings: TrainingSettings) -> Iterator[ModelPart]:
    shapes, chosen = opened.shapes, opened.trained(settings)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    rank = settings.model.lora_rank if settings.model.lora and not settings.model.lora_path else None
    for name in opened.parameters(settings):
        layer, _, part = name.rpartition(".lora_")
        shape = shapes.get(f"{layer}.weight")
        if part and shape is not None:
            wide = rank or opened.sources.parts.adapter.pairs[f"{layer}.weight"].r
            sizes[name] = {"A": wide * shape[0], "B": wide * shape[1]}.get(part[-1], shape[1])
    if opened.sources.parts.init:
        known = sum(size for name, size in sizes.items() if name.startswith("llama.mm_projector."))
        drawn = count_parameters(opened.config).projector - known
        sizes["llama.mm_projector.drawn_anew"] = drawn
        if any(name.startswith("llama.mm_projector.") for name in chosen):
            chosen = chosen | {"llama.mm_projector.drawn_anew"}
    yield from counted_parts(sizes, chosen, settings, opened.config.vision)


def _size(lengths: Sequence[int]) -> str:
    return f"{counted(len(lengths), 'row')} of {', '.join(f'{length:,}' for length in lengths[:8])}" + (
        ", ... positions" if len(lengths) > 8 else " positions"
    )


def _places(rows: Rows, batch: Sequence[int]) -> str:
    return "; ".join(rows.where(index) for index in batch[:3]) + (", ..." if len(batch) > 3 else "")


def _show(rows: Rows, index: int, tokenizer: Tokenizer) -> None:
    encoded = rows[index]
    if encoded is None:
        say(f"  {rows.where(index)}: cannot be used and is left out (on_bad_sample)")
        return
    for name, part in encoded.parts.items() if isinstance(encoded, EncodedPair) else [("", encoded)]:
        say(f"  {rows.where(index)}{f', {name}' if name else ''}")
        for kind, text in spans(part, tokenizer):
            console().print(_styled(kind, text), soft_wrap=True)


def spans(encoded: Encoded, tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    """The row as stretches of text: ``learnt``, ``masked`` (read, not learnt) or ``visual`` (an image's positions).

    A token is learnt when it is predicted, so the first one never is.
    """
    learnt = encoded.labels != IGNORE_INDEX
    learnt[:1] = False
    kinds = np.where(encoded.ids == IMAGE_TOKEN_INDEX, 2, learnt.astype(np.int64))
    borders = [0, *(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(kinds)]
    layouts = iter(encoded.layouts)
    for start, end in itertools.pairwise(borders):
        if kinds[start] == 2:
            for _ in range(start, end):
                yield VISUAL, f"<image> x {len(next(layouts).order):,}"
        elif end > start:
            text = tokenizer.decode(encoded.ids[start:end].tolist(), skip_special=False)
            yield (LEARNT if kinds[start] else MASKED), text


def _styled(kind: str, text: str) -> "Text":
    from rich.text import Text

    return Text.assemble((f"    {kind:>6} | ", "dim"), (text.replace("\n", "\\n"), _STYLES[kind]))


def _amounts(rows: Rows, lengths: Sequence[Sequence[int]], settings: TrainingSettings, processes: int) -> Iterator[str]:
    training = settings.training
    batch, accumulate = training.per_device_train_batch_size, training.gradient_accumulation_steps
    an_epoch, micro = step_counts(
        len(rows), batch, world=processes, accumulate=accumulate, drop_last=training.dataloader_drop_last
    )
    steps = total_steps(training, len(rows), processes)
    used = [length for lengths_of_batch in lengths for length in lengths_of_batch]
    yield (
        f"{counted(len(rows), 'row')}, {batch} of them x {counted(micro, 'micro-batch', 'micro-batches')} x "
        f"{counted(processes, 'process', 'processes')} in a step: {counted(steps, 'step')}, "
        f"{an_epoch // micro:,} an epoch"
    )
    a_step = sum(used) * settings.preference.answers * processes * micro // max(len(lengths), 1)
    padding = 1 - useful_share(used, range(len(used)), batch)
    yield f"about {a_step:,} tokens a step; {100 * padding:.1f} % of the positions are padding"


def _needs(
    prepared: Prepared,
    settings: TrainingSettings,
    parts: Sequence[ModelPart],
    longest: Sequence[Encoded | EncodedPair | None],
) -> Iterator[str]:
    need = _memory(prepared, settings, parts, [row for row in longest if row is not None])
    shown = ", ".join(f"{name} {_amount(size)}" for name, size in need.named.items() if size)
    yield f"memory of a device, about: {_amount(need.total)} ({shown}), for the longest batch of an epoch"
    if not need.reserve:
        yield f"on a CPU Python, paddle and the data take about {_amount(PROCESS)} beside it"
    total, trained = (sum(getattr(part, name) for part in parts) for name in ("total", "trainable"))
    training = settings.training
    bytes_each = 2 if (training.bf16 or training.fp16) and training.fp16_opt_level == "O2" else 4
    result = bytes_each * (trained if settings.model.lora else total)
    kept = 0 if training.save_strategy == "no" else (training.save_total_limit or 1) * (result + 8 * trained)
    output = Path(training.output_dir).expanduser()
    there = next(folder for folder in (output, *output.parents) if folder.is_dir())
    more = " or more (save_total_limit is not set)" if kept and training.save_total_limit is None else ""
    yield (
        f"disk: {_amount(result)} for the result and {_amount(kept)}{more} for checkpoints; "
        f"{_amount(shutil.disk_usage(there).free)} are free"
    )


def _memory(
    prepared: Prepared, settings: TrainingSettings, parts: Sequence[ModelPart], batch: Sequence[Encoded | EncodedPair]
) -> Memory:
    """For ``batch``, the longest one; on a CPU for its very tiles and labels."""
    config, training = prepared.config, settings.training
    rows = [part for row in batch for part in (row.parts.values() if isinstance(row, EncodedPair) else [row])]
    length = max((row.length for row in rows), default=1)
    unit = settings.data.pad_to_multiple_of or 1
    length = -(-length // unit) * unit
    if not computes_on_cpu(training.device, half=training.bf16 or training.fp16):
        changed = settings.with_changes(max_length=length)
        return expected_memory(config, changed, env.processes(), tiles=most_tiles(config))
    size = BatchSize(
        rows=max(len(rows), 1),
        length=length,
        tiles=sum(len(row.pixels) for row in rows if row.pixels is not None),
        labelled=sum(int(np.count_nonzero(row.labels[1:] != IGNORE_INDEX)) for row in rows),
        packed=any(row.segments is not None for row in rows),
    )
    return memory_on_cpu(config, settings, size, _numbers(parts))


def _numbers(parts: Sequence[ModelPart]) -> Numbers:
    return Numbers(
        total=sum(part.total for part in parts),
        trained=sum(part.trainable for part in parts),
        adapters=sum(part.trainable for part in parts if part.name == ADAPTERS_PART),
    )


def _amount(size: float) -> str:
    """Bytes with three digits, in GB or below 0.1 GB in MB."""
    unit, scale = ("GB", GB) if size >= GB / 10 else ("MB", 10**6)
    value = size / scale
    return f"{value:.{min(2, max(0, 2 - math.floor(math.log10(value))))}f} {unit}" if value >= 0.005 else "0 MB"
