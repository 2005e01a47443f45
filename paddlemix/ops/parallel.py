# SPDX-License-Identifier: Apache-2.0
"""Tensor parallel: the devices of a group hold slices of the same layers (Megatron-LM, Shoeybi et al. 2019).

A pair of linear layers is cut so that the first gives each device some of the columns (whole heads in attention) and
the second takes them as its rows: one sum over the group behind the second in the forward pass, one before the first
in the backward pass. ``TensorParallel.copy_to_ranks`` and ``sum_over_ranks`` are these two places.
Everything else is replicated.
Slices may be uneven (InternViT-6B has 25 heads), so every exchange is an all-reduce of equal shapes.
"""

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import paddle
from paddle import Tensor
from paddle.autograd import PyLayer, PyLayerContext

from paddlemix.ops.npu import mc2
from paddlemix.ops.runtime import Runtime
from paddlemix.utils.errors import ConfigError

Values = TypeVar("Values", np.ndarray, Tensor)


@dataclass(frozen=True)
class TensorParallel:
    """This process's place among the ``size`` devices that share a model. ``group``: paddle's, None for all.

    ``name``: how the person has given the number of devices.
    ``runtime``: what this process computes with. A model puts it in (``on``) before it hands this to its layers.
    """

    rank: int = 0
    size: int = 1
    group: Any = None
    runtime: Runtime | None = None
    name: str = '"tensor_parallel_degree"'

    def on(self, runtime: Runtime | None = None) -> "TensorParallel":
        """The same place with ``runtime``; None: with the one it has, else with that of the device and environment."""
        if runtime is None and self.runtime is not None:
            return self
        return replace(self, runtime=runtime or Runtime.current())

    def __deepcopy__(self, memo: dict[int, Any]) -> "TensorParallel":
        """Itself: sharding stage2 copies parameters with what they carry, and a group of processes cannot be copied."""
        return self

    def share(self, total: int, what: str = "") -> "Share":
        """The part of ``total`` units that lies on this device; the first devices take what does not divide.

        With ``what`` every device must have a unit: ConfigError names it when there are fewer than devices.
        """
        if what and total < self.size:
            raise ConfigError(
                f"{self.name} is {self.size}, but the model has only {total} {what}: every device needs "
                f"at least one; write {total} or less"
            )
        return Share(self, total)

    def copy_to_ranks(self, x: Tensor) -> Tensor:
        """``x`` itself, which is equal on all devices, of any shape and dtype; its gradient is summed over them."""
        return x if self.size == 1 or x.stop_gradient or not paddle.is_grad_enabled() else _Enter.apply(x, self)

    def sum_over_ranks(self, x: Tensor) -> Tensor:
        """The sum of ``x`` (any shape and dtype) over the devices, for what follows on all of them alike.

        The gradient passes as it is.
        """
        return x if self.size == 1 else _Leave.apply(x, self)

    def product(self, x: Tensor, weight: Tensor, even: bool = False) -> Tensor:
        """``sum_over_ranks(x W)``: x [..., K] and weight [K, N] of one dtype to [..., N].

        It is one operator where the npu has it. ``even``: every device has as many rows of the weight.
        """
        if self.size == 1:
            return paddle.matmul(x, weight)
        if self.runtime is None or not self.runtime.asks("MC2"):
            return self.sum_over_ranks(paddle.matmul(x, weight))
        return _Product.apply(x, weight, self, even)

    def total(self, x: Tensor) -> Tensor:
        """The sum of ``x`` (any shape and dtype) over the devices, for what differs between them.

        The gradient is summed as well.
        """
        return x if self.size == 1 else self.copy_to_ranks(_Leave.apply(x, self))

    def reduce(self, x: Tensor, op: int | None = None) -> Tensor:
        """All-reduce of ``x`` (any shape, dtype) into a new tensor, without gradient; a sum unless ``op`` is given."""
        out = paddle.scale(x.detach(), 1.0)  # a copy by an operator that plug-ins have in bfloat16
        paddle.distributed.all_reduce(out, op=paddle.distributed.ReduceOp.SUM if op is None else op, group=self.group)
        return out

    def largest(self, x: Tensor) -> Tensor:
        """The maximum of ``x`` (any shape and dtype) over the devices, without a gradient."""
        return x.detach() if self.size == 1 else self.reduce(x, paddle.distributed.ReduceOp.MAX)


ALONE = TensorParallel()


@dataclass(frozen=True)
class Share:
    """This device's places of an axis: some of ``units`` heads (or single places) of ``width`` places each.

    ``repeats``: the axis holds that many such axes one behind the other (q, k and v in one matrix).
    """

    parallel: TensorParallel
    units: int
    width: int = 1
    repeats: int = 1

    @property
    def total(self) -> int:
        """Places on all devices."""
        return self.units * self.width * self.repeats

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """(start, stop) on this device, one for each of the repeats."""
        return self.ranges_of(self.parallel.rank)

    def ranges_of(self, rank: int) -> list[tuple[int, int]]:
        """The same for another device; the first devices take what does not divide."""
        least, more = divmod(self.units, self.parallel.size)
        start = rank * least + min(rank, more)
        stop = start + least + (rank < more)
        period = self.units * self.width
        return [(start * self.width + at * period, stop * self.width + at * period) for at in range(self.repeats)]

    @property
    def count(self) -> int:
        """Places on this device."""
        return sum(stop - start for start, stop in self.ranges)

    @property
    def even(self) -> bool:
        """Whether all devices have as many places."""
        return self.units % self.parallel.size == 0

    @property
    def is_part(self) -> bool:
        """Whether other devices hold the rest."""
        return self.parallel.size > 1

    def times(self, width: int) -> "Share":
        """The same when every unit is ``width`` places."""
        return replace(self, width=self.width * width)

    def repeated(self, count: int) -> "Share":
        """The same of ``count`` such axes one behind the other."""
        return replace(self, repeats=count)

    def cut(self, values: Values, axis: int) -> Values:
        """This device's part of ``values``, whose ``axis`` is whole."""
        places = [(slice(None),) * (axis % values.ndim) + (slice(start, stop),) for start, stop in self.ranges]
        pieces = [values[place] for place in places]
        if len(pieces) == 1:
            return pieces[0]
        join = np.concatenate if isinstance(values, np.ndarray) else paddle.concat
        return join(pieces, axis=axis)

    def joined(self, x: Tensor) -> Tensor:
        """The whole last axis on every device, from the parts [..., count] of all of them (one range each).

        In the dtype of x, with a gradient.
        """
        if not self.is_part:
            return x
        ((start, stop),) = self.ranges
        before, after = (
            [paddle.zeros([*x.shape[:-1], width], dtype=x.dtype)] if width else []
            for width in (start, self.total - stop)
        )
        return self.parallel.sum_over_ranks(paddle.concat([*before, x, *after], axis=-1))


def count_of(side: "int | Share") -> int:
    """Places of an axis on this device."""
    return side.count if isinstance(side, Share) else side


def is_shared(side: "int | Share") -> bool:
    """Whether other devices hold the rest of an axis."""
    return isinstance(side, Share) and side.is_part


@dataclass(frozen=True)
class Shard:
    """What a parameter is of the whole one: ``share`` along ``axis``."""

    axis: int
    share: Share

    def cut(self, values: Values, transposed: bool = False) -> Values:
        """This device's part of the whole values; ``transposed`` for a matrix that is stored the other way round."""
        return self.share.cut(values, 1 - self.axis if transposed else self.axis)


def mark(parameter: Tensor | None, axis: int, side: "int | Share") -> None:
    """Note at a parameter (any shape and dtype) that it is a part, if it is one."""
    if parameter is not None and is_shared(side):
        parameter.part = Shard(axis, side)
        parameter.is_distributed = True  # paddle's optimizers and norms of gradients go by this name


def part_of(parameter: Tensor) -> Shard | None:
    """What the parameter (any shape and dtype) is of a whole one; None when it is whole."""
    return getattr(parameter, "part", None)


def whole_shape(parameter: Tensor) -> tuple[int, ...]:
    """Shape of the parameter (any shape and dtype) on one device without tensor parallel."""
    shape, part = list(parameter.shape), part_of(parameter)
    if part is not None:
        shape[part.axis] = part.share.total
    return tuple(shape)


def cut(parameter: Tensor, values: Values) -> Values:
    """This device's part of the parameter's whole ``values`` (``whole_shape``, any dtype)."""
    part = part_of(parameter)
    return values if part is None else part.cut(values)


@paddle.no_grad()
def whole(parameter: Tensor) -> Tensor:
    """The whole values (``whole_shape``, in the parameter's dtype), bit for bit.

    Every device of the group must call it, for the same parameters in one order.
    """
    part = part_of(parameter)
    if part is None:
        return parameter
    share, axis = part.share, part.axis
    spans = [share.ranges_of(rank) for rank in range(share.parallel.size)]
    # An all-gather wants equal shapes: the parts are padded to the longest, which is the first device's.
    longest = sum(stop - start for start, stop in spans[0])
    rest = list(parameter.shape)
    rest[axis] = longest - share.count
    padded = paddle.concat([parameter, paddle.zeros(rest, parameter.dtype)], axis) if rest[axis] else parameter
    gathered: list[Tensor] = []
    paddle.distributed.all_gather(gathered, padded.detach(), group=share.parallel.group)
    pieces = {}
    for ranges, values in zip(spans, gathered, strict=True):
        at = 0
        for start, stop in ranges:
            if stop > start:
                pieces[start] = paddle.slice(values, [axis], [at], [at + stop - start])
            at += stop - start
    return paddle.concat([pieces[start] for start in sorted(pieces)], axis=axis)


class _Enter(PyLayer):
    @staticmethod
    def forward(ctx: PyLayerContext, x: Tensor, parallel: TensorParallel) -> Tensor:
        ctx.parallel = parallel
        return paddle.scale(x, 1.0)  # a copy: paddle takes an output in the memory of its input for an in-place one

    @staticmethod
    def backward(ctx: PyLayerContext, gradient: Tensor) -> Tensor:
        return ctx.parallel.reduce(gradient)


class _Leave(PyLayer):
    @staticmethod
    def forward(ctx: PyLayerContext, x: Tensor, parallel: TensorParallel) -> Tensor:
        return parallel.reduce(x)

    @staticmethod
    def backward(ctx: PyLayerContext, gradient: Tensor) -> Tensor:
        return gradient


class _Product(PyLayer):
    @staticmethod
    def forward(ctx: PyLayerContext, x: Tensor, weight: Tensor, parallel: TensorParallel, even: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        return mc2.product(x, weight, parallel, even)

    @staticmethod
    def backward(ctx: PyLayerContext, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensor()
        of_x = None if x.stop_gradient else paddle.matmul(gradient, weight, transpose_y=True)
        if weight.stop_gradient:
            return of_x, None
        rows, down = (tensor.reshape([-1, tensor.shape[-1]]) for tensor in (x, gradient))
        return of_x, paddle.matmul(rows, down, transpose_x=True)
