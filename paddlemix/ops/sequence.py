# SPDX-License-Identifier: Apache-2.0
"""Sequence parallel: the devices of a group hold consecutive parts of the same rows (Ulysses, Jacobs et al. 2023).

Everything but attention looks at one place at a time, so each device computes its own places with the whole weights.
Around attention the devices change what they divide: before it each gets all places of some of the heads, behind it all
heads of its own places again. Two all-to-all exchanges a layer, each of 1 / size of what it holds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import paddle
from paddle import Tensor
from paddle.autograd import PyLayer, PyLayerContext

from paddlemix.utils.errors import ConfigError

_SEND = (2, 0, 1, 3, 4)
"""[B, l, size, h, D] to one block for each device."""
_PLACES = (1, 0, 2, 3, 4)
"""[size, B, l, h, D] to rows of consecutive places, and back."""
_HEADS = (1, 2, 0, 3, 4)
"""[size, B, l, h, D] to heads of one place."""


@dataclass(frozen=True)
class SequenceParallel:
    """This process's place among the ``size`` devices that share rows. ``group``: paddle's, None for all."""

    rank: int
    size: int
    group: Any = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "SequenceParallel":
        """Itself: a group of processes cannot be copied."""
        return self

    def check_heads(self, heads: int, kv_heads: int) -> None:
        """ConfigError when the heads of a model cannot be dealt out evenly."""
        if heads % self.size or kv_heads % self.size:
            raise ConfigError(
                f'"sep_parallel_degree" is {self.size}, but the model has {heads} heads and {kv_heads} key and value '
                "heads: each device takes equally many of both; write a number that divides them"
            )

    def own(self, x: Tensor) -> Tensor:
        """This device's places ``[B, L / size, ...]`` of ``x`` [B, L, ...], any dtype. ConfigError: L has no parts."""
        length = x.shape[1]
        if length % self.size:
            raise ConfigError(
                f"rows of {length} places do not divide among {self.size} devices (sep_parallel_degree); pad them to a "
                'multiple ("pad_to_multiple_of")'
            )
        part = length // self.size
        return x[:, self.rank * part : (self.rank + 1) * part]

    def own_source(self, source: Tensor) -> Tensor:
        """The plan's ``source`` [B, L] for a table of text rows that holds this device's places only: int64 [B, l].

        Text comes from the place itself (splice.plan); what lies behind the table moves up.
        """
        rows, length = source.shape
        mine = self.own(source)
        places = paddle.arange(rows * mine.shape[1], dtype=source.dtype).reshape(mine.shape)
        return paddle.where(mine < rows * length, places, mine - rows * (length - mine.shape[1]))

    def over_heads(self, attend: Callable[[Tensor, Tensor, Tensor], Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``attend`` on all places of this device's heads; q [B, l, H, D], k and v [B, l, Hk, D] of one dtype.

        The answer is [B, l, H, D] in that dtype.
        """
        heads, kv_heads = q.shape[2] // self.size, k.shape[2] // self.size
        blocks = [x.reshape([x.shape[0], x.shape[1], self.size, -1, x.shape[3]]) for x in (q, k, v)]
        mixed = _ToHeads.apply(paddle.concat(blocks, axis=3), self)
        return _ToPlaces.apply(attend(*paddle.split(mixed, [heads, kv_heads, kv_heads], axis=2)), self)

    def mean(self, x: Tensor) -> Tensor:
        """The mean of ``x`` (any shape, dtype) over the devices, without a gradient."""
        summed = paddle.scale(x.detach(), 1.0 / self.size)
        paddle.distributed.all_reduce(summed, group=self.group)
        return summed

    def exchanged(self, blocks: Tensor) -> Tensor:
        """Block i of ``blocks`` [size, ...] goes to device i; the answer holds the blocks of all, in their order."""
        found = paddle.empty_like(blocks)
        paddle.distributed.alltoall_single(found, blocks, group=self.group)
        return found


def _to_heads(blocks: Tensor, sequence: SequenceParallel) -> Tensor:
    """[B, l, size, h, D], heads in blocks, to all places of this device's block: [B, size l, h, D]."""
    found = sequence.exchanged(blocks.transpose(_SEND).contiguous()).transpose(_PLACES)
    return found.reshape([found.shape[0], -1, *found.shape[3:]])


def _to_places(x: Tensor, sequence: SequenceParallel) -> Tensor:
    """The way back: [B, size l, h, D] to [B, l, size, h, D]."""
    blocks = x.reshape([x.shape[0], sequence.size, -1, *x.shape[2:]]).transpose(_PLACES)
    return sequence.exchanged(blocks.contiguous()).transpose(_HEADS)


class _ToHeads(PyLayer):
    @staticmethod
    def forward(ctx: PyLayerContext, blocks: Tensor, sequence: SequenceParallel) -> Tensor:
        ctx.sequence = sequence
        return _to_heads(blocks, sequence)

    @staticmethod
    def backward(ctx: PyLayerContext, gradient: Tensor) -> Tensor:
        return _to_places(gradient, ctx.sequence)


class _ToPlaces(PyLayer):
    @staticmethod
    def forward(ctx: PyLayerContext, x: Tensor, sequence: SequenceParallel) -> Tensor:
        ctx.sequence = sequence
        blocks = _to_places(x, sequence)
        return blocks.reshape([*blocks.shape[:2], -1, blocks.shape[4]])

    @staticmethod
    def backward(ctx: PyLayerContext, gradient: Tensor) -> Tensor:
        shape = gradient.shape
        return _to_heads(gradient.reshape([*shape[:2], ctx.sequence.size, -1, shape[3]]), ctx.sequence)
