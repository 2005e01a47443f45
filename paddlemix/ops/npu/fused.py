# SPDX-License-Identifier: Apache-2.0
"""RMSNorm, rotary embedding and SwiGLU through the fused NPU operators: what each can serve, and the call.

Each has a plain twin (``ops.norm``, ``ops.rope``, ``ops.activation``) with the same answer to rounding; the operators
there list both (``ops.dispatch``).
"""

import paddle
from paddle import Tensor
from paddle.autograd import PyLayer, PyLayerContext

from paddlemix.ops import compat
from paddlemix.ops.dispatch import Facts
from paddlemix.ops.dtypes import dtype_name, to_dtype
from paddlemix.ops.npu import library
from paddlemix.ops.runtime import Runtime
from paddlemix.ops.tracing import size

ROPE_HEAD = 64
"""``fused_rope`` takes heads whose width is a multiple of this (the plug-in checks it)."""

_DTYPES = ("float32", "float16", "bfloat16")


def why_not_rms_norm(runtime: Runtime, request: Facts) -> str | None:
    """For x and weight. The operator answers in the dtype of the weight, so the two must agree."""
    del runtime
    reason = library.why_not("rms_norm_npu")
    if reason:
        return reason
    x, weight = map(dtype_name, request.dtypes)
    if x != weight or x not in _DTYPES:
        return f"rms_norm_npu: x is {x} and the weight {weight}; they must be one of {_DTYPES}"
    return None


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """``x`` [..., D] and ``weight`` [D] of one dtype to [..., D], as ``ops.norm.rms_norm`` to rounding.

    The weight is applied before the rounding to half precision.
    """
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


def why_not_rope(runtime: Runtime, request: Facts) -> str | None:
    """For heads [B, L, H, D]. Only the width of a head and the dtype matter: see ``rope`` for positions."""
    del runtime
    reason = library.why_not("fused_rope")
    if reason:
        return reason
    if request.width % ROPE_HEAD:
        return f"fused_rope: the head width {request.width} is no multiple of {ROPE_HEAD}"
    if dtype_name(request.dtypes[0]) not in _DTYPES:
        return f"fused_rope: no {dtype_name(request.dtypes[0])}; it takes {_DTYPES}"
    return None


def rope_tables(cos: Tensor, sin: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
    """Tables ``[B, L, 1, D]`` (sin signed, float32) as the operator wants them: ``[1, B * L, 1, D]``, sin unsigned."""
    width = cos.shape[-1]
    shape = [1, size(cos, 0) * size(cos, 1), 1, width]
    half = sin[..., width // 2 :]  # the first half carries the sign
    return cos.reshape(shape).astype(dtype), paddle.concat([half, half], axis=-1).reshape(shape).astype(dtype)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``x`` [B, L, H, D] turned by tables ``[1, B * L, 1, D]`` of its dtype.

    The operator allows only one row of tables for the whole batch. Turning acts on each place alone, so the batch is
    passed as one row of B * L places and every row keeps its own positions (left padding, packing, a cache).
    """
    batch, length = size(x, 0), size(x, 1)
    heads, width = x.shape[2:]
    flat = x.reshape([1, batch * length, heads, width])
    return library.run("fused_rope", flat, cos, sin)[0].reshape([batch, length, heads, width])


def why_not_swiglu(runtime: Runtime, request: Facts) -> str | None:
    """A standard kernel: without one of the plug-in's own, paddle would compute it on the host."""
    del runtime
    dtype = dtype_name(request.dtypes[0])
    for kernel in ("swiglu", "swiglu_grad") if request.gradients else ("swiglu",):
        dtypes = library.kernel_dtypes(kernel)
        if not dtypes:
            return f"the plug-in has no {kernel} kernel"
        if dtype not in dtypes:
            return f"{kernel}: no kernel for {dtype}; the plug-in has {', '.join(sorted(dtypes))}"
    return None


def swiglu(gate: Tensor, up: Tensor | None = None) -> Tensor:
    """silu(gate) * up, [..., I] each and of one dtype; without ``up`` ``gate`` [..., 2 I] holds both, gate first."""
    return library.guarded("swiglu", lambda: compat.find("swiglu")(gate, up), (gate, up))
