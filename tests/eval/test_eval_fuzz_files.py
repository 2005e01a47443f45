# SPDX-License-Identifier: Apache-2.0
"""Answer, question and score files of any form: scored, or refused with an error of ours. Never anything else."""

import json
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from paddlemix.eval import uploads
from paddlemix.eval.answer_files import read_answers
from paddlemix.eval.asked import questions_of
from paddlemix.eval.benchmarks import BENCHMARKS
from paddlemix.eval.compare import compare_files, comparison_lines
from paddlemix.eval.report import read_folder, report_lines, report_of
from paddlemix.eval.scoring import score_files, write_score
from paddlemix.eval.tables import score_lines
from paddlemix.utils.errors import PaddleMixError
from tests.eval import eval_kit as kit
from tests.fuzz.fuzz_kit import edit

NAMES = tuple(kit.FOLDERS)
UPLOADED = ("gqa", "seed", "mmbench")
COUNTS = [300, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]


@contextmanager
def ours(outcomes: Counter[str]) -> Iterator[None]:
    """The errors of the body have to be ours, and readable."""
    try:
        yield
        outcomes["taken"] += 1
    except PaddleMixError as error:
        outcomes["refused"] += 1
        text = str(error)
        assert 0 < len(text) <= 9000
        assert text.isprintable(), text


def lines_of(rng: random.Random, data: bytes) -> bytes:
    """JSON lines with some of their records changed, or a JSON file with changes."""
    try:
        return edit(rng, [json.loads(data)], ["question_id", "text", "answers"])
    except json.JSONDecodeError:
        rows = data.splitlines()
        place = rng.randrange(len(rows)) if rows else 0
        try:
            value: Any = json.loads(rows[place])
        except (json.JSONDecodeError, IndexError):  # a table, or MME's text
            value = data.decode()
            cut = rng.randrange(len(value) + 1)
            return (value[:cut] + rng.choice(("", "\t", "\n", '"', "\0")) + value[cut + rng.randrange(3) :]).encode()
        rows[place] = edit(rng, [value], ["metadata", "label", "category"])
        return b"\n".join(rows)


def made(folder: Path, draw: random.Random, names: tuple[str, ...] = NAMES) -> tuple[str, Path, Path]:
    """A benchmark's name, folder and answers, with one of its files changed."""
    name = draw.choice(names)
    home = folder / name
    if not home.exists():
        _, answers = kit.FOLDERS[name][0](home / "data")
        kit.write_lines(home / "answers.jsonl", answers)
        for path in [path for path in home.rglob("*") if path.is_file()]:
            path.with_name(f"{path.name}.kept").write_bytes(path.read_bytes())
    kept = sorted(home.rglob("*.kept"))
    for path in kept:
        path.with_suffix("").write_bytes(path.read_bytes())
    path = draw.choice(kept)
    path.with_suffix("").write_bytes(lines_of(draw, path.read_bytes()))
    return name, home / "data", home / "answers.jsonl"


@pytest.mark.parametrize("count", COUNTS)
def test_odd_files_are_scored_or_refused(count: int, tmp_path: Path) -> None:
    """One of the files of a benchmark, or its answers, is odd."""
    draw, outcomes = random.Random(1), Counter[str]()
    for _ in range(count):
        name, data, answers = made(tmp_path, draw)
        with ours(outcomes):
            scored = score_files(BENCHMARKS[name], [answers], data, resamples=2)
            assert len(scored.score.results) >= 1
            score_lines(scored)
        if name in ("pope", "mmbench"):
            with ours(outcomes):
                assert questions_of(name, data, all_rounds=True)
    assert min(outcomes["refused"], outcomes["taken"]) > count / 10, "both happen"


@pytest.mark.parametrize("count", COUNTS)
def test_odd_files_are_uploaded_or_refused(count: int, tmp_path: Path) -> None:
    """The same when an upload file is written."""
    draw, outcomes = random.Random(2), Counter[str]()
    for _ in range(count):
        name, data, answers = made(tmp_path, draw, UPLOADED)
        with ours(outcomes):
            uploads.UPLOADS[name][0](read_answers([answers]), data)
    assert min(outcomes["refused"], outcomes["taken"]) > count / 20, "both happen"


@pytest.mark.parametrize("count", COUNTS)
def test_odd_score_files_are_read_or_refused(count: int, tmp_path: Path) -> None:
    """A score file is odd: a comparison and a report say so."""
    draw, outcomes = random.Random(3), Counter[str]()
    data, answers = kit.pope(tmp_path / "data")
    kit.write_lines(tmp_path / "answers.jsonl", answers)
    good, odd = tmp_path / "scores" / "good.json", tmp_path / "scores" / "odd.json"
    write_score(good, score_files(BENCHMARKS["pope"], [tmp_path / "answers.jsonl"], data, resamples=2))
    value = json.loads(good.read_bytes())
    for _ in range(count):
        odd.write_bytes(edit(draw, [value], ["form", "unit", "status"]))
        with ours(outcomes):
            comparison_lines(compare_files(good, odd, resamples=2))
            report_lines(report_of(read_folder(tmp_path / "scores"), published=True))
    assert min(outcomes["refused"], outcomes["taken"]) > count / 20, "both happen"
