# SPDX-License-Identifier: Apache-2.0
"""LLaVA's reviews: a judge reads two answers to a question beside a description of the image, and gives both a score.

Question, context, rule and answer files, prompts and records are those of LLaVA's ``eval_gpt_review_visual.py`` (90
questions on COCO; contexts with ``captions`` and ``instances``) and ``eval_gpt_review_bench.py`` (LLaVA-Bench in the
wild; contexts with ``caption``). The scripts pair the lines of the files by their place; here ids do it, so that an
answer that is missing shifts nothing.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddlemix.eval.answer_files import AnswerRecord
from paddlemix.eval.judge.endpoint import Judged, Message, RequestError
from paddlemix.eval.records import Record, read_lines, read_object
from paddlemix.eval.scorers.score import Problem, is_failure
from paddlemix.utils.errors import ConfigError, DataError
from paddlemix.utils.registry import nearest
from paddlemix.utils.shown import shown

SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
"""What LLaVA's scripts tell the judge that it is."""
TEMPERATURE, MAX_TOKENS = 0.2, 1024
"""Of LLaVA's scripts."""
BENCH = "llava_bench_"
"""Rules for LLaVA-Bench have this before the category."""
FAILED = (-1, -1)
"""What LLaVA's scripts write where they find no two scores."""
CONVENTIONS = ("llava", "lmms-eval")


@dataclass(frozen=True)
class Pair:
    """A question with the two answers that are reviewed. ``context`` is what the judge reads in place of the image."""

    question_id: str | int
    question: str
    image: str
    category: str
    context: str
    answers: tuple[AnswerRecord, AnswerRecord]
    ids: tuple[str | int, str | int]
    role: str
    rule: str

    @property
    def prompt(self) -> str:
        """What is said to the judge."""
        parts = [f"[Context]\n{self.context}", f"[Question]\n{self.question}"]
        for number, answer in enumerate(self.answers, 1):
            parts += [f"[{self.role} {number}]\n{answer.text}", f"[End of {self.role} {number}]"]
        return "\n\n".join([*parts, f"[System]\n{self.rule}"]) + "\n\n"

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation that is sent."""
        return {"role": "system", "content": SYSTEM}, {"role": "user", "content": self.prompt}


@dataclass(frozen=True)
class Review:
    """What came of a pair: the judge's text and the two scores, or None in their place with the reason."""

    pair: Pair
    text: str
    scores: tuple[float, float] | None
    why: str = ""

    def line(self, number: int) -> str:
        """The record of LLaVA's scripts; ``number`` counts from 1."""
        record = {
            "id": number,
            "question_id": self.pair.question_id,
            "answer1_id": self.pair.ids[0],
            "answer2_id": self.pair.ids[1],
            "category": self.pair.category,
            "content": self.text,
            "tuple": list(self.scores or FAILED),
        }
        return json.dumps(record) + "\n"


def scores_in(review: str) -> tuple[float, float] | None:
    """The two scores in the first line, by the rule of LLaVA's scripts; None when they would note -1.

    Commas become spaces, and what single spaces part must be two numbers: "8 9" and "8,9" are, "8, 9" and "8 9 " are
    not. Unlike there, nan and infinity, which would make every mean of the file so, are none.
    """
    parts = review.split("\n")[0].replace(",", " ").split(" ")
    if len(parts) != 2:
        return None
    try:
        first, second = float(parts[0]), float(parts[1])
    except ValueError:
        return None
    return (first, second) if math.isfinite(first) and math.isfinite(second) else None


def reviewed(pair: Pair, answer: Judged | RequestError) -> Review:
    """The review that an answer of the judge is."""
    if isinstance(answer, RequestError):
        return Review(pair, "", None, str(answer))
    scores = scores_in(answer.text)
    first = answer.text.split("\n")[0]
    return Review(pair, answer.text, scores, "" if scores else f'no two scores in the first line, "{shown(first, 80)}"')


def read_pairs(
    questions: Path, context: Path, answers: Sequence[Sequence[AnswerRecord]], rule: Path, convention: str = "llava"
) -> tuple[list[Pair], list[Problem]]:
    """The pairs to review in the order of the questions, and what is irregular: such questions are not reviewed.

    ``convention`` is about contexts whose ``caption`` is a text and no list: ``llava`` puts a line end behind each of
    its letters, as the script does, ``lmms-eval`` takes it as it is.
    """
    if convention not in CONVENTIONS:
        known = ", ".join(CONVENTIONS)
        raise ConfigError(
            f'unknown convention "{shown(convention)}"{nearest(convention, CONVENTIONS)} (known: {known})'
        )
    contexts = {record.text("image"): record for record in read_lines(context)}
    rules = read_object(rule)
    problems: list[Problem] = []
    rows = list(read_lines(questions))
    if not rows:
        raise DataError(f"{questions}: no questions")
    keys = [record.name("question_id") for record in rows]
    given = [_by_id(one, set(keys), number, problems) for number, one in enumerate(answers, 1)]
    pairs, seen = [], set()
    for key, record in zip(keys, rows, strict=True):
        if key in seen:
            raise record.fault("question_id", f'"{shown(key, 80)}" stands twice in the file')
        seen.add(key)
        both = [_answer(key, one, number, problems) for number, one in enumerate(given, 1)]
        if all(both):
            pairs.append(_pair(record, contexts, context, both, rules, convention))
    if not pairs:
        raise DataError(f"{questions}: no question has both answers; are these answers to other questions?")
    return pairs, problems


def _by_id(
    records: Sequence[AnswerRecord], known: set[str], number: int, problems: list[Problem]
) -> dict[str, AnswerRecord]:
    found: dict[str, AnswerRecord] = {}
    for record in records:
        key = str(record.question_id)
        if key not in known:
            problems.append(Problem("unknown", key, f"{record.where}: no such question"))
            continue
        if key in found:
            problems.append(Problem("duplicate", key, f"{found[key].where}: answered again later"))
        found[key] = record
    return found


def _answer(key: str, given: Mapping[str, AnswerRecord], number: int, problems: list[Problem]) -> AnswerRecord | None:
    record = given.get(key)
    if record is None:
        problems.append(Problem("missing", key, f"no answer in file {number} of --answer-list"))
        return None
    if is_failure(record.text, record.failure):
        problems.append(Problem("failed", key, f"{record.where}: {shown(record.failure or record.text, 80)}"))
        return None
    if not record.text.strip():
        problems.append(Problem("empty", key, f"{record.where}: no text"))
    return record


def _pair(
    record: Record,
    contexts: Mapping[str, Record],
    file: Path,
    both: Sequence[AnswerRecord | None],
    rules: Record,
    convention: str,
) -> Pair:
    image = record.text("image")
    if image not in contexts:
        raise record.fault("image", f'"{shown(image, 80)}" has no context in {file}')
    inst = contexts[image]
    bench = "caption" in inst.value
    category = (BENCH if bench else "") + record.text("category")
    if category not in rules.value:
        has = ", ".join(list(rules.value)[:12])
        raise record.fault("category", f'"{shown(category, 80)}" has no rule in {rules.place} (it has {shown(has)})')
    rule = rules.record(category)
    one, other = (answer for answer in both if answer is not None)
    return Pair(
        record.value["question_id"], record.text("text"), image, category,
        _bench_context(inst, convention) if bench else _boxes_context(inst),
        (one, other), (_id(one), _id(other)), rule.text("role"), rule.text("prompt"),
    )  # fmt: skip


def _id(answer: AnswerRecord) -> str | int:
    return answer.answer_id or answer.question_id


def _bench_context(record: Record, convention: str) -> str:
    if isinstance(record.get("caption"), str):
        text = record.text("caption")
        return "\n".join(text) if convention == "llava" else text
    return "\n".join(record.texts("caption"))


def _boxes_context(record: Record) -> str:
    boxes = "\n".join(f"{one.text('category')}: {_box(one)}" for one in record.records("instances"))
    return "\n".join(record.texts("captions")) + f"\n\n{boxes}"


def _box(instance: Record) -> list[Any]:
    numbers = instance.items("bbox")
    if not all(type(number) in (int, float) for number in numbers):
        raise instance.fault("bbox", f"expected numbers, got {shown(numbers, 80)}")
    return numbers


def review_problems(reviews: Sequence[Review]) -> Iterator[Problem]:
    """The reviews without scores, by name."""
    for review in reviews:
        if review.scores is None:
            yield Problem("failed", str(review.pair.question_id), review.why)
