# SPDX-License-Identifier: Apache-2.0
"""The rows of a run by their numbers: read once to see that they can be used, then parsed again when one is needed.

Of a row there stay where it stands, a digest of what it says, and how many images it has: some thirty bytes.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import overload

import numpy as np

from paddlemix.datasets.index import RowFile
from paddlemix.datasets.pictures import NONE, PictureRules, Progress, check_folders, check_pictures
from paddlemix.datasets.records import UnreadKeys
from paddlemix.datasets.sample import BadSamples, Sample
from paddlemix.datasets.sources import (
    BrokenFileError,
    DatasetEntry,
    RowReader,
    open_data,
    require_rows,
    require_whole,
)
from paddlemix.imaging.views import Film
from paddlemix.utils.errors import DataError
from paddlemix.utils.forks import forked_map

PORTION = 2000
"""Rows that a process reads at a time."""
_FEW = 20_000
"""Rows that one process reads before others would be there to help."""
ENOUGH_FAULTS = 100
"""Rows with bad images after which the look ends when the first one stops the run anyway."""

Check = Callable[[Sample], None]
"""Raises DataError for a sample that cannot be used."""


def content(sample: Sample) -> tuple[list[tuple[object, ...]], list[str]]:
    """Turns and images. Without the image folder in front: data that moved to another disk is the same data."""
    turns = [(m.role, m.text) if m.learns else (m.role, m.text, False) for m in sample.messages]
    if sample.rejected is not None or sample.desirable is not None:
        turns.append(("preference", sample.rejected, sample.desirable))
    if isinstance(sample.views, Film):
        turns.append(("video",))
    return turns, [image.removeprefix(sample.image_root) for image in sample.images]


def digest(sample: Sample) -> bytes:
    """Eight bytes of what a sample says, its place in the file left aside."""
    return blake2b(repr(content(sample)).encode("utf-8"), digest_size=8).digest()


@dataclass(frozen=True)
class Chosen:
    """Rows of one file of an entry. ``records`` int64 are those to read, in order; None: all of them."""

    file: RowFile
    entry: DatasetEntry
    part: int
    records: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.file) if self.records is None else len(self.records)

    def raw(self, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
        """Numbers and bytes of the chosen rows ``start`` to ``stop - 1``."""
        if self.records is None:
            yield from zip(range(start, stop), self.file.raw_range(start, stop), strict=True)
            return
        for record in self.records[start:stop].tolist():
            yield record, self.file.raw(record)


@dataclass(frozen=True)
class Look:
    """What is asked of every row: ``check``, and of its images what ``how`` says of ``check_images``."""

    check: Check | None = None
    rules: PictureRules | None = None
    how: str = NONE
    share: tuple[int, int] = (0, 1)


class LazyRows(Sequence[Sample]):
    """Samples by number. ``sources`` int32 and ``records`` int64 [rows] say where each stands among ``chosen``;
    ``digests`` int64 [rows], ``images`` int32 [rows] (how many).
    """

    def __init__(
        self, chosen: Sequence[Chosen], sources: np.ndarray, records: np.ndarray, digests: np.ndarray,
        images: np.ndarray, *, checked: bool = False,
    ) -> None:  # fmt: skip
        self.chosen = chosen
        self.sources = sources
        self.records = records
        self.digests = digests
        self.images = images
        self.checked = checked
        self._readers = [RowReader(one.file, one.entry) for one in chosen]

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        reader, record = self._readers[self.sources[index]], int(self.records[index])
        try:
            sample = reader.sample(record, reader.file.raw(record))
        except DataError:  # it could be read when the run began
            sample = None
        if sample is None or int.from_bytes(digest(sample), "little", signed=True) != self.digests[index]:
            raise DataError(
                f"{reader.place(record).text}: the row says something else than when the run began; "
                "do not write into data files that are in use, and start again"
            )
        return sample

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    @property
    def sizes(self) -> np.ndarray:
        """Rows of each entry, int64 [entries]."""
        parts = np.array([one.part for one in self.chosen], dtype=np.int64)
        return np.bincount(parts[self.sources], minlength=int(parts.max()) + 1).astype(np.int64)

    def templates(self) -> Counter[str | None]:
        """Rows of each chat_template.json (None: of none)."""
        counts = np.bincount(self.sources, minlength=len(self.chosen)).tolist()
        found: Counter[str | None] = Counter()
        for one, count in zip(self.chosen, counts, strict=True):
            if count:
                found[one.entry.chat_template] += count
        return found

    def kept(self, keep: np.ndarray) -> "LazyRows":
        """The rows of the mask ``keep`` (bool [rows])."""
        parts = (self.sources, self.records, self.digests, self.images)
        return LazyRows(self.chosen, *(part[keep] for part in parts), checked=True)


@dataclass
class _Found:
    """What a process found in a portion of rows: arrays as in ``LazyRows``, and why rows cannot be used.

    ``faults`` are those of images by the number of the row in the portion. With ``stop`` the reading ends.
    """

    records: np.ndarray
    digests: bytes
    images: np.ndarray
    bad: list[tuple[str, str]]
    faults: dict[int, str]
    unread: UnreadKeys
    stop: DataError | None = None


@dataclass(frozen=True)
class _Job:
    chosen: Sequence[Chosen]
    look: Look
    skips: bool
    known: set[int] = field(default_factory=set)
    """Hashes of images that this process has looked at and found good."""


_job: _Job
"""What the processes work on: they are forked, so nothing of it is copied or sent."""


def open_all(entries: Iterable[DatasetEntry]) -> list[Chosen]:
    """The rows of the entries' files that are used. BrokenFileError as ``open_data``."""
    found: list[Chosen] = []
    for part, entry in enumerate(entries):
        opened = [open_data(path) for path in entry.data_files]
        chosen = entry.selection.of(sum(map(len, opened)))
        if chosen is not None and not len(chosen):
            _require_choice(entry, sum(map(len, opened)))
        first = 0
        for file in opened:
            own = None if chosen is None else chosen[(chosen >= first) & (chosen < first + len(file))] - first
            found.append(Chosen(file, entry, part, own))
            first += len(file)
    return found


def _require_choice(entry: DatasetEntry, rows: int) -> None:
    """DataError for an entry whose keys leave none of its rows."""
    one = entry.selection
    keys = {"sampling_strategy": one.strategy, "max_samples": one.max_samples, "eval_split": one.eval_split}
    told = ", ".join(f"{key} {value}" for key, value in keys.items() if value not in ("all", None))
    if rows:
        use = "training" if one.side == "train" else "evaluation"
        raise DataError(f"{', '.join(entry.data_files)}: none of its {rows:,} rows are left for {use} ({told})")


def read_all(
    chosen: Sequence[Chosen],
    bad: BadSamples,
    unread: UnreadKeys,
    look: Look = Look(),
    *,
    jobs: int = 1,
    progress: Progress | None = None,
) -> tuple[LazyRows, dict[int, DataError]]:
    """The rows that can be used, and what is wrong with their images by their numbers.

    Bad rows go to ``bad`` (which may raise), the keys that nothing reads to ``unread``. ``jobs``: processes.
    DataError for an entry without rows, an image folder that is not there, and BrokenFileError.
    """
    global _job
    _job = _Job(chosen, look, bad.policy == "skip")
    portions = [
        (number, start, min(start + PORTION, len(one)))
        for number, one in enumerate(chosen)
        for start in range(0, len(one), PORTION)
    ]
    total = sum(map(len, chosen))
    found: list[tuple[int, _Found]] = []
    faults: dict[int, DataError] = {}
    first_bad: dict[int, str] = {}
    rows = done = 0
    results = forked_map(_read_portion, portions, jobs if total > _FEW else 1)
    for number, start, stop in portions:
        one = _next(results, chosen[number], start)
        for where, text in one.bad:
            bad.add(DataError(text), where)
            first_bad.setdefault(chosen[number].part, text)
        if one.stop is not None:
            raise one.stop
        unread.add(one.unread)
        faults |= {rows + at: DataError(text) for at, text in one.faults.items()}
        found.append((number, one))
        rows, done = rows + len(one.records), done + stop - start
        if progress is not None:
            progress(done, total)
        if len(faults) >= ENOUGH_FAULTS and not _job.skips:
            break
    if done == total:
        _require_rows(chosen, [number for number, one in found if len(one.records)], first_bad)
    return _joined(chosen, found, look), faults


def _next(results: Iterator[_Found], one: Chosen, start: int) -> _Found:
    try:
        return next(results)
    except BrokenProcessPool as error:
        raise DataError(
            f"{one.file.path}: a process that read its rows from number {start} on was ended, as the system does when "
            "memory runs out"
        ) from error


def _require_rows(chosen: Sequence[Chosen], used: Sequence[int], first_bad: dict[int, str]) -> None:
    there = {chosen[number].part for number in used}
    for one in chosen:
        if one.part not in there and one.part in first_bad:
            raise DataError(
                f"{', '.join(one.entry.data_files)}: no row can be used; the first one: {first_bad[one.part]}"
            )
        require_rows(one.part in there, one.entry)


def _joined(chosen: Sequence[Chosen], found: Sequence[tuple[int, _Found]], look: Look) -> LazyRows:
    empty = np.zeros(0, dtype=np.int64)
    sources = [np.full(len(one.records), number, dtype=np.int32) for number, one in found]
    digests = np.frombuffer(b"".join(one.digests for _, one in found), dtype="<i8").astype(np.int64, copy=False)
    return LazyRows(
        chosen,
        np.concatenate([empty.astype(np.int32), *sources]),
        np.concatenate([empty, *(one.records for _, one in found)]),
        digests,
        np.concatenate([empty.astype(np.int32), *(one.images for _, one in found)]),
        checked=look.check is not None,
    )


# A process


def _read_portion(portion: tuple[int, int, int]) -> _Found:
    number, start, stop = portion
    one, look = _job.chosen[number], _job.look
    unread = UnreadKeys()
    reader = RowReader(one.file, one.entry, unread)
    samples: list[Sample] = []
    records: list[int] = []
    bad: list[tuple[str, str]] = []
    fatal: DataError | None = None
    for record, raw in one.raw(start, stop):
        where = ""
        try:
            sample = reader.sample(record, raw)
            if sample is None:
                continue
            where = sample.where
            if look.check is not None:
                look.check(sample)
        except BrokenFileError as error:
            fatal = error
            break
        except DataError as error:
            bad.append((where or reader.place(record).text, str(error)))
            if _job.skips:
                continue
            fatal = _broken(one.file)
            bad = [] if fatal else bad
            break
        samples.append(sample)
        records.append(record)
    faults: dict[int, str] = {}
    if fatal is None:
        try:
            faults = _look_at_images(samples)
        except DataError as error:
            fatal = error
    images = np.array([len(sample.images) for sample in samples], dtype=np.int32)
    digests = b"".join(map(digest, samples))
    return _Found(np.array(records, dtype=np.int64), digests, images, bad, faults, unread, fatal)


def _broken(file: RowFile) -> DataError | None:
    """What is wrong with a list as a whole: that is said before anything of its rows."""
    try:
        require_whole(file)
    except BrokenFileError as error:
        return error
    return None


def _look_at_images(samples: Sequence[Sample]) -> dict[int, str]:
    look = _job.look
    if look.rules is None:
        return {}
    check_folders(samples)
    faults = check_pictures(samples, look.rules, look.how, every=_job.skips, share=look.share, known=_job.known)
    if not faults:
        return {}
    return {index: str(faults[one.where]) for index, one in enumerate(samples) if one.where in faults}


@lru_cache(maxsize=1)
def processors(sharing: int) -> int:
    """Processes that may read rows at a time, where so many runs share the machine."""
    import os

    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, there // max(sharing, 1)))
