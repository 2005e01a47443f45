# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters: reading ours and peft's, attaching them to a model, and saving a complete adapter folder."""

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from paddlemix.checkpoint import keymap
from paddlemix.checkpoint.folders import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    PEFT_CONFIG,
    kind_of,
    read_json,
    resolve,
)
from paddlemix.checkpoint.formats import TensorSource, open_file, open_folder
from paddlemix.checkpoint.formats_base import ARRAY_TYPES, to_float32
from paddlemix.checkpoint.formats_safetensors import write_safetensors
from paddlemix.checkpoint.save import SavesItself, stored, write_json, write_side_files
from paddlemix.models.llava import allocate
from paddlemix.ops.linear import add_lora, lora_layers
from paddlemix.settings.model import LlavaConfig
from paddlemix.utils.errors import CheckpointError
from paddlemix.utils.files import publish_folder, sha256

MERGED_MARKER = "lora_merged.json"
"""Lists the adapters that were folded into a model folder, so that none is folded in twice."""

_PEFT_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_PEFT_OTHERS = ("non_lora_trainables.safetensors", "non_lora_trainables.bin")
_PEFT_NAME = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
_OUR_NAME = re.compile(r"(.+)\.lora_([AB])")
_PEFT_REFUSED = {
    "fan_in_fan_out": "transposed base weights",
    "use_dora": "DoRA",
    "alpha_pattern": "a scale of its own per layer",
    "modules_to_save": "whole modules saved beside the adapter",
}
"""Switches of peft that change the numbers and that are not built here."""

_SAMPLED_TENSORS = 32
_SAMPLED_VALUES = 4


@dataclass(frozen=True)
class Half:
    """One stored half of an adapter: its name in the source, and whether it lies the other way round."""

    name: str
    transpose: bool


@dataclass(frozen=True)
class Pair:
    """The adapter of one weight: A is ``[in, r]`` and B is ``[r, out]`` after transposing."""

    a: Half
    b: Half
    r: int
    scaling: float


@dataclass
class Adapter:
    """An adapter folder, opened. ``pairs`` goes by the parameter name of the weight that each pair belongs to."""

    folder: Path
    source: TensorSource
    pairs: dict[str, Pair]
    others: list[tuple[TensorSource, str, tuple[str, ...]]]
    dropout: float
    sha256: str
    base: str | None
    base_relative: str | None = None
    tower: str | None = None
    tower_relative: str | None = None
    fingerprint: dict[str, list[float]] = field(default_factory=dict)

    def half(self, half: Half) -> np.ndarray:
        """A or B as float32 in our layout."""
        values = to_float32(self.source.read(half.name), self.source.infos()[half.name].dtype)
        return values.T if half.transpose else values

    def delta(self, weight: str) -> np.ndarray:
        """What the adapter adds to ``weight``: float32 ``[in, out]``."""
        pair = self.pairs[weight]
        return (self.half(pair.a) @ self.half(pair.b)) * np.float32(pair.scaling)

    def attach(self, model: Any) -> list[str]:
        """Put LoRA layers with this adapter's ranks into ``model``. Returns the names of the layers."""
        ranks: dict[tuple[int, float], list[str]] = {}
        for weight, pair in self.pairs.items():
            ranks.setdefault((pair.r, pair.scaling), []).append(re.escape(weight.removesuffix(".weight")))
        names = []
        for (r, scaling), patterns in ranks.items():
            names += add_lora(model, patterns, r, scaling * r, self.dropout)
        return names

    def find_base(self, given: str | Path | None) -> Path:
        """The folder of the base model: the one given, else the one the adapter was trained on."""
        if given is not None:
            return resolve(given, "the base model")
        return self._find("base model", self.base, self.base_relative, "name it with base= (--base)")

    def find_tower(self) -> Path | None:
        """The folder of the vision tower that the adapter was trained with, or None when the base holds it."""
        if self.tower is None:
            return None
        return self._find("vision tower", self.tower, self.tower_relative, "name it with vision_tower=")

    def _find(self, what: str, name: str | None, relative: str | None, remedy: str) -> Path:
        if not name:
            raise CheckpointError(f"{self.folder}: the adapter does not say which {what} it belongs to; {remedy}")
        beside = (self.folder / relative).resolve() if relative else None
        if beside is not None and not Path(name).is_dir() and beside.is_dir():
            return beside
        return resolve(name, f"the {what} of {self.folder}", near=self.folder, remedy=remedy)


def read_adapter(folder: Path) -> Adapter:
    """Open our adapter folder or peft's. CheckpointError when ranks, pairs or switches do not fit together."""
    return _read_ours(folder) if (folder / ADAPTER_CONFIG).is_file() else _read_peft(folder)


def _read_ours(folder: Path) -> Adapter:
    config = read_json(folder / ADAPTER_CONFIG)
    rank, alpha, dropout = _numbers(folder / ADAPTER_CONFIG, config, "lora_dropout")
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        if (folder / "lora_model_state.pdparams").is_file():
            return _read_pdparams(folder)
        raise CheckpointError(f"{folder}: no {ADAPTER_WEIGHTS} beside {ADAPTER_CONFIG}")
    source = open_file(path)
    halves: dict[str, dict[str, Half]] = {}
    rest = []
    for name in source.infos():
        match = _OUR_NAME.fullmatch(name)
        if match is None:
            rest.append(name)
        else:
            halves.setdefault(f"{match[1]}.weight", {})[match[2]] = Half(name, False)
    pairs = _pair(folder, source, halves, rank, alpha / rank if rank else 0.0)
    others = [(source, "paddlemix", tuple(rest))] if rest else []
    return Adapter(
        folder,
        source,
        pairs,
        others,
        dropout,
        sha256(path),
        config.get("base_model_name_or_path"),
        config.get("base_relative_path"),
        config.get("vision_tower"),
        config.get("vision_tower_relative_path"),
        config.get("base_fingerprint") or {},
    )


def _read_pdparams(folder: Path) -> Adapter:
    open_file(folder / "lora_model_state.pdparams")  # refuses with the reason
    raise CheckpointError(f"{folder}: no adapter weights")


def _read_peft(folder: Path) -> Adapter:
    where = folder / PEFT_CONFIG
    config = read_json(where)
    for key, meaning in _PEFT_REFUSED.items():
        if config.get(key):
            raise CheckpointError(f'{where}: "{key}": {config[key]!r} means {meaning}, which is not supported')
    if config.get("peft_type", "LORA") != "LORA":
        raise CheckpointError(f'{where}: peft_type "{config["peft_type"]}": only LORA adapters are read')
    if config.get("bias", "none") != "none":
        raise CheckpointError(f'{where}: bias "{config["bias"]}": only adapters without biases are read')
    rank, alpha, dropout = _numbers(where, config, "lora_dropout")
    path = _first_file(folder, _PEFT_WEIGHTS)
    if path is None:
        raise CheckpointError(f"{folder}: no adapter weights; looked for {', '.join(_PEFT_WEIGHTS)}")
    source = open_file(path)
    halves, rest = _peft_halves(path, source)
    scaling = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    pairs = _pair(folder, source, halves, None if config.get("rank_pattern") else rank, scaling)
    others = [(source, "peft", tuple(rest))] if rest else []
    beside = _first_file(folder, _PEFT_OTHERS)
    if beside is not None:
        trained = open_file(beside)
        form = keymap.detect(trained.infos()) or "peft"
        others.append((trained, form, tuple(trained.infos())))
    return Adapter(folder, source, pairs, others, dropout, sha256(path), config.get("base_model_name_or_path"))


def _peft_halves(path: Path, source: TensorSource) -> tuple[dict[str, dict[str, Half]], list[str]]:
    halves: dict[str, dict[str, Half]] = {}
    rest = []
    for name in source.infos():
        match = _PEFT_NAME.fullmatch(name)
        if match is None:
            rest.append(name)
            continue
        target = keymap.ours(f"{match[1]}.weight", "peft")
        if not isinstance(target, keymap.Target):
            raise CheckpointError(f'{path}: "{name}" is an adapter of no known weight')
        halves.setdefault(target.name, {})[match[2]] = Half(name, True)
    return halves, rest


def _first_file(folder: Path, names: Iterable[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _numbers(where: Path, config: Mapping[str, Any], dropout_key: str) -> tuple[int, float, float]:
    rank, alpha, dropout = config.get("r"), config.get("lora_alpha"), config.get(dropout_key) or 0.0
    if type(rank) is not int or rank < 1:
        raise CheckpointError(f'{where}: "r": {rank!r}, expected a whole number of at least 1')
    for key, value in (("lora_alpha", alpha), (dropout_key, dropout)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise CheckpointError(f'{where}: "{key}": {value!r}, expected a number')
    return rank, float(alpha), float(dropout)


def _pair(
    folder: Path, source: TensorSource, halves: dict[str, dict[str, Half]], rank: int | None, scaling: float
) -> dict[str, Pair]:
    """Match A with B. ``rank=None``: each layer has its own, and ``scaling`` stays alpha over the common one."""
    if not halves:
        raise CheckpointError(f"{folder}: the adapter holds no lora_A and lora_B")
    infos = source.infos()
    pairs = {}
    for weight, both in halves.items():
        if set(both) != {"A", "B"}:
            raise CheckpointError(f'{folder}: the adapter of "{weight}" has only lora_{next(iter(both))}')
        a, b = (infos[both[side].name].shape for side in "AB")
        if len(a) != 2 or len(b) != 2:
            raise CheckpointError(f'{folder}: the adapter of "{weight}" has shapes {list(a)} and {list(b)}')
        rank_a, rank_b = (a[0], b[1]) if both["A"].transpose else (a[1], b[0])
        if rank_a != rank_b or (rank is not None and rank_a != rank):
            raise CheckpointError(
                f'{folder}: the adapter of "{weight}" has rank {rank_a} in A and {rank_b} in B, its config says {rank}'
            )
        pairs[weight] = Pair(both["A"], both["B"], rank_a, scaling)
    return pairs


def fingerprint(source: TensorSource, form: str) -> dict[str, list[float]]:
    """A few values of the language model's weights, the same whatever layout and float dtype they are stored in.

    The whole weights need not be read for it. The projector and the tower do not count: adapters bring their own.
    """
    weights = {}
    for name in source.infos():
        target = keymap.ours(name, form)
        if isinstance(target, keymap.Target) and target.name.startswith("llama.layers."):
            weights[target.name] = (name, target.transpose)
    chosen = sorted(weights)[:: max(1, len(weights) // _SAMPLED_TENSORS)]
    sample = {}
    for ours in chosen:
        name, transpose = weights[ours]
        values = source.view(name).T if transpose else source.view(name)
        places = [tuple((17 * k + 5) % size for size in values.shape) for k in range(_SAMPLED_VALUES)]
        picked = np.array([values[place] for place in places], values.dtype)
        sample[ours] = [float(value) for value in to_float32(picked, source.infos()[name].dtype)]
    return sample


def require_base(adapter: Adapter, base: Path, source: TensorSource, form: str) -> None:
    """CheckpointError when ``base`` is not the model that the adapter was trained on, or contains it already.

    Values may differ by the rounding of bfloat16; other weights of the same shape do not come that close.
    """
    marker = base / MERGED_MARKER
    if marker.is_file() and adapter.sha256 in read_json(marker).get("adapters", []):
        raise CheckpointError(f"{base}: the adapter {adapter.folder} is merged into it already; use {base} as it is")
    expected = adapter.fingerprint
    if not expected:
        return
    found = fingerprint(source, form)
    wanted = np.array([value for name in expected for value in expected[name]])
    given = np.array([value for name in expected for value in found.get(name, [math.nan] * len(expected[name]))])
    close = np.abs(wanted - given) <= 0.01 * np.abs(wanted) + 1e-7
    if np.mean(close) < 0.9:
        raise CheckpointError(
            f"{adapter.folder}: the adapter was trained on another base than {base} "
            f"({np.mean(close):.0%} of {close.size} sampled weights agree); it was {adapter.base}"
        )


def load_adapter(model: Any, folder: str | Path) -> list[str]:
    """Attach a saved adapter to a model in memory and load its values, projector included.

    Returns the names of the parameters that were loaded. CheckpointError when the adapter does not fit the model.
    """
    adapter = read_adapter(Path(folder))
    parameters = dict(model.named_parameters())
    check_targets(adapter, {name: tuple(value.shape) for name, value in parameters.items()})
    adapter.attach(model)
    parameters = dict(model.named_parameters())
    loaded = []
    for weight, pair in adapter.pairs.items():
        for side, half in (("A", pair.a), ("B", pair.b)):
            name = f"{weight.removesuffix('.weight')}.lora_{side}"
            _set(parameters[name], adapter.half(half))
            loaded.append(name)
    for source, form, names in adapter.others:
        for name in names:
            target = keymap.ours(name, form)
            if isinstance(target, keymap.Ignored):
                continue
            if target is None or target.name not in parameters:
                raise CheckpointError(f'{adapter.folder}: "{name}" has no place in the model')
            values = to_float32(source.read(name), source.infos()[name].dtype)
            _set(parameters[target.name], values.T if target.transpose else values)
            loaded.append(target.name)
    return loaded


def check_targets(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """CheckpointError unless every pair of the adapter fits a weight of the model."""
    infos = adapter.source.infos()
    for weight, pair in adapter.pairs.items():
        a, b = infos[pair.a.name].shape, infos[pair.b.name].shape
        needed = (a[1], b[0]) if pair.a.transpose else (a[0], b[1])
        if shapes.get(weight) != needed:
            has = f"{list(shapes[weight])}" if weight in shapes else "none of that name"
            raise CheckpointError(
                f'{adapter.folder}: the adapter of "{weight}" is for a weight of {list(needed)}, the model has {has}; '
                "it belongs to another base model"
            )


@paddle.no_grad()
def _set(parameter: Any, values: np.ndarray) -> None:
    if list(parameter.shape) != list(values.shape):
        raise CheckpointError(f"adapter tensor of shape {list(values.shape)} for a parameter of {parameter.shape}")
    allocate(parameter, paddle.to_tensor(np.ascontiguousarray(values, np.float32)).astype(parameter.dtype))


def save_adapter(
    folder: str | Path,
    model: Any,
    config: LlavaConfig,
    tokenizer: SavesItself | None,
    *,
    base: str | Path,
    vision_tower: str | Path | None = None,
    generation: Mapping[str, Any] | None = None,
    training_settings: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> Path:
    """Publish an adapter folder that opens without further flags.

    It holds the LoRA weights, every other tensor that was trained, that belongs to the projector, or that neither
    ``base`` nor ``vision_tower`` holds in the same shape; config, tokenizer, processor, template; and the path (also
    relative) and a fingerprint of the base. CheckpointError when the model has no adapter or the base cannot be read.
    """
    folder = Path(folder)
    layers = list(lora_layers(model))
    if not layers:
        raise CheckpointError(f"{folder}: the model carries no adapter; save it with save_model")
    base_folder = resolve(base, "the base model")
    tower_folder = None if vision_tower is None else resolve(vision_tower, "the vision tower", near=base_folder)
    if kind_of(base_folder) != "full":
        raise CheckpointError(f"{base_folder}: an adapter's base must be a whole model")
    source = open_folder(base_folder)
    form = keymap.detect(source.infos()) or "llava"
    held = _held(source, form)
    if tower_folder is not None:
        tower = open_folder(tower_folder)
        held = {**_held(tower, keymap.detect(tower.infos()) or "clip"), **held}
    tensors = [stored(name, value) for name, value in model.named_parameters() if _belongs(name, value, held)]
    with publish_folder(folder, replace=replace) as staging:
        write_safetensors(staging / ADAPTER_WEIGHTS, tensors)
        write_json(staging / ADAPTER_CONFIG, _adapter_data(folder, layers, base_folder, tower_folder, source, form))
        write_side_files(staging, config, tokenizer, generation, training_settings)
        for name, data in (extra or {}).items():
            write_json(staging / name, data)
    return folder


def _held(source: TensorSource, form: str) -> dict[str, tuple[int, ...]]:
    held = {}
    for name, info in source.infos().items():
        target = keymap.ours(name, form)
        if isinstance(target, keymap.Target):
            held[target.name] = info.shape[::-1] if target.transpose else info.shape
    return held


def _belongs(name: str, parameter: Any, held: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a parameter goes into the adapter folder."""
    if ".lora_" in name or not parameter.stop_gradient:
        return True
    own = name.startswith(keymap.PREFIX_PROJECTOR) or name == keymap.NEWLINE
    return own or held.get(name) != tuple(parameter.shape)


def _adapter_data(
    folder: Path, layers: list[tuple[str, Any]], base: Path, tower: Path | None, source: TensorSource, form: str
) -> dict[str, Any]:
    first = layers[0][1]
    if any((layer.r, layer.alpha) != (first.r, first.alpha) for _, layer in layers):
        raise CheckpointError(f"{folder}: layers with different ranks or alphas cannot be saved in one adapter")
    data = {
        "r": first.r,
        "lora_alpha": first.alpha,
        "lora_dropout": first.dropout,
        "target_modules": [name for name, _ in layers],
        "merge_weights": False,
        "dtype": str(first.weight.dtype).rpartition(".")[2],
        "base_model_name_or_path": str(base.absolute()),
        "base_relative_path": os.path.relpath(base.absolute(), folder.absolute()),
        "base_fingerprint": fingerprint(source, form),
    }
    if tower is not None:
        data["vision_tower"] = str(tower.absolute())
        data["vision_tower_relative_path"] = os.path.relpath(tower.absolute(), folder.absolute())
    return data


def merged_marker(adapter: Adapter, base: Path) -> dict[str, Any]:
    """What the folder of a merged model records, so that the same adapter is not folded in again."""
    marker = base / MERGED_MARKER
    before = read_json(marker).get("adapters", []) if marker.is_file() else []
    return {"adapters": [*before, adapter.sha256], "adapter": str(adapter.folder), "base": str(base)}


def array_type(dtype: str) -> np.dtype[Any]:
    """numpy type in which values of ``dtype`` lie."""
    return ARRAY_TYPES[dtype]
