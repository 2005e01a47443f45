# SPDX-License-Identifier: Apache-2.0
"""How near a text comes to a reference: exact match and ROUGE-L. Pure functions, of the evaluation and of a training.

ROUGE-L is our own: the package rouge-score brings nltk and absl for it, had no release after 2022, and finds no words
in Chinese, Japanese or Korean. Words are as there (small letters, runs of a-z and 0-9); each character of a script
without spaces is a word, and so is each run of letters of any other one.
"""

import re
from collections.abc import Sequence

_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[a-z0-9]+|[^\W_a-z0-9{_IDEOGRAPHS}]+")


def words(text: str) -> list[str]:
    """The words that ROUGE-L compares."""
    return _WORD.findall(text.lower())


def rouge_l(text: str, reference: str) -> float:
    """The F-measure (precision and recall weigh the same) of the longest common subsequence of words."""
    found, wanted = words(text), words(reference)
    common = _longest_common(found, wanted)
    return 2 * common / (len(found) + len(wanted)) if common else 0.0


def _longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    row = [0] * (len(other) + 1)
    for word in one:
        before = 0
        for place, wanted in enumerate(other, 1):
            above = row[place]
            row[place] = before + 1 if word == wanted else max(above, row[place - 1])
            before = above
    return row[-1]


def relaxed(text: str) -> str:
    """Small letters, single spaces, no final period: what an exact match compares when looks do not count."""
    return " ".join(text.strip().lower().split()).rstrip(".")
