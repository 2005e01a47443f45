# SPDX-License-Identifier: Apache-2.0
"""Annotations of objects (Bootstrap3D's obj_descript_gpt_10k.json, or what the batch tool writes) as training rows.

The rows are those of Bootstrap3D's data/demo_obj_instruct.json and demo_obj_pretrain.json: id ``cap3d_<object>``, image
``<object>``, and as questions the texts of these files, spelt as they are there.

How the 10k file spells its keys is not documented. Those of the larger file beside it are known (id, desciption,
caption, score, level, style; scores 1 to 6); other spellings are read as the same, and ``keys`` takes any.
"""

import json
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paddlemix.annotate.objects import ObjectImages
from paddlemix.annotate.scripts import QUALITY, plain
from paddlemix.utils.constants import IMAGE_TOKEN
from paddlemix.utils.errors import DataError
from paddlemix.utils.foreign import JsonValue, parse_json, refuse_pointer
from paddlemix.utils.shown import counted

DESCRIBE = (
    "What is this multi-view photo about? Descript it to me as detailed as possible.",
    "Describe the following multi-view image as detailed as possible.",
)
"""One of the two is drawn for each object."""

VIEWS = 4


@dataclass(frozen=True)
class Choice:
    """A question with fixed answers; ``answers`` are in the spelling of the training data."""

    key: str
    text: str
    answers: tuple[str, ...]

    def answer(self, said: JsonValue) -> str | None:
        """The answer that a value of a file means (for the quality also a number from 1 to 6); None: none of them."""
        words = {plain(answer): answer for answer in self.answers}
        if self.key == "score":
            words |= {form: word for word, score in QUALITY.items() for form in (str(score), f"{score}.0")}
        return words.get(plain(str(said)))


CHOICES = (
    Choice(
        "score",
        "What do you think about the overall quality of this 3D model? Choosing from 'poor', 'relatively poor', "
        "'boardline', 'relatively good', 'good', 'perfect'.",
        tuple(QUALITY),
    ),
    Choice(
        "level",
        "What do you think about the scale of the 3D model represents? Choosing from 'single_object', 'multi-object', "
        "'small_scene', 'large_scene'.",
        ("single_object", "multi-object", "small_scene", "large_scene"),
    ),
    Choice(
        "style",
        "What do you think about the overall style of the 3D model? Choosing from 'CAD', 'Cartoon', 'Photo_realistic'.",
        ("CAD", "Cartoon", "Photo_realistic"),
    ),
)

SPELLINGS = {
    "id": ("id", "uid", "object_id", "image", "name"),
    "description": ("desciption", "description", "descript", "detailed_description", "caption", "text"),
    "score": ("score", "quality", "overall_quality"),
    "level": ("level", "scale"),
    "style": ("style", "overall_style"),
}
"""Keys of a record, the likeliest first. Case, spaces, dashes and underscores do not matter."""


@dataclass
class Converted:
    """What became of a file. ``left_out`` counts objects by reason, ``unknown`` answers by question."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    objects: int = 0
    left_out: dict[str, list[str]] = field(default_factory=dict)
    unknown: dict[str, list[str]] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The result in words: one line, and one for each thing that was left out."""
        found = [f"{counted(len(self.rows), 'row')} from {counted(self.objects, 'object')}"]
        for what, names in {**self.left_out, **self.unknown}.items():
            found.append(f"  {len(names):,} {what}, for example {names[0]}")
        return found


def convert(path: Path, *, rounds: bool, seed: int, keys: Mapping[str, str], root: Path | None = None) -> Converted:
    """The training rows of an annotation file (.json, .jsonl).

    ``rounds``: all four questions (second stage), else the description alone (first stage). ``keys`` are keys of the
    file by the names of ``SPELLINGS``. With ``root``, the folder of ``Cap3D_imgs_view{0,1,4,5}``, objects without
    images are left out. DataError names the file and the record, and the keys when no row came out.
    """
    done = Converted()
    first: Mapping[str, Any] = {}
    for name, record in _records(path, keys):
        done.objects += 1
        first = first or record
        description = _value(record, "description", keys)
        if not isinstance(description, str) or not description.strip():
            done.left_out.setdefault("objects have no description", []).append(name)
        elif IMAGE_TOKEN in description:
            done.left_out.setdefault(f"objects have {IMAGE_TOKEN} in their description", []).append(name)
        elif root is not None and not ObjectImages(root).has_pictures(name):
            done.left_out.setdefault(f"objects have no images under {root}", []).append(name)
        else:
            turns = [(random.Random(f"{seed} {name}").choice(DESCRIBE), description.strip())]
            turns += _choices(name, record, keys, done) if rounds else []
            done.rows.append(_row(name, turns))
    if not done.rows:
        reasons = ", ".join(f"{len(names)} {what}" for what, names in done.left_out.items()) or "no object in it"
        raise DataError(
            f"{path}: no row comes out ({reasons}); the keys of its first record are {', '.join(first) or 'none'}: "
            "say with --key description=NAME which of them is meant"
        )
    return done


def _choices(name: str, record: Mapping[str, Any], keys: Mapping[str, str], done: Converted) -> list[tuple[str, str]]:
    """Question and answer of each choice that the record has made."""
    found = []
    for choice in CHOICES:
        said = _value(record, choice.key, keys)
        answer = choice.answer(said)
        if answer is not None:
            found.append((choice.text, answer))
        else:
            what = f"objects are not asked for {choice.key}, which is none of the answers or missing"
            done.unknown.setdefault(what, []).append(f"{name} ({json.dumps(said, ensure_ascii=False)})")
    return found


def _row(name: str, rounds: list[tuple[str, str]]) -> dict[str, Any]:
    turns = [{"from": who, "value": text} for pair in rounds for who, text in zip(("human", "gpt"), pair, strict=True)]
    turns[0]["value"] = f"{IMAGE_TOKEN * VIEWS}\n{turns[0]['value']}"
    return {"id": f"cap3d_{name}", "image": name, "conversations": turns}


def _records(path: Path, keys: Mapping[str, str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and record of each object: of a list, of an object by names, or of JSON lines."""
    for where, name, value in _items(path):
        record = _opened(value)
        if name is None:
            name = _value(record, "id", keys)
            if not isinstance(name, str | int) or name == "":
                raise DataError(f'{where}: no "id" (keys: {", ".join(record)}); say which key with --key id=NAME')
        yield re.sub(r"^cap3d_|\.(jpe?g|png|webp|glb)$", "", str(name).rpartition("/")[2]), record


def _items(path: Path) -> Iterator[tuple[str, str | None, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        refuse_pointer(text[:64], path, DataError)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give the annotation file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        # Only "\n" ends a line: U+2028 may stand inside a text.
        lines = [(f"{path}:{number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        found: Any = [_json(line, where) for where, line in lines]
    else:
        found = _json(text, str(path))
    if isinstance(found, dict):
        yield from ((f"{path}: {name}", name, value) for name, value in found.items())
    elif isinstance(found, list):
        yield from ((f"{path}: record {number}", None, value) for number, value in enumerate(found))
    else:
        raise DataError(f"{path}: expected a list of annotations, or an object with them by name")


def _json(text: str, where: str) -> Any:
    return parse_json(text, where, DataError, halves=True, max_values=None)


def _opened(value: JsonValue) -> Mapping[str, Any]:
    """A record: as it stands, in the text of an answer (also of the OpenAI interface), or a description alone."""
    if isinstance(value, dict):
        choices = value.get("choices")
        if isinstance(choices, list) and choices and isinstance(choices[0], dict):
            message = choices[0].get("message")
            return _opened(message.get("content") or "" if isinstance(message, dict) else "")
        return value
    if not isinstance(value, str):
        return {}
    inner = re.search(r"\{.*\}", value, re.DOTALL)
    try:
        found = json.loads(inner[0]) if inner else None
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"description": value}


def _value(record: Mapping[str, Any], what: str, keys: Mapping[str, str]) -> Any:
    if what in keys:
        return record.get(keys[what])
    there = {re.sub(r"[\s_-]", "", str(key)).casefold(): value for key, value in record.items()}
    return next((there[word] for word in (re.sub("_", "", key) for key in SPELLINGS[what]) if word in there), None)
