# SPDX-License-Identifier: Apache-2.0
"""All layers of a decode step by one call of the compiled kernels (``paddlemix_step`` of ``few_rows.c``).

Between two products lies little work, which takes its time for being many calls: each product has pushed their code and
the framework's out of the caches. docs/performance.md has what it comes to.
"""

import ctypes
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from paddle import Tensor

from paddlemix.ops import few_rows
from paddlemix.ops.linear import Fused, Linear
from paddlemix.ops.low_bits import build
from paddlemix.ops.low_bits.weights import Compiled
from paddlemix.ops.norm import RMSNorm

_PARTS = 3
"""Weights that a product joins at most: q, k and v."""


class Parts(NamedTuple):
    """What a layer computes with, in the order in which it does; biases of ``gate_up`` and ``down`` there are none."""

    norm: RMSNorm
    joined: Fused
    """To q, k and v."""
    out: Linear
    second_norm: RMSNorm
    gate_up: Fused
    down: Linear


class Seen(NamedTuple):
    """Which keys the rows see, as a causal ``Mask`` has it: places of the step (a number or int64 [B]), and limits."""

    offset: int | Tensor
    starts: Tensor | None
    lengths: Tensor | None


class WholeStep:
    """Runs layers of one model in one call. They stay the owners of their weights.

    What the kernels read of the weights is looked at when something of them is another object or lies elsewhere. Any
    number of threads may call it at once.
    """

    def __init__(self) -> None:
        self._looked_at: _Looked | None = None

    def __reduce__(self) -> tuple[type["WholeStep"], tuple[()]]:
        """A copy of a model has weights of its own, at other places."""
        return WholeStep, ()

    def __call__(
        self,
        layers: Sequence[Parts],
        x: Tensor,
        tables: tuple[Tensor, Tensor],
        held: Sequence[tuple[Tensor, Tensor]],
        seen: Seen,
        heads: int,
        scale: float,
    ) -> Tensor | None:
        """Float32 ``[B, 1, W]`` behind the last of ``layers``, of ``x`` [B, 1, W]; the cache then holds the step.

        ``tables`` are cosine and sine, float32 ``[B, 1, 1, D]`` (``RotaryTables.at``); ``held`` are keys and values of
        each layer, float32 ``[B, Hk, M, D]`` with a free place at ``seen.offset``. None, and nothing is done, where the
        kernels do not serve: see ``few_rows``; weights are float32 or held by ``low_bits.weights.Compiled``.
        """
        batch, length, width = x.shape
        if width < few_rows.WIDE or length != 1 or not 0 < batch <= few_rows.MOST or not few_rows.may_serve():
            return None
        kernels = few_rows.compiled()
        if kernels is None:
            return None
        cosine, sine = tables
        shape = held[0][0].shape
        rows, kv_heads, places, head = shape
        if rows != batch or len(held) != len(layers) or not cosine.shape == sine.shape == [batch, 1, 1, head]:
            return None
        limits = few_rows.limits(*seen, batch)
        if limits is None or not few_rows.readable(x, cosine, sine):
            return None
        for keys, values in held:
            if not few_rows.readable(keys, values) or keys.shape != shape or values.shape != shape:
                return None
        found = self._look(layers, width, heads, kv_heads, head)
        if found.table is None:
            return None
        table = found.table.copy()  # its own, as another thread may be in a step of another cache
        table[:, -2:] = [[keys.data_ptr(), values.data_ptr()] for keys, values in held]
        y = x.clone()
        addresses = [one.data_ptr() for one in (y, cosine, sine)]
        sizes = batch, width, heads, kv_heads, places, head, layers[0].down.in_features
        numbers = layers[0].norm.epsilon, scale, _few_bits() if found.few_bits else None
        first = table.ctypes.data, len(table)
        if kernels.step(*first, *addresses, None, None, *limits, *sizes, *numbers, *kernels.team()):
            raise MemoryError(f"no memory for a step of {batch} rows")
        return y

    def _look(self, layers: Sequence[Parts], *sizes: int) -> "_Looked":
        """What the weights are: that of the step before if nothing has changed."""
        objects = [one for layer in layers for one in _objects(layer)]
        key = [id(one) for one in objects]
        key += [one.data_ptr() for one in objects if isinstance(one, Tensor)]
        key += [*sizes, *(norm.epsilon for layer in layers for norm in (layer.norm, layer.second_norm))]
        found = self._looked_at
        if found is None or found.key != key:
            few_bits = any(one.low_bits is not None for layer in layers for one in _products(layer))
            found = self._looked_at = _Looked(key, objects, few_bits, table_of(layers, *sizes))
        return found


class _Looked(NamedTuple):
    """What was found of weights. The objects are kept: another one could come to lie at the place of a lost one."""

    key: list[float]
    objects: list[object]
    few_bits: bool
    """Whether any of them has few bits."""
    table: np.ndarray | None


def table_of(layers: Sequence[Parts], width: int, heads: int, kv_heads: int, head: int) -> np.ndarray | None:
    """The array of ``Layer`` of the C file: int64 [layers, n], 0 for the cache; None: the kernels do not know it."""
    epsilon, inner, outer = layers[0].norm.epsilon, layers[0].down.in_features, heads * head
    if width < few_rows.WIDE or heads % kv_heads or inner % few_rows.LANES:
        return None
    sizes = (width, outer + 2 * kv_heads * head), (outer, width), (width, 2 * inner), (inner, width)
    table = []
    for layer in layers:
        norms = layer.norm, layer.second_norm
        if any(norm.epsilon != epsilon or norm.weight.shape != [width] for norm in norms):
            return None
        if layer.down.bias is not None or not few_rows.readable(*(norm.weight for norm in norms)):
            return None
        row = [norm.weight.data_ptr() for norm in norms]
        for product, size in zip(_products(layer), sizes, strict=True):
            found = _weight(product, *size)
            if found is None:
                return None
            row += found
        table.append([*row, 0, 0])
    return np.array(table, np.int64)


def _objects(layer: Parts) -> list[object]:
    """Everything that the table is made of."""
    found: list[object] = [layer.norm.weight, layer.second_norm.weight]
    for product in _products(layer):
        found += [product.low_bits or product.weight, product.bias]
    return found


def _products(layer: Parts) -> tuple[Fused | Linear, ...]:
    return layer.joined, layer.out, layer.gate_up, layer.down


def _weight(product: Fused | Linear, width: int, out: int) -> list[int] | None:
    """A ``Weight`` of the C file."""
    bias, held = product.bias, product.low_bits
    if bias is not None and (bias.shape != [out] or not few_rows.readable(bias)):
        return None
    added = 0 if bias is None else bias.data_ptr()
    if held is None:
        weight = product.weight
        if weight.shape != [width, out] or out % few_rows.LANES or not few_rows.readable(weight):
            return None
        return [32, weight.data_ptr(), 0, out, *[0] * 4 * (_PARTS - 1), added, 1]
    if type(held) is not Compiled or held.shape != (out, width) or len(held.parts) > _PARTS:
        return None
    return [*held.table(_PARTS), added, len(held.parts)]


@functools.cache
def _few_bits() -> Any:
    """The address of the product of ``low_bits/kernels.c``."""
    return ctypes.cast(build.library().paddlemix_product, ctypes.c_void_p)
