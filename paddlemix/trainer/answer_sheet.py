# SPDX-License-Identifier: Apache-2.0
"""Sample answers as a picture: each image as the model sees it, the question, the answer and the reference."""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from paddlemix.imaging.drawing import FAINT, INK, LINE, RIGHT, WRONG, Pen
from paddlemix.settings.model import ImageConfig, LlavaConfig
from paddlemix.utils.shown import escaped

_WIDTH, _MARGIN, _SIDE, _HEAD = 860, 24, 132, 58
_ROW = _SIDE + 22
_LINES = {"question": 2, "answer": 3, "reference": 2}
_STEP = 17
_MOST_IMAGES = 9


class Shown(Protocol):
    """What the sheet tells of an answer."""

    where: str
    question: str
    answer: str
    reference: str
    exact_match: float
    rouge_l: float


def draw_sheet(
    title: str, answers: Sequence[Shown], pixels: Sequence[np.ndarray | None], config: LlavaConfig, most: int = 20
) -> bytes:
    """A PNG with a row for each of the first ``most`` answers.

    ``pixels``: the tiles that show their images, one for each, float32 [N, 3, S, S].
    """
    kept = answers[:most]
    pen = Pen(_WIDTH, _HEAD + len(kept) * _ROW + _MARGIN)
    exact, overlap = (sum(getattr(item, name) for item in answers) for name in ("exact_match", "rouge_l"))
    pen.text((_MARGIN, 14), f"Sample answers, {title}", 18, INK)
    note = f"exact match {exact:.0f} of {len(answers)}, mean ROUGE-L {overlap / max(len(answers), 1):.3f}"
    more = f"; the first {most} of {len(answers)}" if len(answers) > most else ""
    pen.text((_MARGIN, 38), note + more, 12, FAINT)
    for number, (answer, tiles) in enumerate(zip(kept, pixels, strict=False)):
        shown = [] if tiles is None else [as_picture(tile, config.image) for tile in tiles[:_MOST_IMAGES]]
        _row(pen, answer, shown, _HEAD + number * _ROW)
    return pen.png(photos=True)


def as_picture(tile: np.ndarray, image: ImageConfig) -> Image.Image:
    """A tile (float32 [3, S, S]) as the RGB image that it was made from."""
    values = tile.transpose(1, 2, 0) * np.array(image.std) + np.array(image.mean)
    return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))


def _row(pen: Pen, answer: Shown, pictures: Sequence[Image.Image], top: float) -> None:
    pen.line([(_MARGIN, top), (_WIDTH - _MARGIN, top)], LINE)
    y = top + 11
    across = math.ceil(math.sqrt(len(pictures)))
    for place, picture in enumerate(pictures):
        step = _SIDE // across
        at = (_MARGIN + place % across * step, y + place // across * step)
        pen.paste(picture, at, step - (2 if across > 1 else 0))
    if not pictures:
        pen.text((_MARGIN + _SIDE / 2, y + _SIDE / 2), "no image", 12, FAINT, "mm")
    left = _MARGIN + _SIDE + 18
    colour = RIGHT if answer.exact_match else WRONG
    parts = (
        ("question", answer.question.replace("<image>", "").strip(), 12, INK),
        ("answer", answer.answer or "(nothing)", 13, colour),
        ("reference", answer.reference, 12, INK),
    )
    for name, text, size, shade in parts:
        pen.text((left, y + 1), name, 10, FAINT)
        for line in pen.wrapped(escaped(text), size, _WIDTH - _MARGIN - left - 66, _LINES[name]):
            pen.text((left + 66, y), line, size, shade)
            y += _STEP
        y += 2
    score = f"{answer.where}   ROUGE-L {answer.rouge_l:.3f}".strip()
    for line in pen.wrapped(score, 10, _WIDTH - _MARGIN - left, 1):
        pen.text((left, top + 11 + _SIDE), line, 10, FAINT, "ls")
