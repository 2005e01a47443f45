# SPDX-License-Identifier: Apache-2.0
"""Rows of question files become what is asked: LLaVA's files, MMBench's table, RefCOCO's boxes, MV-LLaVA's objects.

Every reader takes the file, the lines that close a question of its benchmark, and whether MMBench's options are turned
through all rounds.
"""

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paddlemix.eval.question_files import is_none, options_of, pairs_of
from paddlemix.eval.records import Record, read_lines, read_list, read_table
from paddlemix.eval.scorers.views import parts_of
from paddlemix.utils.constants import IMAGE_TOKEN

BOX = "Please provide the bounding box coordinate of the region this sentence describes: {}"
"""LLaVA's training data and InternVL's evaluation ask for a box so; InternVL writes the sentence in <ref> marks."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

Images = str | bytes | tuple[str, ...] | None


@dataclass(frozen=True)
class Asked:
    """One question. ``text``: what is said to the model, without the mark of the image.

    ``prompt``: what the answer's record holds. ``image``: a path below the image folder, several, the bytes of one, or
    None. ``more``: further keys of the record. Questions of one ``talk`` follow each other in one conversation, about
    the images of the first. ``views``: the images are those of one object, as MV-LLaVA's rows name it.
    """

    question_id: str | int
    text: str
    prompt: str
    image: Images
    more: Mapping[str, Any] = field(default_factory=dict)
    talk: str = ""
    views: bool = False


def rows(path: Path, closing: Sequence[str], all_rounds: bool) -> Iterator[Asked]:
    """JSON lines with question_id, image and text, which is sent as it is."""
    for record in read_lines(path):
        record.name("question_id")
        text = record.text("text")
        yield Asked(record.value["question_id"], text, text, record.text("image"))


def conversations(path: Path, closing: Sequence[str], all_rounds: bool) -> Iterator[Asked]:
    """ScienceQA's rows of conversations, of which the first turn is asked; some have no image."""
    for record in read_list(path):
        turn = next(record.records("conversations"), None)
        if turn is None:
            raise record.fault("conversations", "an empty list; the first turn is the question")
        text = "\n".join([turn.text("value").replace(IMAGE_TOKEN, "").strip(), *closing])
        image = record.text("image") if "image" in record.value else None
        yield Asked(record.text("id"), text, text if image is None else f"{IMAGE_TOKEN}\n{text}", image)


def table(path: Path, closing: Sequence[str], all_rounds: bool) -> Iterator[Asked]:
    """MMBench's rows. ``all_rounds``: each question once for every rotation of its options."""
    for row in read_table(path, ["index", "question", "hint", "A", "B", "image"]):
        options = options_of(row)
        letters = list("ABCD"[: len(options)])
        for number in range(len(options) if all_rounds else 1):
            turned = options[number:] + options[:number]
            lines = [] if is_none(row.text("hint")) else [row.text("hint")]
            lines += [row.text("question"), *(f"{a}. {b}" for a, b in zip("ABCD", turned, strict=False))]
            more = {"round_id": number, "options": turned, "option_char": letters[number:] + letters[:number]}
            yield Asked(_index(row), "\n".join([*lines, *closing]), "\n".join(lines), _image(row), more)


def _index(row: Record) -> int | str:
    index = row.text("index")
    return int(index) if index.isascii() and index.isdecimal() else index


def _image(row: Record) -> bytes:
    try:
        return base64.b64decode(row.text("image"), validate=True)
    except binascii.Error as cause:
        raise row.fault("image", f"not an image in base64 ({cause})") from cause


def boxes(path: Path, closing: Sequence[str], all_rounds: bool) -> Iterator[Asked]:
    """RefCOCO's rows: the sentence in ``sent``; named as ``question_files.refcoco`` names them."""
    for number, record in enumerate(read_list(path)):
        key = _key(number, record)
        text = BOX.format(record.text("sent"))
        yield Asked(key, text, text, record.text("image"))


def objects(path: Path, closing: Sequence[str], all_rounds: bool) -> Iterator[Asked]:
    """The turns of MV-LLaVA's rows that ask for quality, scale or style, in one conversation for each object."""
    for record in read_list(path):
        name = record.text("id")
        image = record.texts("image") if isinstance(record.value.get("image"), list) else record.text("image")
        for key, question, _ in parts_of(name, pairs_of(record)):
            text = question.replace(IMAGE_TOKEN, "").strip()
            yield Asked(key, text, text, image, talk=name, views=True)


def own(path: Path, closing: Sequence[str], all_rounds: bool) -> Iterator[Asked]:
    """Own rows: ``question`` and ``image`` or ``images``; ``options`` follow with letters, closed by ``closing``."""
    for number, record in enumerate(read_list(path)):
        key = _key(number, record)
        listed = listed_options(record)
        text = "\n".join([record.text("question"), *listed, *(closing if listed else ())])
        yield Asked(key, text, text, images_of(record))


def _key(number: int, record: Record) -> str | int:
    """The ``question_id`` of a row, or its number."""
    if "question_id" not in record.value:
        return number
    record.name("question_id")
    return record.value["question_id"]


def listed_options(record: Record) -> list[str]:
    """The ``options`` of a row of one's own, a line each with its letter; none when it has none."""
    options = record.texts("options") if "options" in record.value else ()
    if len(options) > len(LETTERS):
        raise record.fault("options", f"{len(options)} options; there are letters for {len(LETTERS)}")
    return [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]


def images_of(record: Record) -> Images:
    """The ``image`` or the ``images`` of a row of one's own; None when it has neither."""
    for name in ("image", "images"):
        value = record.value.get(name)
        if value == "" or (isinstance(value, list) and "" in value):
            raise record.fault(name, "an empty name; leave the key out, or write null, to ask without an image")
    names = [name for name in ("image", "images") if record.value.get(name) not in (None, [])]
    if len(names) > 1:
        raise record.fault("image", "images stand here and in /images; give one of them")
    if not names:
        return None
    value = record.value[names[0]]
    return record.texts(names[0]) if isinstance(value, list) else record.text(names[0])
