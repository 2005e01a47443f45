# SPDX-License-Identifier: Apache-2.0
"""What judges' scores come to: LLaVA's relative score, and MM-Vet's total by capability.

The judge has graded before: a result's ``value`` is the grade of the model's answer from 0 to 1. For LLaVA's reviews
``parsed`` holds both scores ("8.0 9.0"), and ``value`` is the second, the model's, divided by ten.
"""

from collections.abc import Sequence

import numpy as np

from paddlemix.eval.scorers.score import Question, Result, Scorer, Sums, Tally
from paddlemix.utils.errors import ConfigError

BEST = 10
"""Highest score of a review."""


def _grade(question: Question, text: str, convention: str) -> tuple[str, float]:
    raise ConfigError("a judge scores these answers; eval review and eval judge ask one")


def review_tally(results: Sequence[Result]) -> Tally:
    """``relative``: the mean score of the second answer over that of the first, of all and of each category.

    Questions without a review (status "failed" or "missing") have no part in it.
    """
    rows = []
    for result in results:
        row: dict[str, float] = {}
        if result.status == "answered":
            first, second = map(float, result.parsed.split(" "))
            for label in ("", *(f"/{key}={value}" for key, value in sorted(result.groups.items()))):
                row |= {f"first{label}": first, f"second{label}": second}
        rows.append(row)

    def derive(sums: Sums) -> dict[str, np.ndarray]:
        names = [name.removeprefix("second") for name in sums if name.startswith("second")]
        return {f"relative{name}": sums[f"second{name}"] / sums[f"first{name}"] for name in names}

    return Tally(rows, derive)


def capability_tally(results: Sequence[Result]) -> Tally:
    """``total``: the mean grade; also of the questions that need a capability, and of those that need a set of them.

    ``groups["capabilities"]`` names the capabilities of a question, joined by "+".
    """
    rows = []
    for result in results:
        names = result.groups.get("capabilities", "")
        labels = ["", *(f"/capability={name}" for name in names.split("+") if name), f"/capabilities={names}"]
        row: dict[str, float] = {}
        for label in labels:
            row |= {f"sum total{label}": result.value, f"n total{label}": 1.0}
        rows.append(row)

    def derive(sums: Sums) -> dict[str, np.ndarray]:
        return {key[2:]: sums[f"sum {key[2:]}"] / sums[key] for key in sums if key.startswith("n ")}

    return Tally(rows, derive)


LLAVA_BENCH = Scorer("llava-bench", ("llava",), _grade, review_tally, "relative")
QA90 = Scorer("qa90", ("llava",), _grade, review_tally, "relative")
MM_VET = Scorer("mm-vet", ("official",), _grade, capability_tally, "total")
