# SPDX-License-Identifier: Apache-2.0
"""Attention through the fused NPU operator ``flash_attention_npu``: its rules, its mask, its call.

The operator takes a bool mask in which True hides a key, and knows no scale but 1 / sqrt(D). A query row without any
visible key gives garbage, so masks keep one open (``Mask`` does). Its hint ``is_triangle_upper_mask`` makes it skip
what lies right of the top-left diagonal: it is set only where that is exactly what the mask hides.
"""

import math

import paddle
from paddle import Tensor

from paddlemix.ops.attention.contract import Mask, Request
from paddlemix.ops.dispatch import Kernel
from paddlemix.ops.npu import library
from paddlemix.ops.runtime import FUSED, Runtime
from paddlemix.ops.tracing import contiguous

OPERATOR = "flash_attention_npu"
HEAD_STEP, HEAD_LIMIT = 16, 512


def why_not(runtime: Runtime, request: Request) -> str | None:
    """Why the fused operator cannot serve ``request``; None when it can."""
    reason = library.why_not(OPERATOR)
    if reason:
        return reason
    dtypes = ("float16", "bfloat16", *(("float32",) if runtime.float32_attention else ()))
    if request.dtype not in dtypes:
        return f"{OPERATOR} takes float16 and bfloat16, not {request.dtype}"
    if request.head_dim % HEAD_STEP or request.head_dim > HEAD_LIMIT:
        return f"{OPERATOR}: the head width {request.head_dim} is no multiple of {HEAD_STEP} up to {HEAD_LIMIT}"
    if request.dropout:
        return f"{OPERATOR}: its dropout leaves the forward pass alone but not the gradients"
    if request.kv_heads_first:
        return f"{OPERATOR} wants keys in [B, L, H, D]"
    if min(request.batch, request.q_len, request.k_len) < 0:
        return f"{OPERATOR} wants to know all sizes when it is traced"
    return None


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask, *, scale: float, dropout: float = 0.0, kv_heads_first: bool = False
) -> Tensor:
    """Same answer as ``math.attend`` to rounding. Ask ``why_not`` first. Shapes and dtypes: ``contract``."""
    del dropout, kv_heads_first  # refused by why_not when set
    own = 1.0 / math.sqrt(q.shape[3])
    if not math.isclose(scale, own, rel_tol=1e-6):
        q = q * (scale / own)
    k, v = _without_tail(k, mask, q.shape[1]), _without_tail(v, mask, q.shape[1])
    hidden = _hidden(mask, q.shape[0], q.shape[1], k.shape[1])
    # Contract of the hint: causal, as many queries as keys, nothing cached, and each further rule only hides more.
    triangle = hidden is not None and mask.causal and mask.known_offset == 0 and q.shape[1] == k.shape[1]
    is_test = not paddle.is_grad_enabled() or (q.stop_gradient and k.stop_gradient and v.stop_gradient)
    return library.run_named(
        OPERATOR,
        query=q, key=k, value=v, attn_mask=hidden,
        dropout=0.0, causal=False, return_softmax=False, is_test=is_test, is_triangle_upper_mask=triangle,
        is_varlen=False,
    )[0]  # fmt: skip


def _without_tail(keys: Tensor, mask: Mask, q_len: int) -> Tensor:
    """Keys ``[B, Lk, Hk, D]`` without the empty tail of a cache block, when many rows attend at once.

    A single row keeps the block and gets a mask instead: its shapes then change once a block and not once a token,
    and nothing is copied.
    """
    filled = mask.reach(q_len, keys.shape[1])
    return keys if q_len == 1 or filled == keys.shape[1] else keys[:, :filled]


def _hidden(mask: Mask, batch: int, q_len: int, k_len: int) -> Tensor | None:
    """Bool ``[B, 1, q_len, k_len]``, True where a key is hidden, shared by the layers of a step; None when none is.

    The operator repeats a mask neither over rows of queries nor, in some releases, over the batch: it is full size.
    """
    if q_len == 1 and mask.is_plain and (not mask.causal or k_len == mask.known_offset + 1):
        return None

    def build() -> Tensor | None:
        allowed = mask.allowed(q_len, k_len)
        if allowed is None:
            return None
        return contiguous(paddle.logical_not(allowed).expand([batch, 1, q_len, k_len]))

    return mask.keep(("npu", batch, q_len, k_len), build)


KERNEL = Kernel(FUSED, why_not, attend, (FUSED,))
