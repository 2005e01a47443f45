# SPDX-License-Identifier: Apache-2.0
"""A map-style data set of conversations: index in, ids, labels and pixels out."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from paddlemix.datasets.lazy import LazyRows, digest
from paddlemix.datasets.preprocess import Encoded, SampleEncoder
from paddlemix.datasets.sample import BadSamples, Sample
from paddlemix.text.messages import ChatFormat
from paddlemix.utils.errors import DataError


class ChatDataset:
    """Samples that are encoded when they are asked for.

    Building it checks every row's turns and image count, unless they were checked when they were read (no image is
    opened; ``faults`` are those that were found before, by the numbers of their rows in ``samples``). A row that turns
    out bad later raises, or is None under ``on_bad_sample: skip``: the collator leaves it out, it is never replaced by
    another row.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        encoder: SampleEncoder,
        bad: BadSamples | None = None,
        faults: Mapping[int, DataError] | None = None,
    ) -> None:
        self.encoder = encoder
        self.bad = bad or BadSamples()
        keep = None if isinstance(samples, LazyRows) and samples.checked else self._usable(samples)
        self.samples = samples if keep is None else _taken(samples, keep)
        self.bad.begin(len(self.samples))
        places = None if keep is None else np.cumsum(keep) - 1
        for index, fault in (faults or {}).items():
            if keep is None or keep[index]:
                place = index if places is None else int(places[index])
                self.bad.add(fault, self.samples[place].where, place)
        if not len(self.samples):
            raise DataError("the data set has no usable row")

    def _usable(self, samples: Sequence[Sample]) -> np.ndarray:
        """Which rows can be used, bool [rows]; the others go to ``bad``."""
        keep = np.ones(len(samples), dtype=bool)
        for index, sample in enumerate(samples):
            try:
                self.encoder.check(sample)
            except DataError as error:
                self.bad.add(error, sample.where)
                keep[index] = False
        return keep

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def layouts(self) -> list[tuple[ChatFormat, int]]:
        """The conversation layouts of the rows, each with the number of its rows; the most frequent one first."""
        rows: Counter[ChatFormat] = Counter()
        lazy = isinstance(self.samples, LazyRows)
        paths = self.samples.templates() if lazy else Counter(sample.chat_template for sample in self.samples)
        for path, count in paths.items():
            rows[self.encoder.layout_of(path)] += count
        return rows.most_common()

    def __getitem__(self, index: int) -> Encoded | None:
        sample = self.samples[index]
        try:
            encoded = self.encoder(sample)
        except DataError as error:
            self.bad.add(error, sample.where, index)
            return None
        self.bad.mark(index, encoded.truncated > 0)
        return encoded

    def where(self, index: int) -> str:
        """File and record of a row, for messages."""
        return self.samples[index].where

    @cached_property
    def lengths(self) -> np.ndarray:
        """Merged positions of every row (int64 [rows]), cut at ``max_length``. Images are not decoded.

        A row whose image cannot be read counts 1 under ``skip``.
        """
        return np.array([self.length_of(index) for index in range(len(self))], dtype=np.int64)

    @cached_property
    def modality_lengths(self) -> np.ndarray:
        """``lengths`` (int64 [rows]), negative for rows without images: what grouping by modality takes."""
        lazy = isinstance(self.samples, LazyRows)
        images = self.samples.images if lazy else np.array([len(sample.images) for sample in self.samples])
        return np.where(images > 0, self.lengths, -self.lengths)

    def length_of(self, index: int) -> int:
        """One of ``lengths``."""
        sample = self.samples[index]
        try:
            return max(1, min(self.encoder.length(sample), self.encoder.max_length))
        except DataError as error:
            self.bad.add(error, sample.where, index)
            return 1

    @property
    def sizes(self) -> np.ndarray:
        """Rows of each entry of the data, int64 [entries]; they stand one entry after the other."""
        return self.samples.sizes if isinstance(self.samples, LazyRows) else np.array([len(self)])

    @property
    def has_lengths(self) -> bool:
        """Whether the lengths are known already."""
        return "lengths" in vars(self)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over what the rows say (not over the images), to find out whether data changed before a resume."""
        return hashlib.sha256(self.digests.astype("<i8").tobytes()).hexdigest()

    @cached_property
    def digests(self) -> np.ndarray:
        """What each row says, its place in the file left aside: 64 bits a row (int64 [rows])."""
        if isinstance(self.samples, LazyRows):
            return self.samples.digests
        return np.frombuffer(b"".join(map(digest, self.samples)), dtype="<i8").astype(np.int64, copy=False)


def _taken(samples: Sequence[Sample], keep: np.ndarray) -> Sequence[Sample]:
    if isinstance(samples, LazyRows):
        return samples.kept(keep)
    return [sample for sample, good in zip(samples, keep, strict=True) if good]


def word_lengths(samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray]:
    """(lengths, modality lengths) as LLaVA estimates them: words, plus 128 a row with an image in the first one only.

    Both int64 [rows]; the second is negative for rows without images. Only for comparison with the original's order.
    """
    words = np.array([sum(len(m.text.split()) for m in sample.messages) for sample in samples], dtype=np.int64)
    pictured = np.array([bool(sample.images) for sample in samples])
    return words + 128 * pictured, np.where(pictured, words, -words)
