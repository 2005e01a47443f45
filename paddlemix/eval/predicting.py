# SPDX-License-Identifier: Apache-2.0
"""Own pictures and rows in, JSON lines out: what a person expects who has a folder of images and one question.

A line is the row as it was, with ``response`` and ``finish`` (``stop``, or ``length`` at the limit); ``label`` is the
answer that the row had; a row that cannot be asked has an empty response and ``error``.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paddlemix.datasets.frames import frames_of
from paddlemix.datasets.records import Place
from paddlemix.datasets.rows import MarkRules, read_row, video_of
from paddlemix.eval import running
from paddlemix.eval.items import Item, Said, Turn, items_of, missing_files
from paddlemix.eval.models import Model
from paddlemix.eval.question_rows import Asked, images_of, listed_options
from paddlemix.eval.records import read_list
from paddlemix.eval.running import Job
from paddlemix.imaging.views import Film
from paddlemix.text.messages import Conversation
from paddlemix.utils.errors import ConfigError, DataError
from paddlemix.utils.files import sha256

PROMPT = "Describe the image in detail."
QUESTION_KEYS = ("question", "prompt", "query", "text", "instruction")
LABEL_KEYS = ("answer", "answers", "label", "response", "output")
CONVERSATIONS = ("conversations", "messages")
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
RULES = MarkRules(images_without_mark="front", mark_without_images="text")


@dataclass(frozen=True)
class Asking:
    """What is predicted, and with which model. ``prompt``: the question of rows (and of a folder) that have none."""

    data: Path
    output: Path
    model: Model
    prompt: str | None = None
    image_folder: Path | None = None
    max_new_tokens: int = 512
    batch_size: int = 8
    parts: int = 1
    index: int = 0


def planned(asking: Asking) -> tuple[Job, list[str]]:
    """The job, and the image files that are not there. DataError names the first row that cannot be read."""
    if asking.output.suffix != ".jsonl":
        raise ConfigError(f"--output {asking.output}: expected a .jsonl file")
    for name in ("batch_size", "max_new_tokens"):
        if getattr(asking, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(asking, name)}: expected a number from 1")
    folder = asking.data.is_dir()
    if not folder and asking.data.suffix.lower() in PICTURES and asking.data.is_file():
        raise ConfigError(f"--data {asking.data}: is one picture; give its folder, or talk about it in paddlemix chat")
    items = list(_pictures(asking) if folder else _rows(asking))
    if not items:
        what = f"no image ({', '.join(PICTURES)})" if folder else "no rows"
        raise DataError(f"{asking.data}: {what} in it")
    root = asking.image_folder or (asking.data if folder else asking.data.parent)
    missing = missing_files(items, root, "give the right folder with --image-folder")
    settings = {
        "data": [turn.key for item in items for turn in item.turns] if folder else sha256(asking.data),
        "prompt": asking.prompt, "image_folder": str(asking.image_folder or ""),
        "max_new_tokens": asking.max_new_tokens, "batch_size": asking.batch_size, **asking.model.settings(),
    }  # fmt: skip
    job = Job(items, asking.output, settings, lines, asking.batch_size, asking.parts, asking.index)
    if job.path == asking.data:
        raise ConfigError(f"--output {asking.output}: is the input; name another file")
    return job, missing


def lines(item: Item, answers: Sequence[Said]) -> list[str]:
    """The line of an item."""
    (said,) = answers
    row = {**item.turns[0].more, "response": said.text}
    row |= {"error": said.failure} if said.failure else {"finish": said.finish}
    return [json.dumps(row, ensure_ascii=False) + "\n"]


def _pictures(asking: Asking) -> Iterator[Item]:
    prompt = asking.prompt or PROMPT
    for path in sorted(asking.data.rglob("*")):
        if path.suffix.lower() in PICTURES and path.is_file():
            name = path.relative_to(asking.data).as_posix()
            yield Item((Turn(name, prompt, prompt, {"image": name, "prompt": prompt}),), (str(path),), name)


def _rows(asking: Asking) -> Iterator[Item]:
    root = asking.image_folder or asking.data.parent
    for number, record in enumerate(read_list(asking.data)):
        row, where = record.value, record.where
        kept = {key: value for key, value in row.items() if key not in ("response", "error", "finish")}
        label = next((row[key] for key in LABEL_KEYS if key in row), None)
        if any(row.get(key) for key in CONVERSATIONS):
            talk = read_row(row, Place(where, ""), RULES)
            yield conversation_item(number, where, talk, root, {**kept, **_labelled(talk)})
            continue
        key = next((key for key in QUESTION_KEYS if key in row), None)
        if key is None and asking.prompt is None:
            raise record.fault(
                QUESTION_KEYS[0],
                "missing; a row has a question, or messages as in training data, or --prompt asks all rows the same",
            )
        text = "\n".join([str(asking.prompt if key is None else record.text(key)), *listed_options(record)])
        more = {**kept, **({} if key else {"prompt": text}), **({"label": label} if label is not None else {})}
        (item,) = items_of([Asked(number, text, text, images_of(record), more)], root)
        film = video_of(row, Place(where, ""))
        if film and item.images:
            raise record.fault("video", "images and a video in one row; give the frames as images, too")
        yield replace(item, where=where, **_film(film, root, where) if film else {})


def _labelled(talk: Conversation) -> dict[str, str]:
    last = talk.messages[-1] if talk.messages else None
    return {"label": last.text} if last is not None and last.role == "assistant" else {}


def conversation_item(number: int, where: str, talk: Conversation, root: Path | None, more: dict[str, Any]) -> Item:
    """The item of a row of training data: its last answer is what is asked for. Images are below ``root``."""
    asked = talk.before_answer() if talk.messages and talk.messages[-1].role == "assistant" else talk
    if not asked.messages or asked.messages[-1].role != "user":
        raise DataError(f"{where}: the last turn is none of the user's; there is nothing to answer")
    turn = Turn(number, asked.messages[-1].text, asked.messages[-1].text, more)
    if asked.video:
        film = {"images": asked.images, "views": Film()} if root is None else _film(asked.images, root, where)
        return Item((turn,), where=where, before=replace(asked, images=film["images"]), **film)
    images = tuple(image if root is None else _below(image, root) for image in asked.images)
    return Item((turn,), images, where, before=replace(asked, images=images))


def _film(video: Sequence[str], root: Path, where: str) -> dict[str, Any]:
    """The fields of an item that shows a video, whose frames are below ``root``."""
    try:
        return {"images": frames_of(video, str(root)), "views": Film()}
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _below(image: str, root: Path) -> str:
    (item,) = items_of([Asked(0, "", "", image)], root)
    return str(item.images[0])


def failures(path: Path) -> list[tuple[int, str]]:
    """Number and reason of the lines of an output that hold no answer."""
    with open(path, encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    return [(number, str(row["error"])) for number, row in enumerate(rows, 1) if row.get("error")]


def predict(job: Job, model: Model, max_new_tokens: int, *, restart: bool = False) -> Path | None:
    """Ask what is not answered yet. The whole file, or None while other parts are missing."""
    if restart:
        running.forget(job)
    if running.is_done(job.path, job.settings):
        return job.path
    if not running.is_done(job.own_path, job.settings):
        job.path.parent.mkdir(parents=True, exist_ok=True)  # what cannot be written is told before weights are read
        running.run(job, model.open(max_new_tokens), name=job.path.name)
    job.journal.unlink(missing_ok=True)
    return job.path if job.parts == 1 or running.merge(job.path, job.parts) else None
