# SPDX-License-Identifier: Apache-2.0
"""May a fused NPU operator be used? The flags decide together with the reason why it cannot."""

from collections.abc import Callable

from paddle import Tensor

from paddlemix.ops.npu.library import RefusalError
from paddlemix.utils import env
from paddlemix.utils.errors import IN_USE, BackendError
from paddlemix.utils.logging import get_logger

WHOLE = "PADDLEMIX_NPU_FUSED"
OPERATORS = ("ATTENTION", "RMS_NORM", "ROPE", "SWIGLU", "MC2")
"""``PADDLEMIX_NPU_FUSED_<operator>``; what is ``auto`` there follows ``PADDLEMIX_NPU_FUSED``."""

COSTS = {
    "ATTENTION": "plain attention is 11 operators in place of 1 and keeps every score in memory, about 13 bytes each "
    "at the peak (rows x heads x length x length): docs/cluster.md has the GB of each recipe",
    "RMS_NORM": "each norm is 9 operators and float32 copies of its rows in place of 2 operators",
    "ROPE": "each rotation is 8 operators and float32 copies of its rows in place of 1 operator",
    "SWIGLU": "each MLP has one operator more, and keeps one product more",
    "MC2": "the sums of tensor parallel wait for the products in front of them",
}
"""What it costs on an npu when the plain path serves in place of one of ``OPERATORS`` (tools/npu_counts.py)."""

_NAMES = {operator: f"{WHOLE}_{operator}" for operator in OPERATORS}
_told: set[tuple[str, str]] = set()


def setting(operator: str) -> tuple[str, str]:
    """(``auto``, ``0`` or ``1``; the flag that says so) for one of ``OPERATORS``."""
    name = _NAMES[operator]
    value = env.get(name)
    return (value, name) if value != "auto" else (env.get(WHOLE), WHOLE)


def off_on_device(operator: str, x: Tensor) -> bool:
    """True when ``x`` does not lie on an npu. BackendError when the operator is forced all the same."""
    place = x.place
    if place.is_cpu_place():
        # Asked several times in each layer: a CPU without these flags must not feel it.
        if not env.is_set(WHOLE) and not env.is_set(_NAMES[operator]):
            return True
    elif not place.is_gpu_place() and place.custom_device_type() == "npu":
        return False
    value, name = setting(operator)
    if value == "1":
        raise BackendError(f"{name}=1: the tensors are on {device_kind(x)}, not on an npu; use auto")
    return True


def use(operator: str, reason: str | None) -> bool:
    """True when the fused operator serves the call. ``reason`` says why it cannot, or is None.

    A forced operator that cannot serve raises BackendError; ``auto`` falls back and warns once for each reason.
    """
    value, name = setting(operator)
    if value == "0":
        _tell(operator, f"off ({name}=0)")
        return False
    if reason is None:
        _tell(operator, "on")
        note_use()
        return True
    if value == "1":
        raise BackendError(f"{name}=1: {reason}; use auto to let the plain path serve it")
    warn_of_cost(operator, reason)
    return False


def warn_of_cost(operator: str, reason: str) -> None:
    """Say once for each reason that the plain path serves on an npu, and what that costs."""
    if (operator, reason) not in _told:
        _told.add((operator, reason))
        get_logger(__name__).warning("fused npu %s: off: %s; %s", operator.lower(), reason, COSTS[operator])


def served(operator: str, call: Callable[[], Tensor]) -> Tensor | None:
    """What the fused operator gives; None when it refuses the call and the plain path has to serve it.

    A forced operator that refuses raises BackendError; ``auto`` warns of the first refusal of each operator.
    """
    try:
        return call()
    except RefusalError as refusal:
        value, name = setting(operator)
        if value == "1":
            raise BackendError(f"{name}=1: {refusal}; use auto to let the plain path serve it") from refusal
        tell_refusal(operator, str(refusal))
        return None


def tell_refusal(operator: str, refusal: str) -> None:
    """Warn once for each operator: its text holds shapes, which differ from call to call."""
    if (operator, "refused") not in _told:
        _told.add((operator, "refused"))
        get_logger(__name__).warning(
            "fused npu %s: %s; the plain path serves this call, and further ones that it refuses (%s=0: all); %s",
            operator.lower(), refusal, _NAMES[operator], COSTS[operator],
        )  # fmt: skip


def device_kind(x: Tensor) -> str:
    """``cpu``, ``gpu`` or the type of a custom device."""
    place = x.place
    if place.is_cpu_place():
        return "cpu"
    return "gpu" if place.is_gpu_place() else place.custom_device_type()


def note_use() -> None:
    """Should something fail from here on, the entry point says that it may be one of these operators."""
    if not IN_USE:
        IN_USE.append(
            "fused operators of the npu plug-in were in use. If one of them failed: paddlemix doctor --device npu "
            f"compares each with the math, and {WHOLE}=0 runs without them"
        )


def _tell(operator: str, state: str) -> None:
    if (operator, state) not in _told:
        _told.add((operator, state))
        get_logger(__name__).info("fused npu %s: %s", operator.lower(), state)
