# SPDX-License-Identifier: Apache-2.0
"""A batch run over many objects that can be killed at any time and goes on where it was, to the same file."""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL.Image import Image

from paddlemix.annotate.objects import ObjectImages
from paddlemix.annotate.scripts import Script, read_answers, value_of
from paddlemix.utils.errors import DataError
from paddlemix.utils.files import TEMPORARY_PREFIX, atomic_write
from paddlemix.utils.journal import Journal, json_bytes
from paddlemix.utils.leftovers import ending_on_sigterm

OWN_KEYS = ("unknown", "error")
"""Keys that tell about a run. Those of an earlier run, whose file is the input now, are dropped."""

Ask = Callable[[Script, Sequence[Sequence[Image]], Sequence[int]], list[list[str]]]
"""``Annotator.answers``: script, views of the objects, their numbers; the answers of each object."""


@dataclass(frozen=True)
class Job:
    """What a run is made of. ``settings`` are all that the answers depend on: a run goes on only with the same.

    ``output`` is the final JSON file; until it is there, ``<output>.journal`` holds the finished batches.
    ``whole`` keeps the keys of the input record in the output (sheets), else the id alone is kept (objects). ``first``
    is the number of the first record in the whole input: in a part, an object gets the answers of a run over all.
    """

    script: Script
    source: ObjectImages
    records: Sequence[dict[str, Any]]
    output: Path
    settings: dict[str, Any]
    batch_size: int = 8
    whole: bool = False
    unknown_score: int | None = None
    first: int = 0

    @property
    def journal(self) -> Path:
        """Where the finished batches are kept while the run goes on."""
        return self.output.with_name(f"{self.output.name}.journal")


@dataclass
class Progress:
    """How far a run is. ``unknown`` answers and ``failed`` objects (no images) are counted over the whole run."""

    total: int
    done: int = 0
    here: int = 0
    unknown: int = 0
    failed: int = 0
    seconds: float = 0.0

    def count(self, records: Sequence[dict[str, Any]], *, here: bool) -> None:
        """Add finished records; ``here`` if this process made them."""
        self.done += len(records)
        self.here += len(records) if here else 0
        self.unknown += sum(len(record.get("unknown", ())) for record in records)
        self.failed += sum("error" in record for record in records)

    @property
    def line(self) -> str:
        """``120 of 1000 objects, 3.20 a second, 275 s left; 2 unknown answers, 1 without images``."""
        speed = self.here / self.seconds if self.seconds and self.here else 0.0
        left = f", {speed:.2f} a second, {_time((self.total - self.done) / speed)} left" if speed else ""
        odd = [f"{self.unknown} unknown answers"] if self.unknown else []
        odd += [f"{self.failed} without images"] if self.failed else []
        return f"{self.done} of {self.total} objects{left}" + (f"; {', '.join(odd)}" if odd else "")


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def run(job: Job, ask: Ask, note: Callable[[Progress], None], *, restart: bool = False) -> list[dict[str, Any]]:
    """Annotate every object of a job and publish its file; ``note`` is told after every batch.

    Batches are cut by the objects' numbers and done as a whole, so a resumed run asks exactly what the straight one
    would have asked. An object without usable images gets ``error`` in place of answers.
    """
    if restart:
        job.journal.unlink(missing_ok=True)
        job.output.unlink(missing_ok=True)
    settings = {**job.settings, "batch_size": job.batch_size, "objects": len(job.records)}
    journal: Journal[dict[str, Any]] = Journal(job.journal, settings, functools.partial(_fits, job))
    for left in job.output.parent.glob(f"{TEMPORARY_PREFIX}{job.output.stem}.*"):
        left.unlink(missing_ok=True)
    progress = Progress(len(job.records))
    for records in journal.done.values():
        progress.count(records, here=False)
    begun = time.monotonic()
    with contextlib.closing(journal), ending_on_sigterm():
        for batch in range(len(journal.done), math.ceil(len(job.records) / job.batch_size)):
            journal.add(batch, _batch(job, ask, batch * job.batch_size))
            progress.count(journal.done[batch], here=True)
            progress.seconds = time.monotonic() - begun
            note(progress)
    records = [record for batch in sorted(journal.done) for record in journal.done[batch]]
    atomic_write(job.output, json_bytes(records, indent=2) + b"\n")
    journal.remove()
    return records


def _fits(job: Job, batch: int, records: Sequence[dict[str, Any]]) -> bool:
    """Whether records of a journal are those of this batch's objects, and of the form that ``_batch`` gives them."""
    first = batch * job.batch_size
    objects = job.records[first : first + job.batch_size]
    answers = {question.key for question in job.script.questions}
    return len(records) == len(objects) > 0 and all(
        ("error" in record or answers <= record.keys())
        and isinstance(record.get("unknown", {}), dict)
        and all(record.get(key) == value for key, value in _kept(job, item).items() if key not in answers)
        for record, item in zip(records, objects, strict=True)
    )


def _kept(job: Job, record: dict[str, Any]) -> dict[str, Any]:
    """What the output keeps of a record of the input."""
    kept = record if job.whole else {job.source.key(): value_of(record, job.source.key())}
    return {key: value for key, value in kept.items() if key not in OWN_KEYS}


def _batch(job: Job, ask: Ask, first: int) -> list[dict[str, Any]]:
    records = job.records[first : first + job.batch_size]
    views: dict[int, list[Image]] = {}
    errors: dict[int, DataError] = {}
    for number, record in enumerate(records, start=first):
        try:
            views[number] = job.source.views(record)
        except DataError as error:
            errors[number] = error
    numbers = [job.first + number for number in views]
    said = dict(zip(views, ask(job.script, list(views.values()), numbers), strict=True)) if views else {}
    found = []
    for number, record in enumerate(records, start=first):
        if number in errors:
            found.append(_kept(job, record) | {"error": str(errors[number])})
        else:
            found.append(_kept(job, record) | read_answers(job.script, said[number], job.unknown_score))
    return found
