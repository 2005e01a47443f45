# SPDX-License-Identifier: Apache-2.0
"""Two scores of one benchmark side by side: metrics with intervals and p-values, and the answers that differ."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from paddlemix.eval.published import of as published_of
from paddlemix.eval.scorers.intervals import RESAMPLES, Difference, McNemar, mcnemar, paired
from paddlemix.eval.scorers.score import Result
from paddlemix.eval.scoring import Scored, finite, read_score, tally_of
from paddlemix.eval.tables import cell, number, spread, table
from paddlemix.utils.errors import DataError
from paddlemix.utils.shown import counted, shown

SHOWN_ANSWERS = 50
"""Differing answers in the Markdown; the JSON has all of them."""


@dataclass(frozen=True)
class Pair:
    """One question whose answers differ."""

    key: str
    expected: tuple[str, ...]
    a: Result
    b: Result


@dataclass(frozen=True)
class Comparison:
    """B against A. ``only_a``, ``only_b``: questions that one of them alone has; they are left out, and named."""

    a: Scored
    b: Scored
    differences: dict[str, Difference]
    mcnemar: McNemar | None
    pairs: tuple[Pair, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]


def compare_files(a: Path, b: Path, *, resamples: int = RESAMPLES, seed: int = 0) -> Comparison:
    """Compare two score files. DataError when they are of different benchmarks or conventions, or share no question."""
    one, other = read_score(a), read_score(b)
    for name in ("benchmark", "convention"):
        here, there = getattr(one.score, name), getattr(other.score, name)
        if here != there:
            raise DataError(
                f"{a} has the {name} {shown(here, 80)}, {b} has {shown(there, 80)}; score both the same way "
                "and compare again"
            )
    return compare(one, other, resamples=resamples, seed=seed, names=(str(a), str(b)))


def compare(
    a: Scored, b: Scored, *, resamples: int = RESAMPLES, seed: int = 0, names: tuple[str, str] = ("A", "B")
) -> Comparison:
    """Compare two scores over the questions that both have."""
    first, second = _numbered(a.score.results), _numbered(b.score.results)
    common = [key for key in first if key in second]
    if not common:
        raise DataError(f"{names[0]} and {names[1]} have no question in common")
    for key in common:
        if first[key].expected != second[key].expected:
            raise DataError(
                f'{names[0]} and {names[1]} have different right answers to question "{shown(key, 80)}"; they were '
                "scored with different files, score both with the same"
            )
    ours, theirs = [first[key] for key in common], [second[key] for key in common]
    one, other = replace(a.score, results=tuple(ours)), replace(b.score, results=tuple(theirs))
    pairs = tuple(
        Pair(key, here.expected, here, there)
        for key, here, there in zip(common, ours, theirs, strict=True)
        if here.text != there.text or here.value != there.value
    )
    return Comparison(
        a,
        b,
        paired(tally_of(one), tally_of(other), resamples, seed),
        mcnemar(ours, theirs),
        tuple(sorted(pairs, key=lambda pair: pair.a.value - pair.b.value)),
        tuple(key for key in first if key not in second),
        tuple(key for key in second if key not in first),
    )


def _numbered(results: Sequence[Result]) -> dict[str, Result]:
    """Results by their keys; the second one of a key is "key #2"."""
    found: dict[str, Result] = {}
    seen: dict[str, int] = {}
    for result in results:
        seen[result.key] = seen.get(result.key, 0) + 1
        found[result.key if seen[result.key] == 1 else f"{result.key} #{seen[result.key]}"] = result
    return found


def comparison_lines(found: Comparison, *, published: bool = False) -> list[str]:
    """A comparison in Markdown; with ``published`` the figures of the models' authors, too."""
    benchmark, main = found.a.score.benchmark, found.a.score.main
    rows = [(f"**{name}**" if name == main else cell(name), *rest) for name, *rest in metric_rows(found)]
    lines = [
        f"# {benchmark}, convention {cell(found.a.score.convention, 80)}",
        "",
        f"A: {cell(name_of(found.a))}",
        "",
        f"B: {cell(name_of(found.b))}",
        "",
        *table(("metric", "A", "B", "B - A", "95 % interval", "p"), rows),
        "",
    ]
    if found.mcnemar is not None:
        test = found.mcnemar
        lines += [
            f"McNemar's exact test: A alone is right {test.only_a} times, B alone {test.only_b} times, "
            f"p {_p(test.p_value)}",
            "",
        ]
    for name, keys in (("A", found.only_a), ("B", found.only_b)):
        if keys:
            lines += [
                f"left out, in {name} alone: {counted(len(keys), 'question')}, the first: {cell(keys[0], 80)}",
                "",
            ]
    if published:
        lines += _published_lines(benchmark, main)
    return [*lines, *_pair_lines(found.pairs)]


def _published_lines(benchmark: str, main: str) -> list[str]:
    rows = [(one.model, number(one.values[benchmark], benchmark), one.source) for one in published_of(benchmark)]
    if not rows:
        return ["No published figure of this benchmark is known here.", ""]
    return [*table(("published by the models' authors", cell(main), "source"), rows), ""]


def metric_rows(found: Comparison) -> list[tuple[str, ...]]:
    """Cells of each metric, the main one first: name, A, B, B - A, the interval of it, p."""
    benchmark, main = found.a.score.benchmark, found.a.score.main
    rows = []
    for name in sorted(found.differences, key=lambda name: name != main):
        row = found.differences[name]
        values = (number(value, benchmark) for value in (row.a, row.b, row.difference.value))
        rows.append((name, *values, spread(row.difference, benchmark), _p(row.p_value)))
    return rows


def name_of(scored: Scored) -> str:
    """The model, and its answer files."""
    files = ", ".join(file for file, _ in scored.answers)
    return f"{scored.model} ({files})" if scored.model else files


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _pair_lines(pairs: Sequence[Pair]) -> list[str]:
    if not pairs:
        return ["No answer differs."]
    first = pairs[:SHOWN_ANSWERS]
    rest = f", the {len(first)} on which B gains most" if len(pairs) > len(first) else ""
    rows = [
        (
            cell(pair.key, 80),
            cell(", ".join(dict.fromkeys(pair.expected)), 80),
            *(f"{cell(side.text, 120)} ({side.value:.2f})" for side in (pair.a, pair.b)),
        )
        for pair in first
    ]
    return [f"## {counted(len(pairs), 'different answer')}{rest}", "", *table(("question", "right", "A", "B"), rows)]


def comparison_value(found: Comparison, *, published: bool = False) -> dict[str, Any]:
    """A comparison as a JSON value, with all differing answers."""
    benchmark = found.a.score.benchmark
    beside = [
        {"model": one.model, "value": one.values[benchmark], "source": one.source} for one in published_of(benchmark)
    ]
    return {
        **({"published": beside} if published else {}),
        "benchmark": found.a.score.benchmark,
        "convention": found.a.score.convention,
        "a": name_of(found.a),
        "b": name_of(found.b),
        "metrics": {
            name: finite(
                {
                    "a": row.a,
                    "b": row.b,
                    "difference": row.difference.value,
                    "low": row.difference.low,
                    "high": row.difference.high,
                    "p_value": row.p_value,
                }
            )
            for name, row in found.differences.items()
        },
        "mcnemar": None if found.mcnemar is None else asdict(found.mcnemar),
        "only_a": list(found.only_a),
        "only_b": list(found.only_b),
        "differing": [
            {
                "question": pair.key,
                "expected": list(pair.expected),
                **{
                    side: {"text": result.text, "parsed": result.parsed, "value": result.value, "status": result.status}
                    for side, result in (("a", pair.a), ("b", pair.b))
                },
            }
            for pair in found.pairs
        ],
    }
