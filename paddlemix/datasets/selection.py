# SPDX-License-Identifier: Apache-2.0
"""How much of a data set entry a run reads: which of its rows, and how often in an epoch.

Which rows are chosen depends on their number and on the seed alone, not on what they say: a row that is repaired later
moves no other one.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Portion:
    """How much of an entry an epoch reads: ``repeat`` times its rows, or the share that its ``weight`` is of all."""

    repeat: float = 1.0
    weight: float | None = None

    @property
    def whole(self) -> bool:
        """Whether an epoch reads every row once."""
        return self.repeat == 1 and self.weight is None


@dataclass(frozen=True)
class Selection:
    """Which rows of an entry are used: those of ``strategy`` (LLaVA-NeXT's words), of them the first ``max_samples``.

    ``eval_split`` of these, a share or a number, are drawn for evaluation; ``side`` says which ones are meant here.
    """

    strategy: str = "all"
    max_samples: int | None = None
    eval_split: float | None = None
    side: Literal["train", "eval"] = "train"
    seed: int = 0

    def of(self, rows: int) -> np.ndarray | None:
        """The chosen numbers of ``range(rows)`` in order (int64 [n]); None for all of them."""
        if (self.strategy, self.max_samples, self.eval_split) == ("all", None, None):
            return None
        chosen = self._sampled(np.arange(rows))[: self.max_samples]
        if self.eval_split is None:
            return chosen
        share = self.eval_split < 1
        count = min(len(chosen), max(1, round(self.eval_split * len(chosen))) if share else int(self.eval_split))
        held_out = np.zeros(len(chosen), dtype=bool)
        held_out[np.random.default_rng([self.seed, 1]).permutation(len(chosen))[:count]] = True
        return chosen[held_out == (self.side == "eval")]

    def _sampled(self, rows: np.ndarray) -> np.ndarray:
        if self.strategy == "all":
            return rows
        kind, amount = self.strategy.split(":")
        count = math.ceil(int(amount[:-1]) * len(rows) / 100) if amount.endswith("%") else int(amount)
        if kind == "random":
            return np.sort(np.random.default_rng([self.seed, 0]).permutation(rows)[:count])
        return rows[:count] if kind == "first" else rows[max(len(rows) - count, 0) :]


ALL, ONCE = Selection(), Portion()
