# SPDX-License-Identifier: Apache-2.0
"""Models that are not on this machine: found by their published name on a hub, downloaded once, checked.

``hub_sites`` knows the hubs and what they list. A name says only where to look; what a folder is, its files say.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from paddlemix.checkpoint.hub_sites import HUBS, LIST_BYTES, PLAIN_FILE, PREFIX, File, list_files
from paddlemix.settings.places import cache
from paddlemix.utils import foreign
from paddlemix.utils.download import PART, Limits, MissingError, download, git_digest
from paddlemix.utils.errors import CheckpointError, DataError
from paddlemix.utils.files import MIB, write_manifest
from paddlemix.utils.logging import get_logger
from paddlemix.utils.meter import Meter

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
    "chat_template.jinja",
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


def fetch_model(name: str, *, weights: bool = True, limits: Limits | None = None) -> Path:
    """The folder of a published model below ``PPMIX_HOME``, downloaded when it is not there yet.

    ``weights=False`` takes the small files only (configuration, tokenizer), into a folder of their own. A download that
    broke off goes on where it was. CheckpointError names the address and the reason. Processes that want the same
    model wait for each other.
    """
    name = name.removeprefix(PREFIX)
    root = cache() if weights else cache().with_name("configs")
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
                f"Call again to go on, or put the folder to {root / name}; PADDLEMIX_HUB names another hub "
                f"({', '.join(HUBS)} or an address), PADDLEMIX_HUB=off stops all downloads"
            ) from error


def _fetch(name: str, target: Path, weights: bool, limits: Limits) -> Path:
    logger = get_logger(__name__)
    base, files = list_files(name, limits)
    known = {file.name: file for file in files} if files is not None else None
    staging = target.with_name(f".part-{target.name}")
    staging.mkdir(exist_ok=True)
    wanted = _small(known)
    logger.info(f"{name}: downloading from {base} to {target}")
    place = _Place(base, staging, limits, Meter(name))
    with place.meter:
        for file in wanted:
            _one(place, file, needed=known is not None)
        _require_model(place)
        if weights:
            _fetch_weights(place, known)
    for leftover in staging.glob("*.part*"):
        leftover.unlink()
    write_manifest(staging)
    os.replace(staging, target)
    return target


@dataclass(frozen=True)
class _Place:
    """From where to where."""

    base: str
    staging: Path
    limits: Limits
    meter: Meter


def _require_model(place: _Place) -> None:
    base, staging = place.base, place.staging
    if not any((staging / file).is_file() for file in ("config.json", "adapter_config.json", "lora_config.json")):
        raise MissingError(f"{base}: there is no model of that name, or it has no config.json")


def _small(known: dict[str, File] | None) -> list[File]:
    if known is None:
        return [File(name) for name in _SMALL]
    return [known[name] for name in _SMALL if name in known]


def _fetch_weights(place: _Place, known: dict[str, File] | None) -> None:
    taken = [_first(place, group, known) for group in (_WHOLE, *_PARTS)]
    if not any(taken):
        raise MissingError(
            f"{place.base}: no weights; looked for {', '.join((*_WHOLE, *(name for g in _PARTS for name in g)))}"
        )
    index = taken[0]
    if index is None or not index.endswith(".index.json"):
        return
    shards = [File(name) if known is None else known.get(name) for name in _shards(place.staging / index)]
    if None in shards:
        raise MissingError(f"{place.base}: {index} names a file that the hub does not have")
    sizes = [shard.size for shard in shards]
    if None not in sizes:
        _require_space(place.staging, sum(sizes))
    for shard in shards:
        place.meter.expect(_missing(place, shard))
    for shard in shards:
        _one(place, shard, needed=True, expected=True)


def _missing(place: _Place, file: File) -> int:
    """Bytes of a file of known size that are not there yet."""
    whole, part = (place.staging / f"{file.name}{ending}" for ending in ("", PART))
    there = next((path.stat().st_size for path in (whole, part) if path.is_file()), 0)
    return max(0, (file.size or 0) - there)


def _first(place: _Place, names: tuple[str, ...], known: dict[str, File] | None) -> str | None:
    """Download the first of ``names`` that the hub has."""
    for name in names:
        if known is not None and name not in known:
            continue
        if _one(place, File(name) if known is None else known[name], needed=known is not None):
            return name
    return None


def _one(place: _Place, file: File, *, needed: bool, expected: bool = False) -> bool:
    """Download one file; False when the hub has none and it is not ``needed``. ``expected``: the meter knows of it."""
    base, target = place.base, place.staging / file.name
    if target.is_file() and (file.size is None or target.stat().st_size == file.size):
        return True  # complete files are only ever put there after their check
    logger = get_logger(__name__)
    if file.size and file.size > 100 * MIB:
        logger.info(f"{file.name}: {file.size / 1e9:.2f} GB")
        _require_space(place.staging, file.size)
    if not expected and file.size is not None:
        place.meter.expect(_missing(place, file))
    try:
        download(
            f"{base}/{file.name}", target, size=file.size, digest=file.sha256, limits=place.limits,
            note=logger.warning, meter=place.meter,
        )  # fmt: skip
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
    table = foreign.read_json(index, DataError, LIST_BYTES).get("weight_map")
    with foreign.reading(f"{index}: its table of weight files is", DataError):
        names = sorted(set(table.values()))
    for name in names:
        if not isinstance(name, str) or not PLAIN_FILE.fullmatch(name):
            raise DataError(f"{index}: {name!r} is no plain file name")
    return names


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
