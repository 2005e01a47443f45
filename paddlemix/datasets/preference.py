# SPDX-License-Identifier: Apache-2.0
"""Rows of preference tuning, encoded and merged into batches: two answers behind one prompt and one set of images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from paddlemix.datasets.collate import Collator
from paddlemix.datasets.dataset import ChatDataset
from paddlemix.datasets.preprocess import Encoded, Measured, SampleEncoder
from paddlemix.datasets.sample import Sample
from paddlemix.imaging.layout import Size
from paddlemix.splice.plan import Plan, PlanRow, build_plan
from paddlemix.utils.constants import IGNORE_INDEX
from paddlemix.utils.errors import DataError

KL = "kl_"
"""What the keys of a batch begin with that belong to the mismatched pairs of KTO."""
FORWARD = ("token_ids", "source", "positions", "blend_index", "blend_weight", "places", "targets")
"""Keys of a batch that the model takes, ``pixels`` aside."""
_NOTHING = Encoded(np.zeros(2, np.int64), np.full(2, IGNORE_INDEX, np.int64), None, (), 2)


@dataclass(frozen=True, eq=False)
class EncodedPair:
    """A row ready to be merged: the ids of both answers begin with the same ``answer`` ids, those of the prompt.

    ``rejected`` is None for a single answer (KTO), which is ``desirable`` or not. Its ``pixels`` are None: the images
    are those of ``chosen``. ``reference`` float32 [2]: log-probabilities of both answers by the reference, if they were
    computed before.
    """

    chosen: Encoded
    rejected: Encoded | None
    answer: int
    desirable: bool = True
    reference: np.ndarray | None = None

    @property
    def where(self) -> str:
        """File and record."""
        return self.chosen.where

    @property
    def length(self) -> int:
        """Merged positions of the longer answer's row."""
        return max(part.length for part in self.parts.values())

    @property
    def truncated(self) -> int:
        """Merged positions that ``max_length`` cut off."""
        return max(part.truncated for part in self.parts.values())

    @property
    def parts(self) -> dict[str, Encoded]:
        """The rows by what they are."""
        if self.rejected is None:
            return {"desirable" if self.desirable else "undesirable": self.chosen}
        return {"chosen": self.chosen, "rejected": self.rejected}


class PreferenceEncoder(SampleEncoder):
    """Encodes samples with two answers, or with one and what is thought of it; only the last answer is learnt."""

    def __call__(self, sample: Sample) -> EncodedPair:  # type: ignore[override]
        """Ids and labels of both answers, pixels of their images. DataError names the sample."""
        chosen = super().__call__(sample)
        answer = int(np.argmax(chosen.labels != IGNORE_INDEX))
        if sample.rejected is None:
            return EncodedPair(chosen, None, answer, bool(sample.desirable))
        other = _rejected(sample)
        ids, labels, length, cut = self._cut(other, self.render(other), chosen.layouts)
        if np.array_equal(ids, chosen.ids):
            raise DataError(
                f"{sample.where}: both answers are the same in the first {self.max_length} positions; raise max_length"
            )
        rejected = Encoded(ids, labels, None, chosen.layouts, length, sample.where, cut)
        return EncodedPair(chosen, rejected, answer)

    def check(self, sample: Sample) -> None:
        """What can be said of both answers without tokenizing."""
        super().check(sample)
        if sample.rejected is not None:
            super().check(_rejected(sample))

    def length(self, sample: Sample) -> int:
        """Merged positions of the longer answer's row, before ``max_length``."""
        own = super().length(sample)
        return own if sample.rejected is None else max(own, super().length(_rejected(sample)))

    def measure(self, sample: Sample, sizes: Sequence[Size]) -> Measured:
        """What the longer answer's row costs; DataError for what ``self(sample)`` would refuse of either."""
        found = [super().measure(sample, sizes)]
        if sample.rejected is not None:
            found.append(super().measure(_rejected(sample), sizes))
        return max(found, key=lambda one: one.length)


def _rejected(sample: Sample) -> Sample:
    *before, last = sample.messages
    return replace(sample, messages=(*before, replace(last, text=sample.rejected)))


class PreferenceDataset(ChatDataset):
    """Pairs that are encoded when they are asked for; ``reference`` float32 [rows, 2], once it was computed."""

    reference: np.ndarray | None = None

    def __getitem__(self, index: int) -> EncodedPair | None:  # type: ignore[override]
        pair = super().__getitem__(index)
        return pair if pair is None or self.reference is None else replace(pair, reference=self.reference[index])


class PreferenceCollator:
    """Merges pairs: the rows of the chosen answers, then those of the rejected ones (P and P, of KTO P alone).

    Keys: ``token_ids``, ``source``, ``positions`` (int64 [R, L]); ``pixels`` once for both halves, which refer to the
    same features; ``places``, ``targets`` int64 [K]: where an id of interest is predicted (r * L + l), and the id;
    ``rows`` int64 [K]: the row whose answer it belongs to, R for none; ``lengths`` float32 [R]: ids of the answers;
    ``weights`` float32 [P]: 0 for the stand-in of a batch whose rows were all left out; ``desirable`` float32 [P].
    ``learnt`` float32 [K] with ``cross_entropy``: 1 for ids of the chosen rows that it is a mean over: of the answers
    (``answers``), or of all text (``text``). ``reference`` float32 [R] when it was computed before. For KTO, ``kl_...``
    are the same of pairs that do not match: each prompt with the answer of the row before it, the first with the last.
    """

    def __init__(self, collator: Collator, max_length: int, *, single: bool = False, cross_entropy: str = "") -> None:
        self.collator = collator
        self.single = single
        self.max_length = max_length
        self.cross_entropy = cross_entropy

    def __call__(self, items: Sequence[EncodedPair | None]) -> dict[str, np.ndarray]:
        """The batch of all items that are not None (shapes and dtypes: see the class)."""
        pairs = [item for item in items if item is not None]
        weights = np.ones(max(len(pairs), 1), np.float32)
        if not pairs:
            pairs, weights[:] = [EncodedPair(_NOTHING, None if self.single else _NOTHING, 0)], 0.0
        rows = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs if not self.single]
        batch = self._merged(rows, 1 if self.single else 2)
        batch["weights"] = weights
        batch["desirable"] = np.array([pair.desirable for pair in pairs], np.float32)
        if all(pair.reference is not None for pair in pairs):
            batch["reference"] = np.concatenate(np.stack([pair.reference for pair in pairs], 1)).astype(np.float32)
        if self.single:
            mixed = [self._mismatched(pair, pairs[number - 1]) for number, pair in enumerate(pairs)]
            found = self._merged(mixed, 1)
            batch |= {f"{KL}{name}": found[name] for name in (*FORWARD, "rows") if name in found}
        return batch

    def _merged(self, rows: list[Encoded], copies: int) -> dict[str, np.ndarray]:
        plan = build_plan(
            [PlanRow(row.ids, row.layouts, row.labels) for row in rows],
            tokens_per_tile=self.collator.tokens_per_tile,
            pad_to_multiple_of=self.collator.pad_to_multiple_of,
            min_tiles=self.collator.min_tiles,
        )
        source, blend_index, tiles = plan.source, plan.blend_index, plan.n_tiles
        if copies == 2 and any(row.layouts for row in rows):
            source, blend_index, tiles = _shared(plan)
        batch = {"token_ids": plan.token_ids, "source": source, "positions": plan.positions}
        if blend_index is not None:
            batch["blend_index"], batch["blend_weight"] = blend_index, plan.blend_weight
        if tiles:
            batch["pixels"] = self._pixels(rows, tiles)
        return batch | self._places(plan, len(rows) // copies)

    def _pixels(self, rows: list[Encoded], tiles: int) -> np.ndarray:
        parts = [row.pixels for row in rows if row.pixels is not None]
        side = self.collator.tile_side
        missing = tiles - sum(len(part) for part in parts)
        return np.concatenate([*parts, np.zeros((missing, 3, side, side), np.float32)])

    def _places(self, plan: Plan, chosen: int) -> dict[str, np.ndarray]:
        answers = plan.labels[:, 1:] != IGNORE_INDEX
        width = plan.labels.shape[1]
        learnt = np.zeros_like(answers)
        if self.cross_entropy == "answers":
            learnt[:chosen] = answers[:chosen]
        elif self.cross_entropy == "text":
            is_text = plan.mask & (plan.source < plan.source.size)
            learnt[:chosen] = is_text[:chosen, 1:]
        wanted = answers | learnt
        wanted[0, 0] |= not wanted.any()  # the stand-in of a batch without rows
        row, column = np.nonzero(wanted)
        found = {
            "places": row * width + column,
            "targets": plan.token_ids[row, column + 1],
            "rows": np.where(answers[row, column], row, len(answers)),
            "lengths": answers.sum(1).astype(np.float32),
        }
        if self.cross_entropy:
            found["learnt"] = learnt[row, column].astype(np.float32)
        return found

    def _mismatched(self, pair: EncodedPair, other: EncodedPair) -> Encoded:
        """The prompt and the images of ``pair`` with the answer of ``other``, cut at ``max_length``."""
        own, answer = pair.chosen, other.chosen
        room = max(1, self.max_length - (own.length - (len(own.ids) - pair.answer)))
        ids = np.concatenate([own.ids[: pair.answer], answer.ids[other.answer :][:room]])
        labels = np.concatenate([own.labels[: pair.answer], answer.labels[other.answer :][:room]])
        return replace(own, ids=ids, labels=labels)


def _shared(plan: Plan) -> tuple[np.ndarray, np.ndarray | None, int]:
    """``source`` [R, L], ``blend_index`` and tiles of a plan whose second half of rows has the images of the first."""
    text, features = plan.source.size, plan.n_tiles * plan.tokens_per_tile
    half = features // 2
    place = plan.source - text
    feature = (place >= 0) & (place < features)
    source = np.where(
        feature, text + place % max(half, 1), np.where(place >= features, plan.source - half, plan.source)
    )
    blend_index = None if plan.blend_index is None else plan.blend_index % max(half, 1)
    return source, blend_index, plan.n_tiles // 2
