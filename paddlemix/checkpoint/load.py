# SPDX-License-Identifier: Apache-2.0
"""Any published model folder to a model in memory: what goes where is planned and checked before memory is taken."""

import ctypes
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import paddle
from paddle import Tensor

from paddlemix.checkpoint import keymap
from paddlemix.checkpoint.few_bits import FEWEST
from paddlemix.checkpoint.formats.base import ARRAY_TYPES, from_float32, is_finite, to_float32
from paddlemix.checkpoint.holding import bits_held, held_of, hold_weights, lora_with_few_bits
from paddlemix.checkpoint.lora.adapter import attach
from paddlemix.checkpoint.lora.read import Adapter
from paddlemix.checkpoint.plan import LoadEntry, LoadPlan
from paddlemix.checkpoint.report import LoadReport
from paddlemix.checkpoint.sources import INIT as INIT
from paddlemix.checkpoint.sources import check, find_sources, template_folder, tokenizer_folder
from paddlemix.models.llava import LlavaForCausalLM, allocate, build_empty
from paddlemix.ops.parallel import ALONE, TensorParallel, cut, part_of, whole_shape
from paddlemix.settings.model import LlavaConfig
from paddlemix.utils.dtypes import dtype_named
from paddlemix.utils.errors import CheckpointError
from paddlemix.utils.logging import get_logger

_SMALL = 1 << 20
"""Bytes of a mapped tensor of ours that is looked at: norms and biases tell of a model that has diverged."""


@dataclass
class Loaded:
    """A model with its weights, and where everything came from."""

    model: LlavaForCausalLM
    config: LlavaConfig
    report: LoadReport
    tokenizer_folder: Path
    template_folder: Path
    """Folder whose chat_template.json counts, if it has one."""
    folder: Path
    base: Path
    """Folder of the language model: the folder itself unless it is an adapter or a projector."""
    vision_tower: Path | None
    """Folder of the tower when it was loaded from one of its own."""
    adapter: Adapter | None
    entries: Mapping[str, LoadEntry] = field(default_factory=dict)
    """Which stored tensor fills which parameter."""


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
    parallel: TensorParallel = ALONE,
    beside: Loaded | None = None,
    bits: int | None = None,
) -> Loaded:
    """Load any published layout: ours, original LLaVA, llava-hf, Llama or Vicuna, adapter, projector only.

    ``base``: language model below an adapter or a projector (default: what the folder itself names).
    ``vision_tower``: folder of the tower (default: what config.json names; a tower inside the checkpoint wins).
    ``projector``: file or folder that replaces the projector, or ``"init"`` to draw one with ``seed``.
    ``lora``: fold an adapter into the weights, or keep it as LoRA layers. ``overrides``: see ``load_config``.
    ``config``: the architecture itself, in place of what the folder says.
    ``parallel``: read only the slices that lie on this device. ``beside``: a model in memory, not fused, whose memory
    serves every parameter that is filled from the same tensor of the same file.
    ``bits``: hold the weights of linear layers and the table of tokens in 8 or 4 bits (16: bfloat16), for inference.
    A folder whose weights have 8 or 4 bits is opened in them.

    CheckpointError when anything is missing, left over or of another shape; NaN in the weights is a warning, or an
    error with ``strict_finite``.
    """
    if lora not in ("merge", "keep"):
        raise CheckpointError(f'lora="{lora}": expected "merge" or "keep"')
    if bits not in (None, *FEWEST):
        raise CheckpointError(f"bits={bits!r}: expected {', '.join(map(str, sorted(FEWEST)))} or None")
    dtype = dtype_named(dtype)
    sources = find_sources(
        folder, base=base, vision_tower=vision_tower, projector=projector, overrides=overrides, config=config
    )
    plan, parts = sources.plan, sources.parts
    config = sources.config.with_changes(dtype=dtype)
    model = build_empty(config, parallel)
    check(sources, {name: whole_shape(parameter) for name, parameter in model.named_parameters()})
    held = bits_held(sources, bits)
    if held is not None:
        lora = lora_with_few_bits(sources, model, held, lora)
    merged = _enter_adapter(plan, model, parts.adapter, lora)
    shared = {} if beside is None else _shared(plan.entries, merged, beside)
    if held is not None:
        theirs = {} if beside is None else held_of(beside.model, shared)
        shared |= hold_weights(sources, model, merged, held, theirs)
    _fill(plan, model, merged, shared, dtype, seed, strict_finite)
    _tell(plan.report, strict_finite)
    model.eval()
    texts = (tokenizer_folder(parts), template_folder(parts))
    return Loaded(
        model, config, plan.report, *texts, parts.folder, parts.base, sources.tower, parts.adapter, plan.entries
    )


def _shared(
    entries: Mapping[str, LoadEntry], merged: Mapping[str, Adapter], beside: Loaded
) -> dict[str, Tensor | None]:
    """The parameters of ``beside`` whose memory serves a model with these entries; None for a weight of few bits."""
    theirs = dict(beside.model.named_parameters())
    return {
        name: theirs.get(name)
        for name, entry in entries.items()
        if name in beside.entries and name not in merged and _place(entry) == _place(beside.entries[name])
    }


def _place(entry: LoadEntry) -> tuple[Path, str]:
    return entry.source.infos()[entry.name].file.resolve(), entry.name


def _enter_adapter(
    plan: LoadPlan, model: LlavaForCausalLM, adapter: Adapter | None, lora: Literal["merge", "keep"]
) -> dict[str, Adapter]:
    """The weights that an adapter is folded into while they are loaded; with ``keep``, LoRA layers instead."""
    if adapter is None:
        return {}
    plan.report.notes.append(f"adapter {adapter.folder}: {len(adapter.pairs)} layers, {lora}")
    if lora == "merge":
        return dict.fromkeys(adapter.pairs, adapter)
    attach(adapter, model)
    for weight, pair in adapter.pairs.items():
        for part, half in pair.parameters().items():
            name = f"{weight.removesuffix('.weight')}.{part}"
            plan.entries[name] = LoadEntry(adapter.source, half.name, half.transpose, False)
            plan.report.loaded[name] = adapter.source.infos()[half.name].file.name
    return {}


@paddle.no_grad()
def _fill(
    plan: LoadPlan,
    model: LlavaForCausalLM,
    merged: Mapping[str, Adapter],
    shared: Mapping[str, Tensor | None],
    dtype: str,
    seed: int,
    strict: bool,
) -> None:
    rng = np.random.default_rng(seed)
    on_cpu = paddle.get_device() == "cpu"
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        if shared.get(name) is not None:
            allocate(parameter, shared[name])
            continue
        if name not in plan.entries:
            values = from_float32(_draw(model, name, shape, rng), dtype)
            allocate(parameter, _tensor(values, dtype))
            continue
        entry = plan.entries[name]
        whole = part_of(parameter) is None
        mapped = _mapped(entry, dtype) if on_cpu and whole and name not in merged else None
        if mapped is not None:
            # Looking at a value reads its page: of our own large tensors that is left until they are used.
            looked_at = strict or not entry.own or mapped.nbytes <= _SMALL
            if looked_at and not is_finite(mapped, dtype):
                plan.report.not_finite.append(name)
            allocate(parameter, paddle.utils.dlpack.from_dlpack(mapped))
            continue
        tensor, target = _empty(shape, dtype, on_cpu)
        finite = _write(entry, target, dtype, merged.get(name), name, parameter)
        if not finite:
            plan.report.not_finite.append(name)
        allocate(parameter, tensor if tensor is not None else _tensor(target, dtype))


def _mapped(entry: LoadEntry, dtype: str) -> np.ndarray | None:
    """The file's own pages as the tensor, copy-on-write: nothing is read now and nothing is copied."""
    if entry.transpose or dtype == "bfloat16" or entry.source.infos()[entry.name].dtype != dtype:
        return None
    mapped = entry.source.mapped(entry.name)
    # An unaligned start would be slow, or refused by vector instructions.
    return mapped if mapped is not None and mapped.size and mapped.ctypes.data % 64 == 0 else None


def _write(
    entry: LoadEntry, target: np.ndarray, dtype: str, adapter: Adapter | None, name: str, parameter: Tensor
) -> bool:
    part = part_of(parameter)
    stored = None if part is None else lambda values: part.cut(values, entry.transpose)
    if adapter is None:
        return entry.source.fill(entry.name, target, dtype, transpose=entry.transpose, choose=stored)
    # The whole weight, of which DoRA needs the columns' lengths; this device's part is taken then.
    full = np.empty(whole_shape(parameter), np.float32)
    finite = entry.source.fill(entry.name, full, "float32", transpose=entry.transpose)
    adapter.fold(name, full)
    target[...] = from_float32(np.ascontiguousarray(cut(parameter, full)), dtype)
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
    if dtype != "bfloat16":
        return paddle.to_tensor(values, dtype=dtype)
    # A view of the bits would be shorter, but has no kernel where stride kernels are off, as on Ascend.
    return paddle.to_tensor(to_float32(values, dtype)).astype(dtype)


def _draw(model: LlavaForCausalLM, name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A new projector as torch's layers start it; a new newline as LLaVA does, normal with 1/sqrt(width)."""
    if name == keymap.NEWLINE:
        return (rng.standard_normal(shape) * shape[0] ** -0.5).astype(np.float32)
    fan_in = dict(model.named_parameters())[name.removesuffix("bias") + "weight" if name.endswith("bias") else name]
    if fan_in.ndim == 1:  # the LayerNorm that some projectors begin with
        return np.full(shape, 0.0 if name.endswith("bias") else 1.0, np.float32)
    bound = fan_in.shape[0] ** -0.5
    return rng.uniform(-bound, bound, shape).astype(np.float32)


def _tell(report: LoadReport, strict_finite: bool) -> None:
    logger = get_logger(__name__)
    for note in report.notes:
        logger.info(note)
    for warning in report.warnings:
        logger.warning(warning)
    if not report.not_finite:
        return
    names = ", ".join(report.not_finite[:5]) + (", ..." if len(report.not_finite) > 5 else "")
    text = f"{report.where}: {len(report.not_finite)} tensors hold NaN or infinity: {names}"
    if strict_finite:
        raise CheckpointError(f"{text}; download the checkpoint again or take an earlier one")
    logger.warning(text)
