# SPDX-License-Identifier: Apache-2.0
"""Scores, comparisons and reports as Markdown and as JSON values."""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from paddlemix.eval.benchmarks import BENCHMARKS
from paddlemix.eval.scorers.intervals import Interval
from paddlemix.eval.scorers.score import KINDS, Problem
from paddlemix.eval.scoring import Scored, finite
from paddlemix.utils.foreign import JsonValue
from paddlemix.utils.shown import counted, shown

SHOWN_PROBLEMS = 5
"""Problems of a kind that a summary names; a score file has all of them."""


def percent(benchmark: str) -> bool:
    """Whether the metrics of a benchmark are shares of 1, which tables show in percent; MME counts points."""
    scorer = BENCHMARKS[benchmark].scorer
    return scorer is not None and not scorer.points


def number(value: float, benchmark: str) -> str:
    """A metric as tables show it: two digits, without a unit."""
    if math.isnan(value):
        return "n/a"
    return f"{100 * value if percent(benchmark) else value:.2f}"


def cell(text: object, limit: int = 200) -> str:
    """A text from outside in a table of Markdown."""
    return shown(text, limit).replace("|", "\\|").replace("`", "'")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [list(header), ["---"] * len(header), *map(list, rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def spread(interval: Interval, benchmark: str) -> str:
    """An interval as "low to high"."""
    return f"{number(interval.low, benchmark)} to {number(interval.high, benchmark)}"


def score_lines(scored: Scored) -> list[str]:
    """The summary of a score: the main metric first, then the others, then the problems."""
    found, benchmark = scored.score, scored.score.benchmark
    names = [found.main, *(name for name in scored.intervals if name != found.main)]
    unit = "%" if percent(benchmark) else "points"
    rows = [
        (f"**{name}**" if name == found.main else cell(name), number(sure.value, benchmark), spread(sure, benchmark))
        for name, sure in ((name, scored.intervals[name]) for name in names if name in scored.intervals)
    ]
    title = f"{BENCHMARKS[benchmark].title}, convention {found.convention}, {counted(len(found.results), 'question')}"
    if scored.model:
        title += f", {cell(scored.model, 80)}"
    return [title, "", *table(("metric", unit, "95 % interval"), rows), "", *problem_lines(found.problems)]


def problem_lines(problems: Sequence[Problem]) -> list[str]:
    """How many problems of each kind there are, and the first of them by name."""
    if not problems:
        return ["every question has one answer"]
    lines = []
    for kind in KINDS:
        found = [problem for problem in problems if problem.kind == kind]
        if found:
            lines.append(f"{len(found)} {kind}:")
            lines += [f"  {cell(item.key, 80)}: {shown(item.text)}" for item in found[:SHOWN_PROBLEMS]]
            if len(found) > SHOWN_PROBLEMS:
                lines.append(f"  and {len(found) - SHOWN_PROBLEMS} more")
    return lines


def score_value(scored: Scored) -> dict[str, Any]:
    """The summary of a score as a JSON value."""
    found = scored.score
    return {
        "benchmark": found.benchmark,
        "convention": found.convention,
        "model": scored.model,
        "main": found.main,
        "questions": len(found.results),
        "problems": {kind: found.count(kind) for kind in KINDS},
        "metrics": {
            name: finite({"value": sure.value, "low": sure.low, "high": sure.high})
            for name, sure in scored.intervals.items()
        },
    }


def as_text(value: JsonValue) -> str:
    """A JSON value as the commands print and write it."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
