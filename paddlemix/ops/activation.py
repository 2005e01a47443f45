# SPDX-License-Identifier: Apache-2.0
"""Activations by the names that published config files use."""

from collections.abc import Callable

import paddle
from paddle import Tensor
from paddle.nn import functional

from paddlemix.ops.npu import fused, switches
from paddlemix.utils.registry import Registry

ACTIVATIONS: Registry = Registry("activation")


@ACTIVATIONS.add("quick_gelu")
def quick_gelu(x: Tensor) -> Tensor:
    """CLIP was trained with x * sigmoid(1.702 x), not with GELU (openai/CLIP, class QuickGELU)."""
    return x * functional.sigmoid(x * 1.702) if x.dtype == paddle.float32 else quick_gelu_by_silu(x)


def quick_gelu_by_silu(x: Tensor) -> Tensor:
    """The same function for half precision: plug-ins of the NPU before 2024-10 have no sigmoid in bfloat16."""
    return functional.silu(x * 1.702) * (1.0 / 1.702)


@ACTIVATIONS.add("gelu")
def gelu(x: Tensor) -> Tensor:
    """GELU by the error function; the projector and SigLIP-less towers use it."""
    return functional.gelu(x)


@ACTIVATIONS.add("silu", "swish")
def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x)."""
    return functional.silu(x)


def gated(act: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor | None = None) -> Tensor:
    """act(gate) * up. Without ``up`` the last axis of ``gate`` holds both, the gate first."""
    if act is silu and fused.wants_swiglu(gate):
        quick = switches.served("SWIGLU", lambda: fused.swiglu(gate, up))
        if quick is not None:
            return quick
    if up is None:
        half = gate.shape[-1] // 2
        gate, up = paddle.split(gate, [half, half], axis=-1)  # with sections: plug-ins of the NPU are known to have it
    return act(gate) * up
