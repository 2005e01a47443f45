# SPDX-License-Identifier: Apache-2.0
"""Attention written out in plain operators: the law that every other backend is tested against."""

import paddle
from paddle import Tensor
from paddle.nn import functional

from paddlemix.ops.attention.contract import Mask, Request

NAME = "math"


def why_not(request: Request) -> str | None:
    """This backend serves every request."""
    del request
    return None


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask, *, scale: float, dropout: float = 0.0, kv_heads_first: bool = False
) -> Tensor:
    """softmax(q k^T * scale + mask) v with the softmax in float32. Shapes: ``contract``."""
    batch, q_len, heads, width = q.shape
    if not kv_heads_first:
        k, v = k.transpose([0, 2, 1, 3]), v.transpose([0, 2, 1, 3])
    kv_heads, k_len = k.shape[1], k.shape[2]
    group = heads // kv_heads
    rows = (q * scale).transpose([0, 2, 1, 3]).reshape([batch, kv_heads, group * q_len, width])
    scores = paddle.matmul(rows, k, transpose_y=True).astype("float32")
    bias = mask.additive(q_len, k_len)
    if bias is not None:
        scores = (scores.reshape([batch, heads, q_len, k_len]) + bias).reshape(scores.shape)
    weights = functional.softmax(scores, axis=-1).astype(q.dtype)
    if dropout:
        weights = functional.dropout(weights, dropout)
    out = paddle.matmul(weights, v).reshape([batch, heads, q_len, width])
    return out.transpose([0, 2, 1, 3])
