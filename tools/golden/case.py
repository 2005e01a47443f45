# SPDX-License-Identifier: Apache-2.0
"""The result of one golden comparison."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One line of ``tools/check_golden.py``: ``status`` is ``ok``, ``fail``, ``deviates`` or ``skipped``."""

    case: str
    max_diff: float
    tolerance: float
    status: str
    reason: str = ""
