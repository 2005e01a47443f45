# SPDX-License-Identifier: Apache-2.0
"""The one door to attention: picks the backend that serves a call, and says once why it passed over the others."""

from types import ModuleType

import paddle
from paddle import Tensor, is_grad_enabled

from paddlemix.ops.attention import math, npu, sdpa
from paddlemix.ops.attention.contract import Mask, Request, make_request
from paddlemix.ops.npu import switches
from paddlemix.ops.npu.library import RefusalError
from paddlemix.utils import env
from paddlemix.utils.errors import BackendError
from paddlemix.utils.logging import get_logger

BACKENDS: dict[str, ModuleType] = {"npu": npu, "sdpa": sdpa, "math": math}
"""In the order in which ``auto`` asks them. The first is asked under the flags of the fused NPU operators only."""

_told: set[tuple[str, tuple[str, ...]]] = set()


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask, *, scale: float, dropout: float = 0.0, kv_heads_first: bool = False
) -> Tensor:
    """Attention of q ``[B, Lq, H, D]`` over k and v ``[B, Lk, Hk, D]`` (``[B, Hk, Lk, D]`` if ``kv_heads_first``).

    The environment flag PADDLEMIX_ATTENTION forces a backend; BackendError says why a forced one cannot serve.
    """
    key = ("backend", *q.shape, *k.shape, *v.shape, q.dtype, dropout, kv_heads_first, is_grad_enabled())
    # Chosen once for all layers of a step: they ask for the same thing, and a decode step feels each microsecond.
    backend = mask.keep(
        key, lambda: choose(make_request(q, k, v, mask, dropout, kv_heads_first), env.get("PADDLEMIX_ATTENTION"))
    )
    try:
        return backend.attend(q, k, v, mask, scale=scale, dropout=dropout, kv_heads_first=kv_heads_first)
    except RefusalError as refusal:
        _forbid_when_forced(refusal)
        switches.tell_refusal("ATTENTION", str(refusal))
    return math.attend(q, k, v, mask, scale=scale, dropout=dropout, kv_heads_first=kv_heads_first)


def _forbid_when_forced(refusal: RefusalError) -> None:
    wanted, (fused, flag) = env.get("PADDLEMIX_ATTENTION"), switches.setting("ATTENTION")
    if wanted != "auto" or fused == "1":
        by = f"PADDLEMIX_ATTENTION={wanted}" if wanted != "auto" else f"{flag}=1"
        raise BackendError(f"{by}: {refusal}; use auto to let the next backend serve it") from refusal


def choose(request: Request, wanted: str = "auto") -> ModuleType:
    """The backend for ``request``: the forced one, or with ``auto`` the first that can serve it."""
    fused, flag = switches.setting("ATTENTION")
    if (wanted == "npu" and fused == "0") or (wanted not in ("npu", "auto") and fused == "1"):
        raise BackendError(
            f"PADDLEMIX_ATTENTION={wanted} and {flag}={fused} contradict each other; leave one of them out"
        )
    if wanted == "auto" and fused == "1":
        return _forced(request, "npu", f"{flag}=1")
    if wanted != "auto":
        return _forced(request, wanted, f"PADDLEMIX_ATTENTION={wanted}")
    skipped = []
    for name, backend in BACKENDS.items():
        if name == "npu" and request.device != "npu":
            continue
        off = f"{flag}=0" if name == "npu" and fused == "0" else None
        reason = off or backend.why_not(request)
        if reason is None:
            _tell(name, tuple(skipped))
            if name == "npu":
                switches.note_use()
            return backend
        if name == "npu" and not off:
            switches.warn_of_cost("ATTENTION", reason)
        skipped.append(f"{name}: {reason}")
    raise BackendError("no attention backend can serve the request: " + "; ".join(skipped))


def _forced(request: Request, name: str, by: str) -> ModuleType:
    reason = BACKENDS[name].why_not(request)
    if reason:
        raise BackendError(f"{by}: {reason}; use auto to let the next backend serve it")
    if name == "npu":
        switches.note_use()
    return BACKENDS[name]


def why_not_fused(dtype: str, heads: int, kv_heads: int, width: int) -> str | None:
    """Why the fused attention of the npu in use will not serve a training like this; None when it will.

    Asked before a run, for what plain attention takes in memory: flags and rules first, then one call of a few rows.
    """
    (fused, flag), wanted = switches.setting("ATTENTION"), env.get("PADDLEMIX_ATTENTION")
    if fused == "0" or wanted in ("math", "sdpa"):
        return f"{flag}=0" if fused == "0" else f"PADDLEMIX_ATTENTION={wanted}"
    q, k = (paddle.zeros([1, 16, count, width], dtype=dtype) for count in (heads, kv_heads))
    q.stop_gradient = False
    mask = Mask(causal=True)
    reason = npu.why_not(make_request(q, k, k, mask, 0.0, False))
    if reason is None:
        try:
            npu.attend(q, k, k, mask, scale=width**-0.5)
        except RefusalError as refusal:
            reason = str(refusal)
    return reason


def cache_keeps_heads_first(device: str) -> bool:
    """Layout of the KV cache: heads first on the CPU (matmul reads it without a copy), else as fused kernels want."""
    return device == "cpu"


def _tell(name: str, skipped: tuple[str, ...]) -> None:
    if (name, skipped) not in _told:
        _told.add((name, skipped))
        get_logger(__name__).info("attention: %s%s", name, f" (not {'; not '.join(skipped)})" if skipped else "")
