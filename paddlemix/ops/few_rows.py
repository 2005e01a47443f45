# SPDX-License-Identifier: Apache-2.0
"""Products of a few rows on a CPU, by kernels that this machine compiles (``few_rows.c``): the rows of a step.

Measured on AMD Zen 4 whose memory gives 29 GB/s: 22 to 30 GB of weights a second for 1 to 4 rows and 18 to 22 for 8,
where MKL's product reaches 20 to 24 for one row and 8 to 12 for more.
"""

import ctypes
import functools
from collections.abc import Callable, Iterable
from pathlib import Path

import paddle
from paddle import Tensor

from paddlemix.ops.low_bits import build
from paddlemix.utils import device
from paddlemix.utils.logging import get_logger

SOURCE = Path(__file__).with_suffix(".c")
MOST = 8
"""Rows of x that the kernels know."""
LEAST = 1 << 18
"""Values of a weight from which on reading it is what takes the time."""
LANES = 16
"""Columns of a weight are a multiple of it: what is left over would be added up one by one."""


def prepare(weights: Iterable[Tensor]) -> None:
    """Compile now what the first step with any of ``weights`` (any shapes and dtypes) would wait for, on a CPU."""
    if paddle.get_device() == "cpu" and any(weight.ndim == 2 and weight.size >= LEAST for weight in weights):
        _kernel()


def product(x: Tensor, weight: Tensor) -> Tensor | None:
    """Float32 ``x`` [..., in] times ``weight`` [in, out], to [..., out]; None: paddle's own product is to serve.

    That is so for many rows, small weights, other dtypes and devices, in graphs, and while gradients are on.
    """
    if not paddle.in_dynamic_mode() or paddle.is_grad_enabled():
        return None
    width, out = weight.shape
    rows = x.size // width
    if not 0 < rows <= MOST or width * out < LEAST or out % LANES:
        return None
    if x.shape[-1] != width:  # the kernel would write past its result; paddle says what is wrong
        return None
    if not x.place.is_cpu_place() or not x.dtype == weight.dtype == paddle.float32:
        return None
    kernel = _kernel()
    if kernel is None or not weight.is_contiguous():
        return None
    x = x if x.is_contiguous() else x.contiguous()
    y = paddle.empty([*x.shape[:-1], out], dtype="float32")
    kernel(x.data_ptr(), weight.data_ptr(), y.data_ptr(), rows, width, out)
    return y


@functools.cache
def _kernel() -> Callable[[int, int, int, int, int, int], None] | None:
    """Called with the addresses of x, weight and result, and their sizes. None where there is none, told once."""
    if not device.tunes_cpu():
        return None
    try:
        call = build.library(SOURCE).paddlemix_few_rows
    except build.NoKernelsError as error:
        get_logger(__name__).info(f"products of up to {MOST} rows: by MKL, which takes longer ({error})")
        return None
    call.argtypes = [*[ctypes.c_void_p] * 3, *[ctypes.c_long] * 3, ctypes.c_void_p, ctypes.c_int]
    call.restype = None
    fork, threads = build.team()
    get_logger(__name__).info(f"products of up to {MOST} rows: by kernels compiled here")
    return lambda *given: call(*given, fork, 1 if threads is None else threads())
