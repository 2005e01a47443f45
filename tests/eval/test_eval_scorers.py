# SPDX-License-Identifier: Apache-2.0
"""Scorers without an original of their own to compare with, intervals, and what scorers may import."""

import ast
import math
import random
from pathlib import Path

import numpy as np
import pytest

from paddlemix.eval.scorers import boxes, texts
from paddlemix.eval.scorers.choices import option_letter
from paddlemix.eval.scorers.intervals import intervals, mcnemar, paired
from paddlemix.eval.scorers.score import Answer, Question, Result, match, mean_tally, score
from paddlemix.eval.scorers.yes_no import exact_yes_no, mme_yes_no_internvl, mme_yes_no_lmms, yes_no_words
from paddlemix.text import scores

SCORERS = Path(texts.__file__).parent


def test_scorers_import_numpy_utils_and_text_scores_alone() -> None:
    allowed = ("paddlemix.utils.", "paddlemix.text.scores.", "paddlemix.eval.scorers.", "numpy")
    standard = {"functools", "math", "re", "string", "collections", "collections.abc", "dataclasses"}
    for path in SCORERS.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert all(name in standard or f"{name}.".startswith(allowed) for name in names), (path.name, names)


# ---- rules of the harnesses, and our own --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "exact", "mme", "words"),
    [
        (" Yes\n", "yes", "yes", "yes"),
        ("no.", "other", "no", "no"),
        ("Y", "other", "yes", "other"),
        ("n.", "other", "no", "other"),
        ("Yes, there is no dog", "other", "yes", "other"),
        ("There is no dog", "other", "other", "no"),
        ("know", "other", "no", "other"),
        ("y e s", "other", "other", "other"),
        ("", "other", "other", "other"),
    ],
)
def test_yes_and_no_as_the_harnesses_read_them(text: str, exact: str, mme: str, words: str) -> None:
    assert (exact_yes_no(text), mme_yes_no_lmms(text), yes_no_words(text)) == (exact, mme, words)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("是", "yes"), ("不是", "no"), ("否。", "no"), ("True", "yes"), ("fa\nlse", "no"), ("图中yes", "yes"),
        ("Yes", "yes"), ("图", "other"), ("it is true", "other"),
    ],
)  # fmt: skip
def test_yes_and_no_of_mme_as_internvl_reads_them(text: str, found: str) -> None:
    assert mme_yes_no_internvl(text) == found


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"), ("B.", "B"), (" (B) the dog", "B"), ("B: dog", "B"), ("B) dog", "B"), ("B, because", "B"),
        ("The answer is B.", "B"), ("Answer: (C)", "C"), ("I think the answer is D", "D"),
        ("Bread", ""), ("b", ""), ("E", ""), ("", ""), ("A dog", ""), ("dog", ""),
        ("I see (B)", ""), ("The answer is E", ""),
    ],
)  # fmt: skip
def test_the_letter_of_an_option(text: str, letter: str) -> None:
    assert option_letter(text, 4) == letter


@pytest.mark.parametrize(
    ("one", "other", "value"),
    [
        ((0, 0, 1, 1), (0, 0, 1, 1), 1.0),
        ((0, 0, 1, 1), (0.5, 0, 1.5, 1), 1 / 3),
        ((0, 0, 1, 1), (1, 0, 2, 1), 0.0),
        ((0, 0, 0, 0), (0, 0, 0, 0), 0.0),
        ((0.5, 0.5, 0.1, 0.1), (0, 0, 1, 1), 0.0),  # corners the wrong way round
    ],
)
def test_iou(one: boxes.Box, other: boxes.Box, value: float) -> None:
    assert boxes.iou(one, other) == pytest.approx(value)
    assert boxes.iou(other, one) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("at [0.1, 0.25,0.5,1] and [0, 0, 1, 1]", (0.1, 0.25, 0.5, 1.0)),
        ("<box>[[10, 20, 30, 40]]</box>", (10, 20, 30, 40)),
        ("(1, 2, 3, 4)", (1, 2, 3, 4)),
        ("[-0.5, 0, 1, 1]", (-0.5, 0, 1, 1)),
        ("0.1, 0.2, 0.3, 0.4", None),
        ("[1, 2, 3]", None),
        ("[1, 2, 3, 4, 5]", None),
    ],
)
def test_the_first_box_of_an_answer(text: str, found: boxes.Box | None) -> None:
    assert boxes.first_box(text) == found


def test_boxes_in_thousandths_are_shares_after_reading() -> None:
    question = Question("a", ("[0.1, 0.1, 0.5, 0.4]",))
    assert boxes.grade(question, "[[100, 100, 500, 400]]", "thousand") == ("[0.1, 0.1, 0.5, 0.4]", pytest.approx(1.0))
    assert boxes.grade(question, "[[100, 100, 500, 400]]", "unit")[1] == 0.0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<ref>x</ref><box>[[100, 200, 300, 400]]</box>", (0.1, 0.2, 0.3, 0.4)),
        ("[0.1, 0.2, 0.3, 0.4]", (0.1, 0.2, 0.3, 0.4)),
        ("[[1, 1, 1, 1]]", (0.001, 0.001, 0.001, 0.001)),
        ("[1e2, 200 , 300, 400] [0, 0, 1, 1]", (0.1, 0.2, 0.3, 0.4)),
        ("[a, 1, 2, 3] [0, 0, 1, 1]", None),
        ("[nan, 1, 2, 3]", None),
        ("(1, 2, 3, 4)", None),
        ("[1, 2, 3]", None),
    ],
)
def test_the_box_as_internvl_reads_it(text: str, found: boxes.Box | None) -> None:
    assert boxes.internvl_box(text) == (found and pytest.approx(found))


def slow_common(one: list[str], other: list[str]) -> int:
    """By its definition."""
    if not one or not other:
        return 0
    if one[0] == other[0]:
        return 1 + slow_common(one[1:], other[1:])
    return max(slow_common(one[1:], other), slow_common(one, other[1:]))


def test_rouge_l_is_the_longest_common_subsequence() -> None:
    draw = random.Random(0)
    for _ in range(300):
        one, other = ([draw.choice("abc") for _ in range(draw.randint(0, 7))] for _ in range(2))
        common = slow_common(one, other)
        precision, recall = (common / len(side) if side else 0.0 for side in (one, other))
        wanted = 2 * precision * recall / (precision + recall) if common else 0.0
        assert scores.rouge_l(" ".join(one), " ".join(other)) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The cat-dog's 2 hats!", ["the", "cat", "dog", "s", "2", "hats"]),
        ("一只red狗", ["一", "只", "red", "狗"]),
        ("ひと 한국", ["ひ", "と", "한", "국"]),
        ("Ärger straße", ["ä", "rger", "stra", "ß", "e"]),
        ("snake_case", ["snake", "case"]),
        ("...", []),
    ],
)
def test_words_of_rouge_l(text: str, found: list[str]) -> None:
    assert scores.words(text) == found


# ---- matching -----------------------------------------------------------------------------------------------------


def test_a_key_of_several_questions_takes_its_answers_in_order() -> None:
    questions = [Question("a", ("1",)), Question("b", ("1",)), Question("a", ("1",))]
    answers = [Answer("a", str(n), f"f:{n}") for n in range(4)]
    taken, problems = match(questions, answers)
    assert [one and one.text for one in taken] == ["2", None, "3"]
    assert [(one.kind, one.key, one.text) for one in problems] == [
        ("missing", "b", "no answer"),
        ("duplicate", "a", "f:0: answered again later"),
        ("duplicate", "a", "f:1: answered again later"),
    ]


# ---- intervals ----------------------------------------------------------------------------------------------------


def results(values: list[float], units: list[str] | None = None) -> list[Result]:
    units = units or [""] * len(values)
    return [
        Result(str(n), "", "", ("",), value, {}, unit)
        for n, (value, unit) in enumerate(zip(values, units, strict=True))
    ]


def test_the_interval_of_a_share_is_that_of_the_binomial() -> None:
    """0.5 of 400: the standard error is 2.5 %, so that 95 % lie within 4.9 points; the seed decides the rest."""
    tally = mean_tally(results([0.0, 1.0] * 200))
    found = intervals(tally, resamples=2000, seed=1)["accuracy"]
    assert found.value == 0.5
    assert 0.5 - found.low == pytest.approx(0.049, abs=0.006)
    assert found.high - 0.5 == pytest.approx(0.049, abs=0.006)
    assert intervals(tally, resamples=2000, seed=1)["accuracy"] == found
    assert intervals(tally, resamples=2000, seed=2)["accuracy"] != found


def test_questions_of_a_unit_are_drawn_together() -> None:
    """Units whose questions agree have a wider interval than as many single questions."""
    values = [float(n % 2) for n in range(100) for _ in range(4)]
    single = intervals(mean_tally(results(values)), resamples=500)["accuracy"]
    units = intervals(mean_tally(results(values, [f"u{n}" for n in range(100) for _ in range(4)])), resamples=500)
    assert units["accuracy"].high - units["accuracy"].low > 1.6 * (single.high - single.low)


def test_samples_do_not_depend_on_the_size_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    from paddlemix.eval.scorers import intervals as module

    tally = mean_tally(results([0.0, 1.0, 1.0] * 20))
    whole = intervals(tally, resamples=50)
    monkeypatch.setattr(module, "_CELLS", 200)
    assert intervals(tally, resamples=50) == whole


def test_a_paired_comparison_is_surer_than_two_intervals() -> None:
    draw = np.random.default_rng(0)
    before = (draw.random(500) < 0.5).astype(float)
    after = np.where(draw.random(500) < 0.06, 1.0, before)
    a, b = mean_tally(results(list(before))), mean_tally(results(list(after)))
    found = paired(a, b, resamples=1000)["accuracy"]
    assert found.difference.value == pytest.approx(after.mean() - before.mean())
    assert 0 < found.difference.low < found.difference.value < found.difference.high < 0.08
    assert found.p_value < 0.01
    assert intervals(a)["accuracy"].high > after.mean(), "the intervals alone overlap"
    assert paired(b, a, resamples=1000)["accuracy"].difference.value == -found.difference.value
    with pytest.raises(ValueError, match="cannot be paired"):
        paired(a, mean_tally(results([1.0])))


@pytest.mark.parametrize(
    ("only_a", "only_b", "p_value"),
    [(0, 0, 1.0), (0, 3, 0.25), (1, 9, 0.021484375), (10, 10, 1.0), (2000, 2200, 0.002136)],
)  # the binomial test, from its tables; the last one by its normal approximation with the continuity correction
def test_mcnemar(only_a: int, only_b: int, p_value: float) -> None:
    a = results([1.0] * only_a + [0.0] * only_b + [1.0, 0.0])
    b = results([0.0] * only_a + [1.0] * only_b + [1.0, 0.0])
    found = mcnemar(a, b)
    assert found is not None
    assert (found.only_a, found.only_b) == (only_a, only_b)
    assert found.p_value == pytest.approx(p_value, rel=1e-2)
    assert mcnemar(results([0.5]), results([1.0])) is None


def test_a_metric_without_a_question_is_nan_and_does_not_stop() -> None:
    from paddlemix.eval.scorers.pope import POPE

    questions = [Question(str(n), ("no",), {"category": "random"}) for n in range(3)]
    found = score(POPE, questions, [Answer(str(n), "no") for n in range(3)])
    assert found.metrics["accuracy"] == 1.0
    assert math.isnan(found.metrics["precision"])
    assert math.isnan(found.metrics["mean_f1"])
    sure = intervals(POPE.tally(found.results), resamples=10)
    assert math.isnan(sure["recall"].low)
