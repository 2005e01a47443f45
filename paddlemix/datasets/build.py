# SPDX-License-Identifier: Apache-2.0
"""The data of a training run from its settings: train and eval sets, the collator, the order of an epoch."""

import math
from dataclasses import dataclass

import numpy as np

from paddlemix.datasets.collate import Collator
from paddlemix.datasets.dataset import ChatDataset
from paddlemix.datasets.mixture import MixedDataset
from paddlemix.datasets.packing import PackedDataset
from paddlemix.datasets.preference import PreferenceCollator, PreferenceDataset, PreferenceEncoder
from paddlemix.datasets.preprocess import SampleEncoder
from paddlemix.datasets.reading import RowsRead, picture_rules, read_rows, used_entries
from paddlemix.datasets.resumed import ResumedDataset, RowsBefore, continued
from paddlemix.datasets.sampler import EpochOrder, LengthGroupedSampler, shuffled
from paddlemix.imaging.processor import ImageProcessor
from paddlemix.settings.model import LlavaConfig
from paddlemix.settings.run.preference import UNPAIRED
from paddlemix.settings.run.training import TrainingGroup, TrainingSettings
from paddlemix.text import templates
from paddlemix.text.messages import ChatFormat
from paddlemix.text.tokenizer import Tokenizer
from paddlemix.utils.errors import ConfigError, DataError
from paddlemix.utils.shown import counted


@dataclass(frozen=True)
class Datasets:
    """``train`` and ``eval`` (None when not asked for), the ``collator`` of both, the ``order`` of an epoch."""

    train: ChatDataset | ResumedDataset | MixedDataset | PackedDataset | None
    eval: ChatDataset | None
    collator: Collator | PreferenceCollator
    order: EpochOrder | None
    notes: tuple[str, ...] = ()
    """Lines for the person about what was read."""


def build_datasets(
    settings: TrainingSettings,
    config: LlavaConfig,
    tokenizer: Tokenizer,
    *,
    rows: RowsRead | None = None,
    before: RowsBefore | None = None,
    template: ChatFormat | None = None,
    rank: int = 0,
    world: int = 1,
    grouped_for: int = 0,
) -> Datasets:
    """The data of a run from its ``rows`` (default: they are read now), numbered as ``before`` when it goes on.

    ``config`` is the model's with the run's overrides (image mode, merge type) already applied. ``template`` is the
    layout of rows without one of their own (default: what settings or ``config`` name).
    ``grouped_for``: for how many processes the order of grouped rows is made (0: ``world``).
    DataError names file and record; ConfigError the key.
    """
    encoder = make_encoder(settings, config, tokenizer, template)
    rows = rows or read_rows(settings, check=encoder.check, rank=rank, world=world)
    kind = ChatDataset if settings.preference.loss_type is None else PreferenceDataset
    train, held_out = (part and kind(part.samples, encoder, part.bad, part.faults)
                       for part in (rows.train, rows.eval))  # fmt: skip
    if train is not None and len(train) < world:
        raise DataError(f"{len(train)} training rows for {world} processes; every process needs at least one")
    if train is not None and before is not None:
        train = continued(train, before)
    notes: tuple[str, ...] = ()
    if train is not None:
        train, notes = _mixed(train, settings)
    if train is not None and settings.data.mixtoken:
        train, more = _packed(train, settings)
        notes += more
    order = None if train is None else order_of(settings.training, train, grouped_for or world)
    return Datasets(train, held_out, make_collator(settings, config), order, rows.notes + notes)


def _mixed(
    train: ChatDataset | ResumedDataset, settings: TrainingSettings
) -> tuple[ChatDataset | ResumedDataset | MixedDataset, tuple[str, ...]]:
    """``train``, of which an epoch reads as much of each entry as ``repeat`` or ``weight`` says, and a line on it."""
    entries = used_entries(settings)["train"]
    if all(entry.portion.whole for entry in entries):
        return train, ()
    if settings.preference.loss_type is not None:
        raise ConfigError('"weight" and "repeat" of a data set are for training on answers, not on preferences')
    mixed = MixedDataset(train, train.sizes.tolist(), [entry.portion for entry in entries], settings.training.seed)
    told = (
        f"{entry.name or entry.data_files[0]} {count:,} of {size:,}"
        for entry, size, count in zip(entries, mixed.sizes, mixed.counts, strict=True)
    )
    return mixed, (f"rows of an epoch: {len(mixed):,} ({', '.join(told)})",)


def _packed(
    train: ChatDataset | ResumedDataset | MixedDataset, settings: TrainingSettings
) -> tuple[PackedDataset, tuple[str, ...]]:
    """``train`` in packs of at most ``max_length`` positions, and what a person should know of it.

    The packs of a run that goes on are those of its first part, so that the batches that follow stay what they were.
    """
    packed = PackedDataset(train, settings.data.max_length, settings.training.seed)
    grown = packed.rows.grown if isinstance(packed.rows, ResumedDataset) else ()
    if not len(grown):
        return packed, ()
    few = "; ".join(packed.rows.where(int(index)) for index in grown[:3])
    note = (
        f"longer than in the first part of the run: {counted(len(grown), 'row')}; an epoch leaves out those that there "
        f"is no room for where they are packed ({few}{', ...' if len(grown) > 3 else ''})"
    )
    return packed, (note,)


def make_encoder(
    settings: TrainingSettings, config: LlavaConfig, tokenizer: Tokenizer, template: ChatFormat | None = None
) -> SampleEncoder:
    """The encoder of a run; ``template`` None takes that of the settings, or else of ``config``."""
    processor = ImageProcessor(config.image, config.vision) if config.vision and config.image else None
    kind = SampleEncoder if settings.preference.loss_type is None else PreferenceEncoder
    return kind(
        tokenizer,
        processor,
        template or templates.get(settings.model.template or config.template, training=True),
        max_length=settings.data.max_length,
        use_im_start_end=config.use_im_start_end,
        pictures=picture_rules(settings),
    )


def make_collator(settings: TrainingSettings, config: LlavaConfig) -> Collator | PreferenceCollator:
    """The collator of a run. Training pads on the right, whatever side the checkpoint's chat pads on.

    Every batch of a model with a vision tower holds at least one tile: in a batch without an image the gradients of
    tower, projector and newline are then zeros, as in LLaVA's data loader (train.py gives a text row a black image).
    Without it they would be missing before the first image of a process and zeros after it, and AdamW treats the
    two differently; several processes must agree on the parameters of a step besides.
    """
    sharing = max(settings.training.sep_parallel_degree, 1)  # each device takes as many places
    collator = Collator(
        tokens_per_tile=config.tokens_per_tile,
        tile_side=config.vision.image_size if config.vision else 1,
        pad_to_multiple_of=math.lcm(settings.data.pad_to_multiple_of or 1, sharing),
        min_tiles=1 if config.vision else 0,
    )
    loss = settings.preference
    if loss.loss_type is None:
        return collator
    with_loss = "text" if loss.loss_type == "orpo" else "answers" if loss.rpo_alpha else ""
    return PreferenceCollator(
        collator, settings.data.max_length, single=loss.loss_type == UNPAIRED, cross_entropy=with_loss
    )


def order_of(
    training: TrainingGroup, rows: ChatDataset | ResumedDataset | MixedDataset | PackedDataset, world: int = 1
) -> EpochOrder:
    """The order of the training rows for every key that decides it: a permutation of the rows of an epoch, in which
    rows of like length, and of like modality, meet in a batch if that is asked for.

    Of a mixture an epoch draws its rows, and packs are made anew: both say which rows an epoch has (``numbers``).
    """
    epochs = rows if isinstance(rows, MixedDataset | PackedDataset) else None
    by_modality = training.group_by_modality_length
    grouped = by_modality or training.group_by_length
    if epochs is None and not grouped:
        return shuffled(len(rows), training.seed)
    if grouped:
        _lengths_of(rows, None, signed=by_modality)  # now: what rows cost is found out before the run begins

    def order(epoch: int) -> list[int]:
        numbers = epochs.numbers(epoch) if epochs else None
        if not grouped:
            chosen = shuffled(len(numbers), training.seed)(epoch)
        else:
            chosen = LengthGroupedSampler(
                _lengths_of(rows, numbers, signed=by_modality).tolist(),
                batch_size=training.per_device_train_batch_size,
                world=world,
                seed=training.seed,
                by_modality=by_modality,
            )(epoch)
        return list(chosen) if numbers is None else numbers[chosen].tolist()

    return order


def _lengths_of(
    rows: ChatDataset | ResumedDataset | MixedDataset | PackedDataset, numbers: np.ndarray | None, *, signed: bool
) -> np.ndarray:
    """Lengths (int64) of all rows, or of the rows ``numbers`` of an epoch; ``signed`` as ``modality_lengths``."""
    if numbers is None:
        return rows.modality_lengths if signed else rows.lengths
    return rows.modality_lengths_of(numbers) if signed else rows.lengths_of(numbers)
