# SPDX-License-Identifier: Apache-2.0
"""Multiple choice: ScienceQA, SEED-Bench, MMBench and own data, answered with an option's letter."""

import re
from collections.abc import Callable, Sequence

import numpy as np

from paddlemix.eval.scorers.score import Question, Result, Scorer, Sums, Tally, mean_tally

LETTERS = "ABCDE"
"""ScienceQA has at most five options."""

_ANSWER_IS = re.compile(r"The answer is ([A-Z]).")  # the last period stands for any character, as in the original
_BEGINS = re.compile(r"\(([A-Z])\)|([A-Z])(?:[.:,)]|$)")
_SAYS = re.compile(r"\b[Aa]nswer(?: is|:)\s*\(?([A-Z])\b")


def science_letter(text: str, choices: int) -> str:
    """LLaVA's rule for ScienceQA: a letter alone, "B. ...", or exactly one "The answer is B."; else empty."""
    if text in tuple(LETTERS):
        found = text
    elif text[:1] in tuple(LETTERS) and text[1:3] == ". ":
        found = text[0]
    else:
        said = _ANSWER_IS.findall(text)
        found = said[0] if len(said) == 1 else ""
    return found if found in tuple(LETTERS[:choices]) else ""


def science_letter_lmms(text: str, choices: int) -> str:
    """lmms-eval's rule for ScienceQA: the letter alone, or any capital letter before a period at the beginning."""
    if text in tuple(LETTERS[:choices]):
        return text
    return text[0] if len(text) >= 2 and text[0].isupper() and text[1] == "." else ""


def first_letter(text: str, choices: int) -> str:
    """lmms-eval's rule for SEED-Bench: the first character that is no space."""
    return text.strip()[:1]


def as_it_is(text: str, choices: int) -> str:
    """LLaVA's rule for SEED-Bench: the whole answer has to be the letter; "A." is wrong."""
    return text


def option_letter(text: str, choices: int) -> str:
    """Our own rule: a letter that begins the answer ("B", "B.", "(B) dog", "B: dog") or follows "answer is", "answer:".

    A letter that a space follows is none: it may be an article.
    """
    found = _BEGINS.match(text.strip()) or _SAYS.search(text)
    letter = "" if found is None else next(filter(None, found.groups()))
    limit = choices or 26
    return letter if letter and ord(letter) - ord("A") < limit else ""


RULES = {
    ("scienceqa", "llava"): science_letter,
    ("scienceqa", "lmms-eval"): science_letter_lmms,
    ("seed", "llava"): as_it_is,
    ("seed", "lmms-eval"): first_letter,
    ("seed", "letter"): option_letter,
    ("mmbench", "letter"): option_letter,
    ("mmbench", "exact"): as_it_is,
    ("choice", "letter"): option_letter,
    ("choice", "exact"): as_it_is,
}
"""Benchmark and convention -> the letter in an answer."""


def _scorer(
    name: str, tally: Callable[[Sequence[Result]], Tally] = mean_tally, main: str = "accuracy", *beside: str
) -> Scorer:
    conventions = tuple(convention for benchmark, convention in RULES if benchmark == name)

    def grade(question: Question, text: str, convention: str) -> tuple[str, float]:
        found = RULES[name, convention](text, question.choices)
        return found, float(found == question.expected[0])

    return Scorer(name, conventions, grade, tally, main, beside=beside)


def science_tally(results: Sequence[Result]) -> Tally:
    """Accuracy of all questions, and ``image_accuracy`` of those with an image (the published figure)."""
    rows = [
        {
            "n": 1.0,
            "right": result.value,
            "images": float(result.groups.get("image") == "yes"),
            "right images": result.value * (result.groups.get("image") == "yes"),
        }
        for result in results
    ]

    def derive(sums: Sums) -> dict[str, np.ndarray]:
        return {"accuracy": sums["right"] / sums["n"], "image_accuracy": sums["right images"] / sums["images"]}

    return Tally(rows, derive)


SCIENCEQA = _scorer("scienceqa", science_tally, "image_accuracy", "accuracy")
SEED = _scorer("seed")
MMBENCH = _scorer("mmbench")
CHOICE = _scorer("choice")
