# SPDX-License-Identifier: Apache-2.0
"""MME: two yes-or-no questions about each image; accuracy and accuracy+ (both right) of 14 subtasks, in points.

Conventions: ``official`` is the rule of MME's own calculation (LLaVA uses it), ``internvl`` reads 是, 否, true
and false, too, ``lmms-eval`` and ``vlmevalkit`` are
those of the harnesses.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from paddlemix.eval.scorers.score import Question, Result, Scorer, Sums, Tally
from paddlemix.eval.scorers.yes_no import mme_yes_no, mme_yes_no_internvl, mme_yes_no_lmms, yes_no_words

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
RULES = {
    "official": mme_yes_no,
    "internvl": mme_yes_no_internvl,
    "lmms-eval": mme_yes_no_lmms,
    "vlmevalkit": yes_no_words,
}
SHORT = "Answer the question using a single word or phrase."
ASKED = "Please answer yes or no."


def grade(question: Question, text: str, convention: str) -> tuple[str, float]:
    """What the rule reads in the text, and whether it is the label."""
    found = RULES[convention](text)
    return found, float(found == question.expected[0])


def tally(results: Sequence[Result]) -> Tally:
    """One row for each image: questions, right ones, and whether all are right."""
    images: dict[tuple[str, str], list[float]] = defaultdict(list)
    for result in results:
        images[result.groups["category"], result.unit].append(result.value)
    rows = [
        {
            f"questions {task}": len(values),
            f"right {task}": sum(values),
            f"images {task}": 1,
            f"both {task}": min(values),
        }
        for (task, _), values in images.items()
    ]
    tasks = list(dict.fromkeys(task for task, _ in images))

    def derive(sums: Sums) -> dict[str, np.ndarray]:
        accuracy = {task: 100 * sums[f"right {task}"] / sums[f"questions {task}"] for task in tasks}
        plus = {task: 100 * sums[f"both {task}"] / sums[f"images {task}"] for task in tasks}
        found = {}
        for name, members in (("perception", PERCEPTION), ("cognition", COGNITION)):
            scores = [accuracy[task] + plus[task] for task in members if task in accuracy]
            if scores:
                found[name] = np.sum(scores, axis=0)
        for task in tasks:
            found[f"score/category={task}"] = accuracy[task] + plus[task]
            found[f"accuracy/category={task}"] = accuracy[task]
            found[f"accuracy+/category={task}"] = plus[task]
        return found

    return Tally(rows, derive)


def mme_key(question_id: str, prompt: str) -> str:
    """The key of a question, from LLaVA's ``category/file.png`` and the prompt that was asked.

    LLaVA replaces MME's "Please answer yes or no." by its own line; some questions have two spaces before it.
    """
    category, file = question_id.split("/")[0], question_id.split("/")[-1].split(".")[0]
    return mme_question_key(category, file, prompt)


def mme_question_key(category: str, file: str, question: str) -> str:
    """The key of a question of MME's text files; ``file`` has no suffix."""
    bare = question.replace(SHORT, "").replace(ASKED, "").strip()
    return f"{category}/{file}: {bare}"


MME = Scorer("mme", tuple(RULES), grade, tally, "perception", points=("*",))
