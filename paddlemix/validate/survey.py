# SPDX-License-Identifier: Apache-2.0
"""What every row of a data set costs, or why it cannot be used: measured in parallel, kept in a journal."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from paddlemix.datasets.pictures import Progress, is_remote
from paddlemix.datasets.preprocess import NoLabelError, SampleEncoder
from paddlemix.datasets.sample import Sample
from paddlemix.utils.errors import DataError
from paddlemix.utils.forks import forked_map
from paddlemix.utils.journal import Journal

PORTION = 500
"""Rows that a process takes at a time, and that a kill can lose."""

FACTS = ("text", "visual", "length", "learnt", "images", "turns")
"""Columns of ``Survey.facts``: positions of text and of images, positions that ``max_length`` keeps, how many of those
are learnt, images, and answers of the conversation."""


@dataclass
class Survey:
    """``facts`` int64 [rows, len(FACTS)] in the order of the samples, zeros for a row of ``faults`` (by its index)."""

    facts: np.ndarray
    faults: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Reason, and the image that it is about (or an empty string)."""
    reused: int = 0
    """Rows whose facts were in the journal of a run that stopped."""
    unlearnt: int = 0
    """Rows of ``faults`` that keep no label."""

    def column(self, name: str) -> np.ndarray:
        """One fact of the rows that can be used, int64 [rows]."""
        good = np.ones(len(self.facts), dtype=bool)
        good[list(self.faults)] = False
        return self.facts[good, FACTS.index(name)]


@dataclass(frozen=True)
class Look:
    """How rows are looked at. ``decode``: images are decoded in full, not only their headers."""

    encoder: SampleEncoder
    decode: bool = False

    def __call__(self, sample: Sample) -> dict[str, Any]:
        """``{"facts": [...]}`` in the order of FACTS, or ``{"reason": ..., "image": ...}``."""
        image = ""
        try:
            self.encoder.check(sample)
            sizes = []
            for image in sample.images:
                if self.decode and not is_remote(image):  # an address is read when its row is used
                    self.encoder.pictures.load(sample, image)
                sizes.append(self.encoder.size_of(sample, image))
            image = ""
            found = self.encoder.measure(sample, sizes)
        except DataError as error:
            more = {"unlearnt": True} if isinstance(error, NoLabelError) else {}
            return {"reason": str(error), "image": image, **more}
        turns = sum(message.role == "assistant" for message in sample.messages)
        numbers = (found.text, found.visual, found.length, found.learnt, len(sample.images), turns)
        return {"facts": [int(number) for number in numbers]}


_job: tuple[Look, Sequence[Sample]]
"""What the processes work on: they are forked, so nothing of it is copied or sent."""


def survey(
    samples: Sequence[Sample], look: Look, journal: Path, key: str, *, jobs: int, progress: Progress | None = None
) -> Survey:
    """Look at every sample with ``jobs`` processes.

    ``journal`` keeps what is done, so that the same call goes on after a kill; one that was written with another
    ``key`` is begun anew. DataError when a process dies: it names the rows.
    """
    global _job
    found = Survey(np.zeros((len(samples), len(FACTS)), dtype=np.int64))
    portions = [range(start, min(start + PORTION, len(samples))) for start in range(0, len(samples), PORTION)]
    kept = _journal(journal, key, portions, lambda number, records: _note(found, portions[number], records))
    try:
        found.reused = sum(len(portions[number]) for number in kept.done)
        waiting = list(range(len(kept.done), len(portions)))
        _job = (look, samples)
        for number, records in _worked(portions, waiting, jobs):
            kept.add(number, records)
            if progress is not None:
                progress(portions[number].stop, len(samples))
    finally:
        kept.close()
    return found


def fingerprint(files: Sequence[str], facts: dict[str, Any]) -> str:
    """Changes with the files' sizes and times, and with ``facts``; what a journal belongs to."""
    stats = [(name, os.stat(name).st_size, os.stat(name).st_mtime_ns) for name in files]
    text = json.dumps([stats, facts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _journal(
    path: Path, key: str, portions: list[range], take: Callable[[int, list[dict[str, Any]]], None]
) -> Journal[dict[str, Any]]:
    def fits(number: int, records: list[Any]) -> TypeGuard[list[dict[str, Any]]]:
        return number < len(portions) and len(records) == len(portions[number]) and all(map(_is_record, records))

    if path.is_file() and f'"{key}"'.encode() not in path.open("rb").readline():
        path.unlink()
    return Journal(path, {"key": key}, fits, in_use="wait for it, or choose another --report", take=take)


def _is_record(record: dict[str, Any]) -> bool:
    facts = record.get("facts")
    if isinstance(facts, list):
        return len(facts) == len(FACTS) and all(type(fact) is int and 0 <= fact < 1 << 40 for fact in facts)
    return isinstance(record.get("reason"), str) and isinstance(record.get("image"), str)


def _note(found: Survey, rows: range, records: Sequence[dict[str, Any]]) -> None:
    for row, record in zip(rows, records, strict=True):
        if "facts" in record:
            found.facts[row] = record["facts"]
        else:
            found.faults[row] = (record["reason"], record["image"])
            found.unlearnt += record.get("unlearnt") is True


def _worked(portions: list[range], waiting: list[int], jobs: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    results = forked_map(_portion, [portions[number] for number in waiting], jobs)
    for number in waiting:
        try:
            yield number, next(results)
        except BrokenProcessPool as error:
            first, last = portions[number][0], portions[number][-1]
            raise DataError(
                f"a process that looked at rows {first} to {last} ({_job[1][first].where} and those behind it) was "
                "ended, as the system does when memory runs out; lower --jobs"
            ) from error


def _portion(rows: range) -> list[dict[str, Any]]:
    look, samples = _job
    return [look(samples[row]) for row in rows]
