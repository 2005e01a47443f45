# SPDX-License-Identifier: Apache-2.0
"""Free texts: exact match and ROUGE-L (``text.scores``), the best over the references of a question."""

from collections.abc import Sequence

from paddlemix.eval.scorers.score import Question, Result, Scorer, Tally, mean_tally
from paddlemix.text.scores import relaxed, rouge_l


def grade_exact(question: Question, text: str, convention: str) -> tuple[str, float]:
    """``stripped`` compares without spaces around; ``relaxed`` small letters, single spaces and no final period."""

    def bare(value: str) -> str:
        return relaxed(value) if convention == "relaxed" else value.strip()

    found = bare(text)
    return found, float(any(found == bare(truth) for truth in question.expected))


def grade_rouge(question: Question, text: str, convention: str) -> tuple[str, float]:
    """The best ROUGE-L over the references."""
    return text.strip(), max(rouge_l(text, truth) for truth in question.expected)


EXACT = Scorer("exact", ("stripped", "relaxed"), grade_exact, mean_tally, "accuracy")


def _rouge_tally(results: Sequence[Result]) -> Tally:
    return mean_tally(results, "rouge_l")


ROUGE_L = Scorer("rouge-l", ("f-measure",), grade_rouge, _rouge_tally, "rouge_l")
