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
    """All ``layers``, of ``heads`` query heads each, in one call. They stay the owners of their weights.

    What the kernels read of the weights is looked at when it is first used and whenever a weight lies elsewhere.
    """

    def __init__(self, layers: Sequence[Parts], heads: int, scale: float) -> None:
        self._layers, self._heads, self._scale = tuple(layers), heads, scale
        self._epsilon = layers[0].norm.epsilon
        self._few = any(one.low_bits is not None for layer in layers for one in _products(layer))
        self._inner = layers[0].down.in_features
        self._tensors: list[Tensor] = []  # gathered at the first step: an export gives the weights other owners
        self._known: tuple[list[int], tuple[int, int, int]] | None = None
        self._table: np.ndarray | None = None

    def __call__(
        self,
        x: Tensor,
        tables: tuple[Tensor, Tensor],
        held: Sequence[tuple[Tensor, Tensor]],
        seen: Seen,
    ) -> Tensor | None:
        """Float32 ``[B, 1, W]`` behind the last layer, of ``x`` [B, 1, W]; the cache then holds the step.

        ``tables`` are cosine and sine, float32 ``[B, 1, 1, D]`` (``RotaryTables.at``); ``held`` are keys and values of
        each layer, float32 ``[B, Hk, M, D]`` with a free place at ``seen.offset``. None, and nothing is done, where the
        kernels do not serve: see ``few_rows``; weights are float32 or held by ``low_bits.weights.Compiled``.
        """
        batch, length, width = x.shape
        if width < few_rows.WIDE or length != 1 or not 0 < batch <= few_rows.MOST or not few_rows.at_a_step():
            return None
        kernels = few_rows.compiled()
        if kernels is None:
            return None
        cosine, sine = tables
        shape = held[0][0].shape
        rows, kv_heads, places, head = shape
        if rows != batch or not cosine.shape == sine.shape == [batch, 1, 1, head]:
            return None
        limits = few_rows.limits(*seen, batch)
        if limits is None or not few_rows.readable(x, cosine, sine):
            return None
        for keys, values in held:
            if not few_rows.readable(keys, values) or keys.shape != shape or values.shape != shape:
                return None
        table = self._weights(width, kv_heads, head)
        if table is None:
            return None
        table[:, -2:] = [[keys.data_ptr(), values.data_ptr()] for keys, values in held]
        y = x.clone()
        addresses = [one.data_ptr() for one in (y, cosine, sine)]
        sizes = batch, width, self._heads, kv_heads, places, head, self._inner
        numbers = self._epsilon, self._scale, _few_bits() if self._few else None
        first = table.ctypes.data, len(table)
        if kernels.step(*first, *addresses, None, None, *limits, *sizes, *numbers, *kernels.team()):
            raise MemoryError(f"no memory for a step of {batch} rows")
        return y

    @property
    def layers(self) -> Sequence[Parts]:
        """What the layers compute with."""
        return self._layers

    def serves(self, width: int, kv_heads: int, head: int) -> bool:
        """Whether the kernels know layers of these sizes, and their weights."""
        return width >= few_rows.WIDE and self._looked_at(width, kv_heads, head) is not None

    def _weights(self, width: int, kv_heads: int, head: int) -> np.ndarray | None:
        """The array of ``Layer`` of the C file, without the cache; None when one is of another shape, dtype or kind."""
        if not self._tensors:
            self._tensors = [one for layer in self._layers for one in _tensors(layer)]
        known = [one.data_ptr() for one in self._tensors], (width, kv_heads, head)
        if known != self._known:
            self._known, self._table = known, self._looked_at(width, kv_heads, head)
        return self._table

    def _looked_at(self, width: int, kv_heads: int, head: int) -> np.ndarray | None:
        if self._heads % kv_heads:
            return None
        outer = self._heads * head
        sizes = (width, outer + 2 * kv_heads * head), (outer, width), (width, 2 * self._inner), (self._inner, width)
        table = []
        for layer in self._layers:
            norms = layer.norm, layer.second_norm
            if any(norm.epsilon != self._epsilon or norm.weight.shape != [width] for norm in norms):
                return None
            if not few_rows.readable(*(norm.weight for norm in norms)):
                return None
            row = [norm.weight.data_ptr() for norm in norms]
            for product, size in zip(_products(layer), sizes, strict=True):
                found = _weight(product, *size)
                if found is None:
                    return None
                row += found
            table.append([*row, 0, 0])
        return np.array(table, np.int64)


def _tensors(layer: Parts) -> list[Tensor]:
    """Everything that is a tensor; weights of few bits are none, and stay where they are."""
    found = [layer.norm.weight, layer.second_norm.weight]
    for product in _products(layer):
        found += [product.bias] if product.low_bits is not None else [product.weight, product.bias]
    return [one for one in found if one is not None]


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
