# SPDX-License-Identifier: Apache-2.0
"""What every attention backend is given: a mask as data, and a request that says what is asked of it.

Contract: q, k and v have one dtype (float32, float16, bfloat16). q is ``[B, Lq, H, D]``; k and v are
``[B, Lk, Hk, D]``, or ``[B, Hk, Lk, D]`` when they come from a cache that keeps heads first; ``Hk`` divides ``H``
(grouped queries). The answer is ``[B, Lq, H, D]`` in the dtype of q.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import paddle
from paddle import Tensor

from paddlemix.ops.dtypes import dtype_name
from paddlemix.ops.sequence import SequenceParallel
from paddlemix.utils.errors import BackendError

MASKED = -1.0e30
"""Added to a forbidden score. Finite, so that no kernel meets inf - inf; exp() of it is exactly 0 in float32."""


@dataclass(frozen=True, eq=False)
class Mask:
    """Which key a query may see. Query i of a call (from 0) stands at place ``offset + i`` of its row.

    ``causal``: only keys j <= offset + i. ``key_lengths`` [B]: only keys j < length. ``key_starts`` [B]: only keys
    j >= start (left padding). ``segments`` [B, offset + Lq]: only keys of the same number (packing). All int64.
    ``offset`` is what is cached: a whole number if all rows have as many places, else an int64 tensor [B] (or [], a
    number that is not known while a graph is traced). A query that would see no key at all (padding) sees the key at
    its own place, so it stays finite. ``sequence``: q, k and v of a call hold this device's places only, while the mask
    speaks of all (sequence parallel).

    A step of two rows with 3 and 1 cached places, whose new key each stands behind them in a cache of 5 places:

        >>> Mask(causal=True, offset=paddle.to_tensor([3, 1])).allowed(1, 5).astype("int64").tolist()
        [[[[1, 1, 1, 1, 0]]], [[[1, 1, 0, 0, 0]]]]

    Two new places of one row behind one cached place; then two rows of three places, the second padded on the left:

        >>> Mask(causal=True, offset=1).allowed(2, 4).astype("int64").tolist()
        [[[[1, 1, 0, 0], [1, 1, 1, 0]]]]
        >>> Mask(causal=True, key_starts=paddle.to_tensor([0, 1])).allowed(3, 3).astype("int64").tolist()
        [[[[1, 0, 0], [1, 1, 0], [1, 1, 1]]], [[[1, 0, 0], [0, 1, 0], [0, 1, 1]]]]

    (Query 0 of the padded row sees itself.) The dense forms are built at the first use and kept, so the layers of one
    step share them. Right-padded training needs no optional field: the causal rule already hides what follows.
    """

    causal: bool
    key_lengths: Tensor | None = None
    key_starts: Tensor | None = None
    offset: int | Tensor = 0
    segments: Tensor | None = None
    sequence: SequenceParallel | None = None
    _kept: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.segments is not None and self.known_offset is None:
            raise BackendError("a mask with segments wants the number of cached places as a whole number")

    @property
    def known_offset(self) -> int | None:
        """``offset`` if it is a number, which all rows share; None if it is a tensor."""
        return self.offset if isinstance(self.offset, int) else None

    @property
    def is_plain(self) -> bool:
        """True when ``causal`` and a number as ``offset`` say everything."""
        if self.key_lengths is not None or self.key_starts is not None or self.segments is not None:
            return False
        return not self.causal or self.known_offset is not None

    def reach(self, queries: int, k_len: int) -> int:
        """How many of ``k_len`` keys the first ``queries`` queries see at most, as far as numbers tell."""
        offset = self.known_offset
        return k_len if offset is None or not self.causal else min(offset + queries, k_len)

    def allowed(self, q_len: int | Tensor, k_len: int | Tensor) -> Tensor | None:
        """Bool ``[B or 1, 1, q_len, k_len]``, True where a key is seen; None when every key is.

        The lengths are numbers, or int64 tensors [] where a traced graph leaves them open.
        """
        return self.keep(("allowed", *_key(q_len, k_len)), lambda: self._build(q_len, k_len))

    def additive(self, q_len: int | Tensor, k_len: int | Tensor) -> Tensor | None:
        """Float32 ``[B or 1, 1, q_len, k_len]``: 0 where a key is seen, else ``MASKED``; None when all keys are."""
        return self.keep(("additive", *_key(q_len, k_len)), lambda: self._added(self.allowed(q_len, k_len)))

    def keep(self, key: tuple[Any, ...], build: Callable[[], Any]) -> Any:
        """What ``build`` gives, made at the first use of ``key`` and shared by every later one."""
        if key not in self._kept:
            self._kept[key] = build()
        return self._kept[key]

    @staticmethod
    def _added(allowed: Tensor | None) -> Tensor | None:
        # (a - 1) * -MASKED is exact at both ends and needs no select kernel.
        return None if allowed is None else (allowed.astype("float32") - 1.0) * -MASKED

    def _build(self, q_len: int | Tensor, k_len: int | Tensor) -> Tensor | None:
        if not self.causal and self.is_plain:
            return None
        places, keys = self._places(q_len), paddle.arange(k_len).reshape([1, 1, 1, -1])
        rules = []
        if self.causal:
            rules.append(keys <= places)
        if self.key_lengths is not None:
            rules.append(keys < self.key_lengths.astype("int64").reshape([-1, 1, 1, 1]))
        if self.key_starts is not None:
            rules.append(keys >= self.key_starts.astype("int64").reshape([-1, 1, 1, 1]))
        if self.segments is not None:
            rules.append(self._same_segment(q_len, k_len))
        allowed = rules[0]
        for rule in rules[1:]:
            allowed = paddle.logical_and(allowed, rule)
        if self._sees_something(q_len, k_len):
            return allowed
        blind = paddle.logical_not(paddle.any(allowed, axis=-1, keepdim=True))
        own = keys == paddle.clip(places, max=k_len - 1)
        return paddle.logical_or(allowed, paddle.logical_and(blind, own))

    def _places(self, q_len: int | Tensor) -> Tensor:
        """Int64 ``[B or 1, 1, q_len, 1]``: the place of each query in its row."""
        known = self.known_offset
        if known is not None:
            return paddle.arange(known, known + q_len).reshape([1, 1, -1, 1])
        return self.offset.astype("int64").reshape([-1, 1, 1, 1]) + paddle.arange(q_len).reshape([1, 1, -1, 1])

    def _sees_something(self, q_len: int | Tensor, k_len: int | Tensor) -> bool:
        """Whether no query is blind whatever the numbers are: then the rule for blind ones need not be asked."""
        if self.key_lengths is not None or self.key_starts is not None:
            return False
        if self.segments is None:
            return True  # the first key is seen by all
        return k_len >= self.offset + q_len

    def _same_segment(self, q_len: int, k_len: int) -> Tensor:
        total = self.segments.shape[1]
        if total != self.offset + q_len or k_len < total:
            raise BackendError(
                f"mask segments cover {total} places, but {self.offset} cached + {q_len} new rows meet {k_len} keys; "
                "give one segment number per place, cached places included"
            )
        keys = self.segments
        if k_len > total:  # the tail of a cache block: a segment of its own, seen by nobody
            tail = paddle.full([keys.shape[0], k_len - total], -(2**31), dtype=keys.dtype)
            keys = paddle.concat([keys, tail], axis=1)
        rows = self.segments[:, self.offset :]
        return rows.unsqueeze([1, 3]) == keys.unsqueeze([1, 2])


def _key(*lengths: int | Tensor) -> tuple[int, ...]:
    """A length that is left open is -1: within one step it is the same for all layers."""
    return tuple(length if isinstance(length, int) else -1 for length in lengths)


@dataclass(frozen=True)
class Request:
    """What one call asks for, without its tensors: enough for a backend to say whether it can serve it.

    Sizes that a traced graph leaves open are -1.
    """

    dtype: str
    batch: int
    q_len: int
    k_len: int
    heads: int
    kv_heads: int
    head_dim: int
    kv_heads_first: bool
    dropout: float
    needs_grad: bool
    mask: Mask


def make_request(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask, dropout: float = 0.0, kv_heads_first: bool = False
) -> Request:
    """Describe a call (shapes and dtypes: above). BackendError names the shapes when they do not fit together."""
    batch, q_len, heads, width = q.shape
    kv_heads, k_len = (k.shape[1], k.shape[2]) if kv_heads_first else (k.shape[2], k.shape[1])
    if k.shape != v.shape or k.shape[0] != batch or k.shape[3] != width or heads % kv_heads:
        raise BackendError(
            f"attention: q {q.shape}, k {k.shape}, v {v.shape} (heads first: {kv_heads_first}) do not fit together; "
            "batch and head width must be equal, and the heads of k and v must divide those of q"
        )
    return Request(
        dtype=dtype_name(q.dtype),
        batch=batch,
        q_len=q_len,
        k_len=k_len,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=width,
        kv_heads_first=kv_heads_first,
        dropout=dropout,
        needs_grad=paddle.is_grad_enabled() and not (q.stop_gradient and k.stop_gradient and v.stop_gradient),
        mask=mask,
    )


def weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    """``weights`` [B, Hk, G, L] times ``values`` [B, Hk, L, D] of a step, in their dtype."""
    if weights.shape[2] == 1:  # as a column that is transposed: a row times a matrix takes 1.7 times as long in MKL
        return paddle.matmul(weights.reshape([0, 0, -1, 1]), values, transpose_x=True)
    return paddle.matmul(weights, values)


def swap_heads(x: Tensor) -> Tensor:
    """``[B, L, H, D]`` to ``[B, H, L, D]`` and back, of any dtype.

    With one place or one head no value moves, and none is copied.
    """
    first, second = x.shape[1], x.shape[2]
    if first == 1 or second == 1:
        return x.reshape([0, second, first, x.shape[3]])
    return x.transpose([0, 2, 1, 3])
