# SPDX-License-Identifier: Apache-2.0
"""Each scorer against a literal restatement of the original's rule (``originals.py``), on thousands of answers."""

import math
import random
from fractions import Fraction

import pytest

from paddlemix.eval.scorers import words
from paddlemix.eval.scorers.choices import LETTERS, SCIENCEQA, science_letter
from paddlemix.eval.scorers.gqa import GQA
from paddlemix.eval.scorers.mme import COGNITION, MME, PERCEPTION, mme_key
from paddlemix.eval.scorers.pope import POPE
from paddlemix.eval.scorers.score import Answer, Question, score
from paddlemix.eval.scorers.vqa import TEXTVQA, VQA, textvqa_key, textvqa_question_key
from paddlemix.eval.scorers.yes_no import mme_yes_no, pope_yes_no
from tests.eval import originals

PARTS = (
    "yes", "no", "Yes", "No", "NO", "YES", "not", "Not", "nope", "know", "y", "n", ".", ".", " ", " ", "  ", ",", ", ",
    "\n", "\t", "!", "?", ";", "/", "-", "(", ")", "[", "]", '"', "\\", "_", "@", "`", "<", ">", "=", "+", "{", "}",
    "A", "B", "C", "D", "E", "F", "G", "A.", "B. ", "C. cat", "The answer is ", "The answer is B.", "The answer is A",
    "The answer is A. The answer is A!", "The answer is C,The answer is D,",
    "the answer is C.", "The", "the", "a", "an", "A", "none", "zero", "two", "Ten", "eleven", "0", "2", "10", "10,000",
    "1,,2", "1.5", "3.", ".5", ". 5", "." * 33, ". " * 20, "it's", "'s", "'", "ow's'at",
    "somebody'd", "Im", "I'dve", "y'allll", "let's", "red", "Red", "cat", "two dogs", "unanswerable", "é", "İ", "ß",
    "１", "²", "٣", "\u00a0", "\u2003", "\x1c", "’s", "是", "否", "n/a", "0.", "1.000.000", "e.g.", "U.S.A.",
    *tuple(originals.WHOLE)[::12],
)  # fmt: skip
"""What answers are drawn from: words that the rules look for, and what stands in their way."""

COUNTS = [1_000, pytest.param(100_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]


def drawn_text(draw: random.Random) -> str:
    return "".join(draw.choice(PARTS) for _ in range(draw.randint(0, 6)))


def same(found: float, wanted: Fraction | None) -> bool:
    return math.isnan(found) if wanted is None else math.isclose(found, wanted, rel_tol=1e-12, abs_tol=1e-12)


def answers_of(questions: list[Question], texts: list[str]) -> list[Answer]:
    return [Answer(question.key, text, "answers") for question, text in zip(questions, texts, strict=True)]


@pytest.mark.parametrize("count", COUNTS)
def test_pope_equals_the_original(count: int) -> None:
    draw = random.Random(1)
    for _ in range(count // 20):
        texts = [drawn_text(draw) for _ in range(20)]
        labels = [draw.choice(("yes", "no")) for _ in texts]
        names = [draw.choice(("random", "popular")) for _ in texts]
        questions = [
            Question(str(n), (label,), {"category": name})
            for n, (label, name) in enumerate(zip(labels, names, strict=True))
        ]
        found = score(POPE, questions, answers_of(questions, texts))
        for text, result in zip(texts, found.results, strict=True):
            assert (result.parsed == "no") == originals.pope_says_no(text), repr(text)
            assert result.parsed == pope_yes_no(text)
        for name in set(names):
            part = [n for n in range(20) if names[n] == name]
            wanted = originals.pope([texts[n] for n in part], [labels[n] for n in part])
            for metric, value in wanted.items():
                key = f"{metric}/category={name}"
                if metric == "f1" and wanted["precision"] == 0 == wanted["recall"]:
                    value = None
                assert same(found.metrics[key], value), (key, texts, labels)
        for metric, value in originals.pope(texts, labels).items():
            assert same(found.metrics[metric], value), (metric, texts, labels)


@pytest.mark.parametrize("count", COUNTS)
def test_scienceqa_equals_the_original(count: int) -> None:
    draw = random.Random(2)
    for _ in range(count // 20):
        texts = [drawn_text(draw) for _ in range(20)]
        choices = [draw.randint(2, 5) for _ in texts]
        answers = [draw.randrange(many) for many in choices]
        images = [True, *(draw.random() < 0.5 for _ in texts[1:])]
        questions = [
            Question(str(n), (LETTERS[answers[n]],), {"image": "yes" if images[n] else "no"}, choices=choices[n])
            for n in range(20)
        ]
        for text, many in zip(texts, choices, strict=True):
            letter = science_letter(text, many)
            assert (LETTERS.index(letter) if letter else -1) == originals.science_choice(text, many), repr(text)
        found = score(SCIENCEQA, questions, answers_of(questions, texts))
        overall, with_image = originals.science(texts, answers, choices, images)
        assert same(found.metrics["accuracy"], overall)
        assert same(found.metrics["image_accuracy"], with_image)


def test_the_table_of_contractions_is_the_original_one() -> None:
    """Words with a capital letter, and those that stay as they are, have no effect there."""
    wanted = {short: whole for short, whole in originals.WHOLE.items() if short.islower() and short != whole}
    assert wanted == words.CONTRACTIONS


@pytest.mark.parametrize("count", COUNTS)
def test_the_evalai_processor_equals_the_original(count: int) -> None:
    draw = random.Random(3)
    for _ in range(count):
        text = drawn_text(draw)
        assert words.evalai(text) == originals.evalai(text), repr(text)
        assert words.without_punctuation(text) == originals.marks_gone(text), repr(text)


def people(draw: random.Random) -> tuple[str, ...]:
    """Ten answers that repeat, in forms that processing may make the same."""
    pool = [drawn_text(draw) for _ in range(draw.randint(1, 4))]
    pool += [pool[0].upper(), f"the {pool[0]}", f"{pool[0]}."]
    return tuple(draw.choice(pool[: draw.randint(1, len(pool))]) for _ in range(10))


@pytest.mark.parametrize("count", COUNTS)
def test_vqa_accuracy_equals_the_originals(count: int) -> None:
    draw = random.Random(4)
    for _ in range(count // 10):
        questions = [Question(str(n), people(draw)) for n in range(10)]
        texts = [draw.choice((*variants(question.expected[0]), drawn_text(draw))) for question in questions]
        for convention, rule in RULES.items():
            found = score(VQA, questions, answers_of(questions, texts), convention)
            wanted = [rule(text, list(q.expected)) for text, q in zip(texts, questions, strict=True)]
            for result, value in zip(found.results, wanted, strict=True):
                assert same(result.value, value), (convention, result)
            assert same(found.metrics["accuracy"], sum(wanted) / 10)


RULES = {"llava": originals.m4c, "official": originals.vqa_challenge, "lmms-eval": originals.vqa_lmms}


def variants(text: str) -> tuple[str, ...]:
    """A text, and others that processing may make the same."""
    return text, text.upper(), f"{text}.", f"an {text}", f" {text}\n"


def prompts(draw: random.Random, question: str) -> str:
    asked = "Answer the question using a single word or phrase."
    return draw.choice(
        (
            f"{question}\n{asked}",
            f"{question}\nReference OCR token: a, b\n{asked}",
            f"Reference OCR token: a, b\n{question}\n{asked}",
            f"OCR tokens: a, b. Question: {question} Short answer:",
        )
    )


@pytest.mark.parametrize("count", COUNTS)
def test_textvqa_equals_the_original(count: int) -> None:
    draw = random.Random(5)
    for _ in range(count // 10):
        annotations = [
            {
                "image_id": draw.choice(("x", "y")),
                "question": draw.choice(("What IS it?", "what is it?", "Which brand?", "Who?")),
                "answers": list(people(draw)),
            }
            for _ in range(10)
        ]
        results = [
            {
                "question_id": one["image_id"],
                "prompt": prompts(draw, one["question"]),
                "text": draw.choice((*one["answers"], drawn_text(draw))),
            }
            for one in annotations
        ]
        draw.shuffle(results)
        keys = [textvqa_question_key(one["image_id"], one["question"]) for one in annotations]
        last = {key: tuple(one["answers"]) for key, one in zip(keys, annotations, strict=True)}
        questions = [Question(key, last[key]) for key in keys]
        given = [Answer(textvqa_key(r["question_id"], r["prompt"]) or "", r["text"]) for r in results]
        found = score(TEXTVQA, questions, given)
        assert found.complete
        assert same(found.metrics["accuracy"], originals.textvqa(results, annotations))


@pytest.mark.parametrize("count", COUNTS)
def test_mme_equals_the_original(count: int) -> None:
    draw = random.Random(6)
    for _ in range(count // 80):
        tasks = draw.sample((*PERCEPTION, *COGNITION), 4)
        lines = {task: [(draw.choice(("yes", "no")), drawn_text(draw)) for _ in range(20)] for task in tasks}
        questions, given = [], []
        for task, asked in lines.items():
            for n, (label, text) in enumerate(asked):
                key = mme_key(f"{task}/{n // 2}.png", f"{n}? Please answer yes or no.")
                questions.append(Question(key, (label,), {"category": task}, unit=f"{task}/{n // 2}"))
                prompt = f"{n}?\nAnswer the question using a single word or phrase."
                given.append(Answer(mme_key(f"{task}/images/{n // 2}.jpg", prompt), text))
                assert mme_yes_no(text) == originals.mme_reading(text), repr(text)
        draw.shuffle(given)
        found = score(MME, questions, given)
        points = {task: originals.mme_task(asked) for task, asked in lines.items()}
        for task in tasks:
            assert same(found.metrics[f"score/category={task}"], points[task])
        for name, members in (("perception", PERCEPTION), ("cognition", COGNITION)):
            if set(members) & set(tasks):
                assert same(found.metrics[name], sum(points[task] for task in tasks if task in members))


@pytest.mark.parametrize("count", COUNTS)
def test_gqa_equals_the_original(count: int) -> None:
    draw = random.Random(7)
    for _ in range(count // 20):
        truths = [draw.choice(("yes", "no", "red", "cat", "a.", "i̇")) for _ in range(20)]
        texts = [draw.choice((truth, truth.upper() + "..", f"{truth} .", drawn_text(draw))) for truth in truths]
        kinds = [draw.choice(("query", "verify", "choose")) for _ in truths]
        questions = [
            Question(str(n), (truths[n],), {"type": "open" if kinds[n] == "query" else "binary"}) for n in range(20)
        ]
        found = score(GQA, questions, answers_of(questions, texts))
        for name, value in originals.gqa(texts, truths, kinds).items():
            key = name if name == "accuracy" else f"accuracy/type={name}"
            assert same(found.metrics[key], value), (name, texts, truths)
