# SPDX-License-Identifier: Apache-2.0
"""Reviews to read: question, image, both answers, scores and the judge's words, worst first."""

import os
from collections.abc import Sequence
from pathlib import Path

from paddlemix.eval import pages
from paddlemix.eval.judge.reviews import Review
from paddlemix.eval.judge.summary import Summary, summary_rows
from paddlemix.eval.pages import text
from paddlemix.imaging.load import load_image
from paddlemix.utils.errors import DataError

HEADER = ("category", "reviews", "mean 1", "mean 2", "relative, %", "95 % interval", "without scores")


def write_reviews(path: Path, reviews: Sequence[Review], summary: Summary, images: Path | None, judge: str) -> None:
    """Write the page. Reviews without scores come first, then those in which the second answer loses most."""
    ordered = sorted(reviews, key=_gain)
    failed = sum(review.scores is None for review in reviews)
    parts = [
        f'<p class="faint">judge: {text(judge)}; {len(reviews)} reviews, {failed} without scores</p>',
        pages.table(HEADER, list(summary_rows(summary))),
        *(_card(review, images) for review in ordered),
    ]
    pages.write_page(path, f"Reviews: {summary.name}", parts)


def _gain(review: Review) -> float:
    return float("-inf") if review.scores is None else review.scores[1] - review.scores[0]


def _card(review: Review, images: Path | None) -> str:
    pair = review.pair
    head = f"{pair.question_id} · {pair.category}"
    verdict = f'<p class="bad">{text(review.why)}</p>'
    if review.scores is not None:
        first, second = review.scores
        kind = "good" if second >= first else "bad"
        verdict = f'<p class="{kind}">{pair_number(first)} : {pair_number(second)}</p>'
    answers = "".join(
        f'<div><h2>{text(pair.role)} {number} <span class="faint">{text(answer.model_id)}</span></h2>'
        f'<div class="text">{text(answer.text)}</div></div>'
        for number, answer in enumerate(pair.answers, 1)
    )
    return (
        f'<div class="card"><p class="faint">{text(head)}</p><h2 class="text">{text(pair.question)}</h2>'
        f"{_image(pair.image, images)}{verdict}"
        f'<div class="two">{answers}</div>'
        f'<details open><summary>review</summary><div class="text">{text(review.text)}</div></details>'
        f'<details><summary>context</summary><div class="text">{text(pair.context)}</div></details></div>'
    )


def pair_number(value: float) -> str:
    """A score without a needless ".0"."""
    return f"{value:g}"


def _image(name: str, folder: Path | None) -> str:
    if folder is None:
        return ""
    try:
        return pages.picture(load_image(os.path.join(folder, name)))
    except DataError as error:
        return f'<p class="faint">{text(error)}</p>'
