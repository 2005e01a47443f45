# SPDX-License-Identifier: Apache-2.0
"""What a look at a data set found: numbers for a person and for a program, and a chart of the lengths."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paddlemix.datasets.packing import pack_epoch
from paddlemix.datasets.sampler import LengthGroupedSampler, shuffled, useful_share
from paddlemix.imaging.drawing import CURVE, FAINT, INK, LINE, WRONG, Box, Pen
from paddlemix.settings.run.training import TrainingSettings
from paddlemix.trainer.batches import step_counts, total_steps
from paddlemix.utils.shown import counted
from paddlemix.validate.survey import Survey

PERCENTILES = (50, 90, 99)


def summary(
    found: Survey, bad_in_file: int, settings: TrainingSettings, processes: int, drawn: np.ndarray | None
) -> dict[str, Any]:
    """Counts, lengths and costs as plain JSON. ``bad_in_file``: rows that could not even be read.

    ``drawn`` (int64 [n]): those of the rows that can be used that the first epoch of the training reads, as often as
    it reads them; None for rows that are not trained on, which have no costs.
    """
    lengths, cut = found.column("length"), found.column("text") + found.column("visual") - found.column("length")
    rows = len(found.facts) + bad_in_file
    good = len(lengths)
    counts = {
        "rows": rows,
        "bad_rows": rows - good,
        "rows_without_label": found.unlearnt,
        "answers_a_row": settings.preference.answers,
        "images": int(found.column("images").sum()),
        "rows_without_image": int((found.column("images") == 0).sum()),
        "turns": int(found.column("turns").sum()),
        "tokens": int(lengths.sum()),
        "text_tokens": int(found.column("text").sum()),
        "visual_tokens": int(found.column("visual").sum()),
        "learnt_tokens": int(found.column("learnt").sum()),
        "max_length": settings.data.max_length,
        "rows_cut": int((cut > 0).sum()),
        "tokens_cut": int(cut.sum()),
    }
    if not good:
        return counts
    marks = {str(p): int(np.percentile(lengths, p, method="inverted_cdf")) for p in PERCENTILES}
    found_lengths = {**counts, "length": {**marks, "max": int(lengths.max())}}
    return found_lengths if drawn is None else {**found_lengths, "cost": cost(found, settings, processes, drawn)}


def cost(found: Survey, settings: TrainingSettings, processes: int, drawn: np.ndarray) -> dict[str, Any]:
    """Steps and tokens of the run, and which share of the positions of its batches is no padding in each order.

    ``drawn`` [rows of a pass] as in ``summary``.
    """
    training = settings.training
    lengths = found.column("length")[drawn].tolist()
    images = found.column("images")[drawn]
    batch, accumulated = training.per_device_train_batch_size, training.gradient_accumulation_steps
    signed = [length if count else -length for length, count in zip(lengths, images, strict=True)]

    def grouped(values: list[int], by_modality: bool) -> float:
        order = LengthGroupedSampler(
            values, batch_size=batch, world=processes, seed=training.seed, by_modality=by_modality
        )
        return round(useful_share(lengths, order(0), batch), 4)

    whole = np.asarray(lengths, dtype=np.int64)
    groups = pack_epoch(whole, settings.data.max_length, np.arange(len(whole)), training.seed, 0)
    packs = [int(whole[group].sum()) for group in groups]
    order = shuffled(len(lengths), training.seed)(0)
    units = len(packs) if settings.data.mixtoken else len(lengths)
    batches, micro = step_counts(
        units, batch, world=processes, accumulate=accumulated, drop_last=training.dataloader_drop_last
    )
    an_epoch = batches // micro
    shares = {
        "random": round(useful_share(lengths, order, batch), 4),
        "group_by_length": grouped(lengths, False),
        "group_by_modality_length": grouped(signed, True),
    }
    if settings.preference.loss_type is None:  # pairs are not packed
        shares["mixtoken"] = round(useful_share(packs, shuffled(len(packs), training.seed)(0), batch), 4)
    return {
        "processes": processes,
        "rows_an_epoch": len(lengths),
        "rows_a_step": batch * processes * accumulated,
        "steps_an_epoch": an_epoch,
        "steps": total_steps(training, units, processes),
        "tokens_a_step": round(sum(lengths) * settings.preference.answers / max(an_epoch, 1)),
        "useful_share": shares,
        **({"packs": len(packs)} if "mixtoken" in shares else {}),
    }


def lines(data: dict[str, Any]) -> list[str]:
    """The summary for a person."""
    found = [
        f"{counted(data['rows'], 'row')}, {data['bad_rows']:,} of them cannot be used; "
        f"{counted(data['images'], 'image')}, {counted(data['rows_without_image'], 'row')} without one, "
        f"{counted(data['turns'], 'answer')}",
        f"{data['tokens']:,} tokens ({data['text_tokens']:,} of text and {data['visual_tokens']:,} visual before the "
        f"cut), {data['learnt_tokens']:,} of them learnt",
        f"max_length {data['max_length']:,}: {data['rows_cut']:,} rows are cut, {data['tokens_cut']:,} tokens",
    ]
    if data["rows_without_label"]:
        found.append(f"{data['rows_without_label']:,} of the rows that cannot be used keep no label")
    if data["answers_a_row"] > 1:
        found.append("of the two answers of a row the longer one is counted; tokens of a step are those of both")
    if "length" not in data:
        return found
    length, price = data["length"], data.get("cost")
    marks = ", ".join(f"{length[str(p)]:,} ({p} %)" for p in PERCENTILES)
    found.append(f"lengths: at most {marks}, the longest {length['max']:,}")
    if price is None:
        return found
    share = ", ".join(f"{name} {100 * value:.1f} %" for name, value in price["useful_share"].items())
    return [
        *found,
        f"{counted(price['steps'], 'step')} of {counted(price['rows_a_step'], 'row')} on "
        f"{counted(price['processes'], 'process', 'processes')}, about {price['tokens_a_step']:,} tokens each; "
        f"{counted(price['rows_an_epoch'], 'row')} an epoch",
        f"positions that are no padding: {share}",
    ]


_PANEL = (420, 190)
_MARGIN, _BINS = 30, 48


def draw_lengths(path: Path, found: Survey, max_length: int) -> None:
    """A PNG with three histograms: tokens of text, visual tokens, and both with the line of ``max_length``."""
    text, visual = found.column("text"), found.column("visual")
    panels = [("text tokens", text, None), ("visual tokens", visual, None), ("all tokens", text + visual, max_length)]
    pen = Pen(_MARGIN + len(panels) * (_PANEL[0] + _MARGIN), _PANEL[1] + 96)
    for number, (title, values, mark) in enumerate(panels):
        left = _MARGIN + number * (_PANEL[0] + _MARGIN)
        _histogram(pen, title, values, mark, (left + 44, 50, left + _PANEL[0], 50 + _PANEL[1]))
    pen.save(path)


def _histogram(pen: Pen, title: str, values: np.ndarray, mark: int | None, box: Box) -> None:
    left, top, right, bottom = box
    pen.text((left - 44, 16), f"{title} ({counted(len(values), 'row')})", 15, INK)
    limit = max(int(values.max(initial=1)), mark or 0) * 1.02 + 1
    counts, _ = np.histogram(values, bins=_BINS, range=(0, limit))
    most = max(int(counts.max(initial=1)), 1)
    most += most > 1 and most % 2  # the line half way up is a whole number
    for rows in (0, most // 2, most) if most > 1 else (0, 1):
        y = bottom - (bottom - top) * rows / most
        pen.line([(left, y), (right, y)], LINE)
        pen.text((left - 8, y), f"{rows:,}", 11, FAINT, "rm")
    width = (right - left) / _BINS
    for index, count in enumerate(counts):
        if count:
            height = max((bottom - top) * count / most, 1)  # a single long row is seen, too
            pen.bar((left + index * width, bottom - height, left + (index + 1) * width - 1, bottom), CURVE)
    for at in _steps(limit):
        x = left + (right - left) * at / limit
        pen.line([(x, bottom), (x, bottom + 4)], FAINT)
        pen.text((x, bottom + 8), f"{at:,}", 11, FAINT, "ma")
    if mark is not None:
        x = left + (right - left) * mark / limit
        pen.line([(x, top - 6), (x, bottom)], WRONG, 1.5)
        pen.text((x, top - 8), f"max_length {mark:,}", 11, WRONG, "rs" if mark > limit / 2 else "ls")


def _steps(limit: float) -> Sequence[int]:
    """At most six round numbers from 0 to ``limit``."""
    power = 10 ** math.floor(math.log10(limit))
    step = next(step for step in (power // 10, power // 5, power // 2, power, 2 * power) if step and limit / step <= 6)
    return range(0, int(limit) + 1, step)
