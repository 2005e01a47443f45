# SPDX-License-Identifier: Apache-2.0
"""Questions, answers and the score that follows from them: one result a question, and every irregularity by its name.

Nothing is left out in silence. A question without an answer, or with one that a harness wrote because its request
failed, counts as wrong and is named; of several answers to one question the last one counts, as in the dictionaries of
the original scripts, and the others are named.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from paddlemix.utils.errors import ConfigError, DataError
from paddlemix.utils.registry import nearest
from paddlemix.utils.shown import shown

FAILED_TEXTS = (
    "[LMMS_EVAL_REQUEST_FAILED", "[LMMS_EVAL_BUDGET_EXCEEDED]", "Failed to obtain answer via API", "$ERROR$",
    "**NETWORK ERROR DUE TO",
)  # fmt: skip
"""How answers begin that are none: lmms-eval, VLMEvalKit and LLaVA's server write these when a request fails."""

KINDS = ("missing", "failed", "duplicate", "unknown", "empty")
"""Kinds of problems, the gravest first. An empty answer is the model's own; the others are faults of the run."""


@dataclass(frozen=True)
class Question:
    """What is known about one question. ``expected``: the right answer, or the answers that people gave.

    ``groups``: how results are broken down, for example ``{"category": "random"}``. Questions of one ``unit`` (the
    image of MME) are drawn together when samples are drawn; empty: the question is its own unit. ``choices``: how many
    options it offers, 0 for an open question.
    """

    key: str
    expected: tuple[str, ...]
    groups: Mapping[str, str] = field(default_factory=dict)
    unit: str = ""
    choices: int = 0


@dataclass(frozen=True)
class Answer:
    """One record of an answer file. ``where`` names it in messages; ``failure``: why there is no answer in ``text``."""

    key: str
    text: str
    where: str = ""
    failure: str = ""

    @property
    def failed(self) -> bool:
        """Whether the text is none of the model's."""
        return is_failure(self.text, self.failure)


def is_failure(text: str, failure: str = "") -> bool:
    """Whether an answer is none: a failure was recorded, or the text is what a harness writes in its place."""
    return bool(failure) or text.lstrip().startswith(FAILED_TEXTS)


@dataclass(frozen=True)
class Result:
    """What an answer is worth: ``value`` from 0 to 1. ``parsed``: what the rule took from the text.

    ``status`` is "answered", "missing" or "failed"; in the last two ``parsed`` is empty and ``value`` 0.
    """

    key: str
    text: str
    parsed: str
    expected: tuple[str, ...]
    value: float
    groups: Mapping[str, str]
    unit: str
    status: str = "answered"


@dataclass(frozen=True)
class Problem:
    """An irregularity of an answer file. ``kind`` is one of ``KINDS``."""

    kind: str
    key: str
    text: str


Sums = Mapping[str, np.ndarray]
"""Named sums over units, each of shape [R] for R samples."""


class Tally:
    """The sums from which all metrics of a score follow, kept by unit so that samples of units can be drawn.

    ``rows``: named addends of each unit. ``derive``: the metrics [R] from sums [R]; 0/0 is nan.
    """

    def __init__(self, rows: Sequence[Mapping[str, float]], derive: Callable[[Sums], dict[str, np.ndarray]]) -> None:
        self.names = list(dict.fromkeys(name for row in rows for name in row))
        place = {name: column for column, name in enumerate(self.names)}
        self.columns = np.zeros((len(rows), len(self.names)))
        for line, row in enumerate(rows):
            for name, value in row.items():
                self.columns[line, place[name]] = value
        self.derive = derive

    def metrics(self, counts: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Each metric [R]; ``counts`` [R, units] says how often each unit is in each sample (default: once)."""
        if counts is None:
            counts = np.ones((1, len(self.columns)))
        sums = counts @ self.columns
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.derive({name: sums[:, column] for column, name in enumerate(self.names)})


@dataclass(frozen=True)
class Scorer:
    """The rules of one benchmark. The first of ``conventions`` is the originals' own.

    ``grade(question, text, convention)``: what was parsed, and its value. ``tally(results)``: the sums of the metrics.
    ``main``: the metric that publications give. ``beside``: what a training logs with it. ``points``: metrics that are
    no shares of 1.
    """

    name: str
    conventions: tuple[str, ...]
    grade: Callable[[Question, str, str], tuple[str, float]]
    tally: Callable[[Sequence[Result]], Tally]
    main: str
    points: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Score:
    """Metrics by name, one result for each question in the order of the questions, and the problems."""

    benchmark: str
    convention: str
    main: str
    metrics: dict[str, float]
    results: tuple[Result, ...]
    problems: tuple[Problem, ...]

    def count(self, kind: str) -> int:
        """How many problems of a kind there are."""
        return sum(problem.kind == kind for problem in self.problems)

    @property
    def complete(self) -> bool:
        """Whether every question has exactly one answer of the model's."""
        return all(problem.kind == "empty" for problem in self.problems)


def score(
    scorer: Scorer, questions: Sequence[Question], answers: Iterable[Answer], convention: str | None = None
) -> Score:
    """Grade every question by the rules of ``convention`` (default: the originals').

    ConfigError for a convention that the scorer does not know; DataError when there are no questions, or when no
    answer belongs to one of them.
    """
    convention = convention or scorer.conventions[0]
    if convention not in scorer.conventions:
        known = ", ".join(scorer.conventions)
        raise ConfigError(
            f'unknown convention "{shown(convention)}" for {scorer.name}{nearest(convention, scorer.conventions)} '
            f"(known: {known})"
        )
    taken, problems = match(questions, answers)
    results = tuple(
        _result(scorer, question, answer, convention) for question, answer in zip(questions, taken, strict=True)
    )
    metrics = {name: float(value[0]) for name, value in scorer.tally(results).metrics().items()}
    return Score(scorer.name, convention, scorer.main, metrics, results, tuple(problems))


def _result(scorer: Scorer, question: Question, answer: Answer | None, convention: str) -> Result:
    if answer is None or answer.failed:
        status = "missing" if answer is None else "failed"
        text = "" if answer is None else answer.text
        return Result(question.key, text, "", question.expected, 0.0, question.groups, question.unit, status)
    parsed, value = scorer.grade(question, answer.text, convention)
    return Result(question.key, answer.text, parsed, question.expected, value, question.groups, question.unit)


def match(questions: Sequence[Question], answers: Iterable[Answer]) -> tuple[list[Answer | None], list[Problem]]:
    """The answer of each question, or None, and what is irregular.

    A key that several questions share takes its answers in their order.
    """
    given: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        given[answer.key].append(answer)
    wanted: dict[str, int] = defaultdict(int)
    for question in questions:
        wanted[question.key] += 1
    _require_some(questions, given)
    problems = []
    for key, found in given.items():
        surplus = found if key not in wanted else found[: -wanted[key]]
        for answer in surplus:
            kind, why = ("duplicate", "answered again later") if key in wanted else ("unknown", "no such question")
            problems.append(Problem(kind, key, f"{answer.where}: {why}"))
        given[key] = found[-wanted[key] :] if key in wanted else []
    taken: list[Answer | None] = []
    for question in questions:
        rest = given.get(question.key)
        answer = rest.pop(0) if rest else None
        taken.append(answer)
        problems += _problems(question, answer)
    return taken, sorted(problems, key=lambda problem: KINDS.index(problem.kind))


def _problems(question: Question, answer: Answer | None) -> list[Problem]:
    if answer is None:
        return [Problem("missing", question.key, "no answer")]
    if answer.failed:
        return [Problem("failed", question.key, f"{answer.where}: {shown(answer.failure or answer.text, 80)}")]
    return [] if answer.text.strip() else [Problem("empty", question.key, f"{answer.where}: no text")]


def _require_some(questions: Sequence[Question], given: Mapping[str, list[Answer]]) -> None:
    if not questions:
        raise DataError("there are no questions; the question file may be one of another benchmark")
    if given and not any(question.key in given for question in questions):
        first = next(iter(given.values()))[0]
        raise DataError(
            f'{first.where}: question_id "{shown(first.key, 80)}" and all others are unknown; the questions begin with '
            f'"{shown(questions[0].key, 80)}". Are these answers of another benchmark or split?'
        )


def mean_tally(results: Sequence[Result], name: str = "accuracy") -> Tally:
    """The mean of the values, over all and over each group: ``accuracy``, ``accuracy/category=random``."""
    rows: dict[str, dict[str, float]] = {}
    for number, result in enumerate(results):
        row = rows.setdefault(result.unit or f"#{number}", defaultdict(float))
        for label in ("", *(f"/{group}={value}" for group, value in sorted(result.groups.items()))):
            row[f"sum {name}{label}"] += result.value
            row[f"n {name}{label}"] += 1

    def derive(sums: Sums) -> dict[str, np.ndarray]:
        return {key[2:]: sums[f"sum {key[2:]}"] / sums[key] for key in sums if key.startswith("n ")}

    return Tally(list(rows.values()), derive)
