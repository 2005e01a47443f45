# SPDX-License-Identifier: Apache-2.0
"""Which operators a run used in which dtype, read from paddle's own log, and which of them an NPU plug-in may lack.

Start the run with the variables of ``LOG`` and keep its stderr: paddle then writes a line for every kernel it chooses,
on any device. The tables come from the kernels of the plug-in's release 3.0.0 (docs/npu.md); older ones have less.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

# One pattern on purpose: with a list of several modules paddle 3.3 corrupts its memory.
LOG = {"GLOG_minloglevel": "0", "GLOG_vmodule": "*api*=6"}
"""Environment of a recorded run. It must stand before paddle is imported."""

NAMED = (
    *("adamw", "add", "argmax", "cast", "concat", "conv2d", "cross_entropy_with_softmax", "divide", "embedding"),
    *("expand", "gather", "gelu", "layer_norm", "matmul", "mean", "pow", "rsqrt", "scale", "scatter", "sigmoid"),
    *("silu", "slice", "softmax", "split", "squared_l2_norm", "stack", "sum", "swiglu", "tile", "tril", "triu"),
    *("unsqueeze", "where"),
)
"""Kernels that the sources of the plug-in (release 3.0.0) register in bfloat16; ``sigmoid`` is there since 2024-10,
``gather`` since 2024-12."""

ASSUMED = ("empty", "full", "full_like", "multiply", "reshape", "transpose")
"""Fills, views and products that were not looked up; PaddleNLP's bfloat16 recipes for this plug-in need them too."""

WITHOUT = ("squeeze", "subtract")
"""Looked up, and registered in float16 and float32 but not in bfloat16 (with their gradients)."""

BFLOAT16 = NAMED + ASSUMED
"""All other kernels are objected to in bfloat16."""

ON_THE_HOST = (
    *("bicubic_interp", "flash_attn", "fused_rotary_position_embedding", "index_add", "masked_fill"),
    *("put_along_axis", "repeat_interleave", "set_value", "set_value_with_tensor", "unfold", "unique"),
    "weight_only_linear",
)
"""Kernels that are computed on the host in every dtype: none in the plug-in, or on CUSTOM_DEVICE_BLACK_LIST."""

WAITS = ("index_put", "masked_select", "nll_loss", "nonzero", "topk")
"""Kernels in which the host waits for the device."""

NO_BOOL = ("argmax", "cumsum", "where")

_LINE = re.compile(r"\] (\w+) API kernel key: \[(\w+), [^\],]*, (\w+)\]")


class Used(NamedTuple):
    """One kernel: its name without ``_grad`` or the mark of an in-place form, and the dtype it was chosen for."""

    operator: str
    dtype: str
    gradient: bool


def read_log(lines: Iterable[str], device: str | None = None) -> set[Used]:
    """All kernels of a log; with ``device`` (``npu``, ``CPU``) only those that were asked for on it."""
    found = set()
    for line in lines:
        match = _LINE.search(line)
        if match and device in (None, match[2]):
            name = match[1].rstrip("_")
            found.add(Used(name.removesuffix("_grad"), match[3], name.endswith("_grad")))
    return found


def objections(used: Iterable[Used]) -> list[str]:
    """A sentence for each kernel that a plug-in may lack, or in which the host waits; sorted."""
    return sorted(filter(None, map(_objection, used)))


def _objection(used: Used) -> str | None:
    name = f"{used.operator}{'_grad' if used.gradient else ''} in {used.dtype}"
    if used.operator in ON_THE_HOST:
        return f"{name}: computed on the host"
    if used.operator in WAITS:
        return f"{name}: the host waits for the device"
    if used.dtype == "bfloat16" and used.operator in WITHOUT:
        return f"{name}: the plug-in has no form for bfloat16"
    if used.dtype == "bfloat16" and used.operator not in BFLOAT16:
        return f"{name}: not known to be in the plug-in"
    if used.dtype == "bool" and used.operator in NO_BOOL:
        return f"{name}: the plug-in has no form for bool"
    return None
