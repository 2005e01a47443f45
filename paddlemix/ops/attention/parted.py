# SPDX-License-Identifier: Apache-2.0
"""Attention over keys that lie in two tensors: those of a cache that is only read, and the new ones of the step.

An exported graph is given its cache and cannot write into it; joining both would copy all of it in every layer and
step, which is as much memory traffic as reading it twice. Plain operators alone, for sizes that are left open.
"""

from dataclasses import dataclass
from functools import cached_property, partial

import paddle
from paddle import Tensor
from paddle.nn import functional

from paddlemix.ops import few_rows
from paddlemix.ops.attention.contract import MASKED, Mask, swap_heads, weighted_sum
from paddlemix.ops.dtypes import to_dtype
from paddlemix.ops.tracing import size

BLOCKS = 4
"""Blocks that a long piece of a prompt is cut into: the last keys are left out for all rows but those of the last."""


@dataclass(frozen=True, eq=False)
class Parts:
    """``past`` [B, Hk, M, D], of which int64 ``filled`` [B] places of each row are filled, and ``rows`` [B, L, Hk, D].

    New key j stands at the place ``filled + j`` of its row. ``blocks``: how many blocks the queries are cut into, L at
    most (a number, because a traced graph holds the operators of each).
    """

    past: Tensor
    rows: Tensor
    filled: Tensor
    blocks: int = 1

    @cached_property
    def new(self) -> Tensor:
        """``rows`` with heads first: ``[B, Hk, L, D]``, as ``past`` has them."""
        return swap_heads(self.rows)


def attend(q: Tensor, k: Parts, v: Parts, mask: Mask, *, scale: float) -> Tensor:
    """softmax(q k^T * scale + mask) v of q ``[B, Lq, H, D]``, the softmax in float32: ``[B, Lq, H, D]`` in q's dtype.

    Query i stands at the place ``mask.offset + i`` of its row, which is that of a new key. ``mask.key_starts`` [B]
    hides what lies before a row's start. Several queries (Lq not 1) are those of the new keys, all of them.
    """
    if q.shape[1] == 1:
        return _one(q, k, v, mask, scale)
    limits = mask.offset, mask.key_starts
    many = few_rows.attend_parts(q, (k.past, v.past), (k.rows, v.rows), *limits, scale)
    return _several(q, k, v, mask, scale) if many is None else many


def _one(q: Tensor, k: Parts, v: Parts, mask: Mask, scale: float) -> Tensor:
    """One query of each row: the cache is read where it lies, and scores are joined."""
    heads, width = q.shape[2:]
    kv_heads, past = k.past.shape[1], size(k.past, 2)
    rows = (q * scale).reshape([0, kv_heads, -1, width])
    found = [paddle.matmul(rows, part, transpose_y=True) for part in (k.past, k.new)]
    scores = to_dtype(paddle.concat(found, axis=-1), paddle.float32)
    keys = past + size(k.new, 2)
    # As wide as the scores: an addition that broadcasts over the heads takes ten times as long on a CPU.
    bias = mask.keep("one", lambda: _bias(mask, k, 0, 1, size(k.new, 2)).expand([-1, heads, -1, -1]))
    weights = to_dtype(functional.softmax(scores + bias.reshape([0, kv_heads, -1, keys]), axis=-1), q.dtype)
    out = weighted_sum(weights[:, :, :, :past], v.past) + weighted_sum(weights[:, :, :, past:], v.new)
    return out.reshape([0, 1, heads, width])


def _several(q: Tensor, k: Parts, v: Parts, mask: Mask, scale: float) -> Tensor:
    """Many queries, in blocks that see no key behind their own: keys are joined, which are smaller than the scores."""
    heads, width = q.shape[2:]
    kv_heads, past, new = k.past.shape[1], size(k.past, 2), size(k.new, 2)
    rows = (q * scale).transpose([0, 2, 1, 3])
    joined, values = (paddle.concat([part.past, part.new], axis=2) for part in (k, v))
    outs = []
    for block in range(k.blocks):
        first, last = block * new // k.blocks, (block + 1) * new // k.blocks
        part, seen = rows, past + last
        if k.blocks > 1:
            part = rows[:, :, first:last]
        part = part.reshape([0, kv_heads, -1, width])
        inner = block < k.blocks - 1
        scores = paddle.matmul(part, joined[:, :, :seen] if inner else joined, transpose_y=True)
        scores = to_dtype(scores, paddle.float32).reshape([0, heads, -1, seen])
        scores = scores + mask.keep(("several", block), partial(_wide_bias, mask, k, first, last, heads))
        weights = to_dtype(functional.softmax(scores.reshape([0, kv_heads, -1, seen]), axis=-1), q.dtype)
        outs.append(paddle.matmul(weights, values[:, :, :seen] if inner else values).reshape([0, heads, -1, width]))
    out = outs[0] if len(outs) == 1 else paddle.concat(outs, axis=2)
    return out.transpose([0, 2, 1, 3])


def _wide_bias(mask: Mask, keys: Parts, first: int | Tensor, last: int | Tensor, heads: int) -> Tensor:
    return _bias(mask, keys, first, last, last).expand([-1, heads, -1, -1])


def _bias(mask: Mask, keys: Parts, first: int | Tensor, last: int | Tensor, new: int | Tensor) -> Tensor:
    """Float32 ``[B, 1, last - first, M + new]``: 0 where a key is seen, else ``MASKED``; queries ``first`` to ``last``.

    A query always sees its own key.
    """
    filled, starts, offset = (one.reshape([-1, 1, 1, 1]) for one in (keys.filled, mask.key_starts, mask.offset))
    cached = paddle.arange(size(keys.past, 2)).reshape([1, 1, 1, -1])
    seen = paddle.logical_and(cached < filled, cached >= starts)
    query = offset + paddle.arange(first, last).reshape([1, 1, -1, 1])
    key = filled + paddle.arange(new).reshape([1, 1, 1, -1])
    before = paddle.logical_and(key < query, key >= starts)
    own = paddle.logical_or(before, key == query)
    parts = [_added(seen).expand([-1, -1, last - first, -1]), _added(own)]
    return paddle.concat(parts, axis=-1)


def _added(seen: Tensor) -> Tensor:
    return (seen.astype("float32") - 1.0) * -MASKED
