# SPDX-License-Identifier: Apache-2.0
"""What MV-LLaVA's batch tools ask about every object, and how an answer becomes a value of the output file.

Questions, output keys and spellings ("desciption", "boardline", "multi_object") are those of the original's tools:
models were trained on some of them, and files that exist hold the others. Correct spellings are read as the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paddlemix.utils.constants import IMAGE_TOKEN
from paddlemix.utils.object_words import CORRECT, QUALITY, SCALES, STYLES, plain
from paddlemix.utils.registry import nearest

_CHOOSE_QUALITY = "Choosing from 'poor', 'relatively poor', 'boardline', 'relatively good', 'good', 'perfect'."


@dataclass(frozen=True)
class Question:
    """One turn. ``key`` is where the answer goes; ``scores`` turn it into a number, ``choices`` are what is expected.

    Without both, any text is a good answer.
    """

    key: str
    text: str
    scores: Mapping[str, int] | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Script:
    """The turns of one tool, in order; each answer is part of the next prompt."""

    name: str
    questions: tuple[Question, ...]

    def prompt(self, turn: int, places: int) -> str:
        """The text of a turn; the first one begins with the image places, without anything between them."""
        text = self.questions[turn].text
        return f"{IMAGE_TOKEN * places}\n{text}" if turn == 0 else text


OBJ = Script(
    "obj",
    (
        Question("desciption", "Describe the following multi-view image as detailed as possible."),
        Question("caption", "Generate a long descriptive caption of the following multi-view image."),
        Question(
            "score",
            f"What do you think about the overall quality of this 3D model? {_CHOOSE_QUALITY}",
            scores=QUALITY,
        ),
        Question(
            "level",
            "What do you think about the scale of the 3D model represents? "
            "Choosing from 'single_object', 'multi_object', 'small_scene', 'large_scene'.",
            choices=SCALES,
        ),
        Question(
            "style",
            "What do you think about the overall style of the 3D model? "
            "Choosing from 'CAD', 'Cartoon', 'Photo_realistic'.",
            choices=STYLES,
        ),
    ),
)
"""Objects of Objaverse: description, caption, quality, scale, style."""

SYN = Script(
    "syn",
    (
        Question("caption", "Generate a short caption of the following multi-view image."),
        Question(
            "score",
            "What do you think about the overall quality of view consistency of three synthesized novel views? "
            f"{_CHOOSE_QUALITY}",
            scores=QUALITY,
        ),
    ),
)
"""Synthesized views: a short caption, and whether the views agree with each other."""

SCRIPTS = {script.name: script for script in (OBJ, SYN)}


def read_answers(script: Script, answers: Sequence[str], unknown_score: int | None = None) -> dict[str, Any]:
    """Values by output key. Answers that are none of a question's choices go to ``unknown`` as they were said.

    A score that cannot be read is ``unknown_score``; scale and style are kept as they were said, as the original does.
    """
    record: dict[str, Any] = {}
    unknown: dict[str, str] = {}
    for question, answer in zip(script.questions, answers, strict=True):
        said = plain(answer)
        if question.scores is not None:
            record[question.key] = question.scores.get(said, unknown_score)
            known = said in question.scores
        else:
            record[question.key] = answer
            known = not question.choices or said in {plain(choice) for choice in question.choices}
        if not known:
            unknown[question.key] = answer
    return record | ({"unknown": unknown} if unknown else {})


def value_of(record: Mapping[str, Any], key: str) -> Any:
    """A value of a record under its key, in the format's spelling or the correct one; None when it is not there."""
    return record.get(key, record.get(CORRECT.get(key, key)))


def missing_key(record: Mapping[str, Any], key: str) -> str:
    """Text for an error about a record without ``key``, with the nearest key that it has."""
    other = CORRECT.get(key)
    names = f'"{key}"' + (f' (or "{other}")' if other else "")
    return f"no {names}{nearest(key, [str(name) for name in record])}"
