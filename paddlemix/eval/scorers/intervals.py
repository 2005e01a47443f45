# SPDX-License-Identifier: Apache-2.0
"""How sure a score is: bootstrap intervals, and the comparison of two runs that answered the same questions.

Units (questions, or the images of MME) are drawn with replacement; a seed gives the same samples again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from paddlemix.eval.scorers.score import Result, Tally

RESAMPLES = 1000
LEVEL = 0.95
_CELLS = 4_000_000
"""Units times samples that are held at a time."""


@dataclass(frozen=True)
class Interval:
    """The bootstrap percentiles around a value; nan where no sample has one."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """B minus A of one metric, its interval, and how often chance alone gives a difference this large (two-sided)."""

    a: float
    b: float
    difference: Interval
    p_value: float


@dataclass(frozen=True)
class McNemar:
    """The exact test over questions that exactly one of two runs has right."""

    only_a: int
    only_b: int
    p_value: float


def _samples(units: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each unit is in each sample, [R, units] in blocks."""
    draw = np.random.default_rng(seed)
    block = max(1, _CELLS // max(1, units))
    for start in range(0, resamples, block):
        many = min(block, resamples - start)
        yield np.stack([np.bincount(draw.integers(units, size=units), minlength=units) for _ in range(many)])


def _drawn(tally: Tally, resamples: int, seed: int) -> dict[str, np.ndarray]:
    parts = [tally.metrics(counts) for counts in _samples(len(tally.columns), resamples, seed)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def intervals(tally: Tally, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL) -> dict[str, Interval]:
    """The interval of every metric."""
    drawn = _drawn(tally, resamples, seed)
    return {name: _interval(float(value[0]), drawn[name], level) for name, value in tally.metrics().items()}


def _interval(value: float, drawn: np.ndarray, level: float) -> Interval:
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def paired(
    a: Tally, b: Tally, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> dict[str, Difference]:
    """Every metric of both, B minus A, over the same samples of units. The tallies have the same units in one order.

    The p-value is twice the smaller share of samples on one side of no difference, at least 1 / (resamples + 1).
    """
    if len(a.columns) != len(b.columns):
        raise ValueError(f"{len(a.columns)} and {len(b.columns)} units cannot be paired")
    one, other = _drawn(a, resamples, seed), _drawn(b, resamples, seed)
    here, there = a.metrics(), b.metrics()
    found = {}
    for name in [name for name in here if name in there]:
        before, after = float(here[name][0]), float(there[name][0])
        drawn = other[name] - one[name]
        drawn = drawn[~np.isnan(drawn)]
        tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
        p_value = min(1.0, 2 * (tail + 1) / (len(drawn) + 1)) if len(drawn) else float("nan")
        found[name] = Difference(before, after, _interval(after - before, drawn, level), float(p_value))
    return found


def mcnemar(a: Sequence[Result], b: Sequence[Result]) -> McNemar | None:
    """The exact McNemar test over results of the same questions; None when values lie between wrong and right."""
    pairs = list(zip(a, b, strict=True))
    if any(result.value not in (0.0, 1.0) for pair in pairs for result in pair):
        return None
    only_a = sum(one.value > other.value for one, other in pairs)
    only_b = sum(one.value < other.value for one, other in pairs)
    return McNemar(only_a, only_b, _two_sided(min(only_a, only_b), only_a + only_b))


def _two_sided(fewer: int, of: int) -> float:
    """The probability that a fair coin lands at most ``fewer`` times on one of its sides, either of them."""
    ways, total = 1, 0
    for k in range(fewer + 1):
        total += ways
        ways = ways * (of - k) // (k + 1)
    return min(1.0, 2 * total / 2**of)
