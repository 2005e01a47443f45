# SPDX-License-Identifier: Apache-2.0
"""What an exported folder says about itself, and whether it is whole. No paddle.

``OUT/encode_image`` and ``OUT/encode_text`` are complete each, because they are exported and moved one by one: program,
weights, ``export.json`` (this file), the model's configuration, and ``manifest.json`` with size and SHA-256 of each
file. The text part also holds tokenizer, template and ending ids.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from paddlemix.utils.errors import CheckpointError
from paddlemix.utils.files import MANIFEST, read_manifest, sha256
from paddlemix.utils.foreign import read_json
from paddlemix.utils.shown import shown

FACTS = "export.json"
FORM = 1
HASHED = 256 << 20
"""Files of more bytes are compared by size alone when a folder is opened."""

Part = Literal["encode_image", "encode_text"]
STEMS: dict[Part, str] = {"encode_image": "clip", "encode_text": "llama"}
"""Folder of each part below the export and the name of its graph there, as PaddleMIX has them."""

EXPORT = "python deploy/llava/export_model.py --model_name_or_path MODEL --save_path OUT"


@dataclass(frozen=True)
class Facts:
    """``export.json``. ``model`` is the fingerprint of the exported model; parts of different ones do not fit.

    ``inputs`` and ``outputs``: name -> shape and dtype, in the order of the graph; -1 is an axis of any size.
    ``device`` is the kind for which it was traced.
    """

    part: Part
    model: str
    paddle: str
    device: str
    dtype: str
    inputs: dict[str, str]
    outputs: dict[str, str]

    def as_json(self) -> str:
        """The file's content."""
        return json.dumps({"form": FORM, **asdict(self)}, indent=1) + "\n"


def part_folder(path: Path, part: Part) -> Path:
    """The folder of a part: ``path`` itself, the export that holds it, or the prefix of its files (``.../clip``)."""
    for found in (path, path / part):
        if (found / FACTS).is_file():
            return found
    stem = path.name.split(".")[0]
    if (path.parent / FACTS).is_file() and not path.is_dir():
        # A graph of the other part: read_facts says what lies there.
        if stem == STEMS[part] or (stem in STEMS.values() and (path.parent / f"{stem}.json").is_file()):
            return path.parent
        raise CheckpointError(f"{path}: there is no graph of this name; give {path.parent / STEMS[part]}")
    raise CheckpointError(
        f"{path}: holds no exported {part} (no {FACTS}); give OUT/{part}/{STEMS[part]}, or export the model: {EXPORT}"
    )


def read_facts(folder: Path, part: Part) -> Facts:
    """``export.json`` of a part whose files are all there. CheckpointError says what is wrong and how to mend it."""
    _require_whole(folder)
    path = folder / FACTS
    data = read_json(path, CheckpointError, unique=True)
    if data.get("form") != FORM:
        raise CheckpointError(f'{path}: "form" {shown(data.get("form"))}, expected {FORM}; {_again(folder)}')
    found = {name: data.get(name) for name in Facts.__dataclass_fields__}
    for name, value in found.items():
        kind = dict if name in ("inputs", "outputs") else str
        if not isinstance(value, kind):
            raise CheckpointError(f'{path}: "{name}" {shown(value)}, expected {_WORDS[kind]}; {_again(folder)}')
    if found["part"] != part:
        raise CheckpointError(f"{folder}: this is {shown(found['part'])}; {part} was expected here")
    return Facts(**found)


def _require_whole(folder: Path) -> None:
    try:
        entries = read_manifest(folder)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {_again(folder)}") from error
    for name, facts in entries.items():
        problem = _problem(folder / name, facts)
        if problem is not None:
            raise CheckpointError(f"{folder / name}: {problem} ({MANIFEST}); {_again(folder)}")


def _problem(file: Path, facts: Mapping[str, Any]) -> str | None:
    if not file.is_file():
        return "missing"
    size = file.stat().st_size
    if size != facts["bytes"]:
        return f"{size} bytes, {facts['bytes']} were written"
    if size <= HASHED and sha256(file) != facts["sha256"]:
        return "its content is not what was written"
    return None


def _again(folder: Path) -> str:
    return f"copy {folder.name} anew, or export it again: {EXPORT}"


_WORDS = {dict: "an object", str: "a text"}
