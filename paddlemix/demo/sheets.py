# SPDX-License-Identifier: Apache-2.0
"""The two images that a run leaves: questions with their answers, and the loss curves. Drawn with Pillow alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from paddlemix.demo.data import Answer
from paddlemix.imaging.drawing import CURVE, FAINT, INK, LINE, RIGHT, WRONG, Box, Pen

TINTS = {True: "#eaf6ee", False: "#fbebea"}

_COLUMNS, _PICTURE, _GAP, _MARGIN, _HEAD = 6, 132, 14, 26, 62
_CARD = (_PICTURE + 16, _PICTURE + 82)
_LINE = 14


def choose_for_sheet(answers: Sequence[Answer], count: int = 18, wrong: int = 3) -> list[Answer]:
    """The first ``count`` answers; when they hold fewer than ``wrong`` wrong ones, the first others come last."""
    first, rest = list(answers[:count]), list(answers[count:])
    missing = max(0, wrong - sum(not answer.right for answer in first))
    extra = [answer for answer in rest if not answer.right][:missing]
    for answer in extra:
        last_right = max((i for i, shown in enumerate(first) if shown.right), default=None)
        if last_right is None:
            break
        del first[last_right]
        first.append(answer)
    return first


def draw_answers(
    path: Path, pictures: Path, answers: Sequence[Answer], title: str, note: str, *, lines: int = 1
) -> None:
    """A sheet of cards: the image, the question, the answer in green, or in red with the right one beside it.

    Answers take up to ``lines`` lines; what is longer is cut.
    """
    rows = math.ceil(len(answers) / _COLUMNS)
    card = (_CARD[0], _CARD[1] + (2 * lines - 1) * _LINE * (lines > 1))
    width = 2 * _MARGIN + _COLUMNS * (card[0] + _GAP) - _GAP
    height = _HEAD + rows * (card[1] + _GAP) - _GAP + _MARGIN
    pen = Pen(width, height)
    pen.text((_MARGIN, 16), title, 19, INK)
    pen.text((_MARGIN, 40), note, 12, FAINT)
    for index, answer in enumerate(answers):
        row, column = divmod(index, _COLUMNS)
        place = (_MARGIN + column * (card[0] + _GAP), _HEAD + row * (card[1] + _GAP))
        _card(pen, pictures, answer, place, card[1], lines)
    pen.save(path)


def _card(pen: Pen, pictures: Path, answer: Answer, place: tuple[float, float], height: float, lines: int) -> None:
    (x, y), colour = place, RIGHT if answer.right else WRONG
    pen.card((x, y, x + _CARD[0], y + height), TINTS[answer.right], colour)
    with Image.open(pictures / answer.question.picture) as picture:
        pen.paste(picture.convert("RGB"), (x + 8, y + 8), _PICTURE)
    top = y + _PICTURE + 14
    for number, line in enumerate(_wrap(answer.question.text, 25)[:2]):
        pen.text((x + 9, top + 14 * number), line, 11, FAINT)
    if lines > 1:
        _sentences(pen, answer, (x, top + 2 * _LINE + 14), lines, colour)
        return
    base = y + height - (14 if answer.right else 24)
    _mark(pen, answer.right, x + 9, base - 10, colour)
    pen.text((x + 26, base), _short(answer.said, 17), 13, colour, "ls")
    if not answer.right:
        pen.text((x + 26, base + 15), f"right: {answer.question.answer}", 10, FAINT, "ls")


def _sentences(pen: Pen, answer: Answer, place: tuple[float, float], lines: int, colour: str) -> None:
    """An answer of several lines, and the right one below it where it is another."""
    x, base = place
    _mark(pen, answer.right, x + 9, base - 10, colour)
    for line in _cut(answer.said, lines):
        pen.text((x + 26, base), line, 11, colour, "ls")
        base += _LINE
    for line in () if answer.right else _cut(f"right: {answer.question.answer}", lines + 1):
        pen.text((x + 26, base), line, 10, FAINT, "ls")
        base += _LINE - 1


def _cut(text: str, lines: int) -> list[str]:
    """At most so many lines of a text; dots where there would be more."""
    found = _wrap(text, 22)
    return found if len(found) <= lines else [*found[: lines - 1], f"{found[lines - 1]} ..."]


def _mark(pen: Pen, right: bool, x: float, y: float, colour: str) -> None:
    if right:
        pen.line([(x, y + 6), (x + 4, y + 10), (x + 11, y + 1)], colour, 2)
    else:
        pen.line([(x + 1, y + 1), (x + 10, y + 10)], colour, 2)
        pen.line([(x + 10, y + 1), (x + 1, y + 10)], colour, 2)


def _wrap(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


@dataclass(frozen=True)
class Curve:
    """The losses of one run. ``points`` are (optimizer step, mean loss since the point before)."""

    title: str
    points: tuple[tuple[int, float], ...]


_PANEL = (470, 230)
_DECADE = (1, 2, 5)


def draw_curves(path: Path, curves: Sequence[Curve]) -> None:
    """One panel for each curve, side by side: steps to the right, loss upwards on a logarithmic scale."""
    pen = Pen(_MARGIN + len(curves) * (_PANEL[0] + _MARGIN), _PANEL[1] + 96)
    for index, curve in enumerate(curves):
        left = _MARGIN + index * (_PANEL[0] + _MARGIN)
        _panel(pen, curve, (left + 40, 50, left + _PANEL[0], 50 + _PANEL[1]))
    pen.save(path)


def _panel(pen: Pen, curve: Curve, box: Box) -> None:
    left, top, right, bottom = box
    pen.text((left - 40, 16), curve.title, 15, INK)
    losses = [max(loss, 1e-5) for _, loss in curve.points]
    low, high = math.log10(min(losses) * 0.85), math.log10(max(losses) * 1.15)
    last = max(curve.points[-1][0], 1)

    def place(step: float, loss: float) -> tuple[float, float]:
        share = (math.log10(loss) - low) / max(high - low, 1e-9)
        return left + (right - left) * step / last, bottom - (bottom - top) * share

    for loss in _ticks(low, high):
        y = place(0, loss)[1]
        pen.line([(left, y), (right, y)], LINE)
        pen.text((left - 8, y), f"{loss:g}", 11, FAINT, "rm")
    for share in (0, 0.25, 0.5, 0.75, 1):
        x = left + (right - left) * share
        pen.line([(x, bottom), (x, bottom + 4)], FAINT)
        pen.text((x, bottom + 8), f"{round(last * share):,}", 11, FAINT, "ma")
    pen.line([(left, bottom), (right, bottom)], FAINT)
    pen.text(((left + right) / 2, bottom + 25), "step", 11, FAINT, "ma")
    pen.line([place(step, loss) for (step, _), loss in zip(curve.points, losses, strict=True)], CURVE, 2)


def _ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten between two decimal logarithms; only powers of ten where these are many."""
    found = [
        factor * 10.0**power
        for power in range(math.floor(low), math.ceil(high) + 1)
        for factor in _DECADE
        if low <= math.log10(factor * 10.0**power) <= high
    ]
    tens = [loss for loss in found if f"{loss:e}".startswith("1.0")]
    return tens if len(found) > 8 and len(tens) > 1 else found
