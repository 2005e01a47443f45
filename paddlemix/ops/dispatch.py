# SPDX-License-Identifier: Apache-2.0
"""One shape for every operator that has a fast form: kernels in order of preference, the plain one last.

A new one is a file that makes its ``Operator``, a row of the table in ``ops.operators`` and the row of its flag in
``utils.env``:

    SWIGLU = Operator("SWIGLU", (Kernel("npu", why_not, call, ("npu",)), plain(call)), cost="...", plugin="swiglu")
    out = SWIGLU(runtime, gate, up)

The first kernel that can serve is taken, and reported once; one that is forced and cannot serve is an error with the
reason. A kernel that refuses a call all the same (a limit that nobody knew) gives way to the plain one for that call.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import paddle
from paddle import Tensor

from paddlemix.ops.npu.library import RefusalError
from paddlemix.ops.runtime import FUSED, WHOLE, Choice, Runtime
from paddlemix.utils.errors import IN_USE, BackendError
from paddlemix.utils.logging import get_logger

_reported: set[tuple[str, ...]] = set()


class Facts(NamedTuple):
    """What a kernel is asked about unless its operator has a request of its own. Known of a traced tensor as well."""

    dtypes: tuple[paddle.dtype, ...]
    """Of the tensors of the call, in order."""
    width: int
    """Last axis of the first."""
    gradients: bool
    """Whether gradients are on."""
    traced: bool
    """Whether this call becomes a part of a static graph."""


def facts(*arguments: object) -> Facts:
    """The facts of a call with these arguments, of which at least one is a tensor (of any shape and dtype)."""
    tensors = [one for one in arguments if isinstance(one, Tensor | paddle.pir.Value)]
    modes = paddle.is_grad_enabled(), not paddle.in_dynamic_mode()
    return Facts(tuple(one.dtype for one in tensors), tensors[0].shape[-1], *modes)


@dataclass(frozen=True)
class Kernel:
    """One way to compute an operator.

    ``why_not(runtime, request)`` is why it cannot serve, or None; ``call`` takes what the operator is called with.
    ``devices`` are those that it is for; empty: all.
    """

    name: str
    why_not: Callable[[Runtime, Any], str | None]
    call: Callable[..., Tensor]
    devices: tuple[str, ...] = ()


def plain(call: Callable[..., Tensor], name: str = "plain") -> Kernel:
    """The last kernel of an operator: it serves everything, on all devices."""
    return Kernel(name, lambda runtime, request: None, call)


@dataclass(frozen=True, eq=False)
class Operator:
    """An operator by the name that its flag ends in (``PADDLEMIX_NPU_FUSED_<name>``).

    ``cost`` is what it costs on an npu when another kernel serves in place of the fused one (tools/npu_counts.py), and
    ``plugin`` the fused one's name in the Ascend plug-in.
    """

    name: str
    kernels: tuple[Kernel, ...]
    cost: str
    plugin: str

    def __call__(self, runtime: Runtime, *arguments: Any, **options: Any) -> Any:
        """The result for ``arguments`` by the kernel that serves tensors like these; it is chosen once."""
        if not runtime.asks(self.name):
            return self.kernels[-1].call(*arguments, **options)
        request = facts(*arguments)
        kernel = runtime.keep((self.name, request), lambda: self.choose(runtime, request))
        return self.run(kernel, runtime, *arguments, **options)

    def run(self, kernel: Kernel, runtime: Runtime, *arguments: Any, **options: Any) -> Any:
        """The result by ``kernel``, or by the plain one when ``kernel`` refuses and is not forced (BackendError)."""
        try:
            return kernel.call(*arguments, **options)
        except RefusalError as refusal:
            choice = runtime.choice(self.name)
            if choice.forced:
                raise self.forced_error(choice, [str(refusal)]) from refusal
            if _first("refused", self.name):  # once: its text holds shapes, which differ from call to call
                get_logger(__name__).warning(
                    "fused npu %s: %s; the plain path serves this call, and further ones that it refuses (%s=0: all); "
                    "%s", self.name.lower(), refusal, f"{WHOLE}_{self.name}", self.cost,
                )  # fmt: skip
        return self.kernels[-1].call(*arguments, **options)

    def choose(self, runtime: Runtime, request: NamedTuple) -> Kernel:
        """The kernel for ``request``: the forced one, or the first that can serve. BackendError says why it cannot."""
        choice = runtime.choice(self.name)
        if choice.forced:
            return self._forced(runtime, request)
        skipped = []
        for kernel in self.kernels:
            if kernel.devices and runtime.device not in kernel.devices:
                continue
            off = kernel.name == FUSED and choice.off
            reason = choice.by if off else kernel.why_not(runtime, request)
            if reason is None:
                self._report(kernel, skipped)
                return kernel
            if kernel.name == FUSED and not off and _first("cost", self.name, reason):
                text = "fused npu %s: off: %s; %s"
                get_logger(__name__).warning(text, self.name.lower(), reason, self.cost)
            skipped.append(f"not {kernel.name}: {reason}")
        raise BackendError(f"no kernel of {self.name.lower()} can serve the request: {'; '.join(skipped)}")

    def why_not(self, name: str, runtime: Runtime, request: NamedTuple) -> str | None:
        """Why no kernel called ``name`` can serve ``request`` whatever the flags say; None when one can."""
        found = [self._reason(kernel, runtime, request) for kernel in self.kernels if kernel.name == name]
        return None if None in found else "; ".join(found)

    def _forced(self, runtime: Runtime, request: NamedTuple) -> Kernel:
        choice, reasons = runtime.choice(self.name), []
        named = [kernel for kernel in self.kernels if kernel.name == choice.forced]
        here = [kernel for kernel in named if not kernel.devices or runtime.device in kernel.devices]
        for kernel in here or named:
            reason = self._reason(kernel, runtime, request)
            if reason is None:
                self._report(kernel, [])
                return kernel
            reasons.append(reason)
        raise self.forced_error(choice, reasons)

    @staticmethod
    def forced_error(choice: Choice, reasons: list[str]) -> BackendError:
        """That of a kernel that a flag forces and that cannot serve for ``reasons``."""
        return BackendError(f"{choice.by}: {'; '.join(reasons)}; {_REMEDY}")

    def _reason(self, kernel: Kernel, runtime: Runtime, request: NamedTuple) -> str | None:
        if kernel.devices and runtime.device not in kernel.devices:
            article = "an" if kernel.devices[0] == FUSED else "a"
            return f"the tensors are on {runtime.device}, not on {article} {' or '.join(kernel.devices)}"
        return kernel.why_not(runtime, request)

    def _report(self, kernel: Kernel, skipped: list[str]) -> None:
        if kernel.name == FUSED:
            _note_use()
        if _first("chosen", self.name, kernel.name, *skipped):
            why = f" ({'; '.join(skipped)})" if skipped else ""
            get_logger(__name__).info("%s: %s%s", self.name.lower(), kernel.name, why)


_REMEDY = "use auto to let the plain path serve it"


def forget_reports() -> None:
    """Report everything once more (tests)."""
    _reported.clear()


def _first(*what: str) -> bool:
    """True once in a process for each ``what``."""
    new = what not in _reported
    _reported.add(what)
    return new


def _note_use() -> None:
    """Should something fail from here on, the entry point says that it may be one of these operators."""
    if not IN_USE:
        IN_USE.append(
            "fused operators of the npu plug-in were in use. If one of them failed: paddlemix doctor --device npu "
            f"compares each with the math, and {WHOLE}=0 runs without them"
        )
