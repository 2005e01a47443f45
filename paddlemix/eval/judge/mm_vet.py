# SPDX-License-Identifier: Apache-2.0
"""MM-Vet's grades: a judge completes a line of a table with how right an answer is, from 0.0 to 1.0.

Prompt, limits and the rule that reads the grade are those of MM-Vet's ``mm-vet_evaluator.py`` (Yu et al., "MM-Vet",
arXiv:2308.02490): three tokens at temperature 0; where they are no number from 0 to 1, the question is put again with
one more line, at 0, 0.5, 1.0 and 1.5. Then the evaluator writes 0.0; here the question counts 0, too, and is named.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from paddlemix.eval.answer_files import AnswerRecord
from paddlemix.eval.judge.asking import Ask, Cache, ask_all
from paddlemix.eval.judge.endpoint import Endpoint, Judged, Message, RequestError, ask
from paddlemix.eval.question_files import one_file
from paddlemix.eval.records import read_object
from paddlemix.eval.scorers.intervals import intervals
from paddlemix.eval.scorers.judged import capability_tally
from paddlemix.eval.scorers.score import Answer, Problem, Question, Result, Score, match
from paddlemix.eval.scoring import Scored
from paddlemix.utils.errors import DataError
from paddlemix.utils.shown import shown

FILE = "mm-vet.json"
MAX_TOKENS, TRIES, STEP = 3, 5, 0.5
AGAIN = "\nPredict the correctness of the answer (digit): "
_ICELAND = (
    "This meme is poking fun at the fact that the names of the countries Iceland and Greenland are misleading. Despite "
    "its name, Iceland is known for its beautiful green landscapes, while Greenland is mostly covered in ice and snow. "
    "The meme is saying that the person has trust issues because the names of these countries do not accurately "
    "represent their landscapes."
)
_SHORT = (
    "The meme talks about Iceland and Greenland. It's pointing out that despite their names, Iceland is not very icy "
    "and Greenland isn't very green."
)
_LONG = (
    "The meme is using humor to point out the misleading nature of Iceland's and Greenland's names. Iceland, despite "
    "its name, has lush green landscapes while Greenland is mostly covered in ice and snow. The text 'This is why I "
    "have trust issues' is a playful way to suggest that these contradictions can lead to distrust or confusion. The "
    "humor in this meme is derived from the unexpected contrast between the names of the countries and their actual "
    "physical characteristics."
)
EXAMPLES = (
    *(
        ("What is x in the equation?", "-1 <AND> -5", answer, grade)
        for answer, grade in (
            ("x = 3", "0.0"), ("x = -1", "0.5"), ("x = -5", "0.5"), ("x = -5 or 5", "0.5"), ("x = -1 or x = -5", "1.0"),
        )
    ),
    ("Can you explain this meme?", _ICELAND, _SHORT, "0.4"),
    ("Can you explain this meme?", _ICELAND, _LONG, "1.0"),
)  # fmt: skip
"""The examples that MM-Vet shows its judge, as published: question, ground truth, prediction, grade."""
TASK = (
    "Compare the ground truth and prediction from AI models, to give a correctness score for the prediction. <AND> in "
    "the ground truth means it is totally right only when all elements in the ground truth are present in the "
    "prediction, and <OR> means it is totally right when any one element in the ground truth is present in the "
    "prediction. The correctness score is 0.0 (totally wrong), 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, or 1.0 "
    "(totally right). Just complete the last space of the correctness score."
)
"""What MM-Vet asks its judge to do, as published."""


@dataclass(frozen=True)
class Asked:
    """A question of MM-Vet's metadata. ``capabilities`` are sorted."""

    key: str
    question: str
    truth: str
    capabilities: tuple[str, ...]


def prompt(question: Asked, answer: str, attempt: int = 1) -> str:
    """What is said to the judge; ``attempt`` from 1."""
    rows = ["Question | Ground truth | Prediction | Correctness", "--- | --- | --- | ---"]
    rows += [" | ".join(example) for example in EXAMPLES]
    truth = question.truth.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    last = " | ".join([question.question, truth, answer, ""])
    return "\n".join([TASK, "", *rows, "", last]) + (AGAIN if attempt > 1 else "")


def grade_in(text: str) -> float | None:
    """The grade before the first space, or None when that is no number from 0 to 1."""
    try:
        found = float(text.split(" ")[0].strip())
    except ValueError:
        return None
    return found if 0.0 <= found <= 1.0 else None


def read_questions(folder: Path) -> list[Asked]:
    """The questions of ``mm-vet.json`` in their order."""
    path = one_file(folder, FILE)
    record = read_object(path)
    found = []
    for key in record.value:
        one = record.record(key)
        names = sorted(set(one.texts("capability")))
        found.append(Asked(key, one.text("question"), one.text("answer"), tuple(names)))
    if not found:
        raise DataError(f"{path}: no questions")
    return found


def key_of(answer: AnswerRecord) -> str:
    """The key of an answer: LLaVA numbers the questions from 0, MM-Vet calls them v1_0."""
    key = str(answer.question_id)
    return key if key.startswith("v1_") else f"v1_{key}"


def matched(questions: Sequence[Asked], records: Sequence[AnswerRecord]) -> tuple[list[Answer | None], list[Problem]]:
    """The answer of each question, and what is irregular."""
    given = [Answer(key_of(one), one.text, one.where, one.failure) for one in records]
    return match([Question(one.key, (one.truth,)) for one in questions], given)


def bodies(endpoint: Endpoint, questions: Sequence[Asked], answers: Sequence[Answer | None]) -> list[dict[str, object]]:
    """The first request for each question that has an answer."""
    return [_body(endpoint, one, answer.text, 1) for one, answer in _asked(questions, answers)]


def _asked(questions: Sequence[Asked], answers: Sequence[Answer | None]) -> Iterator[tuple[Asked, Answer]]:
    for question, answer in zip(questions, answers, strict=True):
        if answer is not None and not answer.failed:
            yield question, answer


def _body(endpoint: Endpoint, question: Asked, text: str, attempt: int) -> dict[str, object]:
    messages: list[Message] = [{"role": "user", "content": prompt(question, text, attempt)}]
    # The second attempt has the temperature of the first; the evaluator raises it afterwards.
    return endpoint.body(messages, MAX_TOKENS, STEP * max(0, attempt - 2))


def graded(
    endpoint: Endpoint,
    questions: Sequence[Asked],
    answers: Sequence[Answer | None],
    cache: Cache,
    *,
    workers: int = 4,
    asking: Ask = ask,
) -> dict[str, Judged | RequestError]:
    """The judge's last word on each question with an answer, by key. Errors as ``asking.ask_all``."""
    open_questions = list(_asked(questions, answers))
    said: dict[str, Judged | RequestError] = {}
    for attempt in range(1, TRIES + 1):
        wanted = [_body(endpoint, one, answer.text, attempt) for one, answer in open_questions]
        replies = ask_all(endpoint, wanted, cache, workers=workers, asking=asking)
        said |= {one.key: reply for (one, _), reply in zip(open_questions, replies, strict=True)}
        open_questions = [pair for pair in open_questions if _unread(said[pair[0].key])]
        if not open_questions:
            break
    return said


def _unread(reply: Judged | RequestError) -> bool:
    return isinstance(reply, Judged) and grade_in(reply.text) is None


def score(
    questions: Sequence[Asked],
    answers: Sequence[Answer | None],
    problems: Sequence[Problem],
    said: Mapping[str, Judged | RequestError],
    *,
    model: str,
    files: tuple[tuple[str, str], ...],
    resamples: int = 1000,
    seed: int = 0,
) -> Scored:
    """Total and capabilities. Questions without an answer or a grade count 0, as in the evaluator, and are named."""
    results, found = [], list(problems)
    for question, answer in zip(questions, answers, strict=True):
        reply = said.get(question.key)
        grade = grade_in(reply.text) if isinstance(reply, Judged) else None
        status = "answered" if grade is not None else "missing" if answer is None else "failed"
        if reply is not None and grade is None:
            why = str(reply) if isinstance(reply, RequestError) else f'no grade in "{shown(reply.text, 40)}"'
            found.append(Problem("failed", question.key, f"the judge: {why}"))
        groups = {"capabilities": "+".join(question.capabilities)}
        text = "" if answer is None else answer.text
        parsed = "" if grade is None else str(grade)
        results.append(Result(question.key, text, parsed, (question.truth,), grade or 0.0, groups, "", status))
    tally = capability_tally(results)
    values = {name: float(value[0]) for name, value in tally.metrics().items()}
    scored = Score("mm-vet", "official", "total", values, tuple(results), tuple(found))
    return Scored(scored, intervals(tally, resamples, seed), model, files)
