# SPDX-License-Identifier: Apache-2.0
"""Attention written out in plain operators: what every other backend is tested against.

It serves every request, also a traced one whose lengths are left open.
"""

import paddle
from paddle import Tensor
from paddle.nn import functional

from paddlemix.ops.attention.contract import Mask
from paddlemix.ops.dispatch import plain
from paddlemix.ops.tracing import size

NAME = "math"


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask, *, scale: float, dropout: float = 0.0, kv_heads_first: bool = False
) -> Tensor:
    """softmax(q k^T * scale + mask) v with the softmax in float32. Shapes and dtypes: ``contract``."""
    heads, width = q.shape[2:]
    if not kv_heads_first:
        k, v = k.transpose([0, 2, 1, 3]), v.transpose([0, 2, 1, 3])
    kv_heads, k_len = k.shape[1], size(k, 2)
    rows = (q * scale).transpose([0, 2, 1, 3]).reshape([0, kv_heads, -1, width])
    scores = paddle.matmul(rows, k, transpose_y=True).astype("float32")
    bias = mask.additive(size(q, 1), k_len)
    if bias is not None:
        scores = (scores.reshape([0, heads, -1, k_len]) + bias).reshape([0, kv_heads, -1, k_len])
    weights = functional.softmax(scores, axis=-1).astype(q.dtype)
    if dropout:
        weights = functional.dropout(weights, dropout)
    out = paddle.matmul(weights, v).reshape([0, heads, -1, width])
    return out.transpose([0, 2, 1, 3])


KERNEL = plain(attend, NAME)
