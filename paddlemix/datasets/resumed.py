# SPDX-License-Identifier: Apache-2.0
"""The rows of a run that goes on: numbered as in its first part, though some may be gone from the files since.

A checkpoint keeps a digest of every training row, and the lengths if the order or the packs were made from them. A row
that was taken out counts as skipped, one that was repaired keeps its place: batches and order of the others stay what
they would have been.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from paddlemix.datasets.dataset import ChatDataset
from paddlemix.datasets.preprocess import Encoded, Rows
from paddlemix.datasets.sample import BadSamples
from paddlemix.text.messages import ChatFormat
from paddlemix.utils.errors import ConfigError


@dataclass(frozen=True)
class RowsBefore:
    """The rows of the first part: ``digests`` int64 [n], ``lengths`` int64 [n] (``modality_lengths``) or None.

    ``sizes`` int64 [entries]: rows of each entry of the data; None in a checkpoint of an earlier version.
    """

    digests: np.ndarray
    lengths: np.ndarray | None
    fingerprint: str
    sizes: np.ndarray | None = None


def rows_of(dataset: Rows) -> RowsBefore | None:
    """What a checkpoint keeps of its rows; None for data sets of another make, whose rows have no digests."""
    rows = numbered(dataset)
    if not isinstance(rows, ChatDataset | ResumedDataset):
        return None
    return RowsBefore(rows.digests, rows.modality_lengths if rows.has_lengths else None, rows.fingerprint, rows.sizes)


def numbered(dataset: Rows) -> Rows:
    """The data set whose rows packs and mixtures are made of."""
    while not isinstance(dataset, ChatDataset | ResumedDataset) and hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    return dataset


def continued(dataset: ChatDataset, before: RowsBefore) -> "ChatDataset | ResumedDataset":
    """``dataset`` numbered as before; itself when its rows are no part of the former ones.

    As many rows as may be bad may say something else than before, at their old places: they were repaired.
    ConfigError when more rows are gone than bad rows may be.
    """
    limit = dataset.bad.limit
    if len(dataset) == len(before.digests):
        changed = int((dataset.digests != before.digests).sum())
        few = changed <= max(1, limit * len(dataset))
        return ResumedDataset(dataset, before, np.arange(len(dataset)), changed) if few else dataset
    places = _places(before.digests, dataset.digests)
    if places is None:
        return dataset
    gone = int((places < 0).sum())
    if gone > max(1, limit * len(places)):
        raise ConfigError(
            f"{gone} of {len(places)} training rows of the run's first part are gone, more than {limit:.0%}: to go on "
            'without them raise "skip_limit"'
        )
    return ResumedDataset(dataset, before, places)


def _places(before: np.ndarray, now: np.ndarray) -> np.ndarray | None:
    """For each row before its index now, -1 if it is gone; None when something was added, changed or moved."""
    places = np.full(len(before), -1, dtype=np.int64)
    found = 0
    for index, digest in enumerate(before.tolist()):
        if found < len(now) and now[found] == digest:
            places[index] = found
            found += 1
    return places if found == len(now) else None


class ResumedDataset:
    """A data set under the numbers of ``before``; rows that are gone are None, as skipped ones are.

    ``changed`` rows say something else than before.
    """

    def __init__(self, dataset: ChatDataset, before: RowsBefore, places: np.ndarray, changed: int = 0) -> None:
        self.changed = changed
        self.dataset = dataset
        self.before = before
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Encoded | None:
        place = self.places[index]
        return None if place < 0 else self.dataset[int(place)]

    def where(self, index: int) -> str:
        """File and record of a row, for messages."""
        place = self.places[index]
        return f"row {index} (gone from the data)" if place < 0 else self.dataset.where(int(place))

    @cached_property
    def _lengths_now(self) -> np.ndarray:
        """``lengths``, or what a row has grown to: one whose image could not be read counted 1 (int64 [rows])."""
        repaired = (self.before.digests != self._digests_now()) | (self.lengths == 1)
        now = self.lengths.copy()
        for index in np.flatnonzero(repaired & (self.places >= 0)).tolist():
            now[index] = max(now[index], self.dataset.length_of(int(self.places[index])))
        return now

    @property
    def grown(self) -> np.ndarray:
        """Numbers of the rows that are longer than in the first part (int64 [n])."""
        return np.flatnonzero(self._lengths_now > self.lengths)

    def outgrown(self, groups: Sequence[Sequence[int]], max_length: int) -> frozenset[int]:
        """Rows that have grown since ``groups`` were made, and that their group has no room for any more."""
        now, grown = self._lengths_now, frozenset(self.grown.tolist())
        left: set[int] = set()
        for group in groups if grown else ():
            total = int(now[list(group)].sum()) if not grown.isdisjoint(group) else 0
            for index in group if total > max_length else ():
                if index in grown and total > max_length:
                    total -= int(now[index])
                    left.add(index)
        return frozenset(left)

    def _digests_now(self) -> np.ndarray:
        found = self.dataset.digests[np.maximum(self.places, 0)]
        return np.where(self.places < 0, self.before.digests, found)

    @property
    def gone(self) -> int:
        """Rows of the first part that are not there any more."""
        return int((self.places < 0).sum())

    @property
    def sizes(self) -> np.ndarray:
        """As before (int64 [entries])."""
        return self.dataset.sizes if self.before.sizes is None else self.before.sizes

    @property
    def bad(self) -> BadSamples:
        """The record of rows that could not be used, or were cut."""
        return self.dataset.bad

    @property
    def layouts(self) -> Sequence[tuple[ChatFormat, int]]:
        """Those of the rows that are there."""
        return self.dataset.layouts

    @property
    def digests(self) -> np.ndarray:
        """As before (int64 [rows]), so that the run can be continued once more."""
        return self.before.digests

    @property
    def fingerprint(self) -> str:
        """As before: the numbers and the order are those of the first part."""
        return self.before.fingerprint

    @property
    def has_lengths(self) -> bool:
        """Whether ``lengths`` cost nothing."""
        return self.before.lengths is not None or self.dataset.has_lengths

    @property
    def modality_lengths(self) -> np.ndarray:
        """As before (int64 [rows]), whatever has become of the images since; a row that is gone counts 1."""
        if self.before.lengths is not None:
            return self.before.lengths
        now = self.dataset.modality_lengths
        return np.where(self.places < 0, 1, now[np.maximum(self.places, 0)])

    @property
    def lengths(self) -> np.ndarray:
        """Merged positions of every row (int64 [rows])."""
        return np.abs(self.modality_lengths)
