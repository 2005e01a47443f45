# SPDX-License-Identifier: Apache-2.0
"""Which rows an epoch of a mixture reads: of every entry so many, the rest of them in the epochs that follow.

The rows of an entry come from one deck after the other, each shuffled anew: no row comes again before all of them were
there. What an epoch draws depends on seed, epoch and the sizes of the entries alone.
"""

from collections.abc import Sequence

import numpy as np

from paddlemix.datasets.dataset import ChatDataset
from paddlemix.datasets.preprocess import Encoded
from paddlemix.datasets.resumed import ResumedDataset
from paddlemix.datasets.sample import BadSamples
from paddlemix.datasets.selection import Portion
from paddlemix.text.messages import ChatFormat


def quotas(sizes: Sequence[int], portions: Sequence[Portion]) -> list[int]:
    """Rows that an epoch reads of entries of so many rows; of an entry that has rows at least one.

    With weights the epoch has as many rows as without them, divided by weight.
    """
    asked = [size * one.repeat for size, one in zip(sizes, portions, strict=True)]
    weights = [one.weight for one in portions]
    if any(weight is not None for weight in weights):
        there = [(weight or 0) * (size > 0) for weight, size in zip(weights, sizes, strict=True)]
        asked = [sum(asked) * weight / sum(there) for weight in there]
    return [max(1, round(rows)) if size else 0 for rows, size in zip(asked, sizes, strict=True)]


def draw(sizes: Sequence[int], counts: Sequence[int], seed: int, epoch: int) -> np.ndarray:
    """The rows of an epoch, int64 [sum of counts]: ``counts`` of each entry; entries stand one after the other."""
    found = [np.zeros(0, dtype=np.int64)]
    first = 0
    for part, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        begin = epoch * count
        for deck in range(begin // size, -(-(begin + count) // size)) if size else ():
            cards = np.random.default_rng([seed, part, deck]).permutation(size)
            start, stop = max(begin - deck * size, 0), min(begin + count - deck * size, size)
            found.append(np.sort(cards[start:stop]) + first)
        first += size
    return np.concatenate(found)


class MixedDataset:
    """The rows of another data set of which an epoch reads those that ``draw`` gives; ``len`` is that of an epoch.

    ``sizes``: rows of each entry, which stand one entry after the other.
    """

    def __init__(
        self, dataset: ChatDataset | ResumedDataset, sizes: Sequence[int], portions: Sequence[Portion], seed: int
    ) -> None:
        self.dataset = dataset
        self.sizes = list(sizes)
        self.counts = quotas(sizes, portions)
        self.seed = seed

    def __len__(self) -> int:
        return sum(self.counts)

    def numbers(self, epoch: int) -> np.ndarray:
        """The rows that an epoch reads, int64 [len]."""
        return draw(self.sizes, self.counts, self.seed, epoch)

    def __getitem__(self, index: int) -> Encoded | None:
        return self.dataset[index]

    def where(self, index: int) -> str:
        """File and record of a row, for messages."""
        return self.dataset.where(index)

    @property
    def layouts(self) -> Sequence[tuple[ChatFormat, int]]:
        """Those of all rows."""
        return self.dataset.layouts

    @property
    def bad(self) -> BadSamples:
        """The record of rows that could not be used, or were cut."""
        return self.dataset.bad

    @property
    def lengths(self) -> np.ndarray:
        """Merged positions of all rows, by their numbers (int64 [rows])."""
        return self.dataset.lengths

    @property
    def modality_lengths(self) -> np.ndarray:
        """``lengths`` (int64 [rows]), negative for rows without images."""
        return self.dataset.modality_lengths

    def lengths_of(self, numbers: np.ndarray) -> np.ndarray:
        """Merged positions of the rows ``numbers`` (both int64 [n])."""
        return self.dataset.lengths[numbers]

    def modality_lengths_of(self, numbers: np.ndarray) -> np.ndarray:
        """``lengths_of`` (int64 [n]), negative for rows without images."""
        return self.dataset.modality_lengths[numbers]

    @property
    def fingerprint(self) -> str:
        """That of all rows."""
        return self.dataset.fingerprint
