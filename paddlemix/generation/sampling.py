# SPDX-License-Identifier: Apache-2.0
"""How the next token is picked from the scores: penalties and bias, temperature, top-k, top-p, min-p. Numpy only."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import TypeAlias

import numpy as np

from paddlemix.utils.errors import ConfigError
from paddlemix.utils.shown import shown

MAX_BEAMS = 64
"""Each beam keeps keys and values of its own: 64 of a 7B model with 1,000 tokens take 32 GB."""
MAX_PENALTY = 2
"""Limit of OpenAI's API for frequency_penalty and presence_penalty."""
MAX_LOGPROBS = 20
"""Limit of OpenAI's API for top_logprobs."""
_LARGE = 1 << 31


DecodingField: TypeAlias = int | float | tuple[int, ...] | tuple[str, ...] | tuple[tuple[int, float], ...] | None
"""Value of a field of ``Decoding``."""


@dataclass(frozen=True)
class Decoding:
    """What one answer is generated with. ``temperature`` 0 means greedy; ``top_k`` 0 and ``top_p`` 1 mean off.

    ``eos_ids`` end an answer and are its last id. ``pad_id`` fills the finished rows of a batch. ``num_beams`` above 1
    is beam search, which is not random and so wants ``temperature`` 0. ``seed`` None draws a new one for every run.
    ``vocab_size`` limits the ids to those the tokenizer knows, where the model's table is padded beyond them.
    ``frequency_penalty`` is subtracted from a score for each time its id was generated, ``presence_penalty`` once;
    ``logit_bias`` holds pairs of an id and what is added to its score (all three as in OpenAI's API). ``stop`` are
    strings that end an answer and are not part of its text, beside those of the template; ``stop_ids`` are ids that
    end it, beside ``eos_ids``. ``logprobs`` None keeps none; a number keeps the log probability of each id and of so
    many of the likeliest ones.
    A model folder's ``generation_config.json`` is never read into this: what is used is what the caller wrote. One
    string is taken for ``stop``, and a mapping for ``logit_bias``, as in OpenAI's API. ConfigError: a value that is not
    of its kind, or outside its range.
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
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):  # as a sequence it would be its letters
            object.__setattr__(self, "stop", (self.stop,))
        if isinstance(self.logit_bias, Mapping):
            # In JSON an id is a string.
            ids = (int(key) if isinstance(key, str) and key.isdecimal() else key for key in self.logit_bias)
            object.__setattr__(self, "logit_bias", tuple(zip(ids, self.logit_bias.values(), strict=True)))
        for name, (expected, good) in _SEQUENCES.items():
            value = getattr(self, name)
            if not isinstance(value, Collection) or isinstance(value, str | bytes) or not all(map(good, value)):
                raise ConfigError(f"{name} is {shown(value)}: expected {expected}")
        for name, kind in _KINDS.items():
            value = getattr(self, name)
            if value is not None and not (_is_whole(value) or (kind is float and isinstance(value, Real))):
                raise ConfigError(f"{name} is {shown(value)}: expected a {'whole ' if kind is int else ''}number")
        _number("max_new_tokens", self.max_new_tokens, 1 <= self.max_new_tokens < _LARGE, "a whole number from 1")
        _number("temperature", self.temperature, self.temperature >= 0, "0 (greedy) or a positive number")
        _number("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1 (1 is off)")
        _number("top_k", self.top_k, 0 <= self.top_k < _LARGE, "0 (off) or a positive whole number")
        _number("num_beams", self.num_beams, 1 <= self.num_beams <= MAX_BEAMS, f"a whole number from 1 to {MAX_BEAMS}")
        _number("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0, "a positive number")
        _number("seed", self.seed or 0, 0 <= (self.seed or 0) < 1 << 64, "a whole number from 0 to 2^64 - 1")
        _number("length_penalty", self.length_penalty, True, "a number")
        _number("min_p", self.min_p, 0 <= self.min_p < 1, "from 0 (off) to below 1")
        for name in ("frequency_penalty", "presence_penalty"):
            value = getattr(self, name)
            good = -MAX_PENALTY <= value <= MAX_PENALTY
            _number(name, value, good, f"from -{MAX_PENALTY} to {MAX_PENALTY} (0 is off)")
        for token, bias in self.logit_bias:
            _number("logit_bias", token, 0 <= token < _LARGE, "ids of the vocabulary")
            _number(f"logit_bias of id {token}", bias, True, "a number")
        _number("logprobs", self.logprobs or 0, 0 <= (self.logprobs or 0) <= MAX_LOGPROBS, f"0 to {MAX_LOGPROBS}")
        self._check_beams()

    def _check_beams(self) -> None:
        if self.num_beams == 1:
            return
        if self.temperature > 0 or self.repetition_penalty != 1.0:
            raise ConfigError(
                f"num_beams {self.num_beams} with temperature {self.temperature:g} and repetition_penalty "
                f"{self.repetition_penalty:g}: beam search is not random; use temperature 0 and repetition_penalty 1, "
                "or num_beams 1"
            )
        for name in ("frequency_penalty", "presence_penalty", "logit_bias", "logprobs"):
            value = getattr(self, name)
            if value not in (0.0, (), None):
                raise ConfigError(f"num_beams {self.num_beams} with {name} {shown(value)}: use num_beams 1 with it")

    @property
    def random(self) -> bool:
        """Whether an answer depends on the seed."""
        return self.temperature > 0

    @property
    def ends(self) -> tuple[int, ...]:
        """All ids that end an answer."""
        return (*self.eos_ids, *self.stop_ids)

    @property
    def takes_likeliest(self) -> bool:
        """Whether each id is just the one with the largest score, so that no score need leave the device."""
        changed = self.frequency_penalty or self.presence_penalty or self.logit_bias or self.repetition_penalty != 1.0
        return not (self.random or changed or self.logprobs is not None)

    def with_changes(self, **changes: DecodingField) -> "Decoding":
        """A checked copy with some fields replaced."""
        return replace(self, **changes)


_KINDS = {
    **dict.fromkeys(("max_new_tokens", "top_k", "num_beams", "seed", "pad_id", "vocab_size", "logprobs"), int),
    **dict.fromkeys(("temperature", "top_p", "min_p", "repetition_penalty", "length_penalty"), float),
    **dict.fromkeys(("frequency_penalty", "presence_penalty"), float),
}
"""What the fields of ``Decoding`` that are numbers are."""


def _is_whole(value: float | str) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_bias(value: tuple[int, float] | float | str) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and _is_whole(value[0]) and isinstance(value[1], Real)


_SEQUENCES: dict[str, tuple[str, Callable[..., bool]]] = {
    "logit_bias": ("pairs of an id (a whole number) and a number", _is_bias),
    "stop": ("a string, or a sequence of them", lambda value: isinstance(value, str)),
    "stop_ids": ("a sequence of ids (whole numbers)", _is_whole),
    "eos_ids": ("a sequence of ids (whole numbers)", _is_whole),
}
"""What the fields of ``Decoding`` that are sequences hold."""


def _number(name: str, value: float, good: bool, expected: str) -> None:
    if not good or not abs(value) < 1e300:  # also for NaN, and for whole numbers that no float holds
        raise ConfigError(f"{name} is {shown(value)}: expected {expected}")


@dataclass(frozen=True)
class TokenLogprob:
    """Natural log probability of a generated id before penalties and temperature, and the likeliest ids."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Draws the ids of one row with a generator of its own, so that one row's answer never depends on another's.

    ``logprobs`` grows by one entry an id when the decoding asks for them.
    """

    def __init__(self, decoding: Decoding, stream: Sequence[int] = (0,)) -> None:
        """``stream`` (round, row, ...) tells the rows of one seed apart."""
        self.decoding = decoding
        self.logprobs: list[TokenLogprob] = []
        self._random = np.random.default_rng(None if decoding.seed is None else [decoding.seed, *stream])

    def next(self, scores: np.ndarray, seen: Sequence[int] = ()) -> int:
        """The id that follows the generated ids ``seen``, from the model's scores ``[V]``."""
        token = self.pick(adjusted(scores, seen, self.decoding))
        if self.decoding.logprobs is not None:
            self.logprobs.append(token_logprob(scores, token, self.decoding.logprobs))
        return token

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Scores ``[V]`` to the float64 distribution ``[V]`` that is drawn from.

        The order is that of transformers' warpers: temperature, then top-k (ties with the k-th stay), then top-p
        (the smallest set of the likeliest ids that reaches ``top_p``, at least one), then min-p (ids of at least
        ``min_p`` of the likeliest one's chance; Nguyen et al. 2024).
        """
        decoding = self.decoding
        scores = scores.astype(np.float64)
        scores = (scores - scores.max()) / decoding.temperature
        if 0 < decoding.top_k < scores.size:
            kth = np.partition(scores, -decoding.top_k)[-decoding.top_k]
            scores = np.where(scores < kth, -np.inf, scores)
        chances = np.exp(scores)
        chances /= chances.sum()
        if decoding.top_p < 1.0:
            order = np.argsort(-chances, kind="stable")
            before = np.cumsum(chances[order]) - chances[order]
            chances[order[before >= decoding.top_p]] = 0.0
            chances /= chances.sum()
        if decoding.min_p:
            chances[chances < decoding.min_p * chances.max()] = 0.0
            chances /= chances.sum()
        return chances

    def pick(self, scores: np.ndarray) -> int:
        """One id from scores ``[V]``; the likeliest, the lowest id at a tie, when the temperature is 0."""
        if self.decoding.temperature == 0:
            return int(scores.argmax())
        total = np.cumsum(self.probabilities(scores))
        # The draw is below the last sum even when rounding leaves that a little under 1.
        drawn = int(np.searchsorted(total, self._random.random() * total[-1], side="right"))
        return min(drawn, scores.size - 1)


def adjusted(scores: np.ndarray, seen: Sequence[int], decoding: Decoding) -> np.ndarray:
    """Scores ``[V]`` after penalties and bias, in vLLM's order: bias, repetition, frequency, presence.

    ``seen`` holds the generated ids only, for all three penalties: LLaVA hands the prompt over as embeddings, so the
    original penalises no id of the prompt either.
    """
    for token, _ in decoding.logit_bias:
        if token >= scores.size:
            raise ConfigError(f"logit_bias names id {token}: the vocabulary has the ids 0 to {scores.size - 1}")
    if decoding.logit_bias:
        scores = scores.copy()
        ids, added = zip(*decoding.logit_bias, strict=True)
        np.add.at(scores, np.asarray(ids), np.asarray(added, dtype=scores.dtype))
    scores = penalise_repeats(scores, seen, decoding.repetition_penalty)
    if not seen or not (decoding.frequency_penalty or decoding.presence_penalty):
        return scores
    ids, counts = np.unique(np.asarray(seen, dtype=np.int64), return_counts=True)
    scores = scores.copy()
    scores[ids] -= (decoding.frequency_penalty * counts + decoding.presence_penalty).astype(scores.dtype)
    return scores


def token_logprob(scores: np.ndarray, token: int, alternatives: int) -> TokenLogprob:
    """Of the model's scores ``[V]``: the log probability of ``token`` and of the ``alternatives`` likeliest ids."""
    wide = scores.astype(np.float64)
    logs = wide - wide.max()
    logs -= np.log(np.exp(logs).sum())
    likeliest = np.argsort(-logs, kind="stable")[:alternatives]
    return TokenLogprob(token, float(logs[token]), tuple((int(one), float(logs[one])) for one in likeliest))


def penalise_repeats(scores: np.ndarray, seen: Sequence[int], penalty: float) -> np.ndarray:
    """Scores ``[V]`` with those of the ids in ``seen`` divided (if positive) or multiplied by ``penalty``."""
    if penalty == 1.0 or not seen:
        return scores
    ids = np.unique(np.asarray(seen, dtype=np.int64))
    scores = scores.copy()
    scores[ids] = np.where(scores[ids] > 0, scores[ids] / penalty, scores[ids] * penalty)
    return scores
