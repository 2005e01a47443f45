# SPDX-License-Identifier: Apache-2.0
"""Boxes (RefCOCO, RefCOCO+, RefCOCOg): is the box that the model names the right one, at an IoU of 0.5?

Boxes are ``x1, y1, x2, y2``. Conventions say in which unit the model answers: ``unit`` shares of width and height
(LLaVA, Shikra, lmms-eval), ``thousand`` thousandths of them (InternVL, Qwen-VL), ``internvl`` either,
as the size of the numbers says. Expected boxes are shares, written
as a model of the first kind would: "[0.1, 0.2, 0.5, 0.6]".
"""

import re
from collections.abc import Sequence
from math import isfinite

import numpy as np

from paddlemix.eval.scorers.score import Question, Result, Scorer, Sums, Tally

Box = tuple[float, float, float, float]

_NUMBER = r"(-?\d+(?:\.\d+)?)"
_FOUR = re.compile(r"[\[(]\s*" + r"\s*,\s*".join([_NUMBER] * 4) + r"\s*[\])]")
_INTERNVL = re.compile(r"\[(.*?),(.*?),(.*?),(.*?)\]")
UNITS = {"unit": 1.0, "thousand": 1000.0}
CONVENTIONS = ("unit", "thousand", "internvl")
THRESHOLD = 0.5


def first_box(text: str) -> Box | None:
    """The first four numbers in brackets, or None."""
    found = _FOUR.search(text)
    return (float(found[1]), float(found[2]), float(found[3]), float(found[4])) if found else None


def internvl_box(text: str) -> Box | None:
    """InternVL's rule: whatever stands between the first brackets with commas; in thousandths when it sums to 4."""
    found = _INTERNVL.search(text)
    try:
        values = [float(part.lstrip("[")) for part in found.groups()] if found else []
    except ValueError:
        return None
    if not values or not all(map(isfinite, values)):
        return None
    x1, y1, x2, y2 = (value / 1000 for value in values) if sum(values) >= 4 else values
    return x1, y1, x2, y2


def iou(one: Box, other: Box) -> float:
    """Intersection over union; 0 for boxes without an area."""
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    union = _area(one) + _area(other) - width * height
    return width * height / union if union > 0 else 0.0


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def grade(question: Question, text: str, convention: str) -> tuple[str, float]:
    """The box as shares of the image, and the IoU with the expected one."""
    internvl = convention == "internvl"
    found, truth = internvl_box(text) if internvl else first_box(text), first_box(question.expected[0])
    if found is None or truth is None:
        return "", 0.0
    x1, y1, x2, y2 = found if internvl else (value / UNITS[convention] for value in found)
    return str([x1, y1, x2, y2]), iou((x1, y1, x2, y2), truth)


def tally(results: Sequence[Result]) -> Tally:
    """The share of boxes with an IoU of at least 0.5, and the mean IoU; by split, too, where the questions name one."""
    labels = ["", *dict.fromkeys(f"/{key}={value}" for r in results for key, value in sorted(r.groups.items()))]
    rows = []
    for result in results:
        own = ["", *(f"/{key}={value}" for key, value in result.groups.items())]
        rows.append(
            {
                **{f"n{label}": 1.0 for label in own},
                **{f"hit{label}": float(result.value >= THRESHOLD) for label in own},
                **{f"iou{label}": result.value for label in own},
            }
        )

    def derive(sums: Sums) -> dict[str, np.ndarray]:
        found = {}
        for label in labels:
            found[f"accuracy@0.5{label}"] = sums[f"hit{label}"] / sums[f"n{label}"]
            found[f"mean_iou{label}"] = sums[f"iou{label}"] / sums[f"n{label}"]
        return found

    return Tally(rows, derive)


REFCOCO = Scorer("refcoco", CONVENTIONS, grade, tally, "accuracy@0.5")
