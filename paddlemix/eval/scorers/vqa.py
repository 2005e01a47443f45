# SPDX-License-Identifier: Apache-2.0
"""VQA soft accuracy (VQAv2, VizWiz, TextVQA): how many of ten people gave the answer.

Conventions: ``llava`` is the M4C evaluator (answers and all ground truths through the EvalAI processor). ``official``
is the VQA challenge's evaluation, which processes answers only where the ten people disagree. ``lmms-eval`` processes
the answer always and the ground truths where people disagree (for TextVQA it does as LLaVA does).
"""

import re
from collections.abc import Sequence

from paddlemix.eval.scorers.score import Question, Scorer, mean_tally
from paddlemix.eval.scorers.words import challenge, evalai, one_line

PEOPLE = 10
"""Ground truths of a question. The evaluators refuse any other number."""


def soft_accuracy(answer: str, people: Sequence[str]) -> float:
    """The mean over the people of min(1, others who gave the answer / 3), all texts compared as they are."""
    given = people.count(answer)
    shares = [min(1, (given - (person == answer)) / 3) for person in people]
    return sum(shares) / len(shares)


def grade(question: Question, text: str, convention: str) -> tuple[str, float]:
    """The processed answer and its soft accuracy."""
    people = question.expected
    if convention == "llava":
        answer, people = evalai(text), [evalai(person) for person in people]
        return answer, soft_accuracy(answer, people)
    people = [one_line(person) for person in people]
    answer = evalai(text) if convention == "lmms-eval" else one_line(text)
    if len(set(people)) > 1:
        answer, people = challenge(answer), [challenge(person) for person in people]
    return answer, soft_accuracy(answer, people)


def textvqa_key(image_id: str, prompt: str) -> str | None:
    """The key of a TextVQA question, from the prompt that was asked; None when the prompt has no known form.

    LLaVA's answer files name the image alone, so that the question comes out of the prompt: its first line, or the
    second one when the line of OCR tokens is the first, or what stands between "Question: " and " Short answer:".
    """
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
        found = re.search(r"Question: (.*?) Short answer:", prompt, re.DOTALL)
        question = found[1] if found else None
    elif "Reference OCR token: " in prompt and len(lines) == 3:
        question = lines[1] if prompt.startswith("Reference OCR token:") else lines[0]
    else:
        question = lines[0] if len(lines) == 2 else None
    return None if question is None else textvqa_question_key(image_id, question)


def textvqa_question_key(image_id: str, question: str) -> str:
    """The key of a question of the annotation file."""
    return f"{image_id}: {question.lower()}"


VQA = Scorer("vqa", ("llava", "official", "lmms-eval"), grade, mean_tally, "accuracy")
TEXTVQA = Scorer("textvqa", ("llava", "official"), grade, mean_tally, "accuracy")
