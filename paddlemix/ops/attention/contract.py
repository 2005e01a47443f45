# SPDX-License-Identifier: Apache-2.0
"""What every attention backend is given: a mask as data, and a request that says what is asked of it.

Contract: q is ``[B, Lq, H, D]``; k and v are ``[B, Lk, Hk, D]``, or ``[B, Hk, Lk, D]`` when they come from a cache that
keeps heads first; ``Hk`` divides ``H`` (grouped queries). The answer is ``[B, Lq, H, D]`` in the dtype of q.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import paddle
from paddle import Tensor

from paddlemix.utils.errors import BackendError

MASKED = -1.0e30
"""Added to a forbidden score. Finite, so that no kernel meets inf - inf; exp() of it is exactly 0 in float32."""


@dataclass(frozen=True, eq=False)
class Mask:
    """Which key a query may see. Query row i of a call stands at place ``offset + i`` of its sequence.

    ``causal``: only keys j <= offset + i. ``key_lengths`` [B]: only keys j < length. ``key_starts`` [B]: only keys
    j >= start (left padding). ``segments`` [B, offset + Lq]: only keys of the same number (packing).
    A query row that would see no key at all (padding) sees the key at its own place, so it stays finite.

    The dense forms are built at the first use and kept, so the layers of one step share them.
    Right-padded training needs none of the optional fields: the causal rule already hides what follows.
    """

    causal: bool
    key_lengths: Tensor | None = None
    key_starts: Tensor | None = None
    offset: int = 0
    segments: Tensor | None = None
    _kept: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def is_plain(self) -> bool:
        """True when ``causal`` and ``offset`` say everything."""
        return self.key_lengths is None and self.key_starts is None and self.segments is None

    def allowed(self, q_len: int, k_len: int) -> Tensor | None:
        """Bool ``[B or 1, 1, q_len, k_len]``, True where a key is seen; None when every key is."""
        return self.keep(("allowed", q_len, k_len), lambda: self._build(q_len, k_len))

    def additive(self, q_len: int, k_len: int) -> Tensor | None:
        """Float32 ``[B or 1, 1, q_len, k_len]``: 0 where a key is seen, else ``MASKED``; None when all keys are."""
        return self.keep(("additive", q_len, k_len), lambda: self._added(self.allowed(q_len, k_len)))

    def keep(self, key: tuple[Any, ...], build: Callable[[], Any]) -> Any:
        """What ``build`` gives, made at the first use of ``key`` and shared by every later one."""
        if key not in self._kept:
            self._kept[key] = build()
        return self._kept[key]

    @staticmethod
    def _added(allowed: Tensor | None) -> Tensor | None:
        # (a - 1) * -MASKED is exact at both ends and needs no select kernel.
        return None if allowed is None else (allowed.astype("float32") - 1.0) * -MASKED

    def _build(self, q_len: int, k_len: int) -> Tensor | None:
        if not self.causal and self.is_plain:
            return None
        places = paddle.arange(self.offset, self.offset + q_len).reshape([1, 1, q_len, 1])
        keys = paddle.arange(k_len).reshape([1, 1, 1, k_len])
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
        if self.key_lengths is None and self.key_starts is None and k_len >= self.offset + q_len:
            return allowed  # every row sees at least itself
        blind = paddle.logical_not(paddle.any(allowed, axis=-1, keepdim=True))
        own = keys == paddle.clip(places, max=k_len - 1)
        return paddle.logical_or(allowed, paddle.logical_and(blind, own))

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


@dataclass(frozen=True)
class Request:
    """What one call asks for, without its tensors: enough for a backend to say whether it can serve it."""

    device: str
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


def make_request(q: Tensor, k: Tensor, v: Tensor, mask: Mask, dropout: float, kv_heads_first: bool) -> Request:
    """Describe a call. BackendError names the shapes when they do not fit together."""
    batch, q_len, heads, width = q.shape
    kv_heads, k_len = (k.shape[1], k.shape[2]) if kv_heads_first else (k.shape[2], k.shape[1])
    if k.shape != v.shape or k.shape[0] != batch or k.shape[3] != width or heads % kv_heads:
        raise BackendError(
            f"attention: q {q.shape}, k {k.shape}, v {v.shape} (heads first: {kv_heads_first}) do not fit together; "
            "batch and head width must be equal, and the heads of k and v must divide those of q"
        )
    return Request(
        device=_device_kind(q),
        dtype=str(q.dtype).rpartition(".")[2],
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


def swap_heads(x: Tensor) -> Tensor:
    """``[B, L, H, D]`` to ``[B, H, L, D]`` and back. With one place or one head no value moves, and none is copied."""
    first, second = x.shape[1], x.shape[2]
    if first == 1 or second == 1:
        return x.reshape([x.shape[0], second, first, x.shape[3]])
    return x.transpose([0, 2, 1, 3])


def _device_kind(tensor: Tensor) -> str:
    place = tensor.place
    if place.is_cpu_place():
        return "cpu"
    return "gpu" if place.is_gpu_place() else place.custom_device_type()
