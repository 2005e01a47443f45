# SPDX-License-Identifier: Apache-2.0
"""GQA: exact answers, over all questions and by their structural and semantic types.

Conventions: ``llava`` takes trailing periods off and compares small letters, as its converter for GQA does;
``lmms-eval`` compares small letters without any punctuation, in the ground truth too. GQA's consistency, validity,
plausibility, grounding and distribution need files beside the questions and are not here.
"""

import string

from paddlemix.eval.scorers.score import Question, Scorer, mean_tally

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def grade(question: Question, text: str, convention: str) -> tuple[str, float]:
    """The answer as it is compared, and whether it is the ground truth."""
    truth = question.expected[0]
    if convention == "llava":
        found = text.rstrip(".").lower()
        return found, float(found == truth)
    found = text.lower().translate(_PUNCTUATION)
    return found, float(found == truth.lower().translate(_PUNCTUATION))


GQA = Scorer("gqa", ("llava", "lmms-eval"), grade, mean_tally, "accuracy")
