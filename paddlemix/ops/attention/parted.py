# SPDX-License-Identifier: Apache-2.0
"""Attention over keys that lie in two tensors: those of a cache that is only read, and the new ones of the step.

An exported graph is given its cache and cannot write into it; joining both would copy all of it in every layer and
step, which is as much memory traffic as reading it twice. Plain operators alone, for sizes that are left open.
"""

from dataclasses import dataclass

import paddle
from paddle import Tensor
from paddle.nn import functional

from paddlemix.ops.attention.contract import MASKED, Mask
from paddlemix.ops.dtypes import to_dtype
from paddlemix.ops.tracing import size


@dataclass(frozen=True, eq=False)
class Parts:
    """``past`` [B, Hk, M, D], of which int64 ``filled`` [B] places of each row are filled, and ``new`` [B, Hk, L, D].

    New key j stands at the place ``filled + j`` of its row.
    """

    past: Tensor
    new: Tensor
    filled: Tensor


def attend(q: Tensor, k: Parts, v: Parts, mask: Mask, *, scale: float) -> Tensor:
    """softmax(q k^T * scale + mask) v of q ``[B, Lq, H, D]``, the softmax in float32: ``[B, Lq, H, D]`` in q's dtype.

    Query i stands at the place ``mask.offset + i`` of its row, which is that of a new key. ``mask.key_starts`` [B]
    hides what lies before a row's start.
    """
    heads, width = q.shape[2:]
    kv_heads, past = k.past.shape[1], size(k.past, 2)
    keys = past + size(k.new, 2)
    single = q.shape[1] == 1
    if single:
        rows = (q * scale).reshape([0, kv_heads, -1, width])
        found = [paddle.matmul(rows, part, transpose_y=True) for part in (k.past, k.new)]
        scores = paddle.concat(found, axis=-1)
    else:  # of many rows it is the scores that are larger than the keys
        rows = (q * scale).transpose([0, 2, 1, 3]).reshape([0, kv_heads, -1, width])
        scores = paddle.matmul(rows, paddle.concat([k.past, k.new], axis=2), transpose_y=True)
    scores = to_dtype(scores, paddle.float32)
    # As wide as the scores: an addition that broadcasts over the heads takes ten times as long on a CPU.
    bias = mask.keep("parts", lambda: _bias(mask, k, size(q, 1)).expand([-1, heads, -1, -1]))
    if single:
        scores = scores + bias.reshape([0, kv_heads, -1, keys])
    else:
        scores = (scores.reshape([0, heads, -1, keys]) + bias).reshape([0, kv_heads, -1, keys])
    weights = to_dtype(functional.softmax(scores, axis=-1), q.dtype)
    if single:
        out = _rows_of(weights[:, :, :, :past], v.past) + _rows_of(weights[:, :, :, past:], v.new)
        return out.reshape([0, 1, heads, width])
    out = paddle.matmul(weights, paddle.concat([v.past, v.new], axis=2))
    return out.reshape([0, heads, -1, width]).transpose([0, 2, 1, 3])


def _rows_of(weights: Tensor, values: Tensor) -> Tensor:
    """``weights`` [B, Hk, G, L] times ``values`` [B, Hk, L, D]."""
    if weights.shape[2] == 1:  # as a column that is transposed: a row times a matrix takes longer in MKL
        return paddle.matmul(weights.reshape([0, 0, -1, 1]), values, transpose_x=True)
    return paddle.matmul(weights, values)


def _bias(mask: Mask, keys: Parts, queries: int | Tensor) -> Tensor:
    """Float32 ``[B, 1, Lq, M + L]``: 0 where a key is seen, else ``MASKED``. A query always sees its own key."""
    filled, starts, offset = (one.reshape([-1, 1, 1, 1]) for one in (keys.filled, mask.key_starts, mask.offset))
    cached = paddle.arange(size(keys.past, 2)).reshape([1, 1, 1, -1])
    seen = paddle.logical_and(cached < filled, cached >= starts)
    query = offset + paddle.arange(queries).reshape([1, 1, -1, 1])
    key = filled + paddle.arange(size(keys.new, 2)).reshape([1, 1, 1, -1])
    before = paddle.logical_and(key < query, key >= starts)
    own = paddle.logical_or(before, key == query)
    parts = [_added(seen).expand([-1, -1, queries, -1]), _added(own)]
    return paddle.concat(parts, axis=-1)


def _added(seen: Tensor) -> Tensor:
    return (seen.astype("float32") - 1.0) * -MASKED
