# SPDX-License-Identifier: Apache-2.0
"""From answer files and a benchmark's folder to a score, and the score file that comparisons and reports read."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paddlemix.eval.answer_files import AnswerRecord, read_answers
from paddlemix.eval.benchmarks import BENCHMARKS, Benchmark
from paddlemix.eval.records import Record, read_object
from paddlemix.eval.scorers.intervals import Interval, intervals
from paddlemix.eval.scorers.score import Answer, Problem, Question, Result, Score, Scorer, Tally, score
from paddlemix.utils.errors import ConfigError, DataError
from paddlemix.utils.files import atomic_write, sha256
from paddlemix.utils.foreign import reading
from paddlemix.utils.shown import shown

FORM = "paddlemix score 1"
"""In each score file, so that other JSON files of a folder are passed over."""


@dataclass(frozen=True)
class Scored:
    """A score with its intervals, and where its answers came from (``model_id`` is that of the first answer)."""

    score: Score
    intervals: dict[str, Interval]
    model: str
    answers: tuple[tuple[str, str], ...]
    """Files and their SHA-256."""


def score_files(
    benchmark: Benchmark,
    answers: Sequence[Path],
    folder: Path,
    *,
    convention: str | None = None,
    resamples: int,
    seed: int = 0,
) -> Scored:
    """Score answer files with the files in ``folder``. ConfigError for a benchmark that cannot be scored here."""
    _require_scored(benchmark)
    records = read_answers(answers)
    files = tuple((str(path), sha256(path)) for path in answers)
    return score_answers(benchmark, records, folder, convention=convention, resamples=resamples, seed=seed, files=files)


def score_answers(
    benchmark: Benchmark,
    records: Sequence[AnswerRecord],
    folder: Path,
    *,
    convention: str | None = None,
    resamples: int = 0,
    seed: int = 0,
    files: tuple[tuple[str, str], ...] = (),
    asked: bool = False,
) -> Scored:
    """The same for the records of answers. ``asked``: they are for all questions that count, the others are left out.

    Without ``resamples`` there are no intervals. ConfigError for a benchmark that cannot be scored here.
    """
    scorer, read = _require_scored(benchmark)
    questions = read(folder)
    key = benchmark.keys(folder)
    given = [Answer(key(record), record.text, record.where, record.failure) for record in records]
    keys = {answer.key for answer in given}
    if asked and not keys.isdisjoint(question.key for question in questions):
        questions = [question for question in questions if question.key in keys]
    found = score(scorer, questions, given, convention)
    found = Score(benchmark.name, found.convention, found.main, found.metrics, found.results, found.problems)
    sure = intervals(tally_of(found), resamples, seed) if resamples else {}
    return Scored(found, sure, records[0].model_id, files)


def _require_scored(benchmark: Benchmark) -> tuple[Scorer, Callable[[Path], list[Question]]]:
    if benchmark.scorer is None or benchmark.questions is None:
        raise ConfigError(f"{benchmark.title} cannot be scored here: {benchmark.unscored}")
    return benchmark.scorer, benchmark.questions


def tally_of(found: Score) -> Tally:
    """The sums behind a score."""
    scorer = BENCHMARKS[found.benchmark].scorer
    if scorer is None:
        raise ConfigError(f"{found.benchmark} has no scorer")
    return scorer.tally(found.results)


def write_score(path: Path, scored: Scored) -> None:
    """Write a score file: metrics with intervals, problems, and the result of every question."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = scored.score
    value = {
        "form": FORM,
        "benchmark": found.benchmark,
        "convention": found.convention,
        "model": scored.model,
        "answers": [{"file": file, "sha256": digest} for file, digest in scored.answers],
        "main": found.main,
        "metrics": {name: finite(asdict(value)) for name, value in scored.intervals.items()},
        "problems": [asdict(problem) for problem in found.problems],
        "results": [asdict(result) for result in found.results],
    }
    atomic_write(path, json.dumps(value, indent=1) + "\n")


def finite(values: dict[str, Any]) -> dict[str, Any]:
    """Without nan, which JSON has no word for."""
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()}


def read_score(path: Path) -> Scored:
    """A score file, or the one of a run's folder. DataError for a file of another kind or of an unknown benchmark."""
    record = read_object(path / "score.json" if path.is_dir() else path)
    if record.value.get("form") != FORM:
        raise DataError(f"{path}: not a score file; eval score writes one with --output")
    benchmark = record.text("benchmark")
    if benchmark not in BENCHMARKS or BENCHMARKS[benchmark].scorer is None:
        raise record.fault("benchmark", f'"{shown(benchmark, 80)}" is not known here; score the answers again')
    results = tuple(_result(item) for item in record.records("results"))
    problems = tuple(Problem(p.text("kind"), p.text("key"), p.text("text")) for p in record.records("problems"))
    metrics = record.record("metrics")
    sure = {name: _interval(metrics.record(name)) for name in metrics.value}
    values = {name: interval.value for name, interval in sure.items()}
    found = Score(benchmark, record.text("convention"), record.text("main"), values, results, problems)
    with reading(f"{path}: /results are", DataError, "score the answers again"):
        fits = found.main in values and set(values) == set(tally_of(found).metrics())
    if not fits:
        raise record.fault("metrics", "not those of this benchmark; score the answers again")
    files = tuple((item.text("file"), item.text("sha256")) for item in record.records("answers"))
    return Scored(found, sure, record.text("model"), files)


def _interval(record: Record) -> Interval:
    return Interval(*(_number(record, name) for name in ("value", "low", "high")))


def _number(record: Record, name: str) -> float:
    value: Any = record.get(name)
    if value is None:
        return float("nan")
    if type(value) not in (int, float):
        raise record.fault(name, f"expected a number, got {shown(value, 80)}")
    return float(value)


def _result(record: Record) -> Result:
    groups = record.record("groups")
    return Result(
        key=record.text("key"),
        text=record.text("text"),
        parsed=record.text("parsed"),
        expected=record.texts("expected"),
        value=_number(record, "value"),
        groups={name: groups.text(name) for name in groups.value},
        unit=record.text("unit"),
        status=record.text("status"),
    )
