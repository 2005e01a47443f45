# SPDX-License-Identifier: Apache-2.0
"""The result of one golden comparison, and what keeps the others going when one breaks."""

import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Case:
    """One line of ``tools/check_golden.py``: ``status`` is ``ok``, ``fail``, ``deviates`` or ``skipped``."""

    case: str
    max_diff: float
    tolerance: float
    status: str
    reason: str = ""


def near(case: str, ours: Any, theirs: Any, tolerance: float, relative: float = 0.0) -> Case:
    """Largest difference, where ``tolerance`` grows with ``relative`` times the reference's value."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        return Case(case, float("inf"), tolerance, "fail", f"shape {ours.shape} instead of {theirs.shape}")
    difference = np.abs(ours - theirs)
    good = bool((difference <= tolerance + relative * np.abs(theirs)).all())
    return Case(case, float(difference.max()) if difference.size else 0.0, tolerance, "ok" if good else "fail")


def relative(case: str, ours: float, theirs: float, tolerance: float) -> Case:
    """Difference of two numbers, relative to the reference's."""
    difference = abs(ours - theirs) / max(abs(theirs), 1e-12)
    return Case(case, difference, tolerance, "ok" if difference <= tolerance else "fail")


def guarded(label: str, make: Callable[..., Iterable[Case] | Case], *arguments: object) -> Iterator[Case]:
    """The cases of ``make(*arguments)``; where it breaks off, one failure of the name ``label`` in place of the rest.

    A crash or a missing file is a failure of its own case and hides no other.
    """
    try:
        found = make(*arguments)
        yield from [found] if isinstance(found, Case) else found
    except Exception as error:  # noqa: BLE001 - see above; the text is printed and counts as a failure
        traceback.print_exc()
        text = " ".join(f"{type(error).__name__}: {error}".split())
        yield Case(f"{label}/stopped", float("inf"), 0.0, "fail", text)


def unused_text(*texts: str) -> str:
    """A mark that is in none of ``texts``: an answer may hold any character, a NUL too."""
    number = 0
    while any(f"\0{number}\0" in text for text in texts):
        number += 1
    return f"\0{number}\0"
