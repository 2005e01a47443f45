# SPDX-License-Identifier: Apache-2.0
"""Review files summed up as LLaVA's ``summarize_gpt_review.py`` does, but for reviews without scores.

The script counts those as -1 for both answers, which moves every mean a little. Here they are left out, counted and
named; where there are some, the script's figure stands beside ours.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paddlemix.eval.judge.reviews import BENCH
from paddlemix.eval.records import Record, read_lines
from paddlemix.eval.scorers.intervals import Interval, intervals
from paddlemix.eval.scorers.judged import BEST, review_tally
from paddlemix.eval.scorers.score import Problem, Result, Score
from paddlemix.eval.scoring import Scored
from paddlemix.utils.errors import ConfigError, DataError
from paddlemix.utils.files import sha256

PREFIXES = ("gpt4_text", "reviews_", "review_")
"""How the names of review files begin that the script takes out of a folder."""
ALL = "all"


@dataclass(frozen=True)
class Row:
    """One category of a file, or all. ``original``: the script's relative score (None: it fails), -1 included.

    Means are of the scores (1 to 10), ``relative`` is in percent, both over the reviews that have scores.
    """

    category: str
    reviews: int
    failed: int
    first: float
    second: float
    relative: float
    original: float | None
    interval: Interval


@dataclass(frozen=True)
class Summary:
    """A review file: ``name`` as the script prints it, the rows sorted by category, and reviews without scores."""

    path: Path
    name: str
    rows: tuple[Row, ...]
    results: tuple[Result, ...]
    problems: tuple[Problem, ...]


def review_files(folder: Path) -> list[Path]:
    """The review files of a folder, by the names that LLaVA gives them. DataError when there are none."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the one of the review files, or files with --files")
    found = sorted(path for path in folder.glob("*.jsonl") if path.name.startswith(PREFIXES))
    if not found:
        raise DataError(f"{folder}: no files {', '.join(f'{one}*.jsonl' for one in PREFIXES)}; name them with --files")
    return found


def summarize(path: Path, ignored: Sequence[str] = (), *, resamples: int = 1000, seed: int = 0) -> Summary:
    """Sum up one review file without the questions ``ignored``. DataError when nothing is left."""
    results = [_result(record) for record in read_lines(path)]
    results = [result for result in results if result.key not in ignored]
    if not results:
        raise DataError(f"{path}: no reviews" + (" but ignored ones" if ignored else ""))
    categories = sorted({*(result.groups["category"] for result in results if result.groups), ALL})
    sure = intervals(review_tally(results), resamples, seed)
    rows = []
    for category in categories:
        part = [one for one in results if category == ALL or one.groups.get("category") == category]
        name = "relative" if category == ALL else f"relative/category={category}"
        rows.append(_row(category, part, sure.get(name, Interval(math.nan, math.nan, math.nan))))
    problems = [Problem("failed", one.key, "no scores in the review") for one in results if one.status == "failed"]
    name = path.name.replace("gpt4_text_", "").replace(".jsonl", "")
    return Summary(path, name, tuple(rows), tuple(results), tuple(problems))


def _row(category: str, part: Sequence[Result], sure: Interval) -> Row:
    pairs = [_scores(one) for one in part]
    good = [pair for one, pair in zip(part, pairs, strict=True) if one.status == "answered"]
    first, second = np.asarray(good).mean(0).tolist() if good else (math.nan, math.nan)
    percent = Interval(*(100 * value for value in (sure.value, sure.low, sure.high)))
    return Row(
        category, len(part), len(part) - len(good), first, second, _relative(first, second) or math.nan,
        _relative(*np.asarray(pairs).mean(0).tolist()), percent,
    )  # fmt: skip


def _relative(first: float, second: float) -> float | None:
    """In percent, rounded as the script rounds: the means to three digits, then their ratio to one."""
    first, second = round(first, 3), round(second, 3)
    return None if first == 0 else round(second / first * 100, 1)


def _scores(result: Result) -> tuple[float, float]:
    first, second = map(float, result.parsed.split(" ")) if result.parsed else (-1.0, -1.0)
    return first, second


def _result(record: Record) -> Result:
    """A line; without a category, and with ``score`` for ``tuple``, in the oldest files."""
    name = "tuple" if "tuple" in record.value or "category" in record.value else "score"
    scores = record.items(name)
    if len(scores) != 2 or not all(type(one) in (int, float) for one in scores):
        raise record.fault(name, "expected two numbers; is this a review file of eval review?")
    first, second = map(float, scores)
    finite = math.isfinite(first) and math.isfinite(second)
    answered = finite and (first, second) != (-1.0, -1.0)
    groups = {"category": record.text("category")} if "category" in record.value else {}
    text = record.value.get("content")
    return Result(
        record.name("question_id"), text if isinstance(text, str) else "",
        f"{first} {second}" if answered else "", (), second / BEST if answered else 0.0, groups, "",
        "answered" if answered else "failed",
    )  # fmt: skip


def scored(summary: Summary, model: str, *, resamples: int = 1000, seed: int = 0) -> Scored:
    """The summary as a score, for ``eval compare`` and ``eval report``.

    ConfigError for reviews of neither LLaVA-Bench nor the 90 questions, or when no review has scores.
    """
    named = {result.groups.get("category", "") for result in summary.results}
    bench = all(name.startswith(BENCH) for name in named)
    if not bench and not named <= {"conv", "detail", "complex"}:
        raise ConfigError(f"{summary.path}: a score file is for reviews of LLaVA-Bench and of the 90 questions alone")
    tally = review_tally(summary.results)
    if not tally.names:
        raise ConfigError(f"{summary.path}: no review has scores; another --judge-model may write them (eval review)")
    values = {name: float(value[0]) for name, value in tally.metrics().items()}
    score = Score("llava-bench" if bench else "qa90", "llava", "relative", values, summary.results, summary.problems)
    return Scored(score, intervals(tally, resamples, seed), model, ((str(summary.path), sha256(summary.path)),))


def summary_rows(summary: Summary) -> Iterator[tuple[str, ...]]:
    """Cells of a table: category, reviews, both means, relative score in percent, interval, reviews without scores."""
    for row in summary.rows:
        spread = f"{_one(row.interval.low)} to {_one(row.interval.high)}"
        failed = "" if not row.failed else f"{row.failed} (with -1 for them: {_one(row.original)})"
        means = ("n/a" if math.isnan(value) else f"{value:.3f}" for value in (row.first, row.second))
        yield (row.category, str(row.reviews), *means, _one(row.relative), spread, failed)


def _one(value: float | None) -> str:
    return "n/a" if value is None or math.isnan(value) else f"{value:.1f}"
