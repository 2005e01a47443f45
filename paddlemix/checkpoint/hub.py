# SPDX-License-Identifier: Apache-2.0
"""Models that are not on this machine: found by their published name on a hub, downloaded once, checked.

Two kinds of hub: ``PADDLEMIX_HUB`` (names ``owner/model``; lists its files with sizes and digests) and PaddleMIX's
community server (names ``paddlemix/...``; ``COMMUNITY_MODEL_PREFIX`` as in PaddleMIX), which lists nothing unless it
has a ``manifest.json`` of ours. A name says only where to look; what a folder is, its files say.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddlemix.utils import env, foreign
from paddlemix.utils.download import Limits, MissingError, download, git_digest
from paddlemix.utils.errors import CheckpointError, DataError
from paddlemix.utils.files import MANIFEST, MIB, write_manifest
from paddlemix.utils.logging import get_logger

OFF = "off"
_COMMUNITY = "https://bj.bcebos.com/paddlenlp/models/community"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*){1,2}")
_LIST_BYTES = 16 * MIB
"""Largest list of files or tensors."""
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

_SMALL = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "conversion.json",
    "adapter_config.json",
    "lora_config.json",
)
"""Files of a model folder besides its weights."""
_WHOLE = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model_state.pdparams",
)
"""Weights of a whole model, best first; one of them is taken."""
_PARTS = (
    ("adapter_model.safetensors", "adapter_model.bin"),
    ("lora_model_state.safetensors", "lora_model_state.pdparams"),
    ("non_lora_trainables.safetensors", "non_lora_trainables.bin"),
    ("mm_projector.safetensors", "mm_projector.bin"),
)
"""Weights of adapters and projectors; of each group the first that is there."""


@dataclass(frozen=True)
class _File:
    """A file on a hub; what is None is not known before it is there."""

    name: str
    size: int | None = None
    sha256: str | None = None
    git: str | None = None


def may_fetch(name: str) -> bool:
    """Whether ``name`` can be a published one: two or three plain parts, none of which is a folder here already."""
    return (
        env.get("PADDLEMIX_HUB") != OFF
        and _NAME.fullmatch(name) is not None
        and not (Path.cwd() / name.split("/")[0]).exists()
    )


def fetch_model(name: str, *, weights: bool = True, limits: Limits | None = None) -> Path:
    """The folder of a published model below ``PPMIX_HOME``, downloaded when it is not there yet.

    ``weights=False`` takes the small files only (configuration, tokenizer), into a folder of their own. A download that
    broke off goes on where it was. CheckpointError names the address and the reason. Processes that want the same
    model wait for each other.
    """
    root = Path(env.get("PPMIX_HOME")).expanduser() / ("models" if weights else "configs")
    target = root / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(target.with_name(f".{target.name}.lock")):
        if target.is_dir():
            return target
        try:
            return _fetch(name, target, weights, limits or Limits())
        except DataError as error:
            raise CheckpointError(
                f"{name}: not on this machine, and the download failed: {error}\n"
                f"Call again to go on, or put the folder to {root / name}; PADDLEMIX_HUB names another hub, and "
                "PADDLEMIX_HUB=off stops all downloads"
            ) from error


def _fetch(name: str, target: Path, weights: bool, limits: Limits) -> Path:
    logger = get_logger(__name__)
    base, files = _list(name, limits)
    known = {file.name: file for file in files} if files is not None else None
    staging = target.with_name(f".part-{target.name}")
    staging.mkdir(exist_ok=True)
    wanted = _small(known)
    logger.info(f"{name}: downloading from {base} to {target}")
    for file in wanted:
        _one(base, staging, file, limits, needed=known is not None)
    if not any((staging / file).is_file() for file in ("config.json", "adapter_config.json", "lora_config.json")):
        raise MissingError(f"{base}: there is no model of that name, or it has no config.json")
    if weights:
        _fetch_weights(base, staging, known, limits)
    for leftover in staging.glob("*.part*"):
        leftover.unlink()
    write_manifest(staging)
    os.replace(staging, target)
    return target


def _small(known: dict[str, _File] | None) -> list[_File]:
    if known is None:
        return [_File(name) for name in _SMALL]
    return [known[name] for name in _SMALL if name in known]


def _fetch_weights(base: str, staging: Path, known: dict[str, _File] | None, limits: Limits) -> None:
    taken = [_first(base, staging, group, known, limits) for group in (_WHOLE, *_PARTS)]
    if not any(taken):
        raise MissingError(
            f"{base}: no weights; looked for {', '.join((*_WHOLE, *(name for g in _PARTS for name in g)))}"
        )
    index = taken[0]
    if index is None or not index.endswith(".index.json"):
        return
    shards = [_File(name) if known is None else known.get(name) for name in _shards(staging / index)]
    if None in shards:
        raise MissingError(f"{base}: {index} names a file that the hub does not have")
    sizes = [shard.size for shard in shards]
    if None not in sizes:
        _require_space(staging, sum(sizes))
    for shard in shards:
        _one(base, staging, shard, limits, needed=True)


def _first(
    base: str, staging: Path, names: tuple[str, ...], known: dict[str, _File] | None, limits: Limits
) -> str | None:
    """Download the first of ``names`` that the hub has."""
    for name in names:
        if known is not None and name not in known:
            continue
        if _one(base, staging, _File(name) if known is None else known[name], limits, needed=known is not None):
            return name
    return None


def _one(base: str, staging: Path, file: _File, limits: Limits, *, needed: bool) -> bool:
    """Download one file; False when the hub has none and it is not ``needed``."""
    target = staging / file.name
    if target.is_file() and (file.size is None or target.stat().st_size == file.size):
        return True  # complete files are only ever put there after their check
    logger = get_logger(__name__)
    if file.size and file.size > 100 * MIB:
        logger.info(f"{file.name}: {file.size / 1e9:.2f} GB")
        _require_space(staging, file.size)
    try:
        download(f"{base}/{file.name}", target, size=file.size, digest=file.sha256, limits=limits, note=logger.warning)
    except MissingError:
        if needed:
            raise
        return False
    if file.git is not None and git_digest(target) != file.git:
        target.unlink()
        raise DataError(f"{base}/{file.name}: its content is not what the hub lists")
    return True


def _require_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size + 64 * MIB:
        raise DataError(f"{folder}: {size / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")


def _shards(index: Path) -> list[str]:
    table = foreign.read_json(index, DataError, _LIST_BYTES).get("weight_map")
    with foreign.reading(f"{index}: its table of weight files is", DataError):
        names = sorted(set(table.values()))
    for name in names:
        if not isinstance(name, str) or not _FILE.fullmatch(name):
            raise DataError(f"{index}: {name!r} is no plain file name")
    return names


def _list(name: str, limits: Limits) -> tuple[str, list[_File] | None]:
    """The address that the files lie under, and the files, or None where nobody lists them."""
    hub = env.get("PADDLEMIX_HUB").rstrip("/")
    if name.startswith("paddlemix/") or name.count("/") == 2:
        base = f"{(env.raw('COMMUNITY_MODEL_PREFIX') or _COMMUNITY).rstrip('/')}/{name}"
        return base, _manifest(base, limits)
    address = f"{hub}/api/models/{name}/tree/main"
    rows = _json(address, limits)
    if not isinstance(rows, list):
        raise DataError(f"{address}: expected a list of files")
    return f"{hub}/{name}/resolve/main", [_row(address, row) for row in rows if _is_file(row)]


def _is_file(row: Any) -> bool:
    return isinstance(row, dict) and row.get("type") == "file" and _FILE.fullmatch(str(row.get("path"))) is not None


def _row(address: str, row: dict[str, Any]) -> _File:
    stored = row.get("lfs") if isinstance(row.get("lfs"), dict) else None
    size = (stored or row).get("size")
    digest = stored.get("oid") if stored else None
    if type(size) is not int or (stored and not _is_hex(digest, 64)):
        raise DataError(f"{address}: size and digest of {row['path']} are not there")
    git = row.get("oid") if stored is None and _is_hex(row.get("oid"), 40) else None
    return _File(row["path"], size, digest, git)


def _is_hex(value: Any, length: int) -> bool:
    return isinstance(value, str) and re.fullmatch(rf"[0-9a-f]{{{length}}}", value) is not None


def _manifest(base: str, limits: Limits) -> list[_File] | None:
    """The files by our own manifest, or None when the server has none."""
    try:
        data = _json(f"{base}/{MANIFEST}", limits)
    except MissingError:
        get_logger(__name__).warning(
            f"{base}: no {MANIFEST}, so sizes are checked as the server says them, and no digests"
        )
        return None
    with foreign.reading(f"{base}/{MANIFEST}: it is", DataError, "put the folder there by hand"):
        files = [_File(name, facts["bytes"], facts["sha256"]) for name, facts in data["files"].items()]
    return [file for file in files if _FILE.fullmatch(file.name)]


def _json(address: str, limits: Limits) -> Any:
    staging = Path(env.get("PPMIX_HOME")).expanduser() / f".list-{os.getpid()}.json"
    try:
        download(address, staging, limits=limits)
        return foreign.parse_json(foreign.read_text(staging, DataError, _LIST_BYTES), address, DataError)
    finally:
        staging.unlink(missing_ok=True)
        for ending in (".part", ".part.tag"):
            staging.with_name(staging.name + ending).unlink(missing_ok=True)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time; the lock goes with the process, so a killed one leaves none."""
    import fcntl

    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            get_logger(__name__).info(f"waiting for the download of another process ({path})")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
