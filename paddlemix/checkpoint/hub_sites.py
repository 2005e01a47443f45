# SPDX-License-Identifier: Apache-2.0
"""The hubs that models are downloaded from: their addresses, which names they are asked for, what they list.

``PADDLEMIX_HUB`` (names ``owner/model``) lists its files with sizes and digests: huggingface.co and its mirrors in one
way, modelscope.cn in another. PaddleMIX's community server (names ``paddlemix/...``; ``COMMUNITY_MODEL_PREFIX`` as in
PaddleMIX) lists nothing unless it has a ``manifest.json`` of ours.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddlemix.settings.places import cache
from paddlemix.utils import env, foreign
from paddlemix.utils.download import Limits, MissingError, download
from paddlemix.utils.errors import ConfigError, DataError
from paddlemix.utils.files import MANIFEST, MIB
from paddlemix.utils.foreign import JsonValue
from paddlemix.utils.logging import get_logger
from paddlemix.utils.registry import nearest

OFF = "off"
PREFIX = "hub:"
"""In front of a name: it means a model of the hub, whatever lies here."""

HUBS = {
    "huggingface": "https://huggingface.co",
    "hf-mirror": "https://hf-mirror.com",
    "modelscope": "https://modelscope.cn",
}
"""Hubs by name; an address stands for itself."""

OWNERS = (
    "01-ai", "AI-ModelScope", "LLM-Research", "Lin-Chen", "NousResearch", "OpenGVLab", "Qwen", "Zery", "google",
    "huggyllama", "liuhaotian", "llava-hf", "lmms-lab", "lmsys", "meta-llama", "mistralai", "openai", "paddlemix",
    "swift",
)  # fmt: skip
"""Who publishes the models that can be loaded, their parts and bases. A name of another owner may be a mistyped path,
so the hub is asked for it only with ``hub:`` in front; a hub that the user gave by its address is asked for all."""

LIST_BYTES = 16 * MIB
"""Largest list of files or tensors."""
PLAIN_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_COMMUNITY = "https://bj.bcebos.com/paddlenlp/models/community"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*){1,2}")


@dataclass(frozen=True)
class File:
    """A file on a hub; what is None is not known before it is there."""

    name: str
    size: int | None = None
    sha256: str | None = None
    git: str | None = None


def address() -> str:
    """The address of ``PADDLEMIX_HUB``. ConfigError for a name that is none."""
    given = env.get("PADDLEMIX_HUB")
    if given in HUBS:
        return HUBS[given]
    if not given.startswith(("http://", "https://")):
        known = [*HUBS, OFF]
        raise ConfigError(
            f'environment variable PADDLEMIX_HUB="{given}"{nearest(given, known)}: expected an address or one of '
            f"{', '.join(known)}"
        )
    return given.rstrip("/")


def may_fetch(name: str) -> bool:
    """Whether ``name`` is asked for on a hub: two or three plain parts of a known owner, no folder here."""
    if not is_name(name) or env.get("PADDLEMIX_HUB") == OFF:
        return False
    hub, owner = address(), name.split("/")[0]
    if name.startswith(PREFIX):
        return True
    known = owner in OWNERS or hub not in HUBS.values()
    return known and not (Path.cwd() / owner).exists()


def is_name(name: str) -> bool:
    """Whether ``name`` has the form of a published one, with or without ``hub:`` in front."""
    return _NAME.fullmatch(name.removeprefix(PREFIX)) is not None


def why_not(name: str) -> str:
    """What an error says about a name that could be one of a hub; empty for any other."""
    if not is_name(name) or name.startswith(PREFIX):
        return ""
    if env.get("PADDLEMIX_HUB") == OFF:
        return "\nPADDLEMIX_HUB=off, so no hub is asked"
    owner = name.split("/")[0]
    reason = f"{owner} is a folder here" if (Path.cwd() / owner).exists() else f'no owner "{owner}" is known'
    return f"\nIt is taken as a path, because {reason}; for a model of that name on a hub write {PREFIX}{name}"


def list_files(name: str, limits: Limits) -> tuple[str, list[File] | None]:
    """The address that the files lie under, and the files, or None where nobody lists them."""
    if name.startswith("paddlemix/") or name.count("/") == 2:
        base = f"{(env.raw('COMMUNITY_MODEL_PREFIX') or _COMMUNITY).rstrip('/')}/{name}"
        return base, _manifest(base, limits)
    hub = address()
    if hub == HUBS["modelscope"]:
        return f"{hub}/models/{name}/resolve/master", _modelscope(hub, name, limits)
    place = f"{hub}/api/models/{name}/tree/main"
    rows = _json(place, limits)
    if not isinstance(rows, list):
        raise DataError(f"{place}: expected a list of files")
    return f"{hub}/{name}/resolve/main", [_row(place, row) for row in rows if _is_file(row, "path", "file")]


def _modelscope(hub: str, name: str, limits: Limits) -> list[File]:
    place = f"{hub}/api/v1/models/{name}/repo/files?Revision=master&Recursive=true"
    data = _json(place, limits)
    part = data.get("Data") if isinstance(data, dict) else None
    rows = part.get("Files") if isinstance(part, dict) else None
    if not isinstance(rows, list):
        raise DataError(f"{place}: expected a list of files")
    found = []
    for row in rows:
        if _is_file(row, "Path", "blob"):
            size, digest = row.get("Size"), row.get("Sha256")
            if type(size) is not int or not _is_hex(digest, 64):
                raise DataError(f"{place}: size and digest of {row['Path']} are not there")
            found.append(File(row["Path"], size, digest))
    return found


def _is_file(row: JsonValue, key: str, kind: str) -> bool:
    named = isinstance(row, dict) and kind in (row.get("type"), row.get("Type"))
    return named and PLAIN_FILE.fullmatch(str(row.get(key))) is not None


def _row(place: str, row: dict[str, Any]) -> File:
    stored = row.get("lfs") if isinstance(row.get("lfs"), dict) else None
    size = (stored or row).get("size")
    digest = stored.get("oid") if stored else None
    if type(size) is not int or (stored and not _is_hex(digest, 64)):
        raise DataError(f"{place}: size and digest of {row['path']} are not there")
    git = row.get("oid") if stored is None and _is_hex(row.get("oid"), 40) else None
    return File(row["path"], size, digest, git)


def _is_hex(value: JsonValue, length: int) -> bool:
    return isinstance(value, str) and re.fullmatch(rf"[0-9a-f]{{{length}}}", value) is not None


def _manifest(base: str, limits: Limits) -> list[File] | None:
    """The files by our own manifest, or None when the server has none."""
    try:
        data = _json(f"{base}/{MANIFEST}", limits)
    except MissingError:
        get_logger(__name__).warning(
            f"{base}: no {MANIFEST}, so sizes are checked as the server says them, and no digests"
        )
        return None
    with foreign.reading(f"{base}/{MANIFEST}: it is", DataError, "put the folder there by hand"):
        files = [File(name, facts["bytes"], facts["sha256"]) for name, facts in data["files"].items()]
    return [file for file in files if PLAIN_FILE.fullmatch(file.name)]


def _json(place: str, limits: Limits) -> Any:
    staging = cache().parent / f".list-{os.getpid()}.json"
    try:
        download(place, staging, limits=limits)
        return foreign.parse_json(foreign.read_text(staging, DataError, LIST_BYTES), place, DataError)
    finally:
        staging.unlink(missing_ok=True)
        for ending in (".part", ".part.tag"):
            staging.with_name(staging.name + ending).unlink(missing_ok=True)
