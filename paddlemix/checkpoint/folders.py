# SPDX-License-Identifier: Apache-2.0
"""Which folder a name means, and what kind of model folder it is; recognised by its files, never by its name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paddlemix.checkpoint import hub
from paddlemix.checkpoint.formats.limits import brief, plain_name
from paddlemix.checkpoint.formats.source import WEIGHT_FILES
from paddlemix.checkpoint.hub_sites import PREFIX, may_fetch, why_not
from paddlemix.settings.places import downloaded, has_weights, places
from paddlemix.settings.published.config import OWN_MODEL_TYPE
from paddlemix.settings.published.tower import published_twins
from paddlemix.utils import foreign
from paddlemix.utils.errors import CheckpointError
from paddlemix.utils.paths import begins_at, expanded

CONFIG = "config.json"
MODEL_TYPE = OWN_MODEL_TYPE
"""``model_type`` of our own folder form."""

ADAPTER_CONFIG = "lora_config.json"
ADAPTER_WEIGHTS = "lora_model_state.safetensors"
PEFT_CONFIG = "adapter_config.json"
ADAPTERS = ("adapter", "peft")
"""Kinds of folders (``kind_of``) that hold an adapter."""
GENERATION = "generation_config.json"
FINGERPRINT = "base_fingerprint.json"
"""Beside an adapter in peft's form that we wrote: a few values of the base it belongs to."""

SHARE4V = "share4v"
OWN_TOWER = "vision_tower"
"""``model_type`` of ShareGPT4V and MV-LLaVA, and the sub-folder in which their training keeps a tuned tower."""
PROJECTOR_FILES = ("mm_projector.safetensors", "mm_projector.bin")
_MAX_CONFIG_BYTES = 16 << 20


Near = Path | Sequence[Path] | None


def resolve(
    name: str | Path, what: str, *, near: Near = None, remedy: str = "give its path", weights: bool = True
) -> Path:
    """The local folder of ``name``: a path, or a published name such as ``openai/clip-vit-large-patch14-336``.

    Looked for in the places of ``settings.places`` (``near``: the model, its base), and then on the hub
    (``hub.fetch_model``; ``weights=False``: the small files only). A tower that another machine named by a path is
    also known by the published name with the same last part. CheckpointError lists the places.
    """
    text = str(name)
    if not plain_name(text):
        raise CheckpointError(f"{what} {brief(text)}: no name of a folder can have control characters or be so long")
    found = find(text, near=near, weights=weights)
    if found is not None:
        return found
    for published in (text, *published_twins(text)):
        if may_fetch(published):
            return hub.fetch_model(published, weights=weights)
    file = Path(expanded(text))
    if file.is_file():
        raise CheckpointError(f"{what} {file}: is a file, and {what} is a folder; give the folder, {file.parent}")
    tried = "\n".join(f"  {place}" for place in _places(text, near))
    raise CheckpointError(
        f'{what} "{text}" is not on this machine; looked for\n{tried}\n'
        f"Put the folder into one of these places, or {remedy}{begins_at(text)}{why_not(text)}"
    )


def find(name: str | Path, *, near: Near = None, weights: bool = False) -> Path | None:
    """Like ``resolve``, but None when there is no such folder. ``weights``: the caches of others must hold some."""
    for place in _places(str(name), near):
        if place.is_dir() and not (weights and _is_cached(place) and not has_weights(place)):
            return place
    return None


def _is_cached(place: Path) -> bool:
    return place.parent.name == "snapshots" or "modelscope" in place.parts


def _places(name: str, near: Near) -> list[Path]:
    if not plain_name(name):
        return []
    if name.startswith(PREFIX):
        return downloaded(name.removeprefix(PREFIX))
    folders = [] if near is None else [near] if isinstance(near, Path) else list(near)
    return places(name, folders, published_twins(name))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. CheckpointError names the file and the reason."""
    return foreign.read_json(path, CheckpointError, _MAX_CONFIG_BYTES)


def read_optional(path: Path) -> dict[str, Any]:
    """``read_json``; an empty object when there is no such file."""
    return foreign.read_optional(path, CheckpointError, _MAX_CONFIG_BYTES)


def generation_file(*folders: Path) -> Path | None:
    """The ``generation_config.json`` of the first of these folders that has one: it belongs to the model in them."""
    return next((folder / GENERATION for folder in folders if (folder / GENERATION).is_file()), None)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a LoRA adapter, ours or peft's. CheckpointError: see ``kind_of``."""
    return kind_of(folder) in ADAPTERS


def kind_of(folder: Path) -> str:
    """``adapter`` (ours), ``peft``, ``full`` (any layout with weights) or ``projector``.

    CheckpointError lists what was looked for when the folder is none of them.
    """
    foreign.refuse_special(folder, CheckpointError)
    foreign.require_regular(folder, (ADAPTER_CONFIG, PEFT_CONFIG, *WEIGHT_FILES, *PROJECTOR_FILES), CheckpointError)
    if (folder / ADAPTER_CONFIG).is_file():
        return "adapter"
    if (folder / PEFT_CONFIG).is_file():
        return "peft"
    if any((folder / name).is_file() for name in WEIGHT_FILES):
        return "full"
    if any((folder / name).is_file() for name in PROJECTOR_FILES):
        return "projector"
    looked = ", ".join((*WEIGHT_FILES, ADAPTER_CONFIG, PEFT_CONFIG, *PROJECTOR_FILES))
    shards = sorted(path.name for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern))
    loose = f"; it holds {', '.join(shards[:3])}, but no index of them" if shards else ""
    raise CheckpointError(f"{folder}: no weights; looked for {looked}{loose}")


def projector_file(path: Path) -> Path:
    """The projector file that ``path`` is or holds."""
    if path.is_file():
        return path
    for name in PROJECTOR_FILES:
        if (path / name).is_file():
            return path / name
    looked = f"looked for {', '.join(PROJECTOR_FILES)}"
    if path.is_dir():
        raise CheckpointError(f"{path}: no projector; {looked}")
    raise CheckpointError(f"the projector {path}: no such file, and no folder ({looked} in it){begins_at(path)}")


def tower_name(config: dict[str, Any]) -> str | None:
    """The vision tower that an original ``config.json`` names."""
    name = config.get("mm_vision_tower") or config.get("vision_tower")
    return name if isinstance(name, str) and name else None


def ending_ids(*folders: Path) -> tuple[int, ...]:
    """The ``eos_token_id`` of the first folder that has a ``generation_config.json``: one id, or a list of them."""
    path = generation_file(*folders)
    found = read_json(path).get("eos_token_id") if path is not None else None
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if any(type(number) is not int or number < 0 for number in ids):
        raise CheckpointError(f'{path}: "eos_token_id" is {found!r}; expected a token id or a list of them')
    return tuple(ids)
