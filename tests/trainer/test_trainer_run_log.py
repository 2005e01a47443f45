# SPDX-License-Identifier: Apache-2.0
"""train_log.jsonl and loss.png: what lies in them after kills and continuations."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from paddlemix.trainer.loss_plot import Curves, draw, loss_range, nice_ticks, smoothed, stretches, thinned, tick_text
from paddlemix.trainer.run_log import RunLog, read_events
from tests.trainer.run_kit import go, with_eval


def events(folder):
    return [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]


def steps(folder, kind="step"):
    return [event["step"] for event in events(folder) if event["event"] == kind]


def test_a_run_writes_each_entry_once_and_a_continued_one_goes_on_where_it_stands(place, tmp_path):
    keys = dict(
        with_eval(place), max_steps=6, num_train_epochs=None, save_strategy="steps", save_steps=2, do_eval="true",
        evaluation_strategy="steps", eval_steps=3,
    )  # fmt: skip
    go(place, tmp_path, **keys)
    first = events(tmp_path)
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert steps(tmp_path, "eval") == [3, 6]
    assert steps(tmp_path, "end") == steps(tmp_path, "final_eval") == [6]
    assert {"time", "epoch", "loss", "learning_rate", "grad_norm", "padding", "eta_seconds"} <= set(first[0])
    assert Image.open(tmp_path / "loss.png").size[0] == 1800
    # As a kill after step 5 leaves it: the newest checkpoint is that of step 4, the last line is torn.
    shutil.rmtree(tmp_path / "checkpoint-6")
    text = (tmp_path / "train_log.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "train_log.jsonl").write_text("".join(text[:6]) + text[6][:20])
    (tmp_path / "loss.png").unlink()
    go(place, tmp_path, **keys)
    assert [(event["event"], event["step"]) for event in events(tmp_path)] == [
        (event["event"], event["step"]) for event in first
    ]
    assert [event.get("loss") for event in events(tmp_path)] == [event.get("loss") for event in first]
    assert (tmp_path / "loss.png").is_file()
    go(place, tmp_path, **keys)  # finished already: the end is written again, nothing twice
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert steps(tmp_path, "final_eval") == [6]
    go(place, tmp_path, **{**keys, "max_steps": 1, "overwrite_output_dir": "true"})
    assert steps(tmp_path) == [1]


def test_a_line_is_json_without_nan_and_a_torn_line_is_left_out(tmp_path):
    log = RunLog(tmp_path)
    log.begin(0)
    log.add({"loss": float("nan"), "rewards/chosen": float("inf"), "global_step": 1}, 1, 0.5)
    log.add({"eval_loss": 1.0}, 1, None)
    with open(log.path, "a") as stream:
        stream.write('{"event": "step", "st')
    assert [event["event"] for event in read_events(log.path)] == ["step", "eval"]
    first = json.loads(log.path.read_text().splitlines()[0], parse_constant=pytest.fail)
    assert first["loss"] is None
    assert first["rewards/chosen"] is None
    assert "global_step" not in first
    other = RunLog(tmp_path)
    other.begin(1)
    other.add({"loss": 2.0}, 2, 1.0)
    assert [event["step"] for event in read_events(log.path)] == [1, 1, 2]
    assert log.path.read_text().endswith("\n")


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path, capsys):
    log = RunLog(tmp_path / "gone")
    log.begin(0)
    for step in (1, 2):
        log.add({"loss": 1.0}, step, 1.0)
    log.draw()
    assert capsys.readouterr().err.count("the log of the run cannot be written") == 1


def curve(values, first=1, every=1):
    curves = Curves()
    for number, value in enumerate(values):
        curves.add(first + every * number, {"loss": value, "learning_rate": 1e-4})
    return curves


@pytest.mark.parametrize(
    "curves",
    [curve([2.0]), curve([3.0, 2.0, 1.0]), curve([0.0] * 30), curve(np.linspace(-1, 1, 50)), curve([1.0] * 5000),
     curve([float("nan"), 1.0]), Curves(eval_loss=[(5, 1.0)]), curve([1.0] * 50 + [1e30])],
)  # fmt: skip
def test_every_run_has_a_picture(tmp_path, curves):
    draw(tmp_path / "loss.png", curves)
    assert Image.open(tmp_path / "loss.png").size[0] == 1800


def test_values_that_are_no_numbers_are_left_out():
    curves = curve([float("nan"), float("inf"), None, "1"])
    assert curves.empty


def test_a_spike_is_cut_and_counted_and_does_not_bend_the_smoothed_line():
    curves = curve([2.0 + 0.1 * (number % 2) for number in range(100)])
    curves.loss[50] = (51, 5000.0)
    low, high, cut = loss_range(curves)
    assert cut == [(51, 5000.0)]
    assert 1.8 < low < 2.0 < 2.1 < high < 2.3
    assert max(value for _, value in smoothed(curves.loss, high)) <= 2.1
    assert loss_range(curve(np.linspace(9, 1, 100)))[2] == []  # a steep fall is no spike


def test_the_smoothed_line_does_not_lag_and_reaches_both_ends():
    falling = [(step, 100.0 - step) for step in range(101)]
    assert [value for _, value in smoothed(falling)] == pytest.approx([value for _, value in falling])


def test_a_line_is_broken_where_steps_are_missing_and_keeps_its_spikes_when_thinned():
    points = [(step, 1.0) for step in range(0, 100, 10)]
    assert stretches(points) == [points]
    gap = [point for point in points if not 20 < point[0] < 80]
    assert [len(part) for part in stretches(gap)] == [3, 2]
    many = [(step, float(step == 77_777)) for step in range(100_000)]
    assert len(thinned(many)) <= 1600
    assert (77_777, 1.0) in thinned(many)


@pytest.mark.parametrize(
    ("low", "high", "most", "ticks"),
    [(0, 1, 6, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0.93, 4.7, 6, [1, 2, 3, 4]), (1, 3, 9, [1, 1.5, 2, 2.5, 3])],
)
def test_ticks_are_round_numbers(low, high, most, ticks):
    assert nice_ticks(low, high, most) == pytest.approx(ticks)
    assert nice_ticks(1, 3, 9, whole=True) == [1, 2, 3]


def test_ticks_are_written_with_the_digits_that_they_need():
    assert [tick_text(value, [0, 0.1, 0.2, 0.3]) for value in (0, 0.1, 0.30000000000000004)] == ["0", "0.1", "0.3"]
    assert [tick_text(value, [0, 5e-6, 1e-5]) for value in (5e-6, 1e-5)] == ["5e-06", "1e-05"]
