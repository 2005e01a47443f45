# SPDX-License-Identifier: Apache-2.0
"""The one decision per model about device, attention backend and fused operators.

A model makes its ``Runtime`` when it is constructed and hands it to its layers (``TensorParallel.runtime``). Nothing
below asks a tensor where it lies, or the environment, while it computes: a traced tensor lies nowhere, and a decode
step feels each microsecond.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

import paddle

from paddlemix.utils import env
from paddlemix.utils.errors import BackendError

FUSED = "npu"
"""Name of the kernels that are fused operators of the Ascend plug-in, and of the device that has them."""

BACKEND = "PADDLEMIX_ATTENTION"
LOW_BITS = "PADDLEMIX_LOW_BITS"
WHOLE = "PADDLEMIX_NPU_FUSED"
FLOAT32 = "PADDLEMIX_NPU_ATTENTION_FLOAT32"

T = TypeVar("T")


@dataclass(frozen=True)
class Choice:
    """What the flags say about one operator. ``by`` is the flag that is set and its value; empty: none is set."""

    forced: str | None = None
    """Name of the kernel that has to serve; None: the first that can."""
    off: bool = False
    """The fused kernel is not used."""
    by: str = ""


@dataclass(frozen=True, eq=False)
class Runtime:
    """Where a model computes and by which kernels, as the flags stood when it was made.

    ``device`` is ``cpu``, ``gpu``, ``npu`` or another type of paddle's; ``choices`` has a row for each operator with a
    flag (an operator without one is ``Choice()``); ``float32_attention`` hands float32 to the fused attention too. The
    dtype is that of the call: it is known of a traced tensor as well, and differs between the parts of a model.
    """

    device: str
    choices: Mapping[str, Choice] = field(default_factory=dict)
    float32_attention: bool = False
    _kept: dict[Hashable, object] = field(default_factory=dict, repr=False)

    @classmethod
    def current(cls, device: str | None = None) -> "Runtime":
        """That of ``device`` (``npu:1``; None: the one paddle is set to) under the flags of the environment.

        ConfigError for a flag with a value that it does not take, BackendError for two that contradict each other.
        """
        kind = kind_of_device(device or paddle.get_device())
        names = [flag.removeprefix(f"{WHOLE}_") for flag in env.FLAGS if flag.startswith(f"{WHOLE}_")]
        choices = {name: _choice(name) for name in names}
        if env.get(LOW_BITS) != "auto":
            choices["LOW_BITS"] = Choice(forced=env.get(LOW_BITS), by=f"{LOW_BITS}={env.get(LOW_BITS)}")
        return cls(kind, choices | {"ATTENTION": _with_backend(choices["ATTENTION"])}, env.get(FLOAT32) == "1")

    def choice(self, operator: str) -> Choice:
        """What the flags say about ``operator``."""
        return self.choices.get(operator, _FREE)

    def asks(self, operator: str) -> bool:
        """Whether another kernel than the plain one may serve ``operator``, or has to be named as off or impossible."""
        choice = self.choice(operator)
        return choice.forced is not None or (self.device == FUSED and not (choice.off and not choice.by))

    def keep(self, key: Hashable, decide: Callable[[], T]) -> T:
        """What ``decide`` gives, asked once for each ``key`` of this runtime."""
        if key not in self._kept:
            self._kept[key] = decide()
        return self._kept[key]  # type: ignore[return-value]


Place: TypeAlias = paddle.base.core.Place | paddle.CPUPlace | paddle.CUDAPlace | paddle.CustomPlace
"""A place of paddle's; in paddle 3.0 those of one kind are no subclasses of the general one."""


def kind_of_device(device: str | Place | None) -> str | None:
    """``npu`` for ``npu``, ``npu:1`` and paddle's place there, likewise for every type of device; None for None."""
    if device is None:
        return None
    text = device if isinstance(device, str) else str(device).removeprefix("Place(").removesuffix(")")
    kind = text.lower().partition(":")[0]
    return {"gpu_pinned": "cpu"}.get(kind, kind)


_FREE = Choice()


def _choice(operator: str) -> Choice:
    """``PADDLEMIX_NPU_FUSED_<operator>``; what is ``auto`` there follows ``PADDLEMIX_NPU_FUSED``."""
    flag = f"{WHOLE}_{operator}"
    value = env.get(flag)
    if value == "auto":
        flag, value = WHOLE, env.get(WHOLE)
    by = f"{flag}={value}" if env.is_set(flag) else ""
    return Choice(forced=FUSED if value == "1" else None, off=value == "0", by=by)


def _with_backend(fused: Choice) -> Choice:
    """The same with ``PADDLEMIX_ATTENTION``, which names a kernel of any kind."""
    backend = env.get(BACKEND)
    if backend == "auto":
        return fused
    if (backend == FUSED and fused.off) or (backend != FUSED and fused.forced):
        raise BackendError(f"{BACKEND}={backend} and {fused.by} contradict each other; leave one of them out")
    return Choice(forced=backend, by=f"{BACKEND}={backend}")
