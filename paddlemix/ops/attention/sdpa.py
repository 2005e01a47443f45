# SPDX-License-Identifier: Apache-2.0
"""The fast attention of each device: blocks of query rows on the CPU, the framework's fused kernel on a GPU.

On the CPU ``F.scaled_dot_product_attention`` is never called: with ``is_causal`` it takes 5 to 9 times as long as the
same call in torch (measured), because it works through the half above the diagonal too and adds a dense mask.
"""

import math
from collections.abc import Iterator

import paddle
from paddle import Tensor
from paddle.autograd import PyLayer, PyLayerContext
from paddle.nn import functional

from paddlemix.ops import compat, few_rows
from paddlemix.ops.attention.contract import MASKED, Mask, Request, swap_heads, weighted_sum
from paddlemix.ops.dispatch import Kernel
from paddlemix.ops.dtypes import to_dtype
from paddlemix.ops.lean import apply_once, is_lean, keeps_nothing
from paddlemix.ops.runtime import Runtime
from paddlemix.ops.tracing import contiguous, size

NAME = "sdpa"
HALF = ("float16", "bfloat16")
FLASH_CAPABILITY = 8
BLOCK = 128
"""Query rows of one block. Small enough for its scores to stay in the cache, large enough to keep the matmul busy."""


def why_not_blocked(runtime: Runtime, request: Request) -> str | None:
    """Why the form for a CPU cannot serve ``request``; None when it can."""
    del runtime
    if request.dropout:
        return "the blocked form on the CPU has no dropout"
    if request.q_len == 1:
        return None
    open_ended = request.q_len < 0 or request.k_len < 0 or (request.batch < 0 and not request.mask.is_plain)
    return "the blocked form on the CPU wants to know all lengths when it is traced" if open_ended else None


def why_not_fused(runtime: Runtime, request: Request) -> str | None:
    """Why the framework's kernel for a GPU cannot serve ``request``; None when it can."""
    del runtime
    if request.kv_heads_first:
        return "the fused kernel wants keys in [B, L, H, D]"
    if min(request.batch, request.q_len, request.k_len) < 0:
        return "the fused kernel wants to know all sizes when it is traced"
    if compat.sdpa_asks_its_kernels():
        return None
    if request.dtype not in HALF:
        return f"the fused kernel of this paddle takes {' and '.join(HALF)}, not {request.dtype}"
    if compat.gpu_capability() < FLASH_CAPABILITY:
        return f"the fused kernel of this paddle wants a GPU of compute capability {FLASH_CAPABILITY}.0 or more"
    return None


def fused(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask, *, scale: float, dropout: float = 0.0, kv_heads_first: bool = False
) -> Tensor:
    """Same answer as ``math.attend`` to rounding, by the framework's kernel. Shapes and dtypes: ``contract``."""
    del kv_heads_first  # refused by why_not_fused when set
    q_len, k_len = q.shape[1], k.shape[1]
    # The kernel's own causal rule aligns the last query with the last key, so it fits only without a cached prefix.
    causal = mask.causal and mask.is_plain and mask.known_offset == 0 and q_len == k_len
    bias = None if causal else mask.additive(q_len, k_len)
    if bias is not None:
        bias = bias.astype(q.dtype).expand([q.shape[0], q.shape[2], q_len, k_len])
    # Without ``scale``: paddle 3.0 has no such argument, and later ones do not take flash attention where it is given.
    own = 1.0 / math.sqrt(q.shape[3])
    if not math.isclose(scale, own, rel_tol=1e-6):
        q = q * (scale / own)
    return functional.scaled_dot_product_attention(
        q, k, v, attn_mask=bias, dropout_p=dropout, is_causal=causal, training=dropout > 0.0
    )


def blocked(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask, *, scale: float, dropout: float = 0.0, kv_heads_first: bool = False
) -> Tensor:
    """Same answer as ``math.attend`` to rounding, in blocks of query rows. Shapes and dtypes: ``contract``."""
    del dropout  # refused by why_not_blocked when set
    if q.shape[1] != 1 and mask.segments is None:
        limits = {"starts": mask.key_starts, "lengths": mask.key_lengths, "kv_heads_first": kv_heads_first}
        many = few_rows.attend_many(q, k, v, causal=mask.causal, offset=mask.offset, scale=scale, **limits)
        if many is not None:
            return many
    if not kv_heads_first:
        k, v = swap_heads(k), swap_heads(v)
    if q.shape[1] == 1:
        return _step(q, k, v, mask, scale)
    rows = swap_heads(q * scale)
    if mask.is_plain:
        out = _rows(rows, k, v, mask, None)
    else:
        # One row of the batch at a time: a bias of two axes adds 10 times as fast as one that broadcasts over heads.
        dense = mask.additive(q.shape[1], k.shape[2])
        each = (
            _rows(rows[b : b + 1], k[b : b + 1], v[b : b + 1], mask, dense[min(b, dense.shape[0] - 1), 0])
            for b in range(q.shape[0])
        )
        out = paddle.concat(list(each), axis=0)
    return swap_heads(out)


def _step(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float) -> Tensor:
    """One query ``[B, 1, H, D]`` over k and v ``[B, Hk, Lk, D]``, in as few operators as can be: decoding waits."""
    if mask.segments is None:
        limits = {"starts": mask.key_starts, "lengths": mask.key_lengths}
        few = few_rows.attend(q, k, v, causal=mask.causal, offset=mask.offset, scale=scale, **limits)
        if few is not None:
            return few
    batch, _, heads, width = q.shape
    kv_heads, keys = k.shape[1], size(k, 2)
    rows = (q * scale).reshape([0, kv_heads, heads // kv_heads, width])
    scores = to_dtype(paddle.matmul(rows, k, transpose_y=True), paddle.float32)
    bias = mask.keep(("step", k.shape[2], heads, kv_heads), lambda: _step_bias(mask, keys, batch, kv_heads, heads))
    if bias is not None:
        scores = scores + bias
    weights = to_dtype(functional.softmax(scores, axis=-1), q.dtype)
    return weighted_sum(weights, v).reshape([0, 1, heads, width])


def _step_bias(mask: Mask, keys: int | Tensor, batch: int, kv_heads: int, heads: int) -> Tensor | None:
    """``[keys]`` for a plain mask (None when every key is seen), else as wide as the scores: it is small either way."""
    if mask.is_plain:
        whole = not mask.causal or (isinstance(keys, int) and keys == mask.known_offset + 1)
        return None if whole else mask.additive(1, keys).reshape([-1])
    wide = mask.additive(1, keys).expand([batch, kv_heads, heads // kv_heads, -1])  # -1: as it is
    return contiguous(wide)


def _rows(q: Tensor, k: Tensor, v: Tensor, mask: Mask, dense: Tensor | None) -> Tensor:
    """q ``[B, H, Lq, D]`` over k and v ``[B, Hk, Lk, D]``; ``dense`` [Lq, Lk] replaces the plain causal rule."""
    if is_lean("cpu", q, k, v):
        return apply_once(_Lean, q, k, v, mask, dense)
    block = BLOCK if mask.causal or keeps_nothing("cpu") else q.shape[2]
    outs = [_answer(weights, v) for _, weights in _weights(q, k, mask, dense, block)]
    return _joined(outs, q.shape)


def _weights(
    q: Tensor, k: Tensor, mask: Mask, dense: Tensor | None, block: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each block of n query rows: its rows [B, Hk, G n, D], and their softmax [B, Hk, G n, seen] in the dtype of q.

    G query heads share a key head; ``seen`` is how many keys the block sees at most. ``block``: rows of a block (None:
    ``BLOCK``, or all rows where each sees all keys).
    """
    batch, heads, q_len, width = q.shape
    kv_heads, k_len = k.shape[1], k.shape[2]
    q = q.reshape([batch, kv_heads, heads // kv_heads, q_len, width])
    if block is None:
        block = BLOCK if mask.causal else q_len
    for first in range(0, q_len, block):
        last = min(first + block, q_len)
        seen = mask.reach(last, k_len)
        part = q if last - first == q_len else q[:, :, :, first:last]
        part = part.reshape([batch, kv_heads, heads // kv_heads * (last - first), width])
        scores = paddle.matmul(part, _seen(k, seen), transpose_y=True)
        scores = to_dtype(scores, paddle.float32)
        bias = _bias(mask, first, last, seen) if dense is None else dense[first:last, :seen]
        if bias is not None:
            shape = scores.shape
            scores = (scores.reshape([batch, heads, last - first, seen]) + bias).reshape(shape)
        yield part, to_dtype(functional.softmax(scores, axis=-1), q.dtype)


def _seen(heads: Tensor, seen: int) -> Tensor:
    """The first ``seen`` places of keys or values [B, Hk, Lk, D]."""
    return heads if seen == heads.shape[2] else heads[:, :, :seen]


def _answer(weights: Tensor, v: Tensor) -> Tensor:
    return paddle.matmul(weights, _seen(v, weights.shape[-1]))


def _joined(blocks: list[Tensor], shape: list[int]) -> Tensor:
    """Blocks of rows [B, Hk, G n, D] as ``shape`` [B, H, Lq, D]."""
    _, heads, _, width = shape
    blocks = [block.reshape([0, heads, -1, width]) for block in blocks]  # 0: as it is, also where it is left open
    return blocks[0] if len(blocks) == 1 else paddle.concat(blocks, axis=2)


class _Lean(PyLayer):
    """``_rows`` in float32 that keeps q, k and v alone: the softmax of each block is computed again."""

    @staticmethod
    def forward(ctx: PyLayerContext, q: Tensor, k: Tensor, v: Tensor, mask: Mask, dense: Tensor | None) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.needs = [not one.stop_gradient for one in (q, k, v)]
        ctx.mask, ctx.dense = mask, dense
        return _joined([_answer(weights, v) for _, weights in _weights(q, k, mask, dense)], q.shape)

    @staticmethod
    def backward(ctx: PyLayerContext, slope: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensor()
        batch, heads, q_len, width = q.shape
        kv_heads = k.shape[1]
        slope = slope.reshape([batch, kv_heads, heads // kv_heads, q_len, width])
        of_q, of_k, of_v, first = [], _Places(), _Places(), 0
        for part, weights in _weights(q, k, ctx.mask, ctx.dense):
            last = first + weights.shape[2] * kv_heads // heads
            back = slope[:, :, :, first:last].reshape([batch, kv_heads, -1, width])
            seen = weights.shape[-1]
            of_v.add(paddle.matmul(weights, back, transpose_x=True))
            back = paddle.matmul(back, _seen(v, seen), transpose_y=True)
            back = paddle._C_ops.softmax_grad(weights, back, -1)
            of_q.append(paddle.matmul(back, _seen(k, seen)))
            of_k.add(paddle.matmul(back, part, transpose_x=True))
            first = last
        sums = _joined(of_q, [batch, heads, q_len, width]), of_k.sum(k.shape[2]), of_v.sum(k.shape[2])
        found = [each if needed else None for each, needed in zip(sums, ctx.needs, strict=True)]
        return tuple(found if ctx.dense is None else [*found, None])


class _Places:
    """A sum of terms [B, Hk, n, D] of the first n places each, n never less than before."""

    def __init__(self) -> None:
        self.total: Tensor | None = None

    def add(self, term: Tensor) -> None:
        """One more term; its memory becomes that of the sum."""
        if self.total is not None:
            short = term.shape[2] - self.total.shape[2]
            term = term.add_(_wider(self.total, short))
        self.total = term

    def sum(self, places: int) -> Tensor:
        """``[B, Hk, places, D]``: what no term has reached is 0."""
        return _wider(self.total, places - self.total.shape[2])


def _wider(heads: Tensor, by: int) -> Tensor:
    """``heads`` [B, Hk, n, D] and zeros up to n + ``by`` places."""
    if not by:
        return heads
    shape = heads.shape
    shape[2] = by
    return paddle.concat([heads, paddle.zeros(shape, dtype=heads.dtype)], axis=2)


def _bias(mask: Mask, first: int, last: int, keys: int) -> Tensor | None:
    """What the causal rule adds to the scores of query rows ``first`` to ``last`` over the first ``keys`` keys."""
    if not mask.causal:
        return None
    place = mask.known_offset + first
    return mask.keep(("diagonal", place, last - first, keys), lambda: _diagonal(last - first, keys, place))


def _diagonal(rows: int, keys: int, place: int) -> Tensor:
    """Float32 ``[rows, keys]``: ``MASKED`` right of the diagonal that starts at key ``place``."""
    return paddle.triu(paddle.full([rows, keys], MASKED, dtype="float32"), place + 1)


KERNELS = (Kernel(NAME, why_not_blocked, blocked, ("cpu",)), Kernel(NAME, why_not_fused, fused, ("gpu",)))
