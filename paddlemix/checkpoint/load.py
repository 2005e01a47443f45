# SPDX-License-Identifier: Apache-2.0
"""Any published model folder to a model in memory: what goes where is planned and checked before memory is taken."""

import ctypes
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import paddle

from paddlemix.checkpoint import keymap
from paddlemix.checkpoint.folders import (
    CONFIG,
    MODEL_TYPE,
    find,
    kind_of,
    projector_file,
    read_json,
    resolve,
    tower_name,
)
from paddlemix.checkpoint.formats import TensorSource, open_file, open_folder
from paddlemix.checkpoint.formats_base import ARRAY_TYPES, from_float32, is_finite
from paddlemix.checkpoint.lora import attach, check_targets
from paddlemix.checkpoint.lora_base import require_base
from paddlemix.checkpoint.lora_read import Adapter, read_adapter
from paddlemix.checkpoint.report import LoadReport
from paddlemix.models.llava import LlavaForCausalLM, allocate, build_empty
from paddlemix.settings.legacy import load_config
from paddlemix.settings.model import LlavaConfig
from paddlemix.utils.errors import CheckpointError
from paddlemix.utils.logging import get_logger

INIT = "init"
"""``projector=INIT``: start a projector anew, as the first training stage does."""

_SMALL = 1 << 20
"""Bytes of a mapped tensor of ours that is looked at: norms and biases tell of a model that has diverged."""

_NO_PROJECTOR = (
    "There is no projector between the tower and the language model: give one with projector=PATH (mm_projector.bin), "
    'or train one with projector="init", which is what the pretraining stage does.'
)
_NO_TOWER = "The vision tower is incomplete: give its folder with vision_tower=PATH."
_HINTS = ((keymap.PREFIX_PROJECTOR, _NO_PROJECTOR), (keymap.NEWLINE, _NO_PROJECTOR), (keymap.PREFIX_TOWER, _NO_TOWER))


@dataclass
class Loaded:
    """A model with its weights, and where everything came from."""

    model: LlavaForCausalLM
    config: LlavaConfig
    report: LoadReport
    tokenizer_folder: Path
    folder: Path
    base: Path
    """Folder of the language model: the folder itself unless it is an adapter or a projector."""
    vision_tower: Path | None
    """Folder of the tower when it was loaded from one of its own."""
    adapter: Adapter | None


@dataclass(frozen=True)
class _Entry:
    source: TensorSource
    name: str
    transpose: bool
    own: bool
    """Whether the file is of our own form, whose values were checked when they were made."""


@dataclass
class _Parts:
    """The folders that make up a model."""

    folder: Path
    kind: str
    base: Path
    adapter: Adapter | None
    projector: Path | None
    init: bool


@dataclass
class _Plan:
    """Which stored tensor fills which parameter. Later sources replace earlier ones, and the report says so."""

    report: LoadReport
    entries: dict[str, _Entry] = field(default_factory=dict)

    def add(self, source: TensorSource, form: str, names: Iterable[str] | None = None) -> None:
        """Enter the tensors of a source."""
        infos = source.infos()
        replaced = 0
        for name in infos if names is None else names:
            target = keymap.ours(name, form)
            if target is None:
                self.report.left_over[name] = infos[name].file.name
            elif isinstance(target, keymap.Ignored):
                self.report.ignored[name] = target.reason
            else:
                replaced += target.name in self.entries
                self.entries[target.name] = _Entry(source, name, target.transpose, form == "paddlemix")
        self.report.notes += source.notes
        if replaced:
            self.report.notes.append(f"{replaced} tensors come from {source.where} instead of the base")

    def has(self, prefix: str) -> bool:
        """Whether any tensor below ``prefix`` is there."""
        return any(name.startswith(prefix) for name in self.entries)


def load_model(
    folder: str | Path,
    *,
    base: str | Path | None = None,
    vision_tower: str | Path | None = None,
    projector: str | Path | None = None,
    dtype: str = "float32",
    lora: Literal["merge", "keep"] = "merge",
    overrides: Mapping[str, Any] | None = None,
    config: LlavaConfig | None = None,
    seed: int = 0,
    strict_finite: bool = False,
) -> Loaded:
    """Load any published layout: ours, original LLaVA, llava-hf, Llama or Vicuna, adapter, projector only.

    ``base``: language model below an adapter or a projector (default: what the folder itself names).
    ``vision_tower``: folder of the tower (default: what config.json names; a tower inside the checkpoint wins).
    ``projector``: file or folder that replaces the projector, or ``"init"`` to draw one with ``seed``.
    ``lora``: fold an adapter into the weights, or keep it as LoRA layers. ``overrides``: see ``load_config``.
    ``config``: the architecture itself, in place of what the folder says.

    CheckpointError when anything is missing, left over or of another shape; NaN in the weights is a warning, or an
    error with ``strict_finite``.
    """
    if lora not in ("merge", "keep"):
        raise CheckpointError(f'lora="{lora}": expected "merge" or "keep"')
    parts = _find_parts(resolve(folder, "the model"), base, projector)
    report = LoadReport(str(parts.folder))
    plan = _Plan(report)
    source = _open_base(plan, parts)
    tower = _find_tower(parts, plan, vision_tower)
    if config is None:
        config = _read_config(parts, tower, overrides)
    elif overrides:
        raise CheckpointError(f"{parts.folder}: give either config= or overrides=")
    config = config.with_changes(dtype=dtype)
    tower = _add_tower(plan, config, tower)
    _add_later_sources(plan, parts)
    if parts.adapter is not None:
        require_base(parts.adapter, parts.base, *source)
    model = build_empty(config)
    _check(plan, model, config, parts)
    report.require_clean()
    merged = _enter_adapter(plan, model, parts.adapter, lora)
    _fill(plan, model, merged, dtype, seed, strict_finite)
    _tell(report, strict_finite)
    model.eval()
    return Loaded(model, config, report, _tokenizer_folder(parts), parts.folder, parts.base, tower, parts.adapter)


def _find_parts(folder: Path, base: str | Path | None, projector: str | Path | None) -> _Parts:
    kind = kind_of(folder)
    init = projector == INIT
    projector_path = None if projector is None or init else projector_file(Path(projector))
    if kind == "full":
        if base is not None:
            raise CheckpointError(f"{folder}: it is a whole model, so base={base} has no use; leave it out")
        return _Parts(folder, kind, folder, None, projector_path, init)
    if kind == "projector":
        base_folder = _projector_base(folder, base)
        return _Parts(folder, kind, base_folder, None, projector_path or projector_file(folder), init)
    adapter = read_adapter(folder)
    base_folder = adapter.find_base(base)
    if kind_of(base_folder) != "full":
        raise CheckpointError(f"{base_folder}: the base of an adapter must be a whole model; merge that adapter first")
    return _Parts(folder, kind, base_folder, adapter, projector_path, init)


def _projector_base(folder: Path, base: str | Path | None) -> Path:
    name = base if base is not None else read_json(folder / CONFIG).get("_name_or_path")
    if not name:
        raise CheckpointError(f"{folder}: it holds a projector only; name the language model with base= (--base)")
    return resolve(name, f"the base model of {folder}", near=folder, remedy="name it with base= (--base)")


def _open_base(plan: _Plan, parts: _Parts) -> tuple[TensorSource, str]:
    source = open_folder(parts.base)
    form = keymap.detect(source.infos())
    if form is None or form == "clip":
        first = next(iter(source.infos()), "nothing")
        what = "a vision tower alone" if form == "clip" else f'names of no known layout (the first is "{first}")'
        raise CheckpointError(f"{parts.base}: it holds {what}; expected a language model or a LLaVA model")
    plan.add(source, form)
    return source, form


def _find_tower(parts: _Parts, plan: _Plan, given: str | Path | None) -> Path | None:
    """The tower's folder, or None when nothing of it is needed."""
    if given is not None:
        return resolve(given, "the vision tower", near=parts.folder)
    raw = read_json(_config_folder(parts) / CONFIG)
    if raw.get("model_type") == MODEL_TYPE:
        if plan.has(keymap.PREFIX_TOWER) or _brings_tower(parts.adapter):
            return None
        return parts.adapter.find_tower() if parts.adapter is not None else None
    name = tower_name(raw)
    if name is None:
        return None
    if plan.has(keymap.PREFIX_TOWER):
        # Only the configuration is wanted of the folder, and the settings know that of published towers.
        return find(name, near=parts.folder)
    remedy = "name it with vision_tower= (--vision-tower)"
    return resolve(name, f"the vision tower of {parts.folder}", near=parts.folder, remedy=remedy)


def _brings_tower(adapter: Adapter | None) -> bool:
    others = adapter.others if adapter is not None else []
    return any(name.startswith(keymap.PREFIX_TOWER) for _, form, names in others for name in names if form)


def _config_folder(parts: _Parts) -> Path:
    return parts.folder if (parts.folder / CONFIG).is_file() else parts.base


def _read_config(parts: _Parts, tower: Path | None, overrides: Mapping[str, Any] | None) -> LlavaConfig:
    return load_config(_config_folder(parts), tower_folder=tower, overrides=dict(overrides) if overrides else None)


def _add_tower(plan: _Plan, config: LlavaConfig, tower: Path | None) -> Path | None:
    """Enter the tower's weights unless the checkpoint holds its own, which may differ (v1.6 trains its tower)."""
    if config.vision is None or tower is None:
        return None
    if plan.has(keymap.PREFIX_TOWER):
        plan.report.notes.append(
            f"the vision tower inside the checkpoint is used; {tower} gives its configuration only"
        )
        return None
    source = open_folder(tower)
    form = keymap.detect(source.infos())
    if form is None:
        raise CheckpointError(f"{tower}: it holds no vision tower that is known")
    names = [name for name in source.infos() if not _is_foreign(name, form)]
    plan.add(source, form, names)
    return tower


def _is_foreign(name: str, form: str) -> bool:
    """A tensor of a whole model that stands in for a tower's folder and is not part of its tower."""
    target = keymap.ours(name, form)
    return isinstance(target, keymap.Target) and not target.name.startswith(keymap.PREFIX_TOWER)


def _add_later_sources(plan: _Plan, parts: _Parts) -> None:
    if parts.adapter is not None:
        for source, form, names in parts.adapter.others:
            plan.add(source, form, names)
    if parts.projector is not None:
        source = open_file(parts.projector)
        form = keymap.detect(source.infos())
        if form is None:
            raise CheckpointError(f"{parts.projector}: it holds no projector that is known")
        plan.add(source, form)


def _check(plan: _Plan, model: LlavaForCausalLM, config: LlavaConfig, parts: _Parts) -> None:
    """Compare the plan with the model: every parameter filled once, every tensor used, every shape right."""
    report, infos = plan.report, {}
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if config.text.tie_word_embeddings and "lm_head.weight" in plan.entries:
        entry = plan.entries.pop("lm_head.weight")
        report.ignored[entry.name] = "the head is tied to the embeddings"
    for name, entry in list(plan.entries.items()):
        infos = entry.source.infos()[entry.name]
        found = infos.shape[::-1] if entry.transpose else infos.shape
        if name not in shapes:
            report.left_over[entry.name] = infos.file.name
        elif found != shapes[name]:
            report.mis_shaped[name] = f"{infos.file.name} has {list(found)}, the model {list(shapes[name])}"
        else:
            report.loaded[name] = infos.file.name
    for name in shapes:
        if name not in plan.entries:
            _missing(report, name, parts.init)
    if parts.adapter is not None:
        check_targets(parts.adapter, shapes)


def _missing(report: LoadReport, name: str, init: bool) -> None:
    if init and (name.startswith(keymap.PREFIX_PROJECTOR) or name == keymap.NEWLINE):
        report.initialised[name] = 'projector="init"'
        return
    report.missing[name] = next((hint for prefix, hint in _HINTS if name.startswith(prefix)), "")


def _enter_adapter(
    plan: _Plan, model: LlavaForCausalLM, adapter: Adapter | None, lora: Literal["merge", "keep"]
) -> dict[str, Adapter]:
    """The weights that an adapter is folded into while they are loaded; with ``keep``, LoRA layers instead."""
    if adapter is None:
        return {}
    plan.report.notes.append(f"adapter {adapter.folder}: {len(adapter.pairs)} layers, {lora}")
    if lora == "merge":
        return dict.fromkeys(adapter.pairs, adapter)
    attach(adapter, model)
    for weight, pair in adapter.pairs.items():
        for side, half in (("A", pair.a), ("B", pair.b)):
            name = f"{weight.removesuffix('.weight')}.lora_{side}"
            plan.entries[name] = _Entry(adapter.source, half.name, half.transpose, False)
            plan.report.loaded[name] = adapter.source.infos()[half.name].file.name
    return {}


@paddle.no_grad()
def _fill(
    plan: _Plan, model: LlavaForCausalLM, merged: Mapping[str, Adapter], dtype: str, seed: int, strict: bool
) -> None:
    rng = np.random.default_rng(seed)
    on_cpu = paddle.get_device() == "cpu"
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        if name not in plan.entries:
            values = from_float32(_draw(model, name, shape, rng), dtype)
            allocate(parameter, _tensor(values, dtype))
            continue
        entry = plan.entries[name]
        mapped = _mapped(entry, dtype) if on_cpu and name not in merged else None
        if mapped is not None:
            # Looking at a value reads its page: of our own large tensors that is left until they are used.
            looked_at = strict or not entry.own or mapped.nbytes <= _SMALL
            if looked_at and not is_finite(mapped, dtype):
                plan.report.not_finite.append(name)
            allocate(parameter, paddle.utils.dlpack.from_dlpack(mapped))
            continue
        tensor, target = _empty(shape, dtype, on_cpu)
        finite = _write(entry, target, dtype, merged.get(name), name)
        if not finite:
            plan.report.not_finite.append(name)
        allocate(parameter, tensor if tensor is not None else _tensor(target, dtype))


def _mapped(entry: _Entry, dtype: str) -> np.ndarray | None:
    """The file's own pages as the tensor, copy-on-write: nothing is read now and nothing is copied."""
    if entry.transpose or dtype == "bfloat16" or entry.source.infos()[entry.name].dtype != dtype:
        return None
    mapped = entry.source.mapped(entry.name)
    # An unaligned start would be slow, or refused by vector instructions.
    return mapped if mapped is not None and mapped.size and mapped.ctypes.data % 64 == 0 else None


def _write(entry: _Entry, target: np.ndarray, dtype: str, adapter: Adapter | None, name: str) -> bool:
    if adapter is None:
        return entry.source.fill(entry.name, target, dtype, transpose=entry.transpose)
    full = np.empty(target.shape, np.float32)
    finite = entry.source.fill(entry.name, full, "float32", transpose=entry.transpose)
    full += adapter.delta(name)
    target[...] = from_float32(full, dtype)
    return finite


def _empty(shape: tuple[int, ...], dtype: str, on_cpu: bool) -> tuple[Any, np.ndarray]:
    """A tensor and the numpy array over its memory; on other devices only an array, to be copied there."""
    if not on_cpu or not math.prod(shape):
        return None, np.empty(shape, ARRAY_TYPES[dtype])
    tensor = paddle.empty(list(shape), dtype=dtype)
    size = math.prod(shape) * ARRAY_TYPES[dtype].itemsize
    memory = (ctypes.c_char * size).from_address(tensor.data_ptr())
    return tensor, np.frombuffer(memory, ARRAY_TYPES[dtype]).reshape(shape)


def _tensor(values: np.ndarray, dtype: str) -> Any:
    return paddle.to_tensor(values, dtype=dtype) if dtype != "bfloat16" else paddle.to_tensor(values).view(dtype)


def _draw(model: LlavaForCausalLM, name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A new projector as torch's Linear starts it; a new newline as LLaVA does, normal with 1/sqrt(width)."""
    if name == keymap.NEWLINE:
        return (rng.standard_normal(shape) * shape[0] ** -0.5).astype(np.float32)
    fan_in = dict(model.named_parameters())[name.removesuffix("bias") + "weight" if name.endswith("bias") else name]
    bound = fan_in.shape[0] ** -0.5
    return rng.uniform(-bound, bound, shape).astype(np.float32)


def _tell(report: LoadReport, strict_finite: bool) -> None:
    logger = get_logger(__name__)
    for note in report.notes:
        logger.info(note)
    if not report.not_finite:
        return
    names = ", ".join(report.not_finite[:5]) + (", ..." if len(report.not_finite) > 5 else "")
    text = f"{report.where}: {len(report.not_finite)} tensors hold NaN or infinity: {names}"
    if strict_finite:
        raise CheckpointError(f"{text}; download the checkpoint again or take an earlier one")
    logger.warning(text)


def _tokenizer_folder(parts: _Parts) -> Path:
    names = ("tokenizer.model", "tokenizer.json")
    return parts.folder if any((parts.folder / name).is_file() for name in names) else parts.base
