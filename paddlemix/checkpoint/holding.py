# SPDX-License-Identifier: Apache-2.0
"""Give a model that is being loaded weights of few bits, before its other parameters are filled."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import paddle
from paddle import Tensor, nn

from paddlemix.checkpoint import few_bits
from paddlemix.checkpoint.lora.read import Adapter
from paddlemix.checkpoint.plan import LoadEntry
from paddlemix.checkpoint.sources import Sources
from paddlemix.models.llava import LlavaForCausalLM
from paddlemix.ops.linear import Linear, linear_layers
from paddlemix.ops.low_bits.form import Packed
from paddlemix.ops.low_bits.weights import Table, Weights, hold, why_not
from paddlemix.ops.runtime import Runtime
from paddlemix.utils.errors import CheckpointError


def bits_held(sources: Sources, bits: int | None) -> int | None:
    """Bits in which the weights are held when ``bits`` are asked for; None: floats.

    CheckpointError for a folder whose weights have other bits.
    """
    stored = sources.bits
    if bits is not None and stored not in (None, bits):
        raise CheckpointError(
            f"{sources.parts.base}: its weights have {stored} bits, and {bits} were asked for; ask for none, or give "
            "the folder that they were made of"
        )
    return stored or bits


def lora_with_few_bits(
    sources: Sources, model: LlavaForCausalLM, bits: int, lora: Literal["merge", "keep"]
) -> Literal["merge", "keep"]:
    """What becomes of an adapter: stored codes cannot take it in, so it is kept beside them.

    CheckpointError, before memory is taken, for what weights of few bits cannot do.
    """
    adapter, where = sources.parts.adapter, sources.parts.folder
    if model.parallel.size > 1:
        raise CheckpointError(f"{where}: weights of {bits} bits are not divided among devices; load it on one")
    reason = why_not(model.parallel.runtime, bits)
    if reason is not None:
        raise CheckpointError(
            f"{where}: weights of {bits} bits cannot be used on {model.parallel.runtime.device}: {reason}; load the "
            "weights as floats"
        )
    if adapter is None or (sources.bits is None and lora == "merge"):
        return lora
    if adapter.dora:
        raise CheckpointError(
            f"{adapter.folder}: DoRA needs the lengths of the base's columns, which weights of {bits} bits do not "
            "have; merge it into the base of 16 or 32 bits first (paddlemix merge)"
        )
    return "keep"


def held_of(model: nn.Layer, names: Mapping[str, object]) -> dict[str, Weights]:
    """The weights of few bits of a model in memory, of these names, which another one may use too."""
    layers = ((name, getattr(layer, "low_bits", None)) for name, layer in model.named_sublayers())
    found = {f"{name}.weight": weights for name, weights in layers if weights is not None}
    return {name: weights for name, weights in found.items() if name in names}


@paddle.no_grad()
def hold_weights(
    sources: Sources, model: LlavaForCausalLM, merged: Mapping[str, Adapter], bits: int, shared: Mapping[str, Weights]
) -> dict[str, Tensor]:
    """Give every layer that is held in few bits its weight, as it is stored or by the rule of ``few_bits``.

    ``merged``: adapters that are folded in before the rounding; ``shared``: weights that are in memory already.
    Returns the values of parameters whose stored codes no operator of a card takes.
    """
    model.bits = bits
    runtime, entries = model.parallel.runtime, sources.plan.entries
    layers, widened = dict(model.named_sublayers()), {}
    if sources.bits is None:
        names = [name for name, _ in linear_layers(model)]
        chosen = few_bits.bits_of_weights(names, bits, model.config.text, table=runtime.device == "cpu")
    else:
        chosen = {name: entry.bits for name, entry in entries.items() if entry.bits is not None}
    for name, number in chosen.items():
        if name not in entries:
            continue
        layer, weights = layers[name.removesuffix(".weight")], shared.get(name)
        if weights is None or weights.bits != number:
            shape = tuple(layer.weight.shape)
            if runtime.device != "cpu" and not _serves(runtime, name, number, shape):
                if entries[name].bits is not None:
                    widened[name] = _widened(entries[name], name, shape, model.config.dtype)
                continue
            weights = hold(runtime, [_packed(entries[name], name, shape, number, merged.get(name))])
        if isinstance(layer, Linear):
            layer.hold(weights)
        else:
            model.llama.embed_tokens = Table(weights)
    return widened


def _serves(runtime: Runtime, name: str, bits: int, shape: tuple[int, ...]) -> bool:
    """Whether a card's operator takes the weight ``name``; its table of tokens stays in 16 bits."""
    return name != few_bits.EMBEDDING and why_not(runtime, bits, few_bits.shape_of(name, shape)) is None


def _widened(entry: LoadEntry, name: str, shape: tuple[int, ...], dtype: str) -> Tensor:
    values = few_bits.stored(entry, name, shape).rows(0, few_bits.shape_of(name, shape)[0])
    turned = values if name == few_bits.EMBEDDING else np.ascontiguousarray(values.T)
    return paddle.to_tensor(turned).astype(dtype)


def _packed(entry: LoadEntry, name: str, shape: tuple[int, ...], bits: int, adapter: Adapter | None) -> Packed:
    if entry.bits is not None:
        return few_bits.stored(entry, name, shape)
    try:
        if adapter is None:
            return few_bits.rounded(entry, name, few_bits.shape_of(name, shape), bits)
        full = np.empty(shape, np.float32)
        entry.source.fill(entry.name, full, "float32", transpose=entry.transpose)
        adapter.fold(name, full)
        return few_bits.rounded_values(full, entry, name, bits)
    finally:
        entry.source.release(entry.name)
