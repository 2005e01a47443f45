# SPDX-License-Identifier: Apache-2.0
"""Several samples in one row (mixtoken): groups of indices first, samples are joined when they are asked for.

Every epoch packs anew, from seed and epoch alone, and makes the same number of packs, so that steps can be counted.
"""

from collections.abc import Sequence

import numpy as np

from paddlemix.datasets.dataset import ChatDataset
from paddlemix.datasets.mixture import MixedDataset
from paddlemix.datasets.preprocess import Encoded
from paddlemix.datasets.resumed import ResumedDataset
from paddlemix.datasets.sample import BadSamples
from paddlemix.text.messages import ChatFormat

WINDOW = 1024
"""Samples that are packed together: enough for full packs, few enough that chance decides who meets whom."""
RULE = 1
"""Number of the rule by which rows are packed; raised when the same rows make other packs than before."""
_SPARE = 200
"""One pack in so many is spare: epochs that pack a little worse than the first one have as many packs."""
_TRIES = 8


def pack(lengths: np.ndarray, max_length: int, order: np.ndarray, window: int = WINDOW) -> list[list[int]]:
    """Groups of the indices in ``order`` whose ``lengths`` (int64 [rows]) sum to at most ``max_length``.

    In each ``window`` of ``order`` the longest goes first, into the first pack that has room for it. Nothing is left
    out: ``[5, 4, 3, 9]`` with 10 -> ``[[3], [0, 1], [2]]``. A sample longer than ``max_length`` is a group of its own.
    """
    groups: list[list[int]] = []
    for start in range(0, len(order), window):
        part = order[start : start + window]
        part = part[np.argsort(-lengths[part], kind="stable")]
        room = np.full(len(part), max_length, dtype=np.int64)
        packs: list[list[int]] = []
        for index, length in zip(part.tolist(), lengths[part].tolist(), strict=True):
            fits = room[: len(packs)] >= length
            place = int(fits.argmax()) if len(packs) else 0
            if not packs or not fits[place]:
                place = len(packs)
                packs.append([])
            packs[place].append(index)
            room[place] -= length
        groups += packs
    return groups


def pack_epoch(lengths: np.ndarray, max_length: int, drawn: np.ndarray, seed: int, epoch: int) -> list[list[int]]:
    """The packs of an epoch that reads the rows ``drawn`` (int64 [n] of ``lengths`` [rows]); as many in each."""
    first = pack(lengths, max_length, _shuffled(drawn, [seed, 0]))
    count = min(len(drawn), len(first) + len(first) // _SPARE)
    found = first
    for attempt in range(_TRIES if epoch else 0):
        found = pack(lengths, max_length, _shuffled(drawn, [seed, epoch, attempt]))
        if len(found) <= count:
            break
    return _divided(found if len(found) <= count else first, count)


def _shuffled(drawn: np.ndarray, seed: list[int]) -> np.ndarray:
    return np.random.default_rng(seed).permutation(drawn)


def _divided(groups: list[list[int]], count: int) -> list[list[int]]:
    """``groups`` with as many divided in two as it takes to have ``count``; those of the most samples first."""
    missing = count - len(groups)
    while missing > 0:
        largest = sorted(range(len(groups)), key=lambda number: -len(groups[number]))[:missing]
        for number in largest:
            if len(groups[number]) > 1:
                half = len(groups[number]) // 2
                groups.append(groups[number][half:])
                groups[number] = groups[number][:half]
        missing = count - len(groups)
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
    """A data set whose rows are groups of samples of another one, other groups in every epoch.

    Row ``i`` is the pack ``i % len`` of epoch ``i // len``. In a run that goes on, samples that have grown since keep
    their place in the groups and are not trained on where there is no room for them any more.
    """

    def __init__(self, dataset: ChatDataset | ResumedDataset | MixedDataset, max_length: int, seed: int = 0) -> None:
        self.dataset = dataset
        self.max_length = max_length
        self.seed = seed
        self._mixed = dataset if isinstance(dataset, MixedDataset) else None
        self.rows = self._mixed.dataset if self._mixed else dataset
        self._epochs: dict[int, tuple[list[list[int]], frozenset[int]]] = {}
        self._count = len(self._epoch(0)[0])

    def _epoch(self, epoch: int) -> tuple[list[list[int]], frozenset[int]]:
        """Packs of an epoch, and the samples that are left out of it."""
        if epoch not in self._epochs:
            drawn = self._mixed.numbers(epoch) if self._mixed else np.arange(len(self.rows))
            groups = pack_epoch(self.rows.lengths, self.max_length, drawn, self.seed, epoch)
            resumed = isinstance(self.rows, ResumedDataset)
            without = self.rows.outgrown(groups, self.max_length) if resumed else frozenset()
            self._epochs = {key: value for key, value in self._epochs.items() if key in (0, epoch - 1)}
            self._epochs[epoch] = groups, without
        return self._epochs[epoch]

    @property
    def groups(self) -> list[list[int]]:
        """The packs of the first epoch."""
        return self._epoch(0)[0]

    def group(self, index: int) -> list[int]:
        """The samples of a row."""
        epoch, number = divmod(index, self._count)
        return self._epoch(epoch)[0][number]

    def numbers(self, epoch: int) -> np.ndarray:
        """The rows of an epoch, int64 [len]."""
        return np.arange(epoch * self._count, (epoch + 1) * self._count)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Encoded | None:
        without = self._epoch(index // self._count)[1]
        found = [self.rows[number] for number in self.group(index) if number not in without]
        items = [item for item in found if item is not None]
        return join(items) if items else None

    @property
    def layouts(self) -> Sequence[tuple[ChatFormat, int]]:
        """Those of the samples."""
        return self.rows.layouts

    @property
    def bad(self) -> BadSamples:
        """The record of rows that could not be used, or were cut."""
        return self.rows.bad

    def where(self, index: int) -> str:
        """Files and records of the samples in a row."""
        return "; ".join(self.rows.where(number) for number in self.group(index))

    def lengths_of(self, numbers: np.ndarray) -> np.ndarray:
        """Merged positions of the rows ``numbers`` (both int64 [n])."""
        lengths = self.rows.lengths
        return np.array([lengths[self.group(number)].sum() for number in numbers.tolist()], dtype=np.int64)

    def modality_lengths_of(self, numbers: np.ndarray) -> np.ndarray:
        """``lengths_of`` (int64 [n]), negative for rows in which no sample has an image."""
        signed = self.rows.modality_lengths
        pictured = [bool((signed[self.group(number)] > 0).any()) for number in numbers.tolist()]
        lengths = self.lengths_of(numbers)
        return np.where(pictured, lengths, -lengths)

    @property
    def lengths(self) -> np.ndarray:
        """Merged positions of the rows of the first epoch (int64 [len])."""
        return self.lengths_of(self.numbers(0))

    @property
    def modality_lengths(self) -> np.ndarray:
        """``lengths`` (int64 [len]), negative for rows in which no sample has an image."""
        return self.modality_lengths_of(self.numbers(0))

    @property
    def fingerprint(self) -> str:
        """That of the samples."""
        return self.rows.fingerprint
