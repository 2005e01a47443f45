# SPDX-License-Identifier: Apache-2.0
"""RMSNorm, rotary embedding and SwiGLU through the fused NPU operators: what each can serve, and the call.

Each has a plain twin (``ops.norm``, ``ops.rope``, ``ops.activation``) with the same answer to rounding, which serves
when ``wants_...`` is False or ``switches.served`` gives None.
"""

import paddle
from paddle import Tensor
from paddle.autograd import PyLayer, PyLayerContext

from paddlemix.ops import compat
from paddlemix.ops.dtypes import to_dtype
from paddlemix.ops.npu import library
from paddlemix.ops.npu.switches import off_on_device, use

ROPE_HEAD = 64
"""``fused_rope`` takes heads whose width is a multiple of this (the plug-in checks it)."""

_DTYPES = ("float32", "float16", "bfloat16")


def dtype_of(x: Tensor) -> str:
    """``float32``, ``bfloat16``, ..."""
    return str(x.dtype).rpartition(".")[2]


def wants_rms_norm(x: Tensor, weight: Tensor) -> bool:
    """True when ``rms_norm_npu`` serves ``x`` [..., D] with ``weight`` [D]."""
    return not off_on_device("RMS_NORM", x) and use("RMS_NORM", why_not_rms_norm(x, weight))


def why_not_rms_norm(x: Tensor, weight: Tensor) -> str | None:
    """The operator answers in the dtype of the weight, so the two must agree."""
    reason = library.why_not("rms_norm_npu")
    if reason:
        return reason
    if x.dtype != weight.dtype or dtype_of(x) not in _DTYPES:
        return f"rms_norm_npu: x is {dtype_of(x)} and the weight {dtype_of(weight)}; they must be one of {_DTYPES}"
    return None


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Same answer as ``ops.norm.rms_norm`` to rounding; the weight is applied before the rounding to half precision."""
    if paddle.is_grad_enabled() and not weight.stop_gradient and weight.dtype != paddle.float32:
        weight = _GradientInOwnDtype.apply(weight)
    return library.run("rms_norm_npu", x, weight, float(epsilon))[0]


class _GradientInOwnDtype(PyLayer):
    """The operator gives the gradient of its weight in float32, and paddle 3.0 leaves a bfloat16 parameter with it.

    A layer and no hook: a hook may not change the dtype there. The copy of the weight is needed: paddle takes a tensor
    that is handed through for one that was changed in place.
    """

    @staticmethod
    def forward(ctx: PyLayerContext, weight: Tensor) -> Tensor:
        ctx.dtype = weight.dtype
        return paddle.scale(weight, 1.0)

    @staticmethod
    def backward(ctx: PyLayerContext, grad: Tensor) -> Tensor:
        return to_dtype(grad, ctx.dtype)


def wants_rope(x: Tensor, head_dim: int) -> bool:
    """True when ``fused_rope`` serves heads of width ``head_dim`` in the dtype and on the device of ``x``."""
    return not off_on_device("ROPE", x) and use("ROPE", why_not_rope(x, head_dim))


def why_not_rope(x: Tensor, head_dim: int) -> str | None:
    """Only the width of a head and the dtype matter: see ``rope`` for positions."""
    reason = library.why_not("fused_rope")
    if reason:
        return reason
    if head_dim % ROPE_HEAD:
        return f"fused_rope: the head width {head_dim} is no multiple of {ROPE_HEAD}"
    if dtype_of(x) not in _DTYPES:
        return f"fused_rope: no {dtype_of(x)}; it takes {_DTYPES}"
    return None


def rope_tables(cos: Tensor, sin: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
    """Tables ``[B, L, 1, D]`` (sin signed, float32) as the operator wants them: ``[1, B * L, 1, D]``, sin unsigned."""
    batch, length, _, width = cos.shape
    shape = [1, batch * length, 1, width]
    half = sin[..., width // 2 :]  # the first half carries the sign
    return cos.reshape(shape).astype(dtype), paddle.concat([half, half], axis=-1).reshape(shape).astype(dtype)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``x`` [B, L, H, D] turned by tables ``[1, B * L, 1, D]``.

    The operator allows only one row of tables for the whole batch. Turning acts on each place alone, so the batch is
    passed as one row of B * L places and every row keeps its own positions (left padding, packing, a cache).
    """
    batch, length, heads, width = x.shape
    flat = x.reshape([1, batch * length, heads, width])
    return library.run("fused_rope", flat, cos, sin)[0].reshape([batch, length, heads, width])


def wants_swiglu(x: Tensor) -> bool:
    """True when the plug-in's ``swiglu`` kernel serves the dtype of ``x``."""
    return not off_on_device("SWIGLU", x) and use("SWIGLU", why_not_swiglu(x))


def why_not_swiglu(x: Tensor) -> str | None:
    """A standard kernel: without one of the plug-in's own, paddle would compute it on the host."""
    for kernel in ("swiglu", "swiglu_grad") if paddle.is_grad_enabled() else ("swiglu",):
        dtypes = library.kernel_dtypes(kernel)
        if not dtypes:
            return f"the plug-in has no {kernel} kernel"
        if dtype_of(x) not in dtypes:
            return f"{kernel}: no kernel for {dtype_of(x)}; the plug-in has {', '.join(sorted(dtypes))}"
    return None


def swiglu(gate: Tensor, up: Tensor | None = None) -> Tensor:
    """silu(gate) * up; without ``up`` the last axis of ``gate`` holds both, gate first (no copy to join them)."""
    return library.guarded("swiglu", lambda: compat.find("swiglu")(gate, up), (gate, up))
