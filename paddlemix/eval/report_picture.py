# SPDX-License-Identifier: Apache-2.0
"""The report as a picture: for each benchmark the models' bars with their intervals, published figures in grey."""

import math

from paddlemix.eval.benchmarks import BENCHMARKS
from paddlemix.eval.report import Report
from paddlemix.eval.scorers.intervals import Interval
from paddlemix.eval.tables import number, percent, spread
from paddlemix.imaging.drawing import CURVE, FAINT, INK, LINE, WRONG, Pen
from paddlemix.utils.shown import escaped

_WIDTH, _MARGIN, _NAME, _VALUE = 980, 24, 270, 190
_ROW, _HEAD, _GAP = 22, 34, 18
_GREY = "#b8bec8"

Bar = tuple[str, float, float, float, bool]
"""Name, value, low and high end of its interval (nan without one), and whether it is published."""


def draw(found: Report) -> bytes:
    """A PNG. Bars begin at 0 and end at 100 %, for points at the largest value of the benchmark."""
    parts = [(benchmark, _bars(found, benchmark)) for benchmark in found.columns]
    notes = [f"{name}: {many} answers are missing, failed, double or of no question" for name, many in found.notes]
    height = 60 + sum(_HEAD + len(bars) * _ROW + _GAP for _, bars in parts) + (len(notes) + 3) * 16
    pen = Pen(_WIDTH, height)
    pen.text((_MARGIN, 16), "Benchmarks", 20, INK)
    top = 52.0
    for benchmark, bars in parts:
        top = _benchmark(pen, benchmark, found.metrics[benchmark], bars, top) + _GAP
    lines = ["Lines in the bars are 95 % intervals over questions."]
    if found.published:
        sources = ", ".join(dict.fromkeys(row.source for row in found.published))
        lines.append(f"Grey: published by the models' authors ({sources})")
    for line in [*lines, *notes]:
        fault = line in notes
        for part in pen.wrapped(escaped(line), 11, _WIDTH - 2 * _MARGIN, 1):
            pen.text((_MARGIN, top), part, 11, WRONG if fault else FAINT)
        top += 16
    return pen.png()


def _bars(found: Report, benchmark: str) -> list[Bar]:
    bars: list[Bar] = []
    for model, row in found.rows.items():
        if benchmark in row:
            one = row[benchmark]
            name = f"{model} [{one.note}]" if one.note else model
            bars.append((name, one.sure.value, one.sure.low, one.sure.high, False))
    for line in found.published:
        if benchmark in line.values:
            bars.append((line.model, line.values[benchmark], math.nan, math.nan, True))
    return bars


def _benchmark(pen: Pen, benchmark: str, metric: str, bars: list[Bar], top: float) -> float:
    """Draw one benchmark and return where it ends."""
    known = [value for bar in bars for value in bar[1:4] if not math.isnan(value)]
    full = 1.0 if percent(benchmark) and max(known, default=0) <= 1 else max(known, default=1.0) or 1.0
    unit = "%" if percent(benchmark) else "points"
    pen.line([(_MARGIN, top), (_WIDTH - _MARGIN, top)], LINE)
    pen.text((_MARGIN, top + 8), BENCHMARKS[benchmark].title, 14, INK)
    pen.text((_WIDTH - _MARGIN, top + 10), f"{metric}, {unit}", 11, FAINT, "ra")
    left, right = _MARGIN + _NAME, _WIDTH - _MARGIN - _VALUE
    y = top + _HEAD
    for name, value, low, high, published in bars:
        for line in pen.wrapped(escaped(name), 12, _NAME - 12, 1):
            pen.text((_MARGIN, y + 2), line, 12, FAINT if published else INK)
        pen.bar((left, y + 3, right, y + _ROW - 5), LINE)
        if not math.isnan(value):
            length = min(max(value / full, 0.0), 1.0) * (right - left)
            pen.bar((left, y + 3, left + length, y + _ROW - 5), _GREY if published else CURVE)
        text = number(value, benchmark)
        if not (math.isnan(low) or math.isnan(high)):
            ends = [left + min(max(end / full, 0.0), 1.0) * (right - left) for end in (low, high)]
            middle = y + (_ROW - 2) / 2
            pen.line([(ends[0], middle), (ends[1], middle)], INK, 1.5)
            for end in ends:
                pen.line([(end, middle - 4), (end, middle + 4)], INK, 1.5)
            bounds = spread(Interval(value, low, high), benchmark)
            pen.text((_WIDTH - _MARGIN, y + 3), bounds, 11, FAINT, "ra")
        elif published:
            pen.text((_WIDTH - _MARGIN, y + 3), "published", 11, FAINT, "ra")
        pen.text((right + 10, y + 2), text, 12, FAINT if published else INK)
        y += _ROW
    return y
