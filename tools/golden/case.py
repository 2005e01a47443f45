# SPDX-License-Identifier: Apache-2.0
"""The result of one golden comparison, and what keeps the others going when one breaks."""

import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One line of ``tools/check_golden.py``: ``status`` is ``ok``, ``fail``, ``deviates`` or ``skipped``."""

    case: str
    max_diff: float
    tolerance: float
    status: str
    reason: str = ""


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
