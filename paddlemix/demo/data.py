# SPDX-License-Identifier: Apache-2.0
"""Questions about the images, and the files of a run: PNG images, LLaVA JSON for training, test questions."""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paddlemix.demo.shapes import Scene, Shape, draw_scenes, paint
from paddlemix.utils.constants import IMAGE_TOKEN
from paddlemix.utils.errors import DataError

LONGEST = 12
"""Tokens of an answer; the longest right one has 5."""
NUMBERS = ("one", "two", "three", "four")


@dataclass(frozen=True)
class Question:
    """A question with its only right answer. ``picture`` is the file it is about."""

    kind: str
    text: str
    answer: str
    picture: str = ""


@dataclass(frozen=True)
class Answer:
    """A question and what the model said."""

    question: Question
    said: str

    @property
    def right(self) -> bool:
        """Whether it is the expected answer, letter for letter."""
        return self.said == self.question.answer


def accuracy(answers: Sequence[Answer]) -> float:
    """Part of the answers that are right."""
    return sum(answer.right for answer in answers) / len(answers)


def by_kind(answers: Sequence[Answer]) -> dict[str, tuple[int, int]]:
    """For each kind of question: right answers, and questions."""
    found: dict[str, tuple[int, int]] = {}
    for answer in answers:
        right, asked = found.get(answer.question.kind, (0, 0))
        found[answer.question.kind] = (right + answer.right, asked + 1)
    return dict(sorted(found.items()))


def _thing(scene: Scene) -> Iterator[Question]:
    for shape in _only(scene):
        yield Question("thing", "What is in the picture?", f"a {shape.colour} {shape.kind}")


def _shape(scene: Scene) -> Iterator[Question]:
    for shape in _only(scene):
        yield Question("shape", "What shape is it?", shape.kind)
        yield Question("shape", f"What shape is the {shape.colour} one?", shape.kind)


def _colour(scene: Scene) -> Iterator[Question]:
    for shape in _only(scene):
        yield Question("colour", "What colour is the shape?", shape.colour)
        yield Question("colour", f"What colour is the {shape.kind}?", shape.colour)


def _place(scene: Scene) -> Iterator[Question]:
    for shape in _only(scene):
        yield Question("place", "Where is the shape?", shape.place)
        yield Question("place", f"Where is the {shape.kind}?", shape.place)


def _only(scene: Scene) -> tuple[Shape, ...]:
    """The shape of a scene that has one; these questions have no single answer when there are several."""
    return scene.shapes if len(scene.shapes) == 1 else ()


def _count(scene: Scene) -> Iterator[Question]:
    yield Question("count", "How many shapes are there?", NUMBERS[len(scene.shapes) - 1])


Task = tuple[Callable[[Scene], Iterator[Question]], ...]
"""The kinds of questions of a task: each gives all questions of its kind that a scene has."""

LOOK: Task = (_thing, _shape, _colour, _place)
COUNT: Task = (_count,)


OFTEN: Mapping[Callable[[Scene], Iterator[Question]], int] = {_thing: 2, _shape: 2}
"""Kinds that a training asks for this many times as often as the others. Colours and places are learnt in a hundred
steps; shapes take longest, and are what a model mistakes where it never saw that thing."""


def ask(
    scene: Scene, task: Task, rng: random.Random, rounds: int, often: Mapping[Any, int] | None = None
) -> list[Question]:
    """At most ``rounds`` different questions about a scene in random order; every kind as likely as the others.

    ``often`` makes some kinds likelier (see ``OFTEN``).
    """
    left = {kind: list(kind(scene)) for kind in task}
    for questions in left.values():
        rng.shuffle(questions)
    found: list[Question] = []
    while len(found) < rounds and (open_kinds := [kind for kind in task if left[kind]]):
        weights = [(often or {}).get(kind, 1) for kind in open_kinds]
        found.append(left[rng.choices(open_kinds, weights)[0]].pop())
    return found


def write_training(
    folder: Path, name: str, rounds: Sequence[tuple[Task, int]], seed: int, pictures: int, most: int = 1
) -> Path:
    """``name.json`` in LLaVA's format and its images; returns the path of the JSON file.

    Every image has one conversation: so many rounds of each task as ``rounds`` says, in random order.
    """
    rng = random.Random(f"questions {name} {seed}")
    rows = []
    for file, scene in _write_pictures(folder, name, seed, pictures, most, unseen=False):
        questions = [question for task, count in rounds for question in ask(scene, task, rng, count, OFTEN)]
        rng.shuffle(questions)
        turns = [
            {"from": speaker, "value": value}
            for question in questions
            for speaker, value in (("human", question.text), ("gpt", question.answer))
        ]
        turns[0]["value"] = f"{IMAGE_TOKEN}\n{turns[0]['value']}"
        rows.append({"id": Path(file).stem, "image": file, "conversations": turns})
    path = folder / f"{name}.json"
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return path


def write_test(folder: Path, name: str, task: Task, seed: int, pictures: int, most: int = 1) -> list[Question]:
    """One question for each of ``pictures`` images that show combinations no training shows; ``name.json``."""
    rng = random.Random(f"questions {name} {seed}")
    questions = []
    for file, scene in _write_pictures(folder, name, seed, pictures, most, unseen=True):
        (question,) = ask(scene, task, rng, 1)
        questions.append(Question(question.kind, question.text, question.answer, file))
    rows = [asdict(question) for question in questions]
    (folder / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return questions


def _write_pictures(
    folder: Path, name: str, seed: int, pictures: int, most: int, *, unseen: bool
) -> Iterator[tuple[str, Scene]]:
    (folder / name).mkdir(parents=True, exist_ok=True)
    for number, scene in zip(range(pictures), draw_scenes(seed, name, most, unseen=unseen), strict=False):
        file = f"{name}/{number:05d}.png"
        paint(scene).save(folder / file, compress_level=1)
        yield file, scene


def require_unseen(folder: Path, training: Sequence[str], tests: Sequence[str]) -> int:
    """Check that no image of ``tests`` is, byte for byte, one of ``training``; returns how many were compared."""
    known = {_digest(path): path for name in training for path in sorted((folder / name).glob("*.png"))}
    compared = 0
    for path in (path for name in tests for path in sorted((folder / name).glob("*.png"))):
        if _digest(path) in known:
            raise DataError(f"{path} is the same image as {known[_digest(path)]}; choose another --seed")
        compared += 1
    return compared


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def best_guess(training: Path, questions: Sequence[Question]) -> float:
    """Accuracy of the best answer without looking: for each question the one most frequent in ``training``."""
    seen: dict[str, Counter[str]] = {}
    for row in json.loads(training.read_text(encoding="utf-8")):
        texts = [turn["value"].removeprefix(f"{IMAGE_TOKEN}\n") for turn in row["conversations"]]
        for question, answer in zip(texts[::2], texts[1::2], strict=True):
            seen.setdefault(question, Counter())[answer] += 1
    right = sum(
        question.text in seen and seen[question.text].most_common(1)[0][0] == question.answer for question in questions
    )
    return right / len(questions)


def all_texts(training: Sequence[Path]) -> Iterator[str]:
    """Every sentence of the training files: what the vocabulary is made from."""
    for path in training:
        for row in json.loads(path.read_text(encoding="utf-8")):
            for turn in row["conversations"]:
                yield turn["value"].removeprefix(f"{IMAGE_TOKEN}\n")
