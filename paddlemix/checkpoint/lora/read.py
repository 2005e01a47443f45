# SPDX-License-Identifier: Apache-2.0
"""Adapter folders, ours and peft's: which weights they change, by how much, and what they were trained on."""

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
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
from paddlemix.checkpoint.formats.base import TensorInfo, to_float32
from paddlemix.checkpoint.formats.source import TensorSource, open_file
from paddlemix.utils import options
from paddlemix.utils.errors import CheckpointError
from paddlemix.utils.files import sha256
from paddlemix.utils.foreign import JsonValue

_PEFT_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_PEFT_OTHERS = ("non_lora_trainables.safetensors", "non_lora_trainables.bin")
_PEFT_NAME = re.compile(r"(.+)\.lora_(?:([AB])(?:\.default)?\.weight|(magnitude_vector)(?:\.default)?(?:\.weight)?)")
_OUR_NAME = re.compile(r"(.+)\.lora_(A|B|start_A|start_B|magnitude_vector)")
_PEFT_REFUSED = {
    "fan_in_fan_out": "transposed base weights",
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
"""Switches of peft that change the numbers and that are not built here."""
_PEFT_CHANGES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""Values of peft's ``init_lora_weights`` that take what A and B begin with out of the base's weights."""
PADDLE_WEIGHTS = "lora_model_state.pdparams"
"""The weights of PaddleMIX's own adapters; the configuration beside them is ours, too."""
_PADDLE_REFUSED = {
    "trainable_bias": "biases that were trained",
    "enable_lora_list": "adapters on parts of a fused weight",
    "do_qat": "quantised training",
    "loraga": "a base that was changed by LoRA-GA",
    "use_mora": "MoRA",
    "lora_use_mixer": "a third matrix between A and B",
}
"""Switches of PaddleNLP that change the numbers and that are not built here."""


LEAST_LENGTH = np.float32(1e-30)
"""Least length of a column that DoRA divides by, as in ``ops.linear``."""


@dataclass(frozen=True)
class Half:
    """One stored half of an adapter: its name in the source, and whether it lies the other way round."""

    name: str
    transpose: bool


@dataclass(frozen=True)
class Pair:
    """The adapter of one weight: A is ``[in, r]`` and B is ``[r, out]`` after transposing.

    ``magnitude``: the stored name of DoRA's lengths of the columns, ``[out]``. ``start``: A and B as PiSSA began, whose
    product is not part of what was learnt.
    """

    a: Half
    b: Half
    r: int
    scaling: float
    magnitude: str | None = None
    start: tuple[Half, Half] | None = None

    def parameters(self) -> dict[str, Half]:
        """What a LoRA layer holds of it, by the names of its parameters."""
        found = {"lora_A": self.a, "lora_B": self.b}
        if self.start is not None:
            found |= {"lora_start_A": self.start[0], "lora_start_B": self.start[1]}
        if self.magnitude is not None:
            found["lora_magnitude_vector"] = Half(self.magnitude, False)
        return found


@dataclass
class Adapter:
    """An adapter folder, opened. ``pairs`` goes by the parameter name of the weight that each pair belongs to."""

    folder: Path
    source: TensorSource
    pairs: dict[str, Pair]
    others: list[tuple[TensorSource, str, tuple[str, ...]]]
    dropout: float
    alpha: float
    rslora: bool
    sha256: str
    base: str | None
    base_relative: str | None = None
    tower: str | None = None
    tower_relative: str | None = None
    fingerprint: dict[str, list[float]] = field(default_factory=dict)

    def half(self, half: Half) -> np.ndarray:
        """A (``[in, r]``), B (``[r, out]``) or another part as float32."""
        values = to_float32(self.source.read(half.name), self.source.infos()[half.name].dtype)
        return values.T if half.transpose else values

    @property
    def dora(self) -> bool:
        """Whether the adapter is DoRA's, which scales the columns of the weights."""
        return any(pair.magnitude is not None for pair in self.pairs.values())

    @property
    def pissa(self) -> bool:
        """Whether A and B began as PiSSA's, so that their start is stored as well."""
        return any(pair.start is not None for pair in self.pairs.values())

    @property
    def other_names(self) -> set[str]:
        """Our names of the parameters that are stored whole beside the adapters."""
        targets = (keymap.ours(name, form) for _, form, names in self.others for name in names)
        return {target.name for target in targets if isinstance(target, keymap.Target)}

    def delta(self, weight: str) -> np.ndarray:
        """What A and B add to ``weight``: float32 ``[in, out]``."""
        pair = self.pairs[weight]
        added = self.half(pair.a) @ self.half(pair.b)
        if pair.start is not None:
            added -= self.half(pair.start[0]) @ self.half(pair.start[1])
        return added * np.float32(pair.scaling)

    def fold(self, weight: str, values: np.ndarray) -> None:
        """Fold the adapter into the whole ``values`` of ``weight`` in place: float32 ``[in, out]``."""
        values += self.delta(weight)
        pair = self.pairs[weight]
        if pair.magnitude is not None:
            lengths = np.sqrt(np.einsum("io,io->o", values, values))
            values *= self.half(Half(pair.magnitude, False)) / np.maximum(lengths, LEAST_LENGTH)

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
    _require_parts(folder / ADAPTER_CONFIG, config, pairs)
    others = [(source, "paddlemix", tuple(rest))] if rest else []
    return Adapter(
        folder,
        source,
        pairs,
        others,
        dropout,
        alpha,
        stabilised,
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
    _require_parts(where, {**config, "pissa": False}, pairs)
    _require_saved(where, config.get("modules_to_save"), rest)
    others = [(source, "peft", tuple(rest))] if rest else []
    beside = _first_file(folder, _PEFT_OTHERS)
    if beside is not None:
        trained = open_file(beside)
        form = keymap.detect(trained.infos()) or "peft"
        others.append((trained, form, tuple(trained.infos())))
    known = read_optional(folder / FINGERPRINT).get("base_fingerprint")
    named = config.get("base_model_name_or_path")
    checksum = sha256(path)
    return Adapter(folder, source, pairs, others, dropout, alpha, stabilised, checksum, named, fingerprint=known or {})


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
        halves.setdefault(target.name, {})[match[2] or match[3]] = Half(name, match[3] is None)
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
        if not {"A", "B"} <= set(both):
            raise CheckpointError(f'{folder}: the adapter of "{weight}" has only lora_{next(iter(both))}')
        rank_a, rank_b = _rank_of(folder, weight, both["A"], both["B"], infos)
        if rank_a != rank_b or rank_a < 1 or (rank is not None and rank_a != rank):
            raise CheckpointError(
                f'{folder}: the adapter of "{weight}" has rank {rank_a} in A and {rank_b} in B, its config says {rank}'
            )
        start = tuple(both[part] for part in ("start_A", "start_B") if part in both)
        if start and [infos[half.name].shape for half in start] != [infos[both[side].name].shape for side in "AB"]:
            raise CheckpointError(f'{folder}: lora_start_A and lora_start_B of "{weight}" are not as large as A and B')
        magnitude = both["magnitude_vector"].name if "magnitude_vector" in both else None
        pairs[weight] = Pair(both["A"], both["B"], rank_a, scaling(rank_a), magnitude, start or None)
    return pairs


def _rank_of(folder: Path, weight: str, half_a: Half, half_b: Half, infos: Mapping[str, TensorInfo]) -> tuple[int, int]:
    a, b = infos[half_a.name].shape, infos[half_b.name].shape
    if len(a) != 2 or len(b) != 2:
        raise CheckpointError(f'{folder}: the adapter of "{weight}" has shapes {list(a)} and {list(b)}')
    return (a[0], b[1]) if half_a.transpose else (a[1], b[0])


def _require_parts(where: Path, config: Mapping[str, Any], pairs: Mapping[str, Pair]) -> None:
    """CheckpointError unless every layer has the tensors of the methods that the config names, and no others."""
    for key, tensors, has in (
        ("use_dora", "lora_magnitude_vector", lambda pair: pair.magnitude is not None),
        ("pissa", "lora_start_A and lora_start_B", lambda pair: pair.start is not None),
    ):
        wrong = [weight for weight, pair in pairs.items() if has(pair) != bool(config.get(key))]
        if wrong and config.get(key):
            more = "; without them the base that it was trained on is lost" if key == "pissa" else ""
            raise CheckpointError(
                f'{where}: "{key}": {config[key]!r}, but "{wrong[0]}" has no {tensors} in the weights{more}'
            )
        if wrong:
            raise CheckpointError(
                f'{where}: "{wrong[0]}" has {tensors} in the weights, but "{key}" is not true; the file is not of '
                "this adapter"
            )


def _require_saved(where: Path, saved: JsonValue, rest: Collection[str]) -> None:
    """CheckpointError for a module of peft's ``modules_to_save`` of which no tensor is stored."""
    if saved is not None and not (isinstance(saved, list) and all(isinstance(name, str) for name in saved)):
        raise CheckpointError(f'{where}: "modules_to_save": {saved!r}, expected a list of names')
    for module in saved or []:
        if not any(f".{module}." in name for name in rest):
            raise CheckpointError(
                f'{where}: "modules_to_save" names "{module}", but no tensor of it lies beside the adapter (peft '
                "leaves them out when it converts a PiSSA adapter); save it again, or take the name out if the base's "
                "is meant"
            )


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
        lengths = None if pair.magnitude is None else infos[pair.magnitude].shape
        if lengths not in (None, needed[1:]):
            raise CheckpointError(
                f'{adapter.folder}: lora_magnitude_vector of "{weight}" has shape {list(lengths)}, the weight has '
                f"{needed[1]} columns"
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
