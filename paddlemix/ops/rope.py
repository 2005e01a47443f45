# SPDX-License-Identifier: Apache-2.0
"""Rotary position tables and their application."""

from typing import Any

import paddle
from paddle import Tensor
from paddle.autograd import PyLayer, PyLayerContext

from paddlemix.ops import few_rows
from paddlemix.ops.dispatch import Kernel, Operator, plain
from paddlemix.ops.dtypes import dtype_name, to_dtype
from paddlemix.ops.lean import apply_once, is_lean
from paddlemix.ops.npu import fused
from paddlemix.ops.rope_scaling import GrowingBase, attention_scaling, rotary_frequencies
from paddlemix.ops.runtime import FUSED, Runtime
from paddlemix.ops.tracing import contiguous


class RotaryTables:
    """Angles of every position, for the convention in which the first and second half of a head form the pairs.

    Tables are made from the positions of a step, in float32, so there is no longest position and nothing to grow.
    ``longest`` is ``max_position_embeddings``, beyond which the scaling ``dynamic`` begins.
    """

    def __init__(
        self, head_dim: int, theta: float, scaling: dict[str, Any] | None, runtime: Runtime, longest: int = 0
    ) -> None:
        self.head_dim = head_dim
        self.runtime = runtime
        self.frequencies = rotary_frequencies(head_dim, theta, scaling)
        self.factor = attention_scaling(scaling)
        self.growing = GrowingBase.of(head_dim, theta, scaling, longest)

    def step(self, positions: Tensor) -> "StepTables":
        """The tables for ``positions`` [B, L] (int64), to be shared by all layers of a step."""
        return StepTables(*self.at(positions), self.runtime)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Float32 (cos, sin) of int64 ``positions`` [B, L], each ``[B, L, 1, D]``; sin carries the sign of the turn."""
        frequencies = paddle.to_tensor(self.frequencies) if self.growing is None else self.growing.at(positions)
        angles = positions.astype("float32").unsqueeze([2, 3]) * frequencies
        cos, sin = paddle.cos(angles), paddle.sin(angles)
        if self.factor != 1.0:
            cos, sin = cos * self.factor, sin * self.factor
        return paddle.concat([cos, cos], axis=-1), paddle.concat([-sin, sin], axis=-1)


class StepTables:
    """cos and sin of one step, float32 ``[B, L, 1, D]``, repeated over as many heads as a layer asks for."""

    def __init__(self, cos: Tensor, sin: Tensor, runtime: Runtime) -> None:
        self.cos, self.sin = cos, sin
        self.runtime = runtime
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        self._fused: dict[str, tuple[Tensor, Tensor]] = {}

    def turn(self, x: Tensor) -> Tensor:
        """``x`` [B, L, H, D] turned to its positions, in the dtype of x (float32, float16 or bfloat16)."""
        return ROPE(self.runtime, x, self)

    def split(self, joined: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
        """q [B, L, H, D], k and v [B, L, Hk, D] of ``joined`` [B, L, (H + 2 Hk) D]; q and k turned, in its dtype."""
        few = few_rows.turn(joined, self.cos, self.sin, heads, kv_heads)
        if few is not None:
            return few
        turned = heads + kv_heads
        joined = joined.reshape([0, 0, turned + kv_heads, self.cos.shape[-1]])  # 0: as it is
        both, v = paddle.split(joined, [turned, kv_heads], axis=2)
        q, k = paddle.split(self.turn(both), [heads, kv_heads], axis=2)
        return q, k, v

    def over(self, heads: int) -> tuple[Tensor, Tensor]:
        """Float32 ``[B, L, heads, D]`` each. A multiply that broadcasts over heads costs 7 times as much on a CPU."""
        if heads not in self._kept:
            shape = [-1, -1, heads, -1]  # -1: as it is
            self._kept[heads] = (contiguous(self.cos.expand(shape)), contiguous(self.sin.expand(shape)))
        return self._kept[heads]

    def fused(self, dtype: str) -> tuple[Tensor, Tensor]:
        """Both as ``fused_rope`` wants them: ``[1, B * L, 1, D]`` in ``dtype``, sin unsigned."""
        if dtype not in self._fused:
            self._fused[dtype] = fused.rope_tables(self.cos, self.sin, dtype)
        return self._fused[dtype]


def rotate(x: Tensor, tables: tuple[Tensor, Tensor], runtime: Runtime) -> Tensor:
    """Turn ``x`` [B, L, H, D] by float32 tables of that shape or ``[B, L, 1, D]``: in float32, back in x's dtype."""
    cos, sin = tables
    if is_lean(runtime.device, x):
        return apply_once(_Lean, x, cos, sin, runtime)
    wide = to_dtype(x, paddle.float32)
    return to_dtype(wide * cos + _swapped(wide, runtime) * sin, x.dtype)


class _Lean(PyLayer):
    """``rotate`` in float32 that keeps the tables alone: the gradient is turned back by them."""

    @staticmethod
    def forward(ctx: PyLayerContext, x: Tensor, cos: Tensor, sin: Tensor, runtime: Runtime) -> Tensor:
        ctx.tables, ctx.runtime = (cos, sin), runtime
        return (x * cos).add_(_swapped(x, runtime).multiply_(sin))

    @staticmethod
    def backward(ctx: PyLayerContext, slope: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.tables
        return (slope * cos).add_(_swapped(slope * sin, ctx.runtime)), None, None


def _swapped(x: Tensor, runtime: Runtime) -> Tensor:
    """The two halves of every head change places. A roll is one operator; NPU plug-ins are not known to have it."""
    half = x.shape[-1] // 2
    if runtime.device in ("cpu", "gpu"):
        return paddle.roll(x, half, axis=-1)
    return paddle.concat([x[..., half:], x[..., :half]], axis=-1)


ROPE = Operator(
    "ROPE",
    (
        Kernel(
            FUSED,
            fused.why_not_rope,
            lambda x, tables: fused.rope(x, *tables.fused(dtype_name(x.dtype))),
            (FUSED,),
        ),
        plain(lambda x, tables: rotate(x, tables.over(x.shape[2]), tables.runtime)),
    ),
    cost="each rotation is 8 operators and float32 copies of its rows in place of 1 operator",
    plugin="fused_rope",
)
"""Called with x [B, L, H, D] and the ``StepTables`` of its positions."""
