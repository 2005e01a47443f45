# SPDX-License-Identifier: Apache-2.0
"""One table over all score files of a folder: a row for each model, a column for each benchmark."""

import contextlib
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddlemix.eval.benchmarks import BENCHMARKS
from paddlemix.eval.published import PUBLISHED, Published
from paddlemix.eval.running import record_of
from paddlemix.eval.scorers.intervals import Interval
from paddlemix.eval.scoring import FORM, Scored, read_score
from paddlemix.eval.tables import cell, number, percent, score_value, spread, table
from paddlemix.utils import foreign
from paddlemix.utils.errors import DataError
from paddlemix.utils.paths import begins_at


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


@dataclass(frozen=True)
class Cell:
    """A main metric with its interval; ``note``: the convention, when it is not the originals', and ``--limit``."""

    benchmark: str
    sure: Interval
    note: str = ""

    @property
    def text(self) -> str:
        """The value, the interval in brackets, the note."""
        text = number(self.sure.value, self.benchmark)
        if not math.isnan(self.sure.value):
            text += f" ({spread(self.sure, self.benchmark)})"
        return text + (f" [{self.note}]" if self.note else "")


@dataclass(frozen=True)
class Report:
    """``columns`` are benchmarks, ``rows`` the cells of each model, ``published`` rows beside; ``notes``: faults."""

    columns: tuple[str, ...]
    metrics: dict[str, str]
    rows: dict[str, dict[str, Cell]]
    published: tuple[Published, ...]
    notes: tuple[tuple[str, int], ...]


def report_of(scores: dict[str, Scored], *, published: bool = False) -> Report:
    """The table: a row for each model (another run of a benchmark has its own), a column for each benchmark."""
    columns = tuple(name for name in BENCHMARKS if any(one.score.benchmark == name for one in scores.values()))
    rows: dict[str, dict[str, Cell]] = {}
    paths: dict[str, str] = {}
    notes = []
    for name, one in scores.items():
        found = one.score
        model = one.model or name
        made = _made(one)
        path, limit = str(made.get("model_path") or ""), made.get("limit")
        if path and os.path.abspath(paths.setdefault(model, path)) != os.path.abspath(path):  # another of that name
            model = f"{model} ({path})"
        if found.benchmark in rows.get(model, {}):  # another run of it
            model = f"{model} ({name})"
        scorer = BENCHMARKS[found.benchmark].scorer
        usual = scorer is None or found.convention == scorer.conventions[0]
        rows.setdefault(model, {})[found.benchmark] = Cell(
            found.benchmark,
            one.intervals[found.main],
            ", ".join(
                filter(
                    None, ("" if usual else cell(found.convention, 40), f"--limit {cell(limit, 20)}" if limit else "")
                )
            ),
        )
        if not found.complete:
            notes.append((name, sum(problem.kind != "empty" for problem in found.problems)))
    beside = tuple(row for row in PUBLISHED if published and not set(columns).isdisjoint(row.values))
    metrics = {c: next(one.score.main for one in scores.values() if one.score.benchmark == c) for c in columns}
    return Report(columns, metrics, rows, beside, tuple(notes))


def _made(one: Scored) -> dict[str, Any]:
    """How the answers of a score were made, by the record that a run of ours wrote beside them; {} without one."""
    for file, _ in one.answers:
        with contextlib.suppress(DataError):
            return record_of(Path(file))["settings"]
    return {}


def report_lines(found: Report) -> list[str]:
    """The table in Markdown: the main metric of each benchmark with its interval, then what is irregular."""
    header = ("model", *(f"{BENCHMARKS[c].title}, {'%' if percent(c) else 'points'}" for c in found.columns))
    body = [
        (cell(model, 80), *(row[c].text if c in row else "" for c in found.columns))
        for model, row in found.rows.items()
    ]
    body += [
        (f"{one.model} (published)", *(number(one.values[c], c) if c in one.values else "" for c in found.columns))
        for one in found.published
    ]
    metrics = [f"- {BENCHMARKS[c].title}: {metric}" for c, metric in found.metrics.items()]
    lines = [*table(header, body), "", "Metrics, with 95 % intervals:", "", *metrics]
    if found.published:
        lines += ["", "Published figures are those of the models' authors:", "", *source_lines(found.published)]
    return [*lines, *(["", *note_lines(found)] if found.notes else [])]


def source_lines(rows: Iterable[Published]) -> list[str]:
    """Where the published figures stand."""
    sources: dict[str, list[str]] = {}
    for row in rows:
        sources.setdefault(row.source, []).append(row.model)
    return [f"- {source}: {', '.join(models)}" for source, models in sources.items()]


def note_lines(found: Report) -> list[str]:
    """Which score files have faults."""
    return [
        f"- {cell(name)}: {many} answers are missing, failed, double or of no question" for name, many in found.notes
    ]


def report_value(scores: dict[str, Scored], found: Report) -> dict[str, Any]:
    """The same as a JSON value: all metrics by score file, and under ``published`` the figures beside them."""
    value: dict[str, Any] = {name: score_value(one) for name, one in scores.items()}
    if found.published:
        value["published"] = [
            {
                "model": one.model,
                "source": one.source,
                "values": {c: one.values[c] for c in found.columns if c in one.values},
            }
            for one in found.published
        ]
    return value
