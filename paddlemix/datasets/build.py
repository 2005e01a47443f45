# SPDX-License-Identifier: Apache-2.0
"""The data of a training run from its settings: train and eval sets, the collator, the order of an epoch."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from paddlemix.datasets import multiview
from paddlemix.datasets.collate import Collator
from paddlemix.datasets.dataset import ChatDataset
from paddlemix.datasets.packing import PackedDataset, pack
from paddlemix.datasets.preprocess import SampleEncoder
from paddlemix.datasets.rows import MarkRules, UnreadKeys
from paddlemix.datasets.sample import BadSamples
from paddlemix.datasets.sampler import EpochOrder, LengthGroupedSampler, shuffled
from paddlemix.datasets.sources import Entry, read
from paddlemix.imaging.processor import ImageProcessor
from paddlemix.settings.model import LlavaConfig
from paddlemix.settings.training import TrainingGroup, TrainingSettings
from paddlemix.text import templates
from paddlemix.text.messages import Layout
from paddlemix.text.tokenizer import Tokenizer
from paddlemix.utils.errors import ConfigError, DataError

NAMES = ("chatml_dataset", "llava_dataset", "messages_dataset", multiview.NAME)
"""Accepted in an entry's ``name``. The first three mean the same, since the form is found row by row; the last one says
that the pictures of a row are views of one object."""


@dataclass(frozen=True)
class Datasets:
    """``train`` and ``eval`` (None when not asked for), the ``collator`` of both, the ``order`` of an epoch."""

    train: ChatDataset | PackedDataset | None
    eval: ChatDataset | None
    collator: Collator
    order: EpochOrder | None
    notes: tuple[str, ...] = ()
    """Lines for the person about what was read."""


def build_datasets(
    settings: TrainingSettings,
    config: LlavaConfig,
    tokenizer: Tokenizer,
    *,
    template: Layout | None = None,
    rank: int = 0,
    world: int = 1,
) -> Datasets:
    """Read and check the data files of a run.

    ``config`` is the model's with the run's overrides (image mode, merge type) already applied. ``template`` is the
    layout of rows without one of their own (default: what settings or ``config`` name).
    DataError names file and record; ConfigError the key.
    """
    encoder = make_encoder(settings, config, tokenizer, template)
    parts = settings.data.dataset or {}
    unread = UnreadKeys()
    part = partial(_part, settings, encoder, unread, rank)
    train = part("train", parts.get("train")) if settings.training.do_train else None
    held_out = part("eval", parts.get("eval")) if settings.training.do_eval else None
    if train is not None and len(train) < world:
        raise DataError(f"{len(train)} training rows for {world} processes; every process needs at least one")
    if train is not None and settings.data.mixtoken:
        train = PackedDataset(train, pack(train.lengths.tolist(), settings.data.max_length))
    order = None if train is None else order_of(settings.training, train, world)
    notes = tuple(filter(None, [unread.note()]))
    return Datasets(train, held_out, make_collator(settings, config), order, notes)


def make_encoder(
    settings: TrainingSettings, config: LlavaConfig, tokenizer: Tokenizer, template: Layout | None = None
) -> SampleEncoder:
    """The encoder of a run; ``template`` None takes that of the settings, or else of ``config``."""
    processor = ImageProcessor(config.image, config.vision) if config.vision and config.image else None
    return SampleEncoder(
        tokenizer,
        processor,
        template or templates.get(settings.model.template or config.template, training=True),
        max_length=settings.data.max_length,
        use_im_start_end=config.use_im_start_end,
        allow_outside_root=settings.data.allow_outside_root,
        allow_image_urls=settings.data.allow_image_urls,
    )


def make_collator(settings: TrainingSettings, config: LlavaConfig) -> Collator:
    """The collator of a run. Training pads on the right, whatever side the checkpoint's chat pads on.

    Every batch of a model with a vision tower holds at least one tile: in a batch without a picture the gradients of
    tower, projector and newline are then zeros, as in LLaVA's data loader (train.py gives a text row a black picture).
    Without it they would be missing before the first picture of a process and zeros after it, and AdamW treats the
    two differently; several processes must agree on the parameters of a step besides.
    """
    return Collator(
        tokens_per_tile=config.vision.tokens_per_tile if config.vision else 1,
        tile_side=config.vision.image_size if config.vision else 1,
        pad_to_multiple_of=settings.data.pad_to_multiple_of,
        min_tiles=1 if config.vision else 0,
    )


def entries_of(entries: list[dict[str, Any]], settings: TrainingSettings) -> list[Entry]:
    """The entries of ``dataset.train`` or ``dataset.eval`` as the readers take them."""
    found = []
    rules = MarkRules(settings.data.images_without_mark, settings.data.mark_without_images)
    for entry in entries:
        name = entry.get("name")
        if name not in (None, *NAMES):
            raise ConfigError(f'data set "{name}" is not known (known: {", ".join(NAMES)}); leave "name" out')
        files = entry["data_files"]
        folder = entry.get("image_folder") or settings.data.image_folder
        files = (files,) if isinstance(files, str) else tuple(files)
        repeat = settings.data.single_view_repeat if name == multiview.NAME else 0
        found.append(Entry(files, folder, entry.get("chat_template"), repeat, rules))
    return found


def _part(
    settings: TrainingSettings,
    encoder: SampleEncoder,
    unread: UnreadKeys,
    rank: int,
    part: str,
    entries: list[dict[str, Any]] | None,
) -> ChatDataset | None:
    if not entries:
        return None
    name = "bad_samples.jsonl" if part == "train" else f"bad_samples_{part}.jsonl"
    bad = BadSamples(settings.data.on_bad_sample, Path(settings.training.output_dir) / name, primary=rank == 0)
    samples = [sample for entry in entries_of(entries, settings) for sample in read(entry, bad, unread)]
    return ChatDataset(samples, encoder, bad)


def order_of(training: TrainingGroup, rows: ChatDataset | PackedDataset, world: int = 1) -> EpochOrder:
    """The order of the training rows for every grouping key: chance alone, or rows of like length in a batch."""
    if not (training.group_by_length or training.group_by_modality_length):
        return shuffled(len(rows), training.seed)
    by_modality = training.group_by_modality_length
    return LengthGroupedSampler(
        (rows.modality_lengths if by_modality else rows.lengths).tolist(),
        batch_size=training.per_device_train_batch_size,
        world=world,
        seed=training.seed,
        by_modality=by_modality,
    )
