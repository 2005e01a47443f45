# SPDX-License-Identifier: Apache-2.0
"""Adapters between peft's form, ours and PaddleMIX's; and the projector of any model as a file of its own."""

import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from paddlemix.checkpoint import keymap
from paddlemix.checkpoint.convert import config as convert_config
from paddlemix.checkpoint.convert.peft_modules import (
    PEFT_HF,
    hf_layers,
    name_in,
    once,
    require_tables_of,
    saved_modules,
    without_base,
)
from paddlemix.checkpoint.folders import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    ADAPTERS,
    CONFIG,
    FINGERPRINT,
    MODEL_TYPE,
    PEFT_CONFIG,
    kind_of,
    projector_file,
    read_json,
)
from paddlemix.checkpoint.formats.base import cast
from paddlemix.checkpoint.formats.pdparams import write_pdparams
from paddlemix.checkpoint.formats.safetensors import Stored, write_safetensors
from paddlemix.checkpoint.formats.source import TensorSource, open_file, open_folder
from paddlemix.checkpoint.formats.torch_write import write_torch
from paddlemix.checkpoint.lora.base import fingerprint
from paddlemix.checkpoint.lora.read import PADDLE_WEIGHTS, Adapter, Half, Pair, read_adapter
from paddlemix.checkpoint.save_files import write_json, write_side_files
from paddlemix.checkpoint.sources import Sources, find_sources, template_folder
from paddlemix.settings.published.config import TEMPLATE_KEY, default_template, load_config
from paddlemix.text.model_template import CHAT_TEMPLATE, CONVERSION, file_of, own_template
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.text.tokenizer_files import has_tokenizer
from paddlemix.utils.commands import shown
from paddlemix.utils.errors import CheckpointError

PROJECTOR = "mm_projector.bin"


def write_adapter(
    folder: Path, staging: Path, target: Path, to: str, dtype: str | None, base: str | Path | None, notes: list[str]
) -> list[Stored]:
    """Write the adapter in ``folder`` into ``staging``, which becomes ``target``; the tensors that were written.

    ``original`` is peft's form with non_lora_trainables.bin, as LLaVA's training leaves it: it fits a Llama and LLaVA's
    own classes. ``llava-hf`` is peft's form for transformers' LLaVA classes. ``own`` needs the base, of which it keeps
    a fingerprint.
    """
    adapter = read_adapter(folder)
    named = adapter.base if base is None else str(base)
    if to == "original":
        return _write_peft(adapter, staging, dtype, named, _config_folder(adapter, base), notes)
    if to == "llava-hf":
        return _write_peft_hf(adapter, staging, dtype, named)
    sources = find_sources(folder, base=base) if to == "own" else None
    notes += sources.plan.report.warnings if sources is not None else []
    return _write_paddle(adapter, staging, target, dtype, sources, base, notes)


def _config_folder(adapter: Adapter, base: str | Path | None) -> Path:
    """Where the model's config.json is: with the adapter, as LLaVA leaves it, or with the base, as peft does."""
    return adapter.folder if (adapter.folder / CONFIG).is_file() else adapter.find_base(base)


def _write_peft(
    adapter: Adapter, staging: Path, dtype: str | None, base: str | None, model: Path, notes: list[str]
) -> list[Stored]:
    halves = _halves(adapter, "peft", dtype)
    others = list(_others(adapter, "peft", dtype))
    write_safetensors(staging / "adapter_model.safetensors", halves, {"format": "pt"})
    if others:
        write_torch(staging / "non_lora_trainables.bin", others)
    _write_peft_config(adapter, staging, _peft_data(adapter, base, _modules(adapter), None))
    _write_original_config(model, staging, notes)
    _keep_template(model, staging)
    _copy_tokenizer(adapter.folder, staging)
    return [*halves, *others]


def _write_peft_hf(adapter: Adapter, staging: Path, dtype: str | None, base: str | None) -> list[Stored]:
    """What trained whole goes along as peft's ``modules_to_save``.

    What lies in the tower is written under the names of transformers 4 and of 5: peft takes those that the model has.
    """
    require_tables_of(adapter, base)
    free = without_base(adapter, base)
    others = once(item for form in PEFT_HF for item in _others(free, form, dtype))
    saved = saved_modules(adapter, [item.name for item in others])
    tensors = [*once(item for form in PEFT_HF for item in _halves(adapter, form, dtype)), *others]
    write_safetensors(staging / "adapter_model.safetensors", tensors, {"format": "pt"})
    # Bare kinds such as "q_proj" would name the tower's layers, too.
    layers = sorted({layer for weight in adapter.pairs for layer in hf_layers(weight)})
    _write_peft_config(adapter, staging, _peft_data(adapter, base, layers, saved))
    _copy_tokenizer(adapter.folder, staging)
    # There is no config.json here to say it, and transformers would take a chat_template.json for its own.
    facts = {"template": own_template(adapter.folder), "chat_template": file_of(adapter.folder)}
    if any(facts.values()):
        write_json(staging / CONVERSION, {key: value for key, value in facts.items() if value is not None})
    return tensors


def _write_peft_config(adapter: Adapter, staging: Path, data: dict[str, Any]) -> None:
    write_json(staging / PEFT_CONFIG, data)
    if adapter.fingerprint:
        # In a file of its own: peft of some versions refuses a key of its config that it does not know.
        write_json(staging / FINGERPRINT, {"base_fingerprint": adapter.fingerprint})


def _halves(adapter: Adapter, form: str, dtype: str | None) -> list[Stored]:
    halves = []
    for weight, pair in sorted(adapter.pairs.items()):
        name = name_in(weight, form).removesuffix(".weight")
        if pair.start is None:
            halves.append(_half(adapter, pair.a, f"{name}.lora_A.weight", dtype, True))
            halves.append(_half(adapter, pair.b, f"{name}.lora_B.weight", dtype, True))
        else:
            halves += _doubled(adapter, pair, f"{name}.lora_{{}}.weight", dtype, True)
        if pair.magnitude is not None:
            halves.append(_stored(adapter.source, pair.magnitude, f"{name}.lora_magnitude_vector", dtype, False))
    return halves


def _doubled(adapter: Adapter, pair: Pair, name: str, dtype: str | None, theirs: bool) -> Iterable[Stored]:
    """A PiSSA adapter as an ordinary one of twice the rank, as peft converts its own: ``[A, A0]`` and ``[B, -B0]``.

    It stands on the base that the training began with, not on what PiSSA leaves of it. ``name`` has a place for the
    letter; ``theirs``: lying as peft has it.
    """
    a0, b0 = pair.start

    def values_a() -> np.ndarray:
        return np.concatenate([adapter.half(pair.a), adapter.half(a0)], axis=1)

    def values_b() -> np.ndarray:
        return np.concatenate([adapter.half(pair.b), -adapter.half(b0)], axis=0)

    for half, kind, values in ((pair.a, "A", values_a), (pair.b, "B", values_b)):
        info = adapter.source.infos()[half.name]
        shape = (info.shape[0], 2 * pair.r) if kind == "A" else (2 * pair.r, info.shape[1])
        wanted = dtype or info.dtype

        def made(values: Callable[[], np.ndarray] = values, wanted: str = wanted) -> np.ndarray:
            return cast(np.ascontiguousarray(values().T if theirs else values()), "float32", wanted)

        yield Stored(name.format(kind), wanted, shape[::-1] if theirs else shape, made)


def _peft_data(adapter: Adapter, base: str | None, modules: list[str], saved: list[str] | None) -> dict[str, Any]:
    rank, alpha = _ranks(adapter, doubled=adapter.pissa)
    methods = {key: True for key, used in (("use_rslora", adapter.rslora), ("use_dora", adapter.dora)) if used}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": adapter.dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": saved,
        "target_modules": modules,
        **methods,
    }


def _write_paddle(
    adapter: Adapter,
    staging: Path,
    target: Path,
    dtype: str | None,
    sources: Sources | None,
    base: str | Path | None,
    notes: list[str],
) -> list[Stored]:
    """Our form when ``sources`` are given, else PaddleMIX's, which knows no DoRA and has PiSSA as plain LoRA."""
    plain = sources is None
    if plain and adapter.dora:
        raise CheckpointError(
            f"{adapter.folder}: it is a DoRA adapter, which PaddleMIX's form has no place for; merge it "
            "(paddlemix merge) and convert the result"
        )
    tensors = []
    for weight, pair in sorted(adapter.pairs.items()):
        name = weight.removesuffix(".weight")
        if plain and pair.start is not None:
            tensors += _doubled(adapter, pair, f"{name}.lora_{{}}", dtype, False)
            continue
        tensors += [_half(adapter, half, f"{name}.{part}", dtype, False) for part, half in pair.parameters().items()]
    tensors += _others(adapter, "paddlemix", dtype)
    rank, alpha = _ranks(adapter, doubled=plain and adapter.pissa)
    data: dict[str, Any] = {
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": adapter.dropout,
        **({"rslora": True} if adapter.rslora else {}),
        **({"pissa": True} if adapter.pissa and not plain else {}),
        **({"use_dora": True} if adapter.dora else {}),
        "target_modules": [weight.removesuffix(".weight") for weight in sorted(adapter.pairs)],
        "merge_weights": False,
        "dtype": dtype or tensors[0].dtype,
        "base_model_name_or_path": adapter.base if base is None else str(base),
    }
    if sources is None:
        write_pdparams(staging / PADDLE_WEIGHTS, tensors)
        model = _config_folder(adapter, base)
        _write_original_config(model, staging, notes)
        _keep_template(model, staging)
        _copy_tokenizer(adapter.folder, staging)
    else:
        write_safetensors(staging / ADAPTER_WEIGHTS, tensors)
        data |= _base_facts(sources, target)
        where = sources.parts.base if not has_tokenizer(adapter.folder) else adapter.folder
        write_side_files(staging, sources.config, load_tokenizer(where) if has_tokenizer(where) else None)
        _keep_template(template_folder(sources.parts), staging)
    write_json(staging / ADAPTER_CONFIG, data)
    return tensors


def _base_facts(sources: Sources, target: Path) -> dict[str, Any]:
    base = sources.parts.base.absolute()
    data: dict[str, Any] = {
        "base_model_name_or_path": str(base),
        "base_relative_path": os.path.relpath(base, target.absolute()),
        "base_fingerprint": fingerprint(open_folder(base), sources.form),
    }
    if sources.tower is not None:
        data["vision_tower"] = str(sources.tower.absolute())
        data["vision_tower_relative_path"] = os.path.relpath(sources.tower.absolute(), target.absolute())
    return data


def _half(adapter: Adapter, half: Half, name: str, dtype: str | None, theirs: bool) -> Stored:
    """A or B, lying as peft has it (``theirs``) or as we do."""
    return _stored(adapter.source, half.name, name, dtype, half.transpose != theirs)


def _others(adapter: Adapter, form: str, dtype: str | None) -> Iterable[Stored]:
    for source, written, names in adapter.others:
        for name in names:
            target = keymap.ours(name, written)
            if isinstance(target, keymap.Ignored):
                continue
            if target is None:
                raise CheckpointError(f'{adapter.folder}: "{name}" has no place in the model')
            back = keymap.theirs(target.name, form)
            yield _stored(source, name, name_in(target.name, form), dtype, target.transpose != back.transpose)


def _stored(source: TensorSource, name: str, new: str, dtype: str | None, turn: bool) -> Stored:
    info = source.infos()[name]
    wanted = dtype or info.dtype

    def values() -> np.ndarray:
        made = cast(source.view(name), info.dtype, wanted)
        return made.T if turn else made

    return Stored(new, wanted, info.shape[::-1] if turn else info.shape, values)


def _ranks(adapter: Adapter, *, doubled: bool = False) -> tuple[int, float]:
    """Rank and alpha of all layers; ``doubled``: of twice the rank and the same scale. CheckpointError: they differ."""
    ranks = {pair.r for pair in adapter.pairs.values()}
    if len(ranks) > 1:
        raise CheckpointError(f"{adapter.folder}: its layers have different ranks; merge it instead")
    rank, alpha = ranks.pop(), adapter.alpha
    if doubled:
        rank, alpha = 2 * rank, alpha * (math.sqrt(2) if adapter.rslora else 2)
    return rank, int(alpha) if alpha == int(alpha) else alpha


def _modules(adapter: Adapter) -> list[str]:
    """The last parts of the layers' names when the adapter is on all of their kind, else their whole names."""
    names = [name_in(weight, "llava").removesuffix(".weight") for weight in adapter.pairs]
    kinds: dict[str, int] = {}
    for name in names:
        kinds[name.rpartition(".")[2]] = kinds.get(name.rpartition(".")[2], 0) + 1
    depths = {name.split(".layers.")[1].split(".")[0] for name in names if ".layers." in name}
    return sorted(kinds) if set(kinds.values()) == {len(depths)} else sorted(names)


def _original_config(folder: Path) -> dict[str, Any]:
    """A config.json as LLaVA writes it: the one that is there, or one made of ours."""
    raw = read_json(folder / CONFIG)
    if raw.get("model_type") != MODEL_TYPE and "text_config" not in raw:
        return raw
    config = load_config(folder)
    data = convert_config.original_data(config, tower=config.vision_tower_name, tower_inside=False, dtype=config.dtype)
    if config.template != default_template(config.text):
        data[TEMPLATE_KEY] = config.template
    return {key: value for key, value in data.items() if value is not None}


def _write_original_config(folder: Path, staging: Path, notes: list[str]) -> None:
    """``_original_config`` beside an adapter, with a note where it cannot name a tower."""
    data = _original_config(folder)
    write_json(staging / CONFIG, data)
    if data.get("mm_projector_type") and not data.get("mm_vision_tower"):
        notes.append(
            "the base has its vision tower inside and names none, so config.json of the adapter names none: open it as "
            f'"{shown("chat", "--model-path", "ADAPTER", "--vision-tower", "OPENED/vision_tower")}", where '
            f'"{shown("convert", "--src", "BASE", "--dst", "OPENED", "--to", "original")}" writes that folder'
        )


def _keep_template(folder: Path, staging: Path) -> None:
    data = file_of(folder)
    if data is not None:
        write_json(staging / CHAT_TEMPLATE, data)


def _copy_tokenizer(folder: Path, staging: Path) -> None:
    if has_tokenizer(folder):
        load_tokenizer(folder).save(staging)


def write_projector(folder: Path, staging: Path, dtype: str | None) -> list[Stored]:
    """``mm_projector.bin`` (with the newline row, if there is one) and config.json, as LLaVA's first stage does."""
    tensors = []
    for source, names in _projector_sources(folder):
        for name in names:
            target = keymap.projector(name)
            if target is not None:
                back = keymap.theirs(target.name, "llava")
                tensors.append(_stored(source, name, back.name, dtype, target.transpose != back.transpose))
    if not tensors:
        raise CheckpointError(f"{folder}: it holds no projector")
    write_torch(staging / PROJECTOR, sorted(tensors, key=lambda item: item.name))
    write_json(staging / CONFIG, _original_config(folder))
    return tensors


def _projector_sources(folder: Path) -> Iterable[tuple[TensorSource, Iterable[str]]]:
    kind = kind_of(folder)
    if kind in ADAPTERS:
        return [(source, names) for source, _, names in read_adapter(folder).others]
    source = open_folder(folder) if kind == "full" else open_file(projector_file(folder))
    return [(source, source.infos())]
