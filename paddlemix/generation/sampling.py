# SPDX-License-Identifier: Apache-2.0
"""How the next token is picked from the scores: greedy, temperature, top-k, top-p, repetition penalty. Numpy only."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from paddlemix.utils.errors import ConfigError
from paddlemix.utils.shown import shown

MAX_BEAMS = 64
"""Each beam keeps keys and values of its own: 64 of a 7B model with 1,000 tokens take 32 GB."""
_LARGE = 1 << 31


DecodingField: TypeAlias = int | float | tuple[int, ...] | None
"""Value of a field of ``Decoding``."""


@dataclass(frozen=True)
class Decoding:
    """What one answer is generated with. ``temperature`` 0 means greedy; ``top_k`` 0 and ``top_p`` 1 mean off.

    ``eos_ids`` end an answer and are its last id. ``pad_id`` fills the finished rows of a batch. ``num_beams`` above 1
    is beam search, which is not random and so wants ``temperature`` 0. ``seed`` None draws a new one for every run.
    ``vocab_size`` limits the ids to those the tokenizer knows, where the model's table is padded beyond them.
    A model folder's ``generation_config.json`` is never read into this: what is used is what the caller wrote.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    num_beams: int = 1
    seed: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int = 0
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        _number("max_new_tokens", self.max_new_tokens, 1 <= self.max_new_tokens < _LARGE, "a whole number from 1")
        _number("temperature", self.temperature, self.temperature >= 0, "0 (greedy) or a positive number")
        _number("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1 (1 is off)")
        _number("top_k", self.top_k, 0 <= self.top_k < _LARGE, "0 (off) or a positive whole number")
        _number("num_beams", self.num_beams, 1 <= self.num_beams <= MAX_BEAMS, f"a whole number from 1 to {MAX_BEAMS}")
        _number("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0, "a positive number")
        _number("seed", self.seed or 0, 0 <= (self.seed or 0) < 1 << 64, "a whole number from 0 to 2^64 - 1")
        _number("length_penalty", self.length_penalty, True, "a number")
        if self.num_beams > 1 and (self.temperature > 0 or self.repetition_penalty != 1.0):
            raise ConfigError(
                f"num_beams {self.num_beams} with temperature {self.temperature:g} and repetition_penalty "
                f"{self.repetition_penalty:g}: beam search is not random; use temperature 0 and repetition_penalty 1, "
                "or num_beams 1"
            )

    @property
    def random(self) -> bool:
        """Whether an answer depends on the seed."""
        return self.temperature > 0

    def with_changes(self, **changes: DecodingField) -> "Decoding":
        """A checked copy with some fields replaced."""
        return replace(self, **changes)


def _number(name: str, value: float, good: bool, expected: str) -> None:
    if not good or not abs(value) < 1e300:  # also for NaN, and for whole numbers that no float holds
        raise ConfigError(f"{name} is {shown(value)}: expected {expected}")


class Sampler:
    """Draws ids from scores with a generator of its own, so that one row's answer never depends on another's."""

    def __init__(
        self, temperature: float, top_p: float = 1.0, top_k: int = 0, seed: int | Sequence[int] | None = None
    ) -> None:
        self.temperature = temperature
        self.top_p = top_p
        self.top_k = top_k
        self._random = np.random.default_rng(seed)

    @classmethod
    def of(cls, decoding: Decoding, stream: Sequence[int] = (0,)) -> "Sampler":
        """The sampler of one row. ``stream`` (round, row, ...) tells the rows of one seed apart."""
        seed = None if decoding.seed is None else [decoding.seed, *stream]
        return cls(decoding.temperature, decoding.top_p, decoding.top_k, seed)

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Scores ``[V]`` to the float64 distribution ``[V]`` that is drawn from.

        The order is that of transformers' warpers: temperature, then top-k (ties with the k-th stay), then top-p
        (the smallest set of the likeliest ids that reaches ``top_p``, at least one).
        """
        scores = scores.astype(np.float64)
        scores = (scores - scores.max()) / self.temperature
        if 0 < self.top_k < scores.size:
            kth = np.partition(scores, -self.top_k)[-self.top_k]
            scores = np.where(scores < kth, -np.inf, scores)
        chances = np.exp(scores)
        chances /= chances.sum()
        if self.top_p < 1.0:
            order = np.argsort(-chances, kind="stable")
            before = np.cumsum(chances[order]) - chances[order]
            chances[order[before >= self.top_p]] = 0.0
            chances /= chances.sum()
        return chances

    def pick(self, scores: np.ndarray) -> int:
        """One id from scores ``[V]``; the likeliest, the lowest id at a tie, when the temperature is 0."""
        if self.temperature == 0:
            return int(scores.argmax())
        total = np.cumsum(self.probabilities(scores))
        # The draw is below the last sum even when rounding leaves that a little under 1.
        drawn = int(np.searchsorted(total, self._random.random() * total[-1], side="right"))
        return min(drawn, scores.size - 1)


def penalise_repeats(scores: np.ndarray, seen: Sequence[int], penalty: float) -> np.ndarray:
    """Scores ``[V]`` with those of the ids in ``seen`` divided (if positive) or multiplied by ``penalty``.

    ``seen`` holds the generated ids only: LLaVA hands the prompt over as embeddings, so the original penalises no
    id of the prompt either.
    """
    if penalty == 1.0 or not seen:
        return scores
    ids = np.unique(np.asarray(seen, dtype=np.int64))
    scores = scores.copy()
    scores[ids] = np.where(scores[ids] > 0, scores[ids] / penalty, scores[ids] * penalty)
    return scores
