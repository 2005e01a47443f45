# SPDX-License-Identifier: Apache-2.0
"""RMSNorm, computed in float32 whatever the model's dtype."""

import paddle
from paddle import Tensor, nn
from paddle.autograd import PyLayer, PyLayerContext

from paddlemix.ops import few_rows
from paddlemix.ops.dispatch import Kernel, Operator, plain
from paddlemix.ops.dtypes import as_written, to_dtype
from paddlemix.ops.lean import apply_once, is_lean
from paddlemix.ops.npu import fused
from paddlemix.ops.parallel import Share, count_of, is_shared, mark
from paddlemix.ops.runtime import FUSED, Runtime


class RMSNorm(nn.Layer):
    """``x / sqrt(mean(x * x) + epsilon) * weight`` over the last axis, the whole of it when ``width`` is a share."""

    def __init__(self, width: int | Share, epsilon: float, runtime: Runtime) -> None:
        super().__init__()
        self.width = width
        self.epsilon = epsilon
        self.runtime = runtime
        self.weight = self.create_parameter([count_of(width)], default_initializer=nn.initializer.Constant(1.0))
        mark(self.weight, 0, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D]`` to ``[..., D]`` in the dtype of x (float32, float16 or bfloat16)."""
        if is_shared(self.width):
            return _rms_norm_of_part(x, self.weight, self.epsilon, self.width)
        if is_lean(self.runtime.device, x, self.weight):
            return apply_once(_Lean, x, self.weight, self.epsilon)
        return RMS_NORM(self.runtime, x, self.weight, self.epsilon)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """``x`` [..., D] and ``weight`` [D] to [..., D], in the dtype of x: the plain form.

    Powers and means are slow kernels on a CPU (137 and 11 times a multiply and a matmul).
    """
    few = few_rows.rms_norm(x, weight, epsilon)
    if few is not None:
        return few
    wide = to_dtype(x, paddle.float32)
    with as_written():
        scale = _scale(wide, epsilon)
    # The scaled rows return to the model's dtype before the weight is applied, as the reference does.
    return to_dtype(wide * scale, x.dtype) * weight


def _scale(wide: Tensor, epsilon: float) -> Tensor:
    """One over the root of the mean square of each row: float32 [..., D] to [..., 1]."""
    width = wide.shape[-1]
    if wide.ndim > 2 and wide.shape[-2] == 1:  # a decode step: the product of each row with itself is one operator
        return paddle.rsqrt(paddle.scale(paddle.matmul(wide, wide, transpose_y=True), 1.0 / width, epsilon))
    ones = paddle.full([width, 1], 1.0 / width, dtype="float32")
    return paddle.rsqrt(paddle.matmul(wide * wide, ones) + epsilon)


class _Lean(PyLayer):
    """``rms_norm`` in float32 that keeps its input and one number a row."""

    @staticmethod
    def forward(ctx: PyLayerContext, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        scale = _scale(x, epsilon)
        ctx.save_for_backward(x, scale, weight)
        ctx.needs = not x.stop_gradient, not weight.stop_gradient
        return x * scale * weight

    @staticmethod
    def backward(ctx: PyLayerContext, slope: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, scale, weight = ctx.saved_tensor()
        rows, of_x, of_weight = x * scale, None, None
        if ctx.needs[1]:  # summed by a product: the kernel of a sum over rows takes 50 times as long
            flat = (slope * rows).reshape([-1, x.shape[-1]])
            of_weight = paddle.matmul(paddle.ones([1, flat.shape[0]]), flat).reshape(weight.shape)
        if ctx.needs[0]:
            wide = slope * weight
            mean = paddle.matmul(wide * rows, paddle.full([x.shape[-1], 1], 1.0 / x.shape[-1]))
            of_x = (wide - rows * mean) * scale
        return of_x, of_weight


RMS_NORM = Operator(
    "RMS_NORM",
    (Kernel(FUSED, fused.why_not_rms_norm, fused.rms_norm, (FUSED,)), plain(rms_norm)),
    cost="each norm is 9 operators and float32 copies of its rows in place of 2 operators",
    plugin="rms_norm_npu",
)
"""Called with x [..., D], weight [D] and epsilon."""


def _rms_norm_of_part(x: Tensor, weight: Tensor, epsilon: float, share: Share) -> Tensor:
    """The same where other devices hold the rest of the row; no fused operator can know of their part."""
    wide = to_dtype(x, paddle.float32)
    squares = share.parallel.total((wide * wide).sum(axis=-1, keepdim=True))
    scale = paddle.rsqrt(paddle.scale(squares, 1.0 / share.total, epsilon))
    return to_dtype(wide * scale, x.dtype) * weight
