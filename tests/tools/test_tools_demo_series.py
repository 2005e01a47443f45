# SPDX-License-Identifier: Apache-2.0
"""The series of demo runs: every run once, as its seed and tuning say, and a summary that names the worst."""

import json
import os

import pytest

from tools import demo_series


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """What was run, with the accuracies of a table in place of trainings."""
    found = []
    reached = {(0, "on"): 0.99, (0, "off"): 0.98, (1, "on"): 0.975, (1, "off"): 1.0}

    def one(run, out):
        found.append((run["seed"], run["tuning"]))
        if not reached[found[-1]]:
            raise KeyboardInterrupt
        return {"reached": reached[found[-1]], "cpu": 60.0, "results": {}}

    monkeypatch.setattr(demo_series, "one", one)
    monkeypatch.setattr(os, "nice", lambda by: by)
    monkeypatch.chdir(tmp_path)
    return found, reached


def test_a_series_goes_on_where_it_was_stopped_and_ends_with_median_and_worst(runs, capsys):
    found, reached = runs
    worst, reached[(1, "on")] = reached[(1, "on")], 0
    assert demo_series.main(["--seeds", "2"]) == 130
    reached[(1, "on")] = worst
    assert demo_series.main(["--seeds", "2"]) == 0
    assert found == [(0, "on"), (0, "off"), (1, "on"), (1, "on"), (1, "off")]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("4 runs: median 98.50 %, worst 97.50 % (seed 1, tuning on); CPU time (user and system)")


def test_runs_of_another_recipe_do_not_count(runs, tmp_path):
    found, _ = runs
    assert demo_series.main(["--seeds", "1", "--tuning", "on"]) == 0
    kept = tmp_path / "demo_series" / "series.jsonl"
    row = json.loads(kept.read_text())
    row["run"]["code"] = "other"
    kept.write_text(json.dumps(row) + "\n")
    assert demo_series.main(["--seeds", "1", "--tuning", "on"]) == 0
    assert found == [(0, "on"), (0, "on")]


@pytest.mark.parametrize(
    ("tuning", "settings"),
    [
        ("on", ["PADDLEMIX_CPU_TUNING=1"]),
        ("off", ["PADDLEMIX_CPU_TUNING=0"]),
        ("avx2", ["PADDLEMIX_CPU_TUNING=1", "MKL_ENABLE_INSTRUCTIONS=AVX2"]),
    ],
)
def test_a_run_is_the_demo_with_its_seed_and_its_tuning(tmp_path, monkeypatch, tuning, settings):
    seen = {}

    def run(command, **_):
        seen.update(command=command)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "results.json").write_text('{"accuracy": 0.98}')
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(demo_series.subprocess, "run", run)
    done = demo_series.one({"demo": "shapes", "seed": 5, "tuning": tuning}, tmp_path / "out")
    assert done["reached"] == 0.98
    assert seen["command"][: 1 + len(settings)] == ["env", *settings]
    flags = ["--out", str(tmp_path / "out"), "--seed", "5", "--no-lora", "--no-chat"]
    assert seen["command"][2 + len(settings) :] == ["-m", "paddlemix.demo", *flags]
    assert not (tmp_path / "out").exists()
