# SPDX-License-Identifier: Apache-2.0
"""tools/bench.py measures what it says, in processes of its own."""

import json
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tools import bench


@pytest.mark.parametrize(("kind", "repeat"), [("decode", "1"), ("chat", "3")])
def test_bench_prints_medians_and_ratios(kind, repeat, tmp_path, capsys):
    result = tmp_path / "result.json"
    assert bench.main([kind, "--shape", "tiny", "--repeat", repeat, "--json", str(result)]) == 0
    printed, data = capsys.readouterr().out, json.loads(result.read_text())
    assert f"{kind}, shape tiny, median of {repeat}" in printed
    assert all(seconds > 0 for seconds in data["seconds"].values())
    stages = {"decode": ["decode"], "chat": ["kept", "again"]}[kind]
    for stage in stages:
        ratio = data["seconds"][f"tuned {stage}"] / data["seconds"][f"untuned {stage}"]
        assert data["ratios"][f"tuned/untuned {stage}"] == pytest.approx(ratio)
    assert ("shares of them:" in printed) == bool(data["shares"])
    if kind == "chat":
        assert data["ratios"]["round 2 first token, kept/again"] < 1


def test_bench_of_head_and_loss_compares_time_and_memory(capsys):
    shape = ["--positions", "2048", "--width", "8", "--vocab", "500", "--labelled", "0.5", "--repeat", "1"]
    assert bench.main(["head", *shape]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["whole", "portions", "labelled"]
    memory = [float(re.search(r"([\d.]+) MB", line)[1]) for line in lines[1:]]
    assert memory[0] > memory[1] >= memory[2]
    assert all("x whole: time" in line and "memory" in line
               for line, found in zip(lines[2:], memory[1:], strict=True))  # fmt: skip


def test_a_peer_that_is_no_program_is_refused_before_anything_is_measured(capsys):
    with pytest.raises(SystemExit) as ended:
        bench.main(["decode", "--peer", "/nowhere/python"])
    assert ended.value.code == 2
    assert "--peer /nowhere/python: there is no such program" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["foo"], ["--repeat", "1", "static"]])
def test_a_kind_that_is_not_at_its_place_is_told_all_kinds(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        bench.main(arguments)
    assert ended.value.code == 2
    assert "expected vision, prefill, decode, batch, chat; load, head, static" in capsys.readouterr().err


def test_a_worker_that_dies_is_an_error(capfd):
    broken = bench.Contestant("broken", [sys.executable, "-c", "raise SystemExit(3)"], {})
    with pytest.raises(SystemExit, match="broken: the worker ended with code 3"):
        broken.ask()
    broken.process.stdin.close()
