# SPDX-License-Identifier: Apache-2.0
"""Adapter folders, ours and peft's: which weights they change, by how much, and what they were trained on."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paddlemix.checkpoint import keymap
from paddlemix.checkpoint.folders import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    FINGERPRINT,
    PEFT_CONFIG,
    is_adapter,
    read_json,
    read_optional,
    resolve,
)
from paddlemix.checkpoint.formats.base import to_float32
from paddlemix.checkpoint.formats.source import TensorSource, open_file
from paddlemix.utils import options
from paddlemix.utils.errors import CheckpointError
from paddlemix.utils.files import sha256

_PEFT_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_PEFT_OTHERS = ("non_lora_trainables.safetensors", "non_lora_trainables.bin")
_PEFT_NAME = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
_OUR_NAME = re.compile(r"(.+)\.lora_([AB])")
_PEFT_REFUSED = {
    "fan_in_fan_out": "transposed base weights",
    "use_dora": "DoRA",
    "alpha_pattern": "a scale of its own per layer",
    "lora_bias": "biases beside B",
    "layer_replication": "layers that stand several times",
    "trainable_token_indices": "rows of the vocabulary that were trained",
    "target_parameters": "adapters on parameters that are no layers",
    "alora_invocation_tokens": "an adapter that acts behind certain tokens only",
    "use_qalora": "pooled inputs",
    "use_bdlora": "block-diagonal matrices",
    "kasa_config": "a base that was changed by KaSA",
    "monteclora_config": "weights that are drawn",
    "arrow_config": "a mixture of adapters",
}
_PEFT_CHANGES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""Values of peft's ``init_lora_weights`` that take what A and B begin with out of the base's weights."""
"""Switches of peft that change the numbers and that are not built here."""
PEFT_PROJECTOR = "multi_modal_projector"
"""Its name in transformers' LLaVA: the only one of peft's ``modules_to_save`` that is read."""
PADDLE_WEIGHTS = "lora_model_state.pdparams"
"""The weights of PaddleMIX's own adapters; the configuration beside them is ours, too."""
_PADDLE_REFUSED = {
    "trainable_bias": "biases that were trained",
    "enable_lora_list": "adapters on parts of a fused weight",
    "do_qat": "quantised training",
    "pissa": "a base that was changed by PiSSA",
    "loraga": "a base that was changed by LoRA-GA",
    "use_mora": "MoRA",
    "lora_use_mixer": "a third matrix between A and B",
}
"""Switches of PaddleNLP that change the numbers and that are not built here."""


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
        """A (``[in, r]``) or B (``[r, out]``) as float32."""
        values = to_float32(self.source.read(half.name), self.source.infos()[half.name].dtype)
        return values.T if half.transpose else values

    def delta(self, weight: str) -> np.ndarray:
        """What the adapter adds to ``weight``: float32 ``[in, out]``."""
        pair = self.pairs[weight]
        return (self.half(pair.a) @ self.half(pair.b)) * np.float32(pair.scaling)

    def find_base(self, given: str | Path | None) -> Path:
        """The folder of the base model: the one given, else the one the adapter was trained on."""
        if given is not None:
            return resolve(given, "the base model")
        return self._find("base model", self.base, self.base_relative, f"name it with {options.current().base}")

    def find_tower(self, base: Path) -> Path | None:
        """The folder of the vision tower that the adapter was trained with, or None when the base holds it.

        Looked for beside the adapter and beside ``base``, the folder of the base that is used.
        """
        if self.tower is None:
            return None
        remedy = f"name it with {options.current().vision_tower}"
        return self._find("vision tower", self.tower, self.tower_relative, remedy, base)

    def _find(self, what: str, name: str | None, relative: str | None, remedy: str, *more: Path) -> Path:
        if not name:
            raise CheckpointError(f"{self.folder}: the adapter does not say which {what} it belongs to; {remedy}")
        beside = (self.folder / relative).resolve() if relative else None
        if beside is not None and not Path(name).is_dir() and beside.is_dir():
            return beside
        return resolve(name, f"the {what} of {self.folder}", near=[self.folder, *more], remedy=remedy)


def read_adapter(folder: Path) -> Adapter:
    """Open our adapter folder or peft's. CheckpointError when ranks, pairs or switches do not fit together."""
    return _read_ours(folder) if (folder / ADAPTER_CONFIG).is_file() else _read_peft(folder)


def _read_ours(folder: Path) -> Adapter:
    config = read_json(folder / ADAPTER_CONFIG)
    rank, alpha, dropout = _numbers(folder / ADAPTER_CONFIG, config, "lora_dropout")
    path = _first_file(folder, (ADAPTER_WEIGHTS, PADDLE_WEIGHTS))
    if path is None:
        raise CheckpointError(f"{folder}: no {ADAPTER_WEIGHTS} beside {ADAPTER_CONFIG}")
    for key, meaning in _PADDLE_REFUSED.items():
        if config.get(key):
            raise CheckpointError(
                f'{folder / ADAPTER_CONFIG}: "{key}": {config[key]!r} means {meaning}, which is not supported'
            )
    source = open_file(path)
    halves: dict[str, dict[str, Half]] = {}
    rest = []
    for name in source.infos():
        match = _OUR_NAME.fullmatch(name)
        if match is None:
            rest.append(name)
        else:
            halves.setdefault(f"{match[1]}.weight", {})[match[2]] = Half(name, False)
    stabilised = bool(config.get("rslora"))
    pairs = _pair(folder, source, halves, rank, lambda r: alpha / (math.sqrt(r) if stabilised else r))
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


def _read_peft(folder: Path) -> Adapter:
    where = folder / PEFT_CONFIG
    config = read_json(where)
    for key, meaning in _PEFT_REFUSED.items():
        if config.get(key):
            raise CheckpointError(f'{where}: "{key}": {config[key]!r} means {meaning}, which is not supported')
    begin = config.get("init_lora_weights")
    if isinstance(begin, str) and begin.startswith(_PEFT_CHANGES_BASE):
        raise CheckpointError(
            f'{where}: "init_lora_weights": "{begin}" means a base with changed weights; save it as a plain adapter '
            "(peft: save_pretrained with path_initial_model_for_weight_conversion)"
        )
    saved = config.get("modules_to_save") or []
    if not isinstance(saved, list) or not set(map(str, saved)) <= {PEFT_PROJECTOR}:
        raise CheckpointError(f'{where}: "modules_to_save": {saved!r}: only {PEFT_PROJECTOR} is read beside an adapter')
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
    stabilised = bool(config.get("use_rslora"))
    one_rank = None if config.get("rank_pattern") else rank
    pairs = _pair(folder, source, halves, one_rank, lambda r: alpha / (math.sqrt(r) if stabilised else r))
    others = [(source, "peft", tuple(rest))] if rest else []
    beside = _first_file(folder, _PEFT_OTHERS)
    if beside is not None:
        trained = open_file(beside)
        form = keymap.detect(trained.infos()) or "peft"
        others.append((trained, form, tuple(trained.infos())))
    known = read_optional(folder / FINGERPRINT).get("base_fingerprint")
    named = config.get("base_model_name_or_path")
    return Adapter(folder, source, pairs, others, dropout, sha256(path), named, fingerprint=known or {})


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
    folder: Path,
    source: TensorSource,
    halves: dict[str, dict[str, Half]],
    rank: int | None,
    scaling: Callable[[int], float],
) -> dict[str, Pair]:
    """Match A with B. ``rank=None``: each layer has its own (peft's rank_pattern); ``scaling`` is asked for each."""
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
        if rank_a != rank_b or rank_a < 1 or (rank is not None and rank_a != rank):
            raise CheckpointError(
                f'{folder}: the adapter of "{weight}" has rank {rank_a} in A and {rank_b} in B, its config says {rank}'
            )
        pairs[weight] = Pair(both["A"], both["B"], rank_a, scaling(rank_a))
    return pairs


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


def merge_paths(adapter: str | Path, target: str | Path | None) -> tuple[Path, Path]:
    """The adapter's folder and the folder that a merge would make: by default a new one beside it, ``<name>-merged``.

    CheckpointError when the first is no adapter or the second holds something. Needs no paddle.
    """
    source = resolve(adapter, "the adapter")
    if not is_adapter(source):
        raise CheckpointError(f"{source}: it is no LoRA adapter, so there is nothing to merge")
    folder = Path(target) if target is not None else source.absolute().with_name(f"{source.absolute().name}-merged")
    another = options.current().target or "another folder"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder}: exists already; choose {another} or remove it")
    return source, folder
