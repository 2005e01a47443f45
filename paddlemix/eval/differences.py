# SPDX-License-Identifier: Apache-2.0
"""The answers in which two runs differ, with their questions and images: as a PNG and as a page."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from paddlemix.eval import asked as asking_for
from paddlemix.eval import pages, running
from paddlemix.eval.answer_files import AnswerRecord
from paddlemix.eval.asked import Asked
from paddlemix.eval.benchmarks import BENCHMARKS
from paddlemix.eval.compare import Comparison, Pair, metric_rows, name_of
from paddlemix.eval.items import items_of
from paddlemix.eval.scorers.score import Result
from paddlemix.eval.scoring import Scored
from paddlemix.imaging.drawing import FAINT, INK, LINE, PAPER, RIGHT, WRONG, Pen
from paddlemix.imaging.load import load_image
from paddlemix.utils.errors import DataError
from paddlemix.utils.shown import counted, cut, escaped

ON_SHEET, ON_PAGE = 24, 200
"""Differing answers that a PNG and a page show: half of them where B gains most, half where it loses most."""
_WIDTH, _MARGIN, _SIDE, _TOP = 980, 24, 120, 92
_STEP, _HEIGHT = 16, 144


@dataclass(frozen=True)
class Shown:
    """What belongs to a question: its text and its first image, or why there is none."""

    question: str = ""
    image: str | bytes | None = None

    def picture(self) -> Image.Image | str | None:
        """The image, or what is wrong with it."""
        if self.image is None:
            return None
        try:
            return load_image(self.image)
        except DataError as error:
            return str(error)


Questions = Callable[[str], Shown]
"""What belongs to the key of a question; without a text and an image where it is not known."""


def without_questions(key: str) -> Shown:
    """For score files whose questions are not at hand."""
    return Shown()


def questions_of(found: Comparison, data: Path | None, image_folder: Path | None) -> Questions:
    """Where questions and images of a comparison are: in ``data``, else where the run of A or B had them.

    DataError when ``data`` is not the benchmark's; without ``data`` and a run's own record, nothing is known.
    """
    benchmark = found.a.score.benchmark
    if benchmark not in asking_for.QUESTIONS:
        return without_questions
    if data is not None:
        base = data if data.is_dir() else data.parent
        usual = base / asking_for.QUESTIONS[benchmark].images
        return _reader(benchmark, data, data, image_folder or (usual if usual.is_dir() else base), "llava")
    for scored in (found.a, found.b):
        recorded = _recorded(scored, image_folder)
        if recorded is not None:
            return recorded
    return without_questions


def _recorded(scored: Scored, image_folder: Path | None) -> Questions | None:
    """From the record that a run of ours wrote beside its answers; None when it, or a file that it names, is gone."""
    for file, _ in scored.answers:
        try:
            made = running.record_of(Path(file))
            data, path = Path(made["about"]["data"]), Path(made["about"]["question_file"])
            base = data if data.is_dir() else data.parent
            usual = base / asking_for.QUESTIONS[scored.score.benchmark].images
            folder = image_folder or Path(made["settings"].get("image_folder") or (usual if usual.is_dir() else base))
            return _reader(scored.score.benchmark, data, path, folder, made["settings"].get("prompts", "llava"))
        except (DataError, KeyError, TypeError):
            continue
    return None


def _reader(benchmark: str, data: Path, question_file: Path, images: Path, form: str) -> Questions:
    key = BENCHMARKS[benchmark].keys(data)
    known: dict[str, Asked] = {}
    for one in asking_for.questions_of(benchmark, question_file, form=form):
        known[key(AnswerRecord(one.question_id, "", one.prompt, where=str(question_file)))] = one

    def shown(key: str) -> Shown:
        one = known.get(key) or known.get(key.rsplit(" #", 1)[0])
        if one is None:
            return Shown()
        files = items_of([one], images, search=benchmark == "refcoco")[0].images
        return Shown(one.text, files[0] if files else None)

    return shown


def chosen(pairs: Sequence[Pair], most: int) -> list[Pair]:
    """At most ``most`` pairs of a sequence that begins where B gains most: half from each of its ends."""
    if len(pairs) <= most:
        return list(pairs)
    return [*pairs[: most - most // 2], *pairs[len(pairs) - most // 2 :]]


def draw_sheet(found: Comparison, questions: Questions) -> bytes:
    """A PNG with a row for each differing answer."""
    pairs = chosen(found.pairs, ON_SHEET)
    rows = [(pair, questions(pair.key)) for pair in pairs]
    pen = Pen(_WIDTH, _TOP + len(rows) * _HEIGHT + _MARGIN)
    _head(pen, found, len(pairs))
    for number, (pair, shown) in enumerate(rows):
        _row(pen, pair, shown, _TOP + number * _HEIGHT)
    return pen.png(photos=True)


def _head(pen: Pen, found: Comparison, many: int) -> None:
    score = found.a.score
    pen.text((_MARGIN, 14), f"{BENCHMARKS[score.benchmark].title}, convention {score.convention}", 18, INK)
    main = metric_rows(found)[0]
    text = f"{score.main}: A {main[1]}, B {main[2]}, B - A {main[3]} (95 % interval {main[4]}, p {main[5]})"
    pen.text((_MARGIN, 40), text, 12, INK)
    shown = "" if many == len(found.pairs) else f"; {many} are shown, those where B gains most and loses most"
    for number, (letter, scored) in enumerate((("A", found.a), ("B", found.b))):
        for line in pen.wrapped(f"{letter}: {escaped(name_of(scored))}", 11, _WIDTH / 2 - 2 * _MARGIN, 1):
            pen.text((_MARGIN + number * _WIDTH / 2, 60), line, 11, FAINT)
    pen.text((_MARGIN, 75), f"{counted(len(found.pairs), 'different answer')}{shown}", 11, FAINT)


def _row(pen: Pen, pair: Pair, shown: Shown, top: float) -> None:
    pen.line([(_MARGIN, top), (_WIDTH - _MARGIN, top)], LINE)
    y = top + 12
    picture = shown.picture()
    if isinstance(picture, Image.Image):
        pen.paste(_square(picture), (_MARGIN, y), _SIDE)
    else:
        pen.text((_MARGIN + _SIDE / 2, y + _SIDE / 2), "no image", 12, FAINT, "mm")
    left, width = _MARGIN + _SIDE + 18, _WIDTH - 2 * _MARGIN - _SIDE - 18
    parts = [("", shown.question or pair.key, INK, 2), ("right", ", ".join(dict.fromkeys(pair.expected)), INK, 1)]
    # The value stands in front: behind a long answer it would be cut off.
    parts += [(f"{letter}  {one.value:.2f}", *_said(one)) for letter, one in (("A", pair.a), ("B", pair.b))]
    for name, text, colour, most in parts:
        if name:
            pen.text((left, y + 1), name, 11, FAINT)
        indent = 52 if name else 0
        for line in pen.wrapped(escaped(text).replace("<image>", " "), 12, width - indent, most) or [""]:
            pen.text((left + indent, y), line, 12, colour)
            y += _STEP


def _said(result: Result) -> tuple[str, str, int]:
    text = result.text if result.status == "answered" else f"({result.status}) {result.text}"
    return cut(text, 600) or "(nothing)", RIGHT if result.value >= 0.5 else WRONG, 2


def _square(picture: Image.Image) -> Image.Image:
    """The image whole on a square of the page's colour."""
    scale = 2 * _SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    small = picture.resize(size, Image.Resampling.LANCZOS)
    square = Image.new("RGB", (2 * _SIDE, 2 * _SIDE), PAPER)
    square.paste(small, ((square.width - small.width) // 2, (square.height - small.height) // 2))
    return square


def write_page(path: Path, found: Comparison, questions: Questions) -> None:
    """A page with the metrics and the differing answers, their images inside it."""
    score = found.a.score
    pairs = chosen(found.pairs, ON_PAGE)
    more = "" if len(pairs) == len(found.pairs) else f"; {len(pairs)} are shown, where B gains most and loses most"
    parts = [
        f"<p>A: {pages.text(name_of(found.a))}<br>B: {pages.text(name_of(found.b))}</p>",
        pages.table(("metric", "A", "B", "B - A", "95 % interval", "p"), metric_rows(found)),
        f"<p>{counted(len(found.pairs), 'different answer')}{more}</p>",
        *(_card(pair, questions(pair.key)) for pair in pairs),
    ]
    pages.write_page(path, f"{BENCHMARKS[score.benchmark].title}, convention {score.convention}", parts)


def _card(pair: Pair, shown: Shown) -> str:
    picture = shown.picture()
    image = ""
    if isinstance(picture, Image.Image):
        image = pages.picture(picture)
    elif picture is not None:
        image = f'<p class="faint">{pages.text(picture)}</p>'
    sides: Mapping[str, Result] = {"A": pair.a, "B": pair.b}
    answers = "".join(
        f'<div><h2>{letter} <span class="{"good" if one.value >= 0.5 else "bad"}">{one.value:.2f}</span></h2>'
        f'<div class="text">{pages.text(one.text or f"({one.status})")}</div></div>'
        for letter, one in sides.items()
    )
    right = pages.text(", ".join(dict.fromkeys(pair.expected)))
    return (
        f'<div class="card"><p class="faint">{pages.text(pair.key)}</p>'
        f'<div class="text">{pages.text(shown.question)}</div>{image}<p>right: {right}</p>'
        f'<div class="two">{answers}</div></div>'
    )
