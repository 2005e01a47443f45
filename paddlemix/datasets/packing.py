# SPDX-License-Identifier: Apache-2.0
"""Several samples in one row (mixtoken): groups of indices first, samples are joined when they are asked for."""

from collections.abc import Iterable, Sequence

import numpy as np

from paddlemix.datasets.dataset import ChatDataset
from paddlemix.datasets.preprocess import Encoded
from paddlemix.datasets.sample import BadSamples
from paddlemix.text.messages import ChatFormat


def pack(lengths: Sequence[int], max_length: int, order: Iterable[int] | None = None) -> list[list[int]]:
    """Groups of indices whose lengths sum to at most ``max_length``: greedy, in order, nothing is left out.

    ``[5, 4, 3, 9]`` with 10 -> ``[[0, 1], [2], [3]]``. A sample longer than ``max_length`` is a group of its own.
    """
    groups: list[list[int]] = []
    room = 0
    for index in range(len(lengths)) if order is None else order:
        if not groups or lengths[index] > room:
            groups.append([])
            room = max_length
        groups[-1].append(index)
        room -= lengths[index]
    return groups


def join(items: Sequence[Encoded]) -> Encoded:
    """One row that holds the items one after the other; ``segments`` keep them apart in attention and positions."""
    pixels = [item.pixels for item in items if item.pixels is not None]
    return Encoded(
        ids=np.concatenate([item.ids for item in items]),
        labels=np.concatenate([item.labels for item in items]),
        pixels=np.concatenate(pixels) if pixels else None,
        layouts=tuple(layout for item in items for layout in item.layouts),
        length=sum(item.length for item in items),
        where="; ".join(item.where for item in items),
        truncated=sum(item.truncated for item in items),
        segments=np.repeat(np.arange(len(items)), [len(item.ids) for item in items]),
    )


class PackedDataset:
    """A data set whose rows are groups of samples of another one. Group once per run, or per epoch with its order.

    Samples of ``without`` keep their place in the groups and are not trained on.
    """

    def __init__(
        self, dataset: ChatDataset, groups: Sequence[Sequence[int]], without: frozenset[int] = frozenset()
    ) -> None:
        self.dataset = dataset
        self.groups = [list(group) for group in groups]
        self.without = without

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Encoded | None:
        found = [self.dataset[number] for number in self.groups[index] if number not in self.without]
        items = [item for item in found if item is not None]
        return join(items) if items else None

    @property
    def layouts(self) -> list[tuple[ChatFormat, int]]:
        """Those of the samples."""
        return self.dataset.layouts

    @property
    def bad(self) -> BadSamples:
        """The record of rows that could not be used, or were cut."""
        return self.dataset.bad

    def where(self, index: int) -> str:
        """Files and records of the samples in a row."""
        return "; ".join(self.dataset.where(number) for number in self.groups[index])

    @property
    def lengths(self) -> np.ndarray:
        """Merged positions of every row (int64 [rows])."""
        return np.array([self.dataset.lengths[group].sum() for group in self.groups], dtype=np.int64)

    @property
    def modality_lengths(self) -> np.ndarray:
        """``lengths`` (int64 [rows]), negative for rows in which no sample has an image."""
        pictured = [bool((self.dataset.modality_lengths[group] > 0).any()) for group in self.groups]
        return np.where(pictured, self.lengths, -self.lengths)

    @property
    def fingerprint(self) -> str:
        """That of the samples."""
        return self.dataset.fingerprint
