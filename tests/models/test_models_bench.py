# SPDX-License-Identifier: Apache-2.0
"""tools/bench.py measures what it says, in processes of its own."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tools import bench


@pytest.mark.parametrize("kind", ["decode", "chat"])
def test_bench_prints_medians_and_ratios(kind, tmp_path, capsys):
    result = tmp_path / "result.json"
    assert bench.main([kind, "--shape", "tiny", "--repeat", "3", "--json", str(result)]) == 0
    printed, data = capsys.readouterr().out, json.loads(result.read_text())
    assert f"{kind}, shape tiny, median of 3" in printed
    assert all(seconds > 0 for seconds in data["seconds"].values())
    stages = {"decode": ["decode"], "chat": ["kept", "again"]}[kind]
    for stage in stages:
        ratio = data["seconds"][f"tuned {stage}"] / data["seconds"][f"untuned {stage}"]
        assert data["ratios"][f"tuned/untuned {stage}"] == pytest.approx(ratio)
    if kind == "chat":
        assert data["ratios"]["round 2 first token, kept/again"] < 1


def test_a_worker_that_dies_is_an_error(capfd):
    broken = bench.Contestant("broken", [sys.executable, "-c", "raise SystemExit(3)"], {})
    with pytest.raises(SystemExit, match="broken: the worker ended with code 3"):
        broken.ask()
    broken.process.stdin.close()
