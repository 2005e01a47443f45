# SPDX-License-Identifier: Apache-2.0
"""A matrix product and the sum of it over the devices of a group in one NPU operator (``fused_mm_allreduce``, "MC2").

The operator sends the first rows of the product while it computes the next, so the sum of tensor parallel hides behind
the product. It has no gradient of its own; the caller brings it (``ops.parallel``).
"""

from typing import NamedTuple, Protocol

import paddle
from paddle import Tensor
from paddle.distributed.communication.group import Group

from paddlemix.ops.dispatch import Kernel, Operator
from paddlemix.ops.dtypes import dtype_name
from paddlemix.ops.npu import library
from paddlemix.ops.runtime import FUSED, Runtime

OPERATOR = "fused_mm_allreduce"
SIZES = (2, 4, 8)
"""Devices of a group that the operator takes (CANN's aclnnMatmulAllReduce)."""

_HALF = ("float16", "bfloat16")


class Devices(Protocol):
    """What is used here of ``ops.parallel.TensorParallel``."""

    @property
    def rank(self) -> int:
        """Number of this device in its group."""

    @property
    def size(self) -> int:
        """Devices of the group."""

    @property
    def group(self) -> Group | None:
        """The group of processes; None is the default one."""

    @property
    def runtime(self) -> Runtime | None:
        """What decides about the operators of the model."""

    def reduce(self, x: Tensor) -> Tensor:
        """The sum of ``x`` (any shape and dtype) over the devices."""


class Product(NamedTuple):
    """What is asked of the operator: dtypes of x and weight, devices of the group, and whether their parts are equal.

    With unequal parts some devices might be refused what others are served, and wait for them for ever.
    """

    x: str
    weight: str
    size: int
    even: bool


def why_not(runtime: Runtime, request: Product) -> str | None:
    """Why the operator cannot serve ``request``; None when it can."""
    del runtime
    form = library.form_of(OPERATOR)
    if isinstance(form, str):
        return form
    if request.size not in SIZES or not request.even:
        return f"{OPERATOR} wants equal parts on {', '.join(map(str, SIZES))} devices"
    if request.x not in _HALF or request.x != request.weight:
        return f"{OPERATOR} takes {' and '.join(_HALF)}, not {request.x} with {request.weight}"
    return None


def fused(x: Tensor, weight: Tensor, parallel: Devices) -> Tensor:
    """``x`` [..., K] times ``weight`` [K, N] of one dtype to [..., N], summed over the group of ``parallel``.

    Outside of any gradient.
    """
    whole = parallel.group or paddle.distributed.collective._get_default_group()
    name = whole.process_group.get_comm_name(parallel.rank)
    rows, given = x.detach().reshape([-1, x.shape[-1]]), {"bias": None, "hcom": name, "reduce_op": "sum"}
    out = library.run_named(OPERATOR, x1=rows, x2=weight.detach(), comm_turn=0, **given)[0]
    return out.reshape([*x.shape[:-1], weight.shape[1]])


def plain(x: Tensor, weight: Tensor, parallel: Devices) -> Tensor:
    """The same (shapes, dtype) by a product and an all-reduce."""
    return parallel.reduce(paddle.matmul(x, weight))


MC2 = Operator(
    "MC2",
    (Kernel(FUSED, why_not, fused, (FUSED,)), Kernel("plain", lambda runtime, request: None, plain)),
    cost="the sums of tensor parallel wait for the products in front of them",
    plugin=OPERATOR,
)


def product(x: Tensor, weight: Tensor, parallel: Devices, even: bool) -> Tensor:
    """``x`` [..., K] times ``weight`` [K, N] (one dtype), summed over the devices of ``parallel`` (``TensorParallel``).

    ``even``: every device has as many rows of the weight.
    """
    runtime = parallel.runtime
    request = Product(dtype_name(x.dtype), dtype_name(weight.dtype), parallel.size, even)
    kernel = runtime.keep((MC2.name, request), lambda: MC2.choose(runtime, request))
    return MC2.run(kernel, runtime, x, weight, parallel)
