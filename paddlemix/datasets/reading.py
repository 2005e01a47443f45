# SPDX-License-Identifier: Apache-2.0
"""The rows of a run before there is a model: files read, marks and keys checked, images looked at."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from paddlemix.datasets import multiview
from paddlemix.datasets.lazy import Check, LazyRows, Look, open_all, processors, read_all
from paddlemix.datasets.pictures import AUTO, EXISTS, HEADER, MANY, NONE, PictureRules, Progress
from paddlemix.datasets.records import UnreadKeys
from paddlemix.datasets.rows import MarkRules
from paddlemix.datasets.sample import BadSamples
from paddlemix.datasets.selection import Portion, Selection
from paddlemix.datasets.sources import DatasetEntry
from paddlemix.imaging.load import OWN_LIMITS
from paddlemix.settings.run.preference import UNPAIRED
from paddlemix.settings.run.training import TrainingSettings
from paddlemix.utils.errors import ConfigError, DataError
from paddlemix.utils.registry import nearest

NAMES = ("chatml_dataset", "llava_dataset", "messages_dataset", multiview.NAME)
"""Words with a meaning in an entry's ``name``: the last one says that the images of a row are views of one object, the
others nothing, since the form is found row by row. Any other name is a label for messages."""


BUILT_IN = ("coco_caption", "coco_clip", "coco_retrieval", "coco_vqa", "vg_caption")
"""Data sets that PaddleMIX downloads by name: as a label these would promise rows that are not read."""


@dataclass(frozen=True)
class Split:
    """The training or the evaluation rows. ``faults``: what is wrong with images, by the numbers of their rows."""

    samples: LazyRows
    bad: BadSamples
    faults: dict[int, DataError] = field(default_factory=dict)


@dataclass(frozen=True)
class RowsRead:
    """All rows of a run; a part that the run does not use is None. ``notes`` are lines for the person."""

    train: Split | None
    eval: Split | None
    notes: tuple[str, ...] = ()
    test: Split | None = None


def read_rows(
    settings: TrainingSettings,
    *,
    check: Check | None = None,
    rank: int = 0,
    world: int = 1,
    progress: Progress | None = None,
    parts: Sequence[str] = ("train", "eval"),
) -> RowsRead:
    """Read the data files of a run and look at the images as ``check_images`` says.

    Rows are read once and parsed again when they are used. ``check`` is asked about each (``SampleEncoder.check``).
    Nothing is written: rows that are skipped are listed when the data set is built. Of ``world`` processes each looks
    at its share of the images. DataError names file and record of the first bad row, or image, unless bad rows are
    skipped; ConfigError the key.
    """
    unread, data = UnreadKeys(), settings.data
    found: dict[str, Split] = {}
    notes: list[str] = []
    for name, entries in used_entries(settings, parts).items():
        file = None
        if not settings.training.dry_run:
            listed = "bad_samples.jsonl" if name == "train" else f"bad_samples_{name}.jsonl"
            file = Path(settings.training.output_dir) / listed
        bad = BadSamples(data.on_bad_sample, file, primary=rank == 0, limit=data.skip_limit)
        chosen = open_all(entries)
        how = how_to_look(data.check_images, sum(map(len, chosen)))
        if data.check_images == AUTO and how == EXISTS:
            notes.append(MANY_ROWS.format(sum(map(len, chosen))))
        look = Look(check, picture_rules(settings), how, (rank, world))
        samples, faults = read_all(chosen, bad, unread, look, jobs=processors(world), progress=progress)
        _refuse(faults, bad)
        found[name] = Split(samples, bad, faults)
    told = tuple(filter(None, [*notes, unread.note()]))
    return RowsRead(found.get("train"), found.get("eval"), told, found.get("test"))


MANY_ROWS = (
    '{:,} rows: of their images only whether the files are there was looked at ("check_images": "header" reads the '
    "header of each; paddlemix validate looks at all of them before a run)"
)


def how_to_look(check_images: str, rows: int) -> str:
    """``check_images`` for so many rows: ``auto`` reads headers, of a great many rows it only looks for the files."""
    return {AUTO: EXISTS if rows > MANY else HEADER}.get(check_images, check_images)


def _refuse(faults: dict[int, DataError], bad: BadSamples) -> None:
    if not faults or bad.policy == "skip":
        return
    more = f"\n{len(faults) - 1} more rows have images that cannot be used" if len(faults) > 1 else ""
    raise DataError(
        f'{faults[min(faults)]}{more}\n"on_bad_sample": "skip" leaves such rows out; "check_images": "{NONE}" looks at '
        "an image only when its row comes"
    )


def used_entries(settings: TrainingSettings, parts: Sequence[str] = ("train", "eval")) -> dict[str, list[DatasetEntry]]:
    """The entries of those ``parts`` of ``dataset`` that a run with these settings reads, by train, eval and test."""
    dataset, training = settings.data.dataset or {}, settings.training
    train = entries_of(dataset.get("train") or [], settings) if training.do_train or training.do_eval else []
    found = {"train": train if training.do_train else []}
    if training.do_eval:
        split = [one for one in train if one.selection.eval_split is not None]
        held_out = [replace(one, selection=replace(one.selection, side="eval")) for one in split]
        found["eval"] = entries_of(dataset.get("eval") or [], settings) + held_out
    if training.do_predict:
        found["test"] = entries_of(dataset.get("test") or [], settings)
    return {name: entries for name, entries in found.items() if entries and name in parts}


def entries_of(entries: list[dict[str, Any]], settings: TrainingSettings) -> list[DatasetEntry]:
    """The entries of ``dataset.train`` or ``dataset.eval`` as the readers take them."""
    found = []
    rules = MarkRules(settings.data.images_without_mark, settings.data.mark_without_images)
    for entry in entries:
        name = entry.get("name")
        near = "" if name in (None, *NAMES) else nearest(name, NAMES)
        if near or name in BUILT_IN:
            raise ConfigError(
                f'data set "{name}" is not known{near} (known: {", ".join(NAMES)}); leave "name" out, or choose a label'
            )
        files = entry["data_files"]
        folder = entry.get("image_folder") or settings.data.image_folder
        files = (files,) if isinstance(files, str) else tuple(files)
        repeat = settings.data.single_view_repeat if name == multiview.NAME else 0
        selection = Selection(
            entry.get("sampling_strategy") or "all",
            entry.get("max_samples"),
            entry.get("eval_split"),
            seed=settings.training.seed,
        )
        portion = Portion(entry.get("repeat") or 1, entry.get("weight"))
        own = (rules, _preference(settings), selection, portion, name or "")
        found.append(DatasetEntry(files, folder, entry.get("chat_template"), repeat, *own))
    return found


def _preference(settings: TrainingSettings) -> Literal["pair", "single"] | None:
    loss = settings.preference.loss_type
    return None if loss is None else "single" if loss == UNPAIRED else "pair"


def picture_rules(settings: TrainingSettings) -> PictureRules:
    """Which images a run reads, and how."""
    data = settings.data
    limits = replace(
        OWN_LIMITS,
        max_bytes=data.max_image_bytes,
        max_pixels=data.max_image_pixels,
        max_side=data.max_image_side,
        max_aspect=data.max_image_aspect,
        max_memory=data.max_image_memory,
        keys="max_image_{}",
    )
    return PictureRules(limits, data.allow_outside_root, data.allow_image_urls, data.exif_rotation)
