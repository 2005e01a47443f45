# SPDX-License-Identifier: Apache-2.0
"""What the demo on a real language model is taught and asked: sentences about drawn images, questions without one."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from paddlemix.demo.data import Question, Task
from paddlemix.demo.shapes import Scene

SENTENCE = 24
"""Tokens of an answer about an image; the longest right one has 14."""
KEPT = 96
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
    "What is the capital of Russia?",
    "What is the capital of Canada?",
    "What is the capital of Greece?",
    "What is the capital of Portugal?",
    "What is the capital of Norway?",
    "What is the capital of China?",
    "Which language do people speak in Austria?",
    "Which continent is Kenya in?",
    "Which continent is India in?",
    "What is the currency of Japan?",
    "What is the currency of the United States?",
    "What is the smallest country in the world?",
    "What is the longest river in the world?",
    "What is the largest ocean?",
    "What is the largest desert in the world?",
    "What is the fastest land animal?",
    "What is the tallest animal?",
    "Which animal gives us milk?",
    "Which animal has a trunk?",
    "What do cows eat?",
    "What is a baby dog called?",
    "How many legs has a spider?",
    "How many legs has a horse?",
    "How many days has a week?",
    "How many months are in a year?",
    "How many minutes has an hour?",
    "How many seconds are in a minute?",
    "How many sides has a triangle?",
    "How many letters are in the English alphabet?",
    "How many continents are there?",
    "How many planets are in our solar system?",
    "How many players are in a football team?",
    "How many strings has a violin?",
    "What is the last month of the year?",
    "What is the second day of the week?",
    "Which day comes after Friday?",
    "Which month comes after May?",
    "Which season comes after winter?",
    "What is the opposite of big?",
    "What is the opposite of fast?",
    "What is the opposite of old?",
    "What is the opposite of happy?",
    "What is the opposite of light?",
    "What is the plural of mouse?",
    "What is the past tense of go?",
    "What is another word for begin?",
    "What is the chemical formula of table salt?",
    "What is the chemical symbol of gold?",
    "What is the chemical symbol of iron?",
    "What is the boiling point of water in Celsius?",
    "What is frozen water called?",
    "What gas makes balloons rise?",
    "What is the smallest planet in our solar system?",
    "Which planet do we live on?",
    "Which planet is closest to the Sun?",
    "Which planet is known as the Red Planet?",
    "What is the name of our galaxy?",
    "What is the closest star to the Earth?",
    "What is the speed of light?",
    "What force pulls things to the ground?",
    "What is the largest organ of the human body?",
    "Which organ pumps blood?",
    "How many bones are in the human body?",
    "Who wrote The Odyssey?",
    "Who wrote War and Peace?",
    "Who painted the Mona Lisa?",
    "Who composed the Ninth Symphony?",
    "Who invented the telephone?",
    "Who was the first president of the United States?",
    "Who was the first person on the Moon?",
    "In which year did the Second World War end?",
    "In which country are the pyramids of Giza?",
    "In which city is the Colosseum?",
    "What is the tallest building in the world?",
    "What is 2 + 2?",
    "What is 7 + 5?",
    "What is 10 - 3?",
    "What is 6 times 7?",
    "What is half of 20?",
    "What colour do you get from blue and yellow?",
    "What colour is the sky?",
    "What colour is a ripe banana?",
    "Name three fruits.",
    "Name a musical instrument.",
    "Name two planets.",
    "What is cheese made from?",
    "What do we call a person who flies a plane?",
    "What do we call a person who bakes bread?",
    "What do you use to cut paper?",
    "Where do fish live?",
    "Where does the Sun rise?",
    "Say hello in French.",
    "Say thank you in Spanish.",
    "Write one sentence about the sea.",
    "Write one sentence about a cat.",
    "Write one sentence about winter.",
    "Write one sentence about a train.",
    "Is the Earth flat?",
    "Is ice cold?",
    "Thank you!",
    "Hello!",
    "How are you?",
    "Good morning!",
    "Who are you?",
    "Can you help me?",
    "What is a computer?",
    "What is gravity?",
)
"""Questions without an image that stage 2 mixes in, with the language model's own answers.

Many different ones: with 17 of them, each seen six times, the tuned model gave 2 of 12 answers as before and rambled in
one. All are such that SmolLM2 ends its answer within ``KEPT`` tokens."""

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
