# SPDX-License-Identifier: Apache-2.0
"""An adapter among the modules of transformers' LLaVA: the names that peft knows its parts by, and what it can hold."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from paddlemix.checkpoint import keymap
from paddlemix.checkpoint.folders import CONFIG, read_optional
from paddlemix.checkpoint.formats.base import to_float32
from paddlemix.checkpoint.formats.safetensors import Stored
from paddlemix.checkpoint.formats.source import TensorSource, open_folder
from paddlemix.checkpoint.lora.read import Adapter
from paddlemix.utils.errors import CheckpointError

PEFT_HF = ("peft_hf", "peft_hf_5")
"""Forms of the names under transformers 4 and 5; they differ in the tower."""
_PROJECTOR_HF = "multi_modal_projector"
"""Name of the projector in transformers' LLaVA."""


def without_base(adapter: Adapter, base: str | Path | None) -> Adapter:
    """The adapter without the frozen weights and biases of adapted layers of the projector that are the base's own.

    Our adapter folders hold the projector in any case; peft takes what lies below an adapter from the base.
    """
    under = {weight.rpartition(".")[0] for weight in adapter.pairs}
    doubtful = {name for name in adapter.other_names if name.rpartition(".")[0] in under}
    if not doubtful:
        return adapter
    source = open_folder(adapter.find_base(base))
    form = keymap.detect(source.infos()) or "llava"
    values = {}
    for name in source.infos():
        target = keymap.ours(name, form)
        if isinstance(target, keymap.Target) and target.name in doubtful:
            found = to_float32(source.read(name), source.infos()[name].dtype)
            values[target.name] = found.T if target.transpose else found
    others = []
    for stored, written, names in adapter.others:
        kept = [name for name in names if not _is_equal(stored, name, keymap.ours(name, written), values)]
        others.append((stored, written, tuple(kept)))
    return replace(adapter, others=others)


def require_tables_of(adapter: Adapter, base: str | Path | None) -> None:
    """CheckpointError when a token table has other rows than the base's, which peft could not put it into.

    A base that is not at hand is not looked at.
    """
    try:
        source = open_folder(adapter.find_base(base))
    except CheckpointError:
        return
    form = keymap.detect(source.infos()) or "llava"
    sizes = {}
    for name, info in source.infos().items():
        target = keymap.ours(name, form)
        if isinstance(target, keymap.Target) and target.name in _TABLES:
            sizes[target.name] = max(info.shape)
    for stored, written, names in adapter.others:
        for name in names:
            target, rows = keymap.ours(name, written), max(stored.infos()[name].shape)
            if isinstance(target, keymap.Target) and sizes.get(target.name, rows) != rows:
                raise CheckpointError(
                    f'{adapter.folder}: "{target.name}" has {rows} rows and the base {sizes[target.name]}, so peft '
                    "cannot put it into that. Merge the adapter first (paddlemix merge) and convert the result"
                )


_TABLES = ("llama.embed_tokens.weight", "lm_head.weight")


def _is_equal(
    source: TensorSource, name: str, target: keymap.Target | keymap.Ignored | None, values: Mapping[str, np.ndarray]
) -> bool:
    if not isinstance(target, keymap.Target) or target.name not in values:
        return False
    own = to_float32(source.read(name), source.infos()[name].dtype)
    return np.array_equal(own.T if target.transpose else own, values[target.name])


def saved_modules(adapter: Adapter, names: Iterable[str]) -> list[str] | None:
    """peft's ``modules_to_save`` for tensors of its form for llava-hf: the modules that own them, the projector as one.

    CheckpointError for what peft cannot hold so: a tensor that is no weight or bias of a layer, a layer that has an
    adapter too, and one of two tables that are one.
    """
    found = set()
    adapted = {layer for weight in adapter.pairs for layer in hf_layers(weight)}
    for name in names:
        module, _, leaf = name.removeprefix("base_model.model.").rpartition(".")
        why = None
        if leaf not in ("weight", "bias"):
            why = "has no place for it"
        elif module in adapted:
            why = "cannot hold it beside the adapter of the same layer"
        elif module.endswith((".embed_tokens", "lm_head")) and _tied(adapter):
            why = "would change the token table without the output head, which is the same table in this model"
        if why is not None:
            raise CheckpointError(
                f'{adapter.folder}: "{name}" was trained, too, and peft\'s form for llava-hf {why}. '
                "Merge the adapter first (paddlemix merge) and convert the result"
            )
        whole = f"model.{_PROJECTOR_HF}"
        shares = any(layer.startswith(f"{whole}.") for layer in adapted)
        found.add(_PROJECTOR_HF if module.startswith(whole) and not shares else module)
    return sorted(found) or None


def hf_layers(weight: str) -> set[str]:
    """The names that the layer of our ``weight`` has in a llava-hf model."""
    names = (name_in(weight, form).removesuffix(".weight").removeprefix("base_model.model.") for form in PEFT_HF)
    return set(names)


def once(tensors: Iterable[Stored]) -> list[Stored]:
    """Of tensors of one name the last."""
    return list({item.name: item for item in tensors}.values())


def _tied(adapter: Adapter) -> bool:
    return read_optional(adapter.folder / CONFIG).get("text_config", {}).get("tie_word_embeddings", False)


def name_in(ours: str, form: str) -> str:
    """The name in ``form`` for our name. CheckpointError when there is none."""
    target = keymap.theirs(ours, form)
    if target is None:
        raise CheckpointError(f'there is no name for "{ours}" in the form "{form}"')
    return target.name
