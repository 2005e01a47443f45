# SPDX-License-Identifier: Apache-2.0
"""What a run will do, in a few lines before its first step: rows, images, batches, steps, tokens a step.

No row is tokenised for it but a few: what is not known then is an estimate from them, and said so. Needs no paddle.
"""

from collections.abc import Iterator

import numpy as np

from paddlemix.datasets.build import Datasets
from paddlemix.datasets.dataset import ChatDataset
from paddlemix.datasets.mixture import MixedDataset
from paddlemix.datasets.packing import PackedDataset
from paddlemix.datasets.pictures import is_remote
from paddlemix.datasets.resumed import ResumedDataset
from paddlemix.settings.run.training import TrainingSettings
from paddlemix.trainer.batches import step_counts, total_steps
from paddlemix.utils.errors import DataError
from paddlemix.utils.shown import counted

_LOOKED_AT = 64
"""Rows that an estimate is made from, spread evenly."""


def overview(data: Datasets, settings: TrainingSettings, processes: int) -> Iterator[str]:
    """Lines for the console. ``processes``: those that read rows of their own."""
    rows, training = data.train, settings.training
    own = rows.dataset if isinstance(rows, PackedDataset) else rows
    mixed = own if isinstance(own, MixedDataset) else None
    inner = own if mixed is None else mixed.dataset
    chat = inner.dataset if isinstance(inner, ResumedDataset) else inner
    packed = f" in {counted(len(rows), 'pack')}" if isinstance(rows, PackedDataset) else ""
    held_out = f"; evaluation: {counted(len(data.eval), 'row')}" if data.eval is not None else ""
    drawn = "" if mixed is None else f", {len(mixed):,} an epoch"
    yield f"training data: {counted(len(chat), 'row')}{drawn}{packed}{_images(chat)}{held_out}"
    batch = training.per_device_train_batch_size
    batches, micro = step_counts(
        len(rows),
        batch,
        world=processes,
        accumulate=training.gradient_accumulation_steps,
        drop_last=training.dataloader_drop_last,
    )
    what = "pack" if packed else "row"
    yield (
        f"global batch: {counted(batch * micro * processes, what)} ({batch} a process x "
        f"{counted(micro, 'micro-batch', 'micro-batches')} x {counted(processes, 'process', 'processes')}); "
        f"{counted(total_steps(training, len(rows), processes), 'step')}, {batches // micro:,} an epoch"
    )
    tokens = _tokens(rows, chat, mixed if inner is chat else None)
    if tokens is not None:
        mean, looked = tokens
        share = f" (estimated from {counted(looked, 'row')})" if looked < len(chat) else ""
        yield f"about {round(mean * min(batch * micro * processes, len(rows))):,} tokens a step{share}"


def _spread(count: int) -> list[int]:
    looked = min(count, _LOOKED_AT)
    return [number * count // looked for number in range(looked)]


def _images(chat: ChatDataset) -> str:
    """How many images the rows name; an estimate where the rows are not all in memory."""
    samples = chat.samples
    if isinstance(samples, list | tuple):
        return f", {counted(sum(len(sample.images) for sample in samples), 'image')}"
    places = _spread(len(samples))
    mean = sum(len(samples[place].images) for place in places) / max(len(places), 1)
    return f", about {counted(round(mean * len(samples)), 'image')}"


def _tokens(
    rows: ChatDataset | ResumedDataset | MixedDataset | PackedDataset, chat: ChatDataset, mixed: MixedDataset | None
) -> tuple[float, int] | None:
    """(mean merged positions of a row or pack, rows that were looked at); None where no row tells.

    ``mixed``: what the rows of an epoch are drawn from, where its numbers are those of ``chat``.
    """
    numbers = np.arange(len(chat)) if mixed is None else mixed.numbers(0)
    if isinstance(rows, PackedDataset):
        return float(np.mean(rows.lengths)), len(chat)
    if chat.has_lengths:
        return float(np.mean(chat.lengths[numbers])), len(chat)
    found = []
    for place in numbers[_spread(len(numbers))].tolist():
        sample = chat.samples[place]
        if any(isinstance(image, str) and is_remote(image) for image in sample.images):
            continue  # its size would have to be fetched
        try:
            found.append(min(chat.encoder.length(sample), chat.encoder.max_length))
        except DataError:
            continue  # the training says what is wrong with it, when it comes
    return (float(np.mean(found)), len(found)) if found else None
