# SPDX-License-Identifier: Apache-2.0
"""Operators without gradients on a CPU, by kernels that this machine compiles (``few_rows.c``).

``product``, ``put`` and ``attend`` are those of a decode step, whose rows are few; the others know any number of rows.
Each function gives None where paddle's own operators are to serve: for small layers (a compiler would take longer than
all of their steps), other dtypes and devices, while gradients are on, and in graphs, unless one is traced ``by`` what
has them as operators.

Products, measured on AMD Zen 4 whose memory gives 29 GB/s: 22 to 30 GB of weights a second for 1 to 4 rows and 18 to
22 for 8, where MKL's product reaches 20 to 24 for one row and 8 to 12 for more.
"""

import contextlib
import ctypes
import functools
import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import paddle
from paddle import Tensor

from paddlemix.ops.low_bits import build
from paddlemix.utils import device
from paddlemix.utils.logging import get_logger

SOURCE = Path(__file__).with_suffix(".c")
MOST = 8
"""Rows that the products know."""
WIDE = 512
"""Width of a row from which on there is a weight of ``LEAST`` values beside it."""
LEAST = 1 << 18
"""Values of a weight from which on reading it is what takes the time."""
LANES = 16
"""Columns of a weight are a multiple of it: what is left over would be added up one by one."""


class _Here(threading.local):
    """What a block asks for, in its thread alone: others may ask or train models meanwhile."""

    traced_by: Any = None
    kept_away = False


_here = _Here()


@contextlib.contextmanager
def traced_by(operators: Any) -> Iterator[None]:
    """Within the block the functions of ``operators`` (``step_operator``) trace a graph: no tensor has values."""
    before, _here.traced_by = _here.traced_by, operators
    try:
        yield
    finally:
        _here.traced_by = before


@contextlib.contextmanager
def kept_away() -> Iterator[None]:
    """Within the block paddle's operators serve: what is compared with a pass with gradients shall be its numbers."""
    before, _here.kept_away = _here.kept_away, True
    try:
        yield
    finally:
        _here.kept_away = before


def prepare(weights: Iterable[Tensor]) -> None:
    """Compile now what the first step with any of ``weights`` (any shapes and dtypes) would wait for, on a CPU."""
    if paddle.get_device() == "cpu" and any(weight.ndim == 2 and weight.size >= LEAST for weight in weights):
        compiled()


def product(x: Tensor, weight: Tensor) -> Tensor | None:
    """Float32 ``x`` [..., in] times ``weight`` [in, out], to [..., out]."""
    if not may_serve():
        return None
    width, out = weight.shape
    rows = _rows(x)
    if not 0 < rows <= MOST or width * out < LEAST or out % LANES:
        return None
    if x.shape[-1] != width:  # the kernel would write past its result; paddle says what is wrong
        return None
    if not readable(x, weight) or (kernels := compiled()) is None:
        return None
    y = _new([*x.shape[:-1], out])
    kernels.product(x.data_ptr(), weight.data_ptr(), y.data_ptr(), rows, width, out, *kernels.team())
    return y


def biased(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor | None:
    """Float32 ``x`` [..., in] times ``weight`` [in, out] plus ``bias`` [out], to [..., out], for many rows.

    Paddle multiplies, and the bias is added where the product lies: paddle's own way takes up to a tenth of it.
    """
    width = bias.shape[0]
    if width < WIDE or width % LANES or weight.shape[-1] != width:
        return None
    if _here.traced_by is not None:
        return _here.traced_by.add_bias(paddle.matmul(x, weight), bias)
    if not may_serve() or not readable(x, weight, bias) or not (rows := _rows(x)) or (kernels := compiled()) is None:
        return None
    y = paddle.matmul(x, weight)
    kernels.add_bias(y.data_ptr(), bias.data_ptr(), rows, width, *kernels.team())
    return y


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor | None:
    """Float32 ``x / sqrt(mean(x * x) + epsilon) * weight`` of ``x`` [..., D] and ``weight`` [D]."""
    width = x.shape[-1]
    if width < WIDE or weight.shape != [width]:
        return None
    if _here.traced_by is not None:
        return _here.traced_by.rms_norm(x, weight, epsilon)
    if not may_serve() or not (rows := _rows(x)) or not readable(x, weight) or (kernels := compiled()) is None:
        return None
    y = _new(x.shape)
    kernels.rms_norm(x.data_ptr(), weight.data_ptr(), y.data_ptr(), rows, width, epsilon, *kernels.team())
    return y


def swiglu(both: Tensor) -> Tensor | None:
    """Float32 ``silu(gate) * up`` [..., I] of ``both`` [..., 2 I], gate first."""
    inner, odd = divmod(both.shape[-1], 2)
    if inner < WIDE or inner % LANES or odd:
        return None
    if _here.traced_by is not None:
        return _here.traced_by.swiglu(both)
    if not may_serve() or not (rows := _rows(both)) or not readable(both) or (kernels := compiled()) is None:
        return None
    y = _new([*both.shape[:-1], inner])
    kernels.swiglu(both.data_ptr(), y.data_ptr(), rows, inner, *kernels.team())
    return y


def quick_gelu(x: Tensor) -> Tensor | None:
    """Float32 ``x * sigmoid(1.702 x)`` of ``x`` [..., D]."""
    width = x.shape[-1] if x.shape else 0
    if width < WIDE or width % LANES:
        return None
    if _here.traced_by is not None:
        return _here.traced_by.quick_gelu(x)
    if not may_serve() or not (rows := _rows(x)) or not readable(x) or (kernels := compiled()) is None:
        return None
    y = _new(x.shape)
    kernels.quick_gelu(x.data_ptr(), y.data_ptr(), rows, width, *kernels.team())
    return y


def turn(
    joined: Tensor, cosine: Tensor, sine: Tensor, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor] | None:
    """q ``[B, L, H, D]`` and k, v ``[B, L, Hk, D]`` of ``joined`` [B, L, (H + 2 Hk) D], q and k turned; all float32.

    ``cosine`` and ``sine`` are [B, L, 1, D], sine with the sign of the turn.
    """
    batch, length, columns = joined.shape
    width = cosine.shape[-1]
    if columns < WIDE or columns != (heads + 2 * kv_heads) * width:
        return None
    if _here.traced_by is not None:
        return _here.traced_by.turn(joined, cosine, sine, heads, kv_heads)
    if not may_serve() or not (rows := batch * length) or not cosine.shape == sine.shape == [batch, length, 1, width]:
        return None  # tables that all rows share are for paddle, and what does not fit is for it to tell
    if not readable(joined, cosine, sine) or (kernels := compiled()) is None:
        return None
    q = _new([batch, length, heads, width])
    k, v = (_new([batch, length, kv_heads, width]) for _ in range(2))
    tensors = (joined, cosine, sine, q, k, v)
    kernels.turn(*[one.data_ptr() for one in tensors], rows, heads, kv_heads, width, *kernels.team())
    return q, k, v


def put(held: Sequence[Tensor], new: Sequence[Tensor], offset: int | Tensor) -> bool:
    """Write each ``new`` [B, Hk, 1, D] to place ``offset`` (a number, or int64 [B]) of its ``held`` [B, Hk, M, D].

    All float32 and of one shape; ``new`` may as well be [B, 1, Hk, D]. False: nothing is written. Only where the
    kernels are loaded already: it gives what paddle's operators would.
    """
    if not may_serve() or not compiled.cache_info().currsize or (kernels := compiled()) is None:
        return False
    if not held or len(new) != len(held):
        return False
    shape = held[0].shape
    rows, kv_heads, places, width = shape
    forms = [rows, kv_heads, 1, width], [rows, 1, kv_heads, width]
    if not readable(*held, *new) or not all(one.shape == shape for one in held):
        return False
    offsets, number = _places(offset, rows)
    if number is None or not all(one.shape in forms for one in new):
        return False
    for one, kept in zip(new, held, strict=True):
        kernels.put(one.data_ptr(), kept.data_ptr(), offsets, number, rows, kv_heads, places, width)
    return True


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    offset: int | Tensor,
    starts: Tensor | None,
    lengths: Tensor | None,
    scale: float,
) -> Tensor | None:
    """One query ``[B, 1, H, D]`` a row over k and v ``[B, Hk, M, D]``, all float32; what is seen: ``Mask``."""
    batch, _, heads, width = q.shape
    if heads * width < WIDE or not may_serve():
        return None
    shape = k.shape
    if shape != [batch, shape[1], shape[2], width] or v.shape != shape or heads % shape[1]:
        return None
    if not readable(q, k, v) or (kernels := compiled()) is None:
        return None
    addresses = limits(offset, starts, lengths, batch)
    if addresses is None:
        return None
    y = _new([batch, 1, heads, width])
    sizes = batch, heads, shape[1], shape[2], width
    tensors = (one.data_ptr() for one in (q, k, v, y))
    kernels.attend(*tensors, *addresses, int(causal), *sizes, scale, *kernels.team())
    return y


def attend_many(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    offset: int | Tensor,
    starts: Tensor | None,
    lengths: Tensor | None,
    scale: float,
    kv_heads_first: bool,
) -> Tensor | None:
    """Queries ``[B, L, H, D]`` over k and v ``[B, Lk, Hk, D]`` (``[B, Hk, Lk, D]``), float32; seen: ``Mask``."""
    batch, queries, heads, width = q.shape
    shape = k.shape
    kv_heads, places = (shape[1], shape[2]) if kv_heads_first else (shape[2], shape[1])
    if heads * width < WIDE or shape[0] != batch or shape[3] != width or v.shape != shape or heads % kv_heads:
        return None
    if _here.traced_by is not None:  # a tower: a prompt's keys lie in two tensors then
        plain = not causal and starts is None and lengths is None and not kv_heads_first
        return _here.traced_by.attend_all(q, k, v, scale) if plain else None
    if not may_serve() or not min(batch, queries, places) or not readable(q, k, v) or (kernels := compiled()) is None:
        return None
    addresses, multiply = limits(offset, starts, lengths, batch), build.multiply()
    if addresses is None or multiply is None:
        return None
    y = _new([batch, queries, heads, width])
    apart = (width, places * width) if kv_heads_first else (kv_heads * width, width)
    tensors = q.data_ptr(), k.data_ptr(), v.data_ptr(), 0, 0, y.data_ptr()
    sizes = batch, queries, heads, kv_heads, places, width, *apart, places * kv_heads * width
    if kernels.attend_many(*tensors, *addresses, int(causal), *sizes, scale, multiply, *kernels.team()):
        raise MemoryError(f"no memory for the scores of {queries} queries over {places} keys")
    return y


def attend_parts(
    q: Tensor,
    held: tuple[Tensor, Tensor],
    own: tuple[Tensor, Tensor],
    offset: Tensor,
    starts: Tensor,
    scale: float,
) -> Tensor | None:
    """Queries ``[B, L, H, D]`` over a cache that is only read, and up to their own keys: see ``step_operator.attend``.

    In a graph alone, as a cache that can be written to holds both.
    """
    if _here.traced_by is None or q.shape[2] * q.shape[3] < WIDE:
        return None
    return _here.traced_by.attend(q, held, own, offset, starts, scale)


def limits(
    offset: int | Tensor, starts: Tensor | None, lengths: Tensor | None, rows: int
) -> tuple[int, int, int, int] | None:
    """Addresses of what ``Mask`` says of ``rows`` rows, each int64 [rows] or 0, and the offset if it is a number.

    None for tensors that a kernel cannot read.
    """
    offsets, number = _places(offset, rows)
    first, last = (0 if limit is None else _places(limit, rows)[0] for limit in (starts, lengths))
    if offsets is None or number is None or first is None or last is None:
        return None
    return offsets, first, last, number


def _places(places: int | Tensor, rows: int) -> tuple[int | None, int | None]:
    """Address of int64 [rows] and 0, or 0 and the number; (None, None) for a tensor that a kernel cannot read."""
    if isinstance(places, int):
        return 0, places
    if places.shape != [rows] or places.dtype != paddle.int64:
        return None, None
    if not places.place.is_cpu_place() or not places.is_contiguous():
        return None, None
    return places.data_ptr(), 0


def may_serve() -> bool:
    """Whether the kernels may serve at all: no graph is traced, no gradients are kept, and nobody keeps them away."""
    return paddle.in_dynamic_mode() and not paddle.is_grad_enabled() and not _here.kept_away


def readable(*tensors: Tensor) -> bool:
    """Whether a kernel can read all of them: float32 on a CPU, one row behind the other."""
    for one in tensors:  # written out: it is asked a hundred times in a step
        if one.dtype != _FLOAT32 or not one.place.is_cpu_place() or not one.is_contiguous():
            return False
    return True


def _rows(x: Tensor) -> int:
    """``[..., D]`` counted by its shape, as ``Tensor.size`` takes 6 us."""
    return math.prod(x.shape[:-1])


def _new(shape: list[int]) -> Tensor:
    """Float32 memory of ``shape``; ``paddle.empty`` around it takes 3 us more."""
    return paddle._C_ops.empty(shape, _FLOAT32, _CPU)


_FLOAT32, _CPU = paddle.float32, paddle.CPUPlace()

_SIGNATURES: dict[str, list[Any]] = {
    "product": [*[ctypes.c_void_p] * 3, *[ctypes.c_long] * 3, ctypes.c_void_p, ctypes.c_int],
    "rms_norm": [*[ctypes.c_void_p] * 3, *[ctypes.c_long] * 2, ctypes.c_float, ctypes.c_void_p, ctypes.c_int],
    "swiglu": [*[ctypes.c_void_p] * 2, *[ctypes.c_long] * 2, ctypes.c_void_p, ctypes.c_int],
    "quick_gelu": [*[ctypes.c_void_p] * 2, *[ctypes.c_long] * 2, ctypes.c_void_p, ctypes.c_int],
    "add_bias": [*[ctypes.c_void_p] * 2, *[ctypes.c_long] * 2, ctypes.c_void_p, ctypes.c_int],
    "turn": [*[ctypes.c_void_p] * 6, *[ctypes.c_long] * 4, ctypes.c_void_p, ctypes.c_int],
    "put": [*[ctypes.c_void_p] * 3, *[ctypes.c_long] * 5],
    "attend": [*[ctypes.c_void_p] * 7, *[ctypes.c_long] * 7, ctypes.c_float, ctypes.c_void_p, ctypes.c_int],
    "attend_many": [
        *[ctypes.c_void_p] * 9, *[ctypes.c_long] * 11, ctypes.c_float, *[ctypes.c_void_p] * 2, ctypes.c_int,
    ],
    "step": [
        ctypes.c_void_p, ctypes.c_long, *[ctypes.c_void_p] * 8, *[ctypes.c_long] * 8, *[ctypes.c_float] * 2,
        *[ctypes.c_void_p] * 2, ctypes.c_int,
    ],
}  # fmt: skip
"""Of the functions of ``few_rows.c``, which says what the arguments are."""


@functools.cache
def compiled() -> SimpleNamespace | None:
    """The functions by name, and ``team()``: fork function and threads. None where there are none, told once."""
    if not device.tunes_cpu():
        return None
    try:
        library = build.library(SOURCE)
    except build.NoKernelsError as error:
        get_logger(__name__).info(f"CPU kernels: none, paddle's operators serve and take longer ({error})")
        return None
    found = SimpleNamespace()
    for name, arguments in _SIGNATURES.items():
        call = getattr(library, f"paddlemix_{name}")
        call.argtypes, call.restype = arguments, ctypes.c_int if name in ("step", "attend_many") else None
        setattr(found, name, call)
    fork, threads = build.team()
    found.team = lambda: (fork, 1 if threads is None else threads())
    get_logger(__name__).info("CPU kernels: compiled here")
    return found
