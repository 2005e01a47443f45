# SPDX-License-Identifier: Apache-2.0
"""A matrix product and the sum of it over the devices of a group in one NPU operator (``fused_mm_allreduce``, "MC2").

The operator sends the first rows of the product while it computes the next, so the sum of tensor parallel hides behind
the product. It has no gradient of its own; the caller brings it (``ops.parallel``).
"""

import paddle
from paddle import Tensor

from paddlemix.ops.npu import library
from paddlemix.ops.npu.switches import off_on_device, served, use

OPERATOR = "fused_mm_allreduce"
SIZES = (2, 4, 8)
"""Devices of a group that the operator takes (CANN's aclnnMatmulAllReduce)."""

_HALF = ("float16", "bfloat16")


def why_not(x: Tensor, weight: Tensor, size: int, even: bool) -> str | None:
    """Why the operator cannot serve ``x`` [..., K] times ``weight`` [K, N] in a group of ``size``; None when it can.

    ``even``: every device has as many rows of the weight; otherwise some might be refused what others are served, and
    wait for them for ever.
    """
    form = library.form_of(OPERATOR)
    if isinstance(form, str):
        return form
    if size not in SIZES or not even:
        return f"{OPERATOR} wants equal parts on {', '.join(map(str, SIZES))} devices"
    dtype = str(x.dtype).rpartition(".")[2]
    if dtype not in _HALF or x.dtype != weight.dtype:
        return f"{OPERATOR} takes {' and '.join(_HALF)}, not {dtype} with {str(weight.dtype).rpartition('.')[2]}"
    return None


def product(x: Tensor, weight: Tensor, rank: int, size: int, group: object, even: bool) -> Tensor | None:
    """``x W`` summed over the group, outside of any gradient; None when the plain path has to serve it.

    ``rank`` is that within the group, ``group`` paddle's (None: all processes).
    """
    if off_on_device("MC2", x) or not use("MC2", why_not(x, weight, size, even)):
        return None
    return served("MC2", lambda: _run(x, weight, rank, group))


def _run(x: Tensor, weight: Tensor, rank: int, group: object) -> Tensor:
    whole = group or paddle.distributed.collective._get_default_group()
    name = whole.process_group.get_comm_name(rank)
    rows = x.detach().reshape([-1, x.shape[-1]])
    out = library.run_named(OPERATOR, x1=rows, x2=weight.detach(), bias=None, hcom=name, reduce_op="sum", comm_turn=0)[
        0
    ]
    return out.reshape([*x.shape[:-1], weight.shape[1]])
