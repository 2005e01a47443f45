# SPDX-License-Identifier: Apache-2.0
"""POPE: does the model see objects that are not there? Accuracy, precision, recall, F1 and the share of "yes".

Conventions: ``llava`` reads every answer as yes or no, ``lmms-eval`` takes the exact word alone, ``vlmevalkit`` looks
for one of the two words. The published figure of LLaVA is the mean of the F1 of the three categories (``mean_f1``).
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from paddlemix.eval.scorers.score import Question, Result, Scorer, Sums, Tally
from paddlemix.eval.scorers.yes_no import UNKNOWN, exact_yes_no, pope_yes_no, yes_no_words

RULES = {"llava": pope_yes_no, "lmms-eval": exact_yes_no, "vlmevalkit": yes_no_words}


def grade(question: Question, text: str, convention: str) -> tuple[str, float]:
    """What the rule reads in the text, and whether it is the label.

    lmms-eval leaves what is neither yes nor no out of the recall, the others take it for a no.
    """
    found = RULES[convention](text)
    if found == UNKNOWN and convention == "vlmevalkit":
        return "no?", 0.0
    return found, float(found == question.expected[0])


def tally(results: Sequence[Result]) -> Tally:
    """Sums of the four fields of the confusion table, over all questions and in each category."""
    categories = list(dict.fromkeys(result.groups.get("category", "") for result in results))
    rows = []
    for result in results:
        row: dict[str, float] = defaultdict(float)
        for label in ("", result.groups.get("category", "")):
            row[f"n {label}"] = 1
            row[f"right {label}"] = result.value
            row[f"yes {label}"] = result.parsed == "yes"
            row[f"tp {label}"] = result.parsed == "yes" and result.expected[0] == "yes"
            # An answer that is missing has not found the object.
            row[f"fn {label}"] = result.parsed in ("no", "no?", "") and result.expected[0] == "yes"
        rows.append(row)

    def derive(sums: Sums) -> dict[str, np.ndarray]:
        found = _metrics(sums, "")
        parts = {name: _metrics(sums, name) for name in categories if name}
        if parts:
            found["mean_f1"] = np.mean([part["f1"] for part in parts.values()], axis=0)
        for name, part in parts.items():
            found.update({f"{key}/category={name}": value for key, value in part.items()})
        return found

    return Tally(rows, derive)


def _metrics(sums: Sums, label: str) -> dict[str, np.ndarray]:
    n, right, yes, tp, fn = (sums[f"{name} {label}"] for name in ("n", "right", "yes", "tp", "fn"))
    precision, recall = tp / yes, tp / (tp + fn)
    return {
        "accuracy": right / n,
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall),
        "yes_ratio": yes / n,
    }


POPE = Scorer("pope", tuple(RULES), grade, tally, "mean_f1", beside=("accuracy",))
