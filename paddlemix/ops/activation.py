# SPDX-License-Identifier: Apache-2.0
"""Activations by the names that published config files use."""

import math
from collections.abc import Callable

import paddle
from paddle import Tensor
from paddle.autograd import PyLayer, PyLayerContext
from paddle.nn import functional

from paddlemix.ops import few_rows
from paddlemix.ops.dispatch import Kernel, Operator, plain
from paddlemix.ops.lean import apply_once, is_lean, keeps_nothing
from paddlemix.ops.npu import fused
from paddlemix.ops.runtime import FUSED, Runtime
from paddlemix.utils.registry import Registry

ACTIVATIONS: Registry = Registry("activation")


@ACTIVATIONS.add("quick_gelu")
def quick_gelu(x: Tensor) -> Tensor:
    """Any shape, in the dtype of x.

    CLIP was trained with x * sigmoid(1.702 x), not with GELU (openai/CLIP, class QuickGELU).
    """
    few = few_rows.quick_gelu(x)
    if few is not None:
        return few
    return x * functional.sigmoid(x * 1.702) if x.dtype == paddle.float32 else quick_gelu_by_silu(x)


def quick_gelu_by_silu(x: Tensor) -> Tensor:
    """The same function (any shape, in the dtype of x) for half precision.

    Plug-ins of the NPU before 2024-10 have no sigmoid in bfloat16.
    """
    return functional.silu(x * 1.702) * (1.0 / 1.702)


@ACTIVATIONS.add("gelu")
def gelu(x: Tensor) -> Tensor:
    """GELU (any shape, in the dtype of x) by the error function; the projector and InternViT use it."""
    return functional.gelu(x)


@ACTIVATIONS.add("gelu_pytorch_tanh")
def gelu_tanh(x: Tensor) -> Tensor:
    """GELU (any shape, in the dtype of x) by its approximation with the hyperbolic tangent; SigLIP was trained so."""
    return functional.gelu(x, approximate=True)


def gelu_tanh_in_parts(x: Tensor) -> Tensor:
    """``gelu_tanh`` of plain operators, for paddle2onnx 2.1, which writes the error function in its place."""
    inner = x * (1.0 + 0.044715 * x * x) * math.sqrt(2.0 / math.pi)
    return x * (1.0 + paddle.tanh(inner)) * 0.5


@ACTIVATIONS.add("silu", "swish")
def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x); any shape, in the dtype of x."""
    return functional.silu(x)


def gated(act: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor | None, runtime: Runtime) -> Tensor:
    """act(gate) * up, ``[..., I]`` each and of one dtype, to the same.

    Where ``up`` is None ``gate`` is ``[..., 2 I]`` and holds both, gate first.
    """
    few = few_rows.swiglu(gate) if up is None and act is silu and runtime.device == "cpu" else None
    if few is not None:
        return few
    if keeps_nothing(runtime.device):  # where no fused operator is
        gate, up = _halves(gate, up)
        return act(gate).multiply_(up)
    if act is not silu:
        return _gated(act, gate, up)
    if up is not None and is_lean(runtime.device, gate, up):
        return apply_once(_Lean, gate, up)
    return SWIGLU(runtime, gate, up)


def swiglu(gate: Tensor, up: Tensor | None) -> Tensor:
    """silu(gate) * up; shapes and dtypes: ``gated``."""
    return _gated(silu, gate, up)


def _halves(gate: Tensor, up: Tensor | None) -> tuple[Tensor, Tensor]:
    if up is not None:
        return gate, up
    half = gate.shape[-1] // 2
    gate, up = paddle.split(gate, [half, half], axis=-1)  # with sections: plug-ins of the NPU are known to have it
    return gate, up


def _gated(act: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor | None) -> Tensor:
    gate, up = _halves(gate, up)
    return act(gate) * up


class _Lean(PyLayer):
    """``swiglu`` that computes silu(gate) again in the backward pass."""

    @staticmethod
    def forward(ctx: PyLayerContext, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.needs = not gate.stop_gradient, not up.stop_gradient
        return silu(gate).multiply_(up)

    @staticmethod
    def backward(ctx: PyLayerContext, slope: Tensor) -> tuple[Tensor | None, Tensor | None]:
        gate, up = ctx.saved_tensor()
        act = silu(gate)
        of_gate = paddle._C_ops.silu_grad(gate, act, slope * up) if ctx.needs[0] else None
        return of_gate, act.multiply_(slope) if ctx.needs[1] else None


SWIGLU = Operator(
    "SWIGLU",
    (Kernel(FUSED, fused.why_not_swiglu, fused.swiglu, (FUSED,)), plain(swiglu)),
    cost="each MLP has one operator more, and keeps one product more",
    plugin="swiglu",
)
"""Called with gate and up (or None), as ``gated``."""
