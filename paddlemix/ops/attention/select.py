# SPDX-License-Identifier: Apache-2.0
"""The one call of attention: picks the backend that serves it, and reports once why it passed over the others."""

from dataclasses import replace

import paddle
from paddle import Tensor, is_grad_enabled

from paddlemix.ops.attention import math, npu, parted, sdpa
from paddlemix.ops.attention.contract import Mask, make_request
from paddlemix.ops.dispatch import Operator
from paddlemix.ops.npu.library import RefusalError
from paddlemix.ops.runtime import FUSED, Runtime

ATTENTION = Operator(
    "ATTENTION",
    (npu.KERNEL, *sdpa.KERNELS, math.KERNEL),
    cost="plain attention is 11 operators in place of 1 and keeps every score in memory, about 13 bytes each at "
    "the peak (rows x heads x length x length): docs/cluster.md has the GB of each recipe",
    plugin=npu.OPERATOR,
)
"""The backends in the order in which ``auto`` asks them. ``PADDLEMIX_ATTENTION`` forces one by its name."""


def attend(
    q: Tensor,
    k: Tensor | parted.Parts,
    v: Tensor | parted.Parts,
    mask: Mask,
    *,
    scale: float,
    runtime: Runtime,
    dropout: float = 0.0,
    kv_heads_first: bool = False,
) -> Tensor:
    """Attention of q ``[B, Lq, H, D]`` over k and v ``[B, Lk, Hk, D]`` (``[B, Hk, Lk, D]`` if ``kv_heads_first``).

    The answer is ``[B, Lq, H, D]`` in the dtype of all three (float32, float16 or bfloat16). BackendError says why a
    forced backend cannot serve. In an exported graph k and v are ``Parts``, which one plain form serves.
    """
    if isinstance(k, parted.Parts):
        return parted.attend(q, k, v, mask, scale=scale)
    if mask.sequence is not None:
        whole = mask.keep("whole", lambda: replace(mask, sequence=None, _kept={}))
        return mask.sequence.over_heads(
            lambda *heads: attend(*heads, whole, scale=scale, runtime=runtime, dropout=dropout), q, k, v
        )
    key = ("backend", *q.shape, *k.shape, *v.shape, q.dtype, dropout, kv_heads_first, is_grad_enabled(), runtime)
    # Chosen once for all layers of a step: they ask for the same thing, and a decode step feels each microsecond.
    kernel = mask.keep(key, lambda: ATTENTION.choose(runtime, make_request(q, k, v, mask, dropout, kv_heads_first)))
    options = {"scale": scale, "dropout": dropout, "kv_heads_first": kv_heads_first}
    return ATTENTION.run(kernel, runtime, q, k, v, mask, **options)


def why_not_fused(dtype: str, heads: int, kv_heads: int, width: int) -> str | None:
    """Why the fused attention of the npu in use will not serve a training like this; None when it will.

    Asked before a run, for what plain attention takes in memory: flags and rules first, then one call of a few rows.
    BackendError when a flag forces a backend that cannot serve it, as the first layer would raise it.
    """
    runtime = Runtime.current()
    choice = runtime.choice(ATTENTION.name)
    if choice.off:
        return choice.by
    q, k = (paddle.zeros([1, 16, count, width], dtype=dtype) for count in (heads, kv_heads))
    q.stop_gradient = False
    mask = Mask(causal=True)
    request = make_request(q, k, k, mask)
    if choice.forced:
        ATTENTION.choose(runtime, request)
        if choice.forced != FUSED:
            return choice.by
    reason = ATTENTION.why_not(FUSED, runtime, request)
    if reason is None:
        try:
            npu.attend(q, k, k, mask, scale=width**-0.5)
        except RefusalError as refusal:
            if choice.forced:
                raise ATTENTION.forced_error(choice, [str(refusal)]) from refusal
            reason = str(refusal)
    return reason


def cache_keeps_heads_first(runtime: Runtime) -> bool:
    """Layout of the KV cache: heads first on the CPU (matmul reads it without a copy), else as fused kernels want."""
    return runtime.device == "cpu"
