# SPDX-License-Identifier: Apache-2.0
"""MV-LLaVA's judgements of a 3D object: is its quality, scale or style the one that the data say?"""

from collections.abc import Iterator, Sequence

from paddlemix.eval.scorers.score import Question, Scorer, mean_tally
from paddlemix.utils.object_words import QUALITY, SCALES, STYLES, plain

WORDS = {
    "quality": tuple(QUALITY),
    "scale": tuple(plain(word) for word in SCALES),
    "style": tuple(plain(word) for word in STYLES),
}
"""The possible answers of each kind of question, in the form in which they are compared."""


def parts_of(name: str, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str, str]]:
    """Key, question and right answer of the turns of an object's conversation that have one of ``WORDS`` as answer."""
    for question, answer in pairs:
        kind = next((kind for kind, words in WORDS.items() if plain(answer) in words), None)
        if kind is not None:
            yield f"{name}/{kind}", question, plain(answer)


def grade(question: Question, text: str, convention: str) -> tuple[str, float]:
    """Case, quotes, a full stop, and the two spellings of some words make no difference."""
    said = plain(text)
    return said, float(said == question.expected[0])


VIEWS = Scorer("mv-llava", ("words",), grade, mean_tally, "accuracy")
