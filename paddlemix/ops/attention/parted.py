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
    """``past`` [B, Hk, M, D], of which the mask's ``offset`` [B] says how much is filled, and ``new`` [B, Hk, L, D]."""

    past: Tensor
    new: Tensor


def attend(q: Tensor, k: Parts, v: Parts, mask: Mask, *, scale: float) -> Tensor:
    """softmax(q k^T * scale + mask) v of q ``[B, L, H, D]``, the softmax in float32: ``[B, L, H, D]`` in q's dtype.

    Query i stands at the place ``mask.offset + i`` of its row, as new key i does. ``mask.key_starts`` [B] hides what
    lies before a row's start.
    """
    heads, width = q.shape[2:]
    kv_heads, past = k.past.shape[1], size(k.past, 2)
    keys = past + size(k.new, 2)
    rows = (q * scale).transpose([0, 2, 1, 3]).reshape([0, kv_heads, -1, width])
    found = [paddle.matmul(rows, part, transpose_y=True) for part in (k.past, k.new)]
    scores = to_dtype(paddle.concat(found, axis=-1), paddle.float32)
    # As wide as the scores: an addition that broadcasts over the heads takes ten times as long on a CPU.
    bias = mask.keep("parts", lambda: _bias(mask, past, size(k.new, 2)).expand([-1, heads, -1, -1]))
    scores = (scores.reshape([0, heads, -1, keys]) + bias).reshape([0, kv_heads, -1, keys])
    weights = to_dtype(functional.softmax(scores, axis=-1), q.dtype)
    out = paddle.matmul(weights[:, :, :, :past], v.past) + paddle.matmul(weights[:, :, :, past:], v.new)
    return out.reshape([0, heads, -1, width]).transpose([0, 2, 1, 3])


def _bias(mask: Mask, past: int | Tensor, new: int | Tensor) -> Tensor:
    """Float32 ``[B, 1, L, M + L]``: 0 where a key is seen, else ``MASKED``. A query always sees its own key."""
    offset, starts = mask.offset.reshape([-1, 1, 1, 1]), mask.key_starts.reshape([-1, 1, 1, 1])
    cached = paddle.arange(past).reshape([1, 1, 1, -1])
    seen = paddle.logical_and(cached < offset, cached >= starts)
    places = paddle.arange(new)
    query, key = places.reshape([1, 1, -1, 1]), places.reshape([1, 1, 1, -1])
    before = paddle.logical_and(key < query, offset + key >= starts)
    own = paddle.logical_or(before, key == query)
    parts = [_added(seen).expand([-1, -1, new, -1]), _added(own)]
    return paddle.concat(parts, axis=-1)


def _added(seen: Tensor) -> Tensor:
    return (seen.astype("float32") - 1.0) * -MASKED
