# SPDX-License-Identifier: Apache-2.0
"""The losses and the learning rate of a run as a picture, drawn with Pillow alone."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from paddlemix.imaging.drawing import CURVE, FAINT, INK, LINE, WRONG, Box, Pen
from paddlemix.utils import files

RAW, EVALUATION = "#b9ccf2", "#d9822b"
SMOOTHED_FROM = 20
"""Points from which on a smoothed line is drawn over the measured one."""
SMOOTHING = 1 / 40
"""Share of the points that the smoothed line is a mean over."""
_GAP = 5.0
_COLUMNS = 800
"""Points that a line has at most; a band from the lowest to the highest stands for the others."""
_CUT = 3.0
"""Losses so many times as far above the median as the 98th percentile is are cut, and marked."""

Points = list[tuple[int, float]]


@dataclass
class Curves:
    """(step, value) of each curve in the order of the run. Values that are not finite are left out."""

    loss: Points = field(default_factory=list)
    eval_loss: Points = field(default_factory=list)
    learning_rate: Points = field(default_factory=list)

    def add(self, step: int, values: dict[str, float | None]) -> None:
        """Note the values of an entry under the names of the curves."""
        for name, value in values.items():
            if isinstance(value, int | float) and math.isfinite(value):
                getattr(self, name).append((step, float(value)))

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not (self.loss or self.eval_loss)


@dataclass(frozen=True)
class _Axes:
    """Where numbers lie in a box."""

    box: Box
    steps: tuple[float, float]
    values: tuple[float, float]

    def at(self, step: float, value: float) -> tuple[float, float]:
        left, top, right, bottom = self.box
        first, last = self.steps
        low, high = self.values
        share = min(max((value - low) / (high - low), 0.0), 1.0)
        return left + (right - left) * (step - first) / (last - first), bottom - (bottom - top) * share


_WIDTH, _LOSS_BOX, _RATE_BOX = 900, (76, 62, 876, 372), (76, 424, 876, 524)


def draw(path: Path, curves: Curves) -> None:
    """Write the PNG: the loss (every entry faint, smoothed strong), evaluations as dots, and the rate below."""
    bottom = (_RATE_BOX if curves.learning_rate else _LOSS_BOX)[3]
    pen = Pen(_WIDTH, bottom + 42)
    every = [step for points in (curves.loss, curves.eval_loss) for step, _ in points]
    steps = (min(every), max(every)) if max(every) > min(every) else (min(every) - 1, max(every) + 1)
    low, high, cut = loss_range(curves)
    axes = _Axes(_LOSS_BOX, steps, (low, high))
    _frame(pen, axes, "loss")
    _legend(pen, curves, bool(cut))
    _measured(pen, axes, curves.loss, high if cut else math.inf)
    _line(pen, axes, curves.eval_loss, EVALUATION, 1.5)
    _dots(pen, axes, curves.eval_loss, EVALUATION)
    _spikes(pen, axes, cut)
    if curves.learning_rate:
        rates = _Axes(_RATE_BOX, steps, (0.0, max(rate for _, rate in curves.learning_rate) * 1.1 or 1.0))
        _frame(pen, rates, "learning rate")
        _line(pen, rates, curves.learning_rate, INK, 1.5)
        if len(curves.learning_rate) < SMOOTHED_FROM:
            _dots(pen, rates, curves.learning_rate, INK)
    pen.text(((_RATE_BOX[0] + _RATE_BOX[2]) / 2, bottom + 24), "step", 11, FAINT, "ma")
    files.atomic_write(path, pen.png())


def loss_range(curves: Curves) -> tuple[float, float, Points]:
    """(lowest, highest) value of the loss axis, and the points above it: a few spikes do not flatten the curve."""
    values = np.array([value for points in (curves.loss, curves.eval_loss) for _, value in points])
    low, high = float(values.min()), float(values.max())
    middle, most = np.percentile(values, (50, 98))
    limit = middle + _CUT * max(most - middle, 0.05 * abs(middle), 1e-9)
    cut: Points = []
    if len(values) >= SMOOTHED_FROM and high > limit:
        high = float(values[values <= limit].max())
        cut = [point for points in (curves.loss, curves.eval_loss) for point in points if point[1] > limit]
    room = 0.06 * (high - low) or max(abs(high) * 0.1, 1e-3)
    return (max(0.0, low - room) if low >= 0 else low - room), high + room, cut


def smoothed(points: Points, limit: float = math.inf) -> Points:
    """Means over ``SMOOTHING`` of the points, half of them before each; values above ``limit`` are left out.

    Near the ends the window is smaller, so that the line neither lags behind nor bends.
    """
    points = [point for point in points if point[1] <= limit]
    count = len(points)
    half = min(_window(count) // 2, max(count - 1, 0))
    sums = np.concatenate([[0.0], np.cumsum([value for _, value in points])])
    at = np.arange(count)
    half = np.minimum(half, np.minimum(at, count - 1 - at))
    means = (sums[at + half + 1] - sums[at - half]) / (2 * half + 1)
    return [(step, float(mean)) for (step, _), mean in zip(points, means, strict=True)]


def _window(count: int) -> int:
    return max(3, round(count * SMOOTHING))


def stretches(points: Points) -> list[Points]:
    """The points without the gaps: where steps are missing, ``_GAP`` times the usual distance, a line is broken."""
    steps = np.array([step for step, _ in points])
    if len(steps) < 3:
        return [points]
    distances = np.diff(steps)
    ends = np.flatnonzero(distances > _GAP * np.median(distances)) + 1
    return [points[first:last] for first, last in itertools.pairwise([0, *ends.tolist(), len(points)])]


def _measured(pen: Pen, axes: _Axes, points: Points, limit: float) -> None:
    many = len(points) >= SMOOTHED_FROM
    _line(pen, axes, points, RAW if many else CURVE, 1 if many else 2)
    if many:
        _line(pen, axes, smoothed(points, limit), CURVE, 2)
    else:
        _dots(pen, axes, points, CURVE)


def _dots(pen: Pen, axes: _Axes, points: Points, colour: str) -> None:
    for x, y in (axes.at(*point) for point in points[:: max(1, len(points) // 200)]):
        pen.bar((x - 2.5, y - 2.5, x + 2.5, y + 2.5), colour)


def _line(pen: Pen, axes: _Axes, points: Points, colour: str, width: float) -> None:
    for stretch in stretches(points):
        if len(stretch) > 1:
            pen.line([axes.at(*point) for point in thinned(stretch)], colour, width)


def thinned(points: Points) -> Points:
    """Of many points the lowest and the highest of each of ``_COLUMNS`` parts, so that no spike is lost."""
    if len(points) <= 2 * _COLUMNS:
        return points
    values = np.array([value for _, value in points])
    kept: list[int] = []
    for part in np.array_split(np.arange(len(points)), _COLUMNS):
        kept += sorted({int(part[0] + values[part].argmin()), int(part[0] + values[part].argmax())})
    return [points[index] for index in kept]


def _spikes(pen: Pen, axes: _Axes, cut: Points) -> None:
    """A red mark above the frame for each loss that is cut, and what the highest one is."""
    top = axes.box[1]
    places = [axes.at(step, axes.values[1])[0] for step, _ in cut]
    for x in sorted({round(x) for x in places}):
        pen.line([(x, top), (x, top - 7)], WRONG, 1.5)
    if cut:
        what = f"{len(cut):,} {'losses lie' if len(cut) > 1 else 'loss lies'} above, up to"
        text = f"{what} {max(value for _, value in cut):.4g}"
        pen.text((axes.box[2], top - 12), text, 11, WRONG, "rs")


def _frame(pen: Pen, axes: _Axes, title: str) -> None:
    left, top, right, bottom = axes.box
    pen.text((left - 56, top - (46 if title == "loss" else 24)), title, 14, INK)
    ticks = nice_ticks(*axes.values, most=7 if bottom - top > 200 else 5)
    for value in ticks:
        y = axes.at(axes.steps[0], value)[1]
        pen.line([(left, y), (right, y)], LINE)
        pen.text((left - 8, y), tick_text(value, ticks), 11, FAINT, "rm")
    for step in nice_ticks(*axes.steps, most=9, whole=True):
        x = axes.at(step, axes.values[0])[0]
        pen.line([(x, bottom), (x, bottom + 4)], FAINT)
        pen.text((x, bottom + 7), f"{int(step):,}", 11, FAINT, "ma")
    pen.line([(left, bottom), (right, bottom)], FAINT)


def _legend(pen: Pen, curves: Curves, cut: bool) -> None:
    many = len(curves.loss) >= SMOOTHED_FROM
    shown = [(CURVE, "train")] if curves.loss and not many else []
    if many:
        what = f"mean over {_window(len(curves.loss)):,} entries{', without what is cut' * cut}"
        shown = [(RAW, "train, as logged"), (CURVE, f"train, smoothed ({what})")]
    if curves.eval_loss:
        shown.append((EVALUATION, "evaluation"))
    x = _LOSS_BOX[0] + 4
    for colour, text in shown:
        pen.line([(x, 24), (x + 22, 24)], colour, 3)
        pen.text((x + 28, 24), text, 11, INK, "lm")
        x += 50 + 6.2 * len(text)


def nice_ticks(low: float, high: float, most: int, whole: bool = False) -> list[float]:
    """At most ``most`` multiples of 1, 2 or 5 times a power of ten between two numbers; ``whole``: integers only."""
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(step * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (step * factor) <= most - 1)
    step = max(step, 1.0) if whole else step
    return [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def tick_text(value: float, ticks: Sequence[float]) -> str:
    """A tick with as many digits as tell it from the next one, never 0.30000000000000004."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else abs(value) or 1.0
    if value == 0:
        return "0"
    if max(abs(tick) for tick in ticks) >= 1e5 or step < 1e-4:
        return f"{value:.2g}"
    return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
