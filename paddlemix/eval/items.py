# SPDX-License-Identifier: Apache-2.0
"""What a run asks: each item is one conversation with its images, which is answered turn by turn."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paddlemix.datasets.multiview import views_of
from paddlemix.eval.question_rows import Asked
from paddlemix.imaging.load import is_address
from paddlemix.imaging.views import Film, Views
from paddlemix.text.messages import Conversation
from paddlemix.utils.errors import DataError
from paddlemix.utils.shown import shown

REPEAT = 4
"""A lone image of an object stands so often, as long as four views (MV-LLaVA)."""


@dataclass(frozen=True)
class Turn:
    """One question of an item. ``text`` is said to the model; ``key``, ``prompt`` and ``more`` go to the record."""

    key: str | int
    text: str
    prompt: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Item:
    """Turns about the same images (paths, addresses or bytes). ``where`` names it in errors.

    ``views``: the images are those of one object, which stand together. ``before``: a conversation that the only turn
    ends, with its own image marks, as a row of training data has it.
    """

    turns: tuple[Turn, ...]
    images: tuple[str | bytes, ...] = ()
    where: str = ""
    views: Views | Film | None = None
    before: Conversation | None = None


@dataclass(frozen=True)
class Said:
    """The answer to one turn, or why there is none (``failure``). ``finish``: why it ended, as in ``Answer``."""

    text: str
    failure: str = ""
    finish: str = ""


def items_of(asked: Iterable[Asked], image_folder: Path, *, search: bool = False) -> list[Item]:
    """The items of questions in their order. ``search``: a path that is not there may begin at any of its parts.

    So RefCOCO's ``data/coco/train2014/x.jpg`` is found below COCO's own folder, too.
    """
    found: list[Item] = []
    talk = ""
    for one in asked:
        turn = Turn(one.question_id, one.text, one.prompt, one.more)
        if one.talk and one.talk == talk:
            found[-1] = Item((*found[-1].turns, turn), found[-1].images, found[-1].where, found[-1].views)
            continue
        talk = one.talk
        images, views = _images(one, image_folder, search)
        found.append(Item((turn,), images, f"question {shown(one.question_id, 80)}", views))
    return found


def _images(asked: Asked, folder: Path, search: bool) -> tuple[tuple[str | bytes, ...], Views | None]:
    image = asked.image
    if image is None:
        return (), None
    if isinstance(image, bytes):
        return (image,), None
    names = (image,) if isinstance(image, str) else image
    if asked.views:
        return views_of(asked.talk, names, str(folder), REPEAT)
    return tuple(_path(name, folder, search) for name in names), None


def _path(name: str, folder: Path, search: bool) -> str:
    if is_address(name):
        return name
    path = os.path.join(folder, name)
    if search and not os.path.isfile(path):
        parts = Path(name).parts
        shorter = (os.path.join(folder, *parts[first:]) for first in range(1, len(parts)))
        path = next((other for other in shorter if os.path.isfile(other)), path)
    return path


def files_of(items: Iterable[Item]) -> list[str]:
    """The image files that items name, each once, in their order."""
    return list(dict.fromkeys(image for item in items for image in item.images if _is_file_name(image)))


def _is_file_name(image: str | bytes) -> bool:
    return isinstance(image, str) and not is_address(image)


def missing_files(items: Iterable[Item], folder: Path, remedy: str) -> list[str]:
    """The image files that are not there. DataError when none of them is: the image folder is another one."""
    files = files_of(items)
    missing = [path for path in files if not os.path.isfile(path)]
    if files and len(missing) == len(files):
        raise DataError(f"{folder}: none of the {len(files)} images is there, the first is {missing[0]}; {remedy}")
    return missing


def part_with(items: Sequence[Item], limit: int | None) -> list[Item]:
    """At most ``limit`` items, spread evenly over all; those that follow each other about one image stay together.

    MME's two questions about an image are judged together, so that a part of them is worth nothing.
    """
    if limit is None or limit >= len(items):
        return list(items)
    groups: list[list[Item]] = []
    for item in items:
        if groups and item.images and item.images == groups[-1][0].images:
            groups[-1].append(item)
        else:
            groups.append([item])
    wanted = max(1, limit * len(groups) // len(items))
    found: list[Item] = []
    for number in range(wanted):
        group = groups[number * len(groups) // wanted]
        if len(found) + len(group) <= limit:
            found += group
    return found or groups[0][:limit]
