# SPDX-License-Identifier: Apache-2.0
"""The fast attention of each device: blocks of query rows on the CPU, the framework's fused kernel on a GPU.

On the CPU ``F.scaled_dot_product_attention`` is never called: with ``is_causal`` it takes 5 to 9 times as long as the
same call in torch (measured), because it works through the half above the diagonal too and adds a dense mask.
"""

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from paddlemix.ops.attention import math
from paddlemix.ops.attention.contract import MASKED, Mask, Request

NAME = "sdpa"
BLOCK = 128
"""Query rows of one block. Small enough for its scores to stay in the cache, large enough to keep the matmul busy."""


def why_not(request: Request) -> str | None:
    """Why this backend cannot serve ``request``; None when it can."""
    if request.device == "cpu":
        return "the blocked form on the CPU has no dropout" if request.dropout else None
    if request.device == "gpu":
        return "the fused kernel wants keys in [B, L, H, D]" if request.kv_heads_first else None
    return f'no fused kernel is known for the device "{request.device}"'


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask, *, scale: float, dropout: float = 0.0, kv_heads_first: bool = False
) -> Tensor:
    """Same answer as ``math.attend`` to rounding. Ask ``why_not`` first."""
    if q.place.is_cpu_place():
        return _blocked(q, k, v, mask, scale, kv_heads_first)
    return _fused(q, k, v, mask, scale, dropout)


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float, dropout: float) -> Tensor:
    q_len, k_len = q.shape[1], k.shape[1]
    # The kernel's own causal rule aligns the last query with the last key, so it fits only without a cached prefix.
    causal = mask.causal and mask.is_plain and mask.offset == 0 and q_len == k_len
    bias = None if causal else mask.additive(q_len, k_len)
    if bias is not None:
        bias = bias.astype(q.dtype).expand([q.shape[0], q.shape[2], q_len, k_len])
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=bias, dropout_p=dropout, is_causal=causal, training=dropout > 0.0, scale=scale
    )


def _blocked(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float, kv_heads_first: bool) -> Tensor:
    q_len = q.shape[1]
    if not mask.causal or q_len <= BLOCK:
        return math.attend(q, k, v, mask, scale=scale, kv_heads_first=kv_heads_first)
    batch, _, heads, width = q.shape
    if not kv_heads_first:
        k, v = k.transpose([0, 2, 1, 3]), v.transpose([0, 2, 1, 3])
    kv_heads, k_len = k.shape[1], k.shape[2]
    group = heads // kv_heads
    rows = (q * scale).transpose([0, 2, 1, 3]).reshape([batch, kv_heads, group, q_len, width])
    dense = None if mask.is_plain else mask.additive(q_len, k_len)
    outs = []
    for first in range(0, q_len, BLOCK):
        last = min(first + BLOCK, q_len)
        seen = min(mask.offset + last, k_len)
        part = rows[:, :, :, first:last].reshape([batch, kv_heads, group * (last - first), width])
        scores = paddle.matmul(part, k[:, :, :seen], transpose_y=True).astype("float32")
        bias = _diagonal(last - first, seen, mask.offset + first) if dense is None else dense[:, :, first:last, :seen]
        shape = scores.shape
        scores = (scores.reshape([batch, heads, last - first, seen]) + bias).reshape(shape)
        weights = F.softmax(scores, axis=-1).astype(q.dtype)
        out = paddle.matmul(weights, v[:, :, :seen])
        outs.append(out.reshape([batch, heads, last - first, width]))
    return paddle.concat(outs, axis=2).transpose([0, 2, 1, 3])


def _diagonal(rows: int, keys: int, place: int) -> Tensor:
    """Float32 ``[1, 1, rows, keys]``: ``MASKED`` right of the diagonal that starts at key ``place``."""
    return paddle.triu(paddle.full([rows, keys], MASKED, dtype="float32"), place + 1).reshape([1, 1, rows, keys])
