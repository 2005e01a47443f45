# SPDX-License-Identifier: Apache-2.0
"""Reads data files: LLaVA rows, chatml pairs and OpenAI messages, as one JSON list or as JSON lines.

The form is found row by row, so a file may mix them. Errors name the file and the JSON pointer of what is wrong
(``train.json: /12/conversations/0/value``; for JSON lines ``train.jsonl:13: /conversations/0/value``).
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddlemix.datasets.multiview import views_of
from paddlemix.datasets.sample import BadSamples, Sample
from paddlemix.imaging.load import is_address
from paddlemix.imaging.views import Views
from paddlemix.text.messages import ROW_ROLES, Message
from paddlemix.utils.constants import IMAGE_TOKEN
from paddlemix.utils.errors import DataError
from paddlemix.utils.registry import nearest

LINES = (".jsonl", ".ndjson")
CHAT_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Entry:
    """One entry of ``dataset.train``: its files, the folder of its images, its chat template if it has one.

    ``multiview`` above 0: the rows are MV-LLaVA's, and a lone picture stands so many times at its place.
    """

    data_files: tuple[str, ...]
    image_folder: str | None = None
    chat_template: str | None = None
    multiview: int = 0


def read(entry: Entry, bad: BadSamples | None = None) -> list[Sample]:
    """All samples of an entry in the order of its files. Bad rows go to ``bad`` (default: the first one raises)."""
    bad = bad or BadSamples()
    samples = [sample for path in entry.data_files for sample in _read_file(path, entry, bad)]
    if not samples:
        raise DataError(f"{', '.join(entry.data_files)}: no rows; expected a list of conversations")
    return samples


def _read_file(path: str, entry: Entry, bad: BadSamples) -> Iterator[Sample]:
    text = _read_text(path)
    rows = _lines(path, text, bad) if path.lower().endswith(LINES) else _list(path, text)
    root = entry.image_folder or os.curdir
    for place, row in rows:
        try:
            messages, images = normalise(row, place)
            name = str(row["id"]) if row.get("id") is not None else ""
            paths, views = _placed(name, images, root, entry, place)
        except DataError as error:
            bad.add(error, place.text)
            continue
        where = f'{place.text} (id "{name[:80]}")' if name else place.text
        yield Sample(messages, paths, name, where, root, entry.chat_template, views)


def _placed(
    name: str, images: tuple[str, ...], root: str, entry: Entry, place: "Place"
) -> tuple[tuple[str, ...], Views | None]:
    """Paths of a row's pictures, and how they become views."""
    if not entry.multiview or not images:
        return tuple(image if is_address(image) else os.path.join(root, image) for image in images), None
    try:
        return views_of(name, images, root, entry.multiview)
    except DataError as error:
        raise place.fault("/image", str(error)) from error


@dataclass(frozen=True)
class Place:
    """Where a row stands. ``pointer`` is its JSON pointer, empty for JSON lines."""

    file: str
    pointer: str

    @property
    def text(self) -> str:
        """``file: /12`` or ``file:13``."""
        return f"{self.file}: {self.pointer}" if self.pointer else self.file

    def fault(self, path: str, problem: str) -> DataError:
        """The error for the value at ``path`` (a JSON pointer inside the row)."""
        return DataError(f"{self.file}: {self.pointer}{path}: {problem}")


def _read_text(path: str) -> str:
    if is_address(path):
        raise DataError(f"{path}: data files are read from disk; download the file and give its path")
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such data file") from error
    except IsADirectoryError as error:
        raise DataError(f"{path}: is a folder; give the path of a .json or .jsonl file") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not a path'})") from error
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path}: byte 0: this is UTF-16; save the file as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start}: not UTF-8 ({error.reason}); save the file as UTF-8") from error


def _list(path: str, text: str) -> Iterator[tuple[Place, Any]]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; is this JSON lines? Then name it .jsonl" if error.msg == "Extra data" else ""
        raise DataError(f"{path}:{error.lineno}:{error.colno}: not JSON ({error.msg}){hint}") from error
    except RecursionError as error:
        raise DataError(f"{path}: nested too deeply; expected a list of conversations") from error
    if not isinstance(rows, list):
        raise DataError(f"{path}: {_kind(rows)} at the top; expected a list of conversations")
    for index, row in enumerate(rows):
        yield Place(path, f"/{index}"), row


def _lines(path: str, text: str, bad: BadSamples) -> Iterator[tuple[Place, Any]]:
    # Only "\n" ends a line: U+2028 and its like may stand inside a JSON text, and splitlines() would cut there.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = Place(f"{path}:{number}", "")
        try:
            yield place, json.loads(line)
        except json.JSONDecodeError as error:
            bad.add(DataError(f"{path}:{number}:{error.colno}: not JSON ({error.msg})"), place.text)
        except RecursionError:
            bad.add(DataError(f"{path}:{number}: nested too deeply"), place.text)


def normalise(row: Any, place: Place) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """Messages and images of a row in any of the known forms. DataError with the JSON pointer otherwise."""
    if not isinstance(row, dict):
        raise place.fault("", f"{_kind(row)}; expected an object with conversations or messages")
    if "video" in row:
        raise place.fault("/video", "rows with videos are not supported; give frames as a list of images")
    if "messages" in row:
        messages, images = _chat(row["messages"], place)
    elif "conversations" in row:
        messages, images = _conversations(row["conversations"], place), []
    else:
        hint = nearest("conversations", [str(name) for name in row])
        raise place.fault("", f'neither "conversations" nor "messages" is there{hint}')
    listed = _listed_images(row, place)
    if images and listed:
        raise place.fault("", "images stand both in the messages and beside them; give them once")
    return tuple(messages), tuple(images or listed)


def _conversations(turns: Any, place: Place) -> list[Message]:
    if not isinstance(turns, list) or not turns:
        raise place.fault("/conversations", f"{_kind(turns)}; expected a list of turns that is not empty")
    if isinstance(turns[0], dict):
        return [_llava_turn(turn, place, f"/conversations/{index}") for index, turn in enumerate(turns)]
    messages = []
    for index, pair in enumerate(turns):
        at = f"/conversations/{index}"
        if not isinstance(pair, list) or len(pair) != 2:
            raise place.fault(at, "expected a pair [user text, assistant text]")
        messages += [
            Message(role, _text(part, place, f"{at}/{side}"))
            for side, (role, part) in enumerate(zip(("user", "assistant"), pair, strict=True))
        ]
    return messages


def _llava_turn(turn: Any, place: Place, at: str) -> Message:
    if not isinstance(turn, dict):
        raise place.fault(at, f'{_kind(turn)}; expected {{"from": "human" or "gpt", "value": text}}')
    for name in ("from", "value"):
        if name not in turn:
            raise place.fault(at, f'"{name}" is missing')
    role = turn["from"]
    if not isinstance(role, str) or role not in ROW_ROLES:
        raise place.fault(f"{at}/from", f"{role!r}; expected one of {', '.join(ROW_ROLES)}"[:200])
    return Message(ROW_ROLES[role], _text(turn["value"], place, f"{at}/value"))


def _chat(turns: Any, place: Place) -> tuple[list[Message], list[str]]:
    if not isinstance(turns, list) or not turns:
        raise place.fault("/messages", f"{_kind(turns)}; expected a list of messages that is not empty")
    messages: list[Message] = []
    images: list[str] = []
    for index, turn in enumerate(turns):
        at = f"/messages/{index}"
        if not isinstance(turn, dict) or "content" not in turn:
            raise place.fault(at, 'expected {"role": ..., "content": ...}')
        role = turn.get("role")
        if role not in CHAT_ROLES:
            raise place.fault(f"{at}/role", f"{role!r}; expected one of {', '.join(CHAT_ROLES)}"[:200])
        content = turn["content"]
        if isinstance(content, list):
            text, found = _parts(content, place, f"{at}/content")
            images += found
        else:
            text = _text(content, place, f"{at}/content")
        messages.append(Message(role, text))
    return messages, images


def _parts(parts: list[Any], place: Place, at: str) -> tuple[str, list[str]]:
    """Text of a message made of parts: every picture is an ``<image>`` on a line of its own, in its place."""
    text, images, after_image = "", [], False
    for index, part in enumerate(parts):
        here = f"{at}/{index}"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            piece = _text(part.get("text"), place, f"{here}/text")
            text += f"\n{piece}" if after_image else piece
            after_image = False
        elif kind in ("image_url", "image"):
            images.append(_part_image(part, kind, place, here))
            text += f"\n{IMAGE_TOKEN}" if text else IMAGE_TOKEN
            after_image = True
        else:
            raise place.fault(here, 'expected a part of type "text", "image_url" or "image"')
    return text, images


def _part_image(part: dict[str, Any], kind: str, place: Place, at: str) -> str:
    value = part.get(kind, part.get("path"))
    if isinstance(value, dict):
        value = value.get("url")
    if not isinstance(value, str) or not value:
        raise place.fault(at, f'the picture is missing; expected "{kind}": path or {{"url": path}}')
    _text(value, place, at)
    return value.removeprefix("file://")


def _listed_images(row: dict[str, Any], place: Place) -> list[str]:
    keys = [key for key in ("image", "images") if row.get(key) not in (None, [], "")]
    if len(keys) > 1:
        raise place.fault("", 'both "image" and "images" are there; give one of them')
    if not keys:
        return []
    value = row[keys[0]]
    images = value if isinstance(value, list) else [value]
    for index, image in enumerate(images):
        if not isinstance(image, str) or not image:
            at = f"/{keys[0]}/{index}" if isinstance(value, list) else f"/{keys[0]}"
            raise place.fault(at, f"{_kind(image)}; expected the path of a picture")
        _text(image, place, f"/{keys[0]}")
    return images


def _text(value: Any, place: Place, at: str) -> str:
    if not isinstance(value, str):
        raise place.fault(at, f"{_kind(value)}; expected a text")
    if "\0" in value:
        raise place.fault(at, f"NUL character at {value.index(chr(0))}; remove it")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise place.fault(at, f"lone surrogate at character {error.start}; the text is no valid Unicode") from error
    return value


def _kind(value: Any) -> str:
    if value in ([], ""):
        return "empty"
    names = {dict: "an object", list: "a list", str: "a text", bool: "true/false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
