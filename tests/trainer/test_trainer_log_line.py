# SPDX-License-Identifier: Apache-2.0
"""The console lines of a log entry."""

import itertools

import pytest

from paddlemix.trainer.log_line import console_lines, duration

FULL = {
    "loss": -123456.789,
    "learning_rate": 0.000123456,
    "grad_norm": 123456.789,
    "global_step": 10**9,
    "interval_runtime": 12345.6789,
    "interval_samples_per_second": 123456.789,
    "interval_steps_per_second": 123.456,
    "interval_tokens_per_second": 1234567890.1,
    "padding": 0.999,
    "mfu": 0.4567,
    "max_memory_allocated": 123.456,
    "eta_seconds": 999 * 86400 + 86399,
    "epoch": 12345.678,
}
USUAL = {
    **FULL,
    "loss": 1.2345,
    "learning_rate": 2e-5,
    "grad_norm": 0.7123,
    "interval_tokens_per_second": 12345.0,
    "interval_samples_per_second": 16.1,
    "padding": 0.12,
    "max_memory_allocated": 61.23,
    "eta_seconds": 11525,
}


@pytest.mark.parametrize(
    "extra", [{}, {"x" * 300: 1e300, "a\nb\x1b[31m": -1.0}, {f"rewards/{n}": 1e-9 for n in range(30)}]
)
def test_no_line_is_longer_than_100_columns(extra):
    names = [name for name in FULL if name != "loss"]
    for left_out in itertools.chain([()], itertools.combinations(names, 1), itertools.combinations(names, 4)):
        entry = {name: value for name, value in {**FULL, **extra}.items() if name not in left_out}
        lines = console_lines(entry, 10**9, 10**9)
        assert max(map(len, lines)) <= 100, lines
        assert all(line.isprintable() for line in lines)


def test_the_usual_line_of_a_card_says_all_that_a_person_asks_first():
    (line,) = console_lines(USUAL, 1200, 5197)
    assert line == ("step: 1200/5197, loss: 1.234, lr: 2e-05, grad_norm: 0.7123, 12,345 tokens/s, MFU 46%, ETA 3:12:05")
    short = {name: value for name, value in USUAL.items() if name not in ("grad_norm", "mfu", "learning_rate")}
    assert console_lines(short, 12, 51) == [
        "step: 12/51, loss: 1.234, 12,345 tokens/s, 16.1 rows/s, padding 12%, 61.2 GiB, ETA 3:12:05"
    ]


def test_what_a_method_adds_stands_on_the_line_or_on_lines_of_its_own():
    assert console_lines({"eval_loss": 2.0, "eval_rouge_l": 0.25, "eval_runtime": 3.0, "eval_labels": 9}, 2, 4) == [
        "step: 2/4, eval_loss: 2, eval_rouge_l: 0.25"
    ]
    lines = console_lines({**USUAL, "rewards/chosen": 0.5, "rewards/margins": 1.25, "note": "text", "on": True}, 3, 9)
    assert lines[1:] == ["  rewards/chosen: 0.5, rewards/margins: 1.25"]


def test_benchmarks_and_predictions_are_shown_without_a_loss_beside_them():
    asked = {"eval_pope_accuracy": 0.5, "eval_own_accuracy": 0.25, "eval_benchmarks_runtime": 3.0}
    assert console_lines(asked, 2, 4) == ["step: 2/4, eval_pope_accuracy: 0.5, eval_own_accuracy: 0.25"]
    assert console_lines({"predict_rows": 3, "predict_rouge_l": 0.5, "predict_runtime": 1.0}, 4, 4) == [
        "step: 4/4, predict_rows: 3, predict_rouge_l: 0.5"
    ]
    assert console_lines({"eval_benchmarks_runtime": 3.0}, 2, 4) == []


def test_an_entry_without_a_loss_has_no_line():
    assert console_lines({"train_runtime": 1.0}, 1, 2) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (86399, "23:59:59"), (86400 + 3660, "1d 01:01")],
)
def test_a_duration_is_short(seconds, text):
    assert duration(seconds) == text
