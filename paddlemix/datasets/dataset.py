# SPDX-License-Identifier: Apache-2.0
"""A map-style data set of conversations: index in, ids, labels and pixels out."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from hashlib import blake2b

import numpy as np

from paddlemix.datasets.preprocess import Encoded, SampleEncoder
from paddlemix.datasets.sample import BadSamples, Sample
from paddlemix.text.messages import ChatFormat
from paddlemix.utils.errors import DataError


class ChatDataset:
    """Samples that are encoded when they are asked for.

    Building it checks every row's turns and image count (no image is opened; ``faults`` are those that were found
    before, by the ``where`` of their rows). A row that turns out bad later raises, or is None under
    ``on_bad_sample: skip``: the collator leaves it out, it is never replaced by another row.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        encoder: SampleEncoder,
        bad: BadSamples | None = None,
        faults: Mapping[str, DataError] | None = None,
    ) -> None:
        self.encoder = encoder
        self.bad = bad or BadSamples()
        self.samples = [sample for sample in samples if self._usable(sample)]
        self.bad.begin(len(self.samples))
        for index, sample in enumerate(self.samples if faults else ()):
            if sample.where in faults:
                self.bad.add(faults[sample.where], sample.where, index)
        if not self.samples:
            raise DataError("the data set has no usable row")

    def _usable(self, sample: Sample) -> bool:
        try:
            self.encoder.check(sample)
        except DataError as error:
            self.bad.add(error, sample.where)
            return False
        return True

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def layouts(self) -> list[tuple[ChatFormat, int]]:
        """The conversation layouts of the rows, each with the number of its rows; the most frequent one first."""
        rows: Counter[ChatFormat] = Counter()
        for path, count in Counter(sample.chat_template for sample in self.samples).items():
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
        sign = np.array([1 if sample.images else -1 for sample in self.samples], dtype=np.int64)
        return self.lengths * sign

    def length_of(self, index: int) -> int:
        """One of ``lengths``."""
        sample = self.samples[index]
        try:
            return max(1, min(self.encoder.length(sample), self.encoder.max_length))
        except DataError as error:
            self.bad.add(error, sample.where, index)
            return 1

    @property
    def has_lengths(self) -> bool:
        """Whether the lengths are known already."""
        return "lengths" in vars(self)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over what the rows say (not over the images), to find out whether data changed before a resume."""
        digest = hashlib.sha256()
        for sample in self.samples:
            digest.update(repr((*_content(sample), sample.id)).encode("utf-8"))
        return digest.hexdigest()

    @cached_property
    def digests(self) -> np.ndarray:
        """What each row says, its place in the file left aside: 64 bits a row (int64 [rows])."""
        found = [blake2b(repr(_content(sample)).encode("utf-8"), digest_size=8).digest() for sample in self.samples]
        return np.frombuffer(b"".join(found), dtype=np.int64)


def _content(sample: Sample) -> tuple[list[tuple[object, ...]], list[str]]:
    """Turns and images. Without the image folder in front: data that moved to another disk is the same data."""
    turns = [(m.role, m.text) if m.learns else (m.role, m.text, False) for m in sample.messages]
    if sample.rejected is not None or sample.desirable is not None:
        turns.append(("preference", sample.rejected, sample.desirable))
    return turns, [image.removeprefix(sample.image_root) for image in sample.images]


def word_lengths(samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray]:
    """(lengths, modality lengths) as LLaVA estimates them: words, plus 128 a row with an image in the first one only.

    Both int64 [rows]; the second is negative for rows without images. Only for comparison with the original's order.
    """
    words = np.array([sum(len(m.text.split()) for m in sample.messages) for sample in samples], dtype=np.int64)
    pictured = np.array([bool(sample.images) for sample in samples])
    return words + 128 * pictured, np.where(pictured, words, -words)
