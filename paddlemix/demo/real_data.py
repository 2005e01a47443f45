# SPDX-License-Identifier: Apache-2.0
"""What the demo on a real language model is taught and asked: sentences about drawn images, questions without one."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from paddlemix.demo.data import Question, Task
from paddlemix.demo.shapes import Scene

SENTENCE = 24
"""Tokens of an answer about an image; the longest right one has 14."""
KEPT = 48
"""Tokens of an answer to a question without an image; one that is longer is not trained with."""


def _caption(scene: Scene) -> Iterator[Question]:
    for shape in scene.shapes:
        yield Question("caption", "Describe the picture.", f"a {shape.colour} {shape.kind} in the {shape.place} corner")


def _describe(scene: Scene) -> Iterator[Question]:
    for shape in scene.shapes:
        says = f"The picture shows a {shape.colour} {shape.kind} in the {shape.place} corner."
        yield Question("description", "What is in the picture?", says)
        yield Question("description", "Describe the picture.", says)


def _shape(scene: Scene) -> Iterator[Question]:
    for shape in scene.shapes:
        yield Question("shape", "What shape is it?", f"It is a {shape.kind}.")
        yield Question("shape", f"What is the {shape.colour} thing?", f"The {shape.colour} thing is a {shape.kind}.")


def _colour(scene: Scene) -> Iterator[Question]:
    for shape in scene.shapes:
        yield Question("colour", "What colour is it?", f"It is {shape.colour}.")
        yield Question("colour", f"What colour is the {shape.kind}?", f"The {shape.kind} is {shape.colour}.")


def _place(scene: Scene) -> Iterator[Question]:
    for shape in scene.shapes:
        yield Question("place", "Where is it?", f"It is in the {shape.place} corner.")
        yield Question("place", f"Where is the {shape.kind}?", f"The {shape.kind} is in the {shape.place} corner.")


CAPTION: Task = (_caption,)
TALK: Task = (_describe, _shape, _colour, _place)

TOLD = (
    "What is the capital of Italy?",
    "What is the capital of Spain?",
    "What is the capital of Japan?",
    "What is the capital of Egypt?",
    "How many days has a week?",
    "How many months are in a year?",
    "What is frozen water called?",
    "Say hello in French.",
    "What is the opposite of big?",
    "Which season comes after winter?",
    "What is 2 + 2?",
    "Which planet do we live on?",
    "Name three fruits.",
    "What is the largest ocean?",
    "Write one sentence about the sea.",
    "Write one sentence about a cat.",
    "Thank you!",
)
"""Questions without an image that stage 2 mixes in, with the language model's own answers."""

FACTS: Mapping[str, str] = {
    "What is the capital of France?": "Paris",
    "What is the capital of Germany?": "Berlin",
    "Which animal meows?": "cat",
    "What is the chemical formula of water?": "H2O",
    "What is the opposite of up?": "down",
    "How many hours has a day?": "24",
    "What is the largest planet in our solar system?": "Jupiter",
    "Who wrote Romeo and Juliet?": "Shakespeare",
    "What is the first month of the year?": "January",
    "What gas do plants take in?": "carbon dioxide",
    "What is the freezing point of water in Celsius?": "0",
    "What is the tallest mountain in the world?": "Everest",
}
"""Questions without an image that no stage shows, and what an answer has to hold."""


def add_text(rows: Path, answers: Mapping[str, str], times: int) -> None:
    """Put each question with its answer ``times`` times behind the rows of a training file (LLaVA's format)."""
    found = json.loads(rows.read_text(encoding="utf-8"))
    for number in range(times):
        for place, (question, answer) in enumerate(answers.items()):
            turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
            found.append({"id": f"text-{number}-{place}", "conversations": turns})
    rows.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def facts_told(answers: Mapping[str, str]) -> int:
    """How many of ``FACTS`` the answers hold."""
    return sum(fact.lower() in answers[question].lower() for question, fact in FACTS.items())
