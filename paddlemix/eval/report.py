# SPDX-License-Identifier: Apache-2.0
"""One table over all score files of a folder: a row for each model, a column for each benchmark."""

from pathlib import Path
from typing import Any

from paddlemix.eval.benchmarks import BENCHMARKS
from paddlemix.eval.scoring import FORM, Scored, read_score
from paddlemix.eval.tables import cell, number, percent, score_value, spread, table
from paddlemix.utils import foreign
from paddlemix.utils.errors import DataError
from paddlemix.utils.paths import begins_at

PUBLISHED = {
    "LLaVA-1.5-7B": {
        "vqav2": 0.785, "gqa": 0.620, "vizwiz": 0.500, "scienceqa": 0.668, "textvqa": 0.582, "pope": 0.859,
        "mme": 1510.7, "mmbench": 0.643, "mmbench-cn": 0.583, "seed": 0.586,
    },
    "LLaVA-1.5-13B": {
        "vqav2": 0.800, "gqa": 0.633, "vizwiz": 0.536, "scienceqa": 0.716, "textvqa": 0.613, "pope": 0.859,
        "mme": 1531.3, "mmbench": 0.677, "mmbench-cn": 0.636, "seed": 0.616,
    },
    "LLaVA-1.6-7B (Vicuna)": {
        "vqav2": 0.818, "gqa": 0.642, "vizwiz": 0.576, "scienceqa": 0.701, "textvqa": 0.649, "pope": 0.865,
        "mme": 1519.0,
    },
}  # fmt: skip
"""Figures of LLaVA's model zoo. VQAv2, VizWiz and MMBench are of the authors' servers (test splits)."""


def read_folder(folder: Path) -> dict[str, Scored]:
    """The score files below a folder by their relative names; other JSON files are passed over."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder{begins_at(folder)}")
    found = {}
    for path in sorted(folder.rglob("*.json")):
        with foreign.open_regular(path, DataError) as stream:
            head = stream.read(100)
        if f'"{FORM}"'.encode() in head:
            found[str(path.relative_to(folder))] = read_score(path)
    if not found:
        raise DataError(f"{folder}: no score files in it; eval score writes them with --output")
    return found


def report_lines(scores: dict[str, Scored], *, published: bool = False) -> list[str]:
    """The table in Markdown: the main metric of each benchmark with its interval, then what is irregular."""
    columns = [name for name in BENCHMARKS if any(one.score.benchmark == name for one in scores.values())]
    rows: dict[str, dict[str, str]] = {}
    notes = []
    for name, one in scores.items():
        found = one.score
        model = one.model or name
        if found.benchmark in rows.get(model, {}):  # another run of it
            model = f"{model} ({name})"
        row = rows.setdefault(model, {})
        sure = one.intervals[found.main]
        text = f"{number(sure.value, found.benchmark)} ({spread(sure, found.benchmark)})"
        if found.convention != BENCHMARKS[found.benchmark].scorer.conventions[0]:
            text += f" [{found.convention}]"
        row[found.benchmark] = text
        if not found.complete:
            many = sum(problem.kind != "empty" for problem in found.problems)
            notes.append(f"- {cell(name)}: {many} answers are missing, failed, double or of no question")
    lines = [("model", *(f"{BENCHMARKS[c].title}, {'%' if percent(c) else 'points'}" for c in columns))]
    body = [(cell(model, 80), *(row.get(column, "") for column in columns)) for model, row in rows.items()]
    if published:
        body += [
            (f"{model} (published)", *(number(v[c], c) if c in v else "" for c in columns))
            for model, v in PUBLISHED.items()
        ]
    metrics = [f"- {BENCHMARKS[c].title}: {next(s.score.main for s in scores.values() if s.score.benchmark == c)}"
               for c in columns]  # fmt: skip
    return [*table(lines[0], body), "", "Metrics, with 95 % intervals:", "", *metrics, *(["", *notes] if notes else [])]


def report_value(scores: dict[str, Scored]) -> dict[str, Any]:
    """The same as a JSON value, with all metrics, by file."""
    return {name: score_value(one) for name, one in scores.items()}
