# SPDX-License-Identifier: Apache-2.0
"""The kernels of ``few_rows.c`` as operators of paddle, which a graph can hold (``step_operator.cc``).

``step`` and ``product`` are those of a step; the others are what ``few_rows`` calls while a graph is traced by them.

A graph with them opens only where ``why_not`` gives None, that is where they can be compiled against the headers of the
installed paddle. They are registered once in a process.
"""

import ctypes
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import paddle
from paddle import Tensor

from paddlemix.ops import few_rows
from paddlemix.ops.low_bits import build
from paddlemix.ops.whole_step import Parts
from paddlemix.utils import device

SOURCE = Path(__file__).with_suffix(".cc")
COMPILERS = ("c++", "g++", "clang++")
_KERNELS = ("step", "product", "rms_norm", "swiglu", "quick_gelu", "add_bias", "turn", "attend_many")
"""What the operators call, in the order of ``step_operator.cc``."""


@functools.cache
def why_not() -> str | None:
    """Why this process has no such operators; None when they are registered. The first call may compile for seconds."""
    if not device.tunes_cpu():
        return "PADDLEMIX_CPU_TUNING=0"
    reason = build.why_not(few_rows.SOURCE)
    kernels = few_rows.compiled() if reason is None else None  # which would say it in a line of its own
    if kernels is None:
        return reason
    try:
        _register(kernels)
    except build.NoKernelsError as error:
        return str(error)
    except (RuntimeError, AttributeError, OSError) as error:  # another library of the same name, or one paddle refuses
        return f"the operators could not be registered ({str(error).strip().splitlines()[-1][:200]})"
    return None


def _register(kernels: SimpleNamespace) -> None:
    if not sys.platform.startswith("linux"):
        raise build.NoKernelsError(f"operators for graphs are built on Linux alone, this is {sys.platform}")
    if build.multiply() is None:
        raise build.NoKernelsError("this paddle does not multiply by MKL")
    library = build.library(_recipe())
    functions = [getattr(kernels, name) for name in _KERNELS] + [build.multiply(), *build.team()]
    addresses = (ctypes.c_void_p * len(functions))(*(ctypes.cast(one, ctypes.c_void_p).value for one in functions))
    if library.paddlemix_use(addresses, len(functions)):
        raise RuntimeError("the library has other kernels")
    paddle.base.core.load_op_meta_info_and_register_op(library._name)


def _recipe() -> build.Recipe:
    home = Path(paddle.__file__).parent
    flags = ("-O2", "-std=c++17", "-fPIC", "-shared", "-w")
    headers = (f"-I{home / 'include'}", f"-I{home / 'include' / 'third_party'}")
    libraries = (f"-L{home / 'base'}", "-l:libpaddle.so")
    made_for = f"{paddle.__version__} {paddle.version.commit}"
    return build.Recipe(SOURCE, COMPILERS, flags, (*headers, *libraries), native=False, made_for=made_for, stays=True)


def step(
    x: Tensor,
    tables: tuple[Tensor, Tensor],
    layers: Sequence[Parts],
    held: tuple[Sequence[Tensor], Sequence[Tensor]],
    offset: Tensor,
    starts: Tensor,
    heads: int,
    scale: float,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """A traced step: ``[B, 1, W]`` behind the last layer, and keys and values of the step, ``[B, 1, Hk, D]`` a layer.

    ``x`` [B, 1, W] with at most ``few_rows.MOST`` rows; ``tables`` [B, 1, 1, D] are cosine and sine; ``held`` are keys
    and values ``[B, Hk, M, D]`` of each layer, of which each row sees places ``starts`` to ``offset`` (int64 [B]), and
    itself. All float32, and of a form of which ``whole_step.table_of`` gives the table.
    """
    weights, first = [], layers[0]
    for layer in layers:
        found = (layer.norm.weight, layer.joined.weight, layer.joined.bias, layer.out.weight, layer.out.bias)
        found += (layer.second_norm.weight, layer.gate_up.weight, layer.down.weight)
        weights += [one for one in found if one is not None]
    biases = [int(one.bias is not None) for one in (first.joined, first.out)]
    y, *new = paddle._C_ops._run_custom_op(
        "paddlemix_step", x, *tables, offset, starts, weights, list(held[0]), list(held[1]), heads,
        first.down.in_features, *biases, first.norm.epsilon, scale,
    )  # fmt: skip
    keys, values = (paddle.unbind(one, axis=0) for one in new)
    return y, keys, values


def product(x: Tensor, weight: Tensor) -> Tensor:
    """A traced product [B, out]: float32 ``x`` [B, in] of few rows times ``weight`` [in, out], out a multiple of 16."""
    return paddle._C_ops._run_custom_op("paddlemix_product", x, weight)[0]


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Float32 ``x`` [..., D] and ``weight`` [D] to [..., D]: ``few_rows.rms_norm``, as those below."""
    return paddle._C_ops._run_custom_op("paddlemix_rms_norm", x, weight, epsilon)[0]


def swiglu(both: Tensor) -> Tensor:
    """Float32 [..., 2 I] to [..., I]."""
    return paddle._C_ops._run_custom_op("paddlemix_swiglu", both)[0]


def quick_gelu(x: Tensor) -> Tensor:
    """Float32 ``x`` [..., D] to the same shape, in its memory, which nobody else may read."""
    return paddle._C_ops._run_custom_op("paddlemix_quick_gelu", x)[0]


def add_bias(y: Tensor, bias: Tensor) -> Tensor:
    """Float32 [..., D] plus ``bias`` [D], in the memory of ``y``, which nobody else may read."""
    return paddle._C_ops._run_custom_op("paddlemix_add_bias", y, bias)[0]


def turn(joined: Tensor, cosine: Tensor, sine: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """q [B, L, H, D] and k, v [B, L, Hk, D] of ``joined`` [B, L, (H + 2 Hk) D] and tables [B, L, 1, D], float32."""
    q, k, v = paddle._C_ops._run_custom_op("paddlemix_turn", joined, cosine, sine, heads, kv_heads)
    return q, k, v


def attend_all(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Queries [B, L, H, D] over all keys and values [B, Lk, Hk, D], float32: [B, L, H, D]."""
    return paddle._C_ops._run_custom_op("paddlemix_attend_all", q, k, v, scale)[0]


def attend(
    q: Tensor,
    held: tuple[Tensor, Tensor],
    own: tuple[Tensor, Tensor],
    offset: Tensor,
    starts: Tensor,
    scale: float,
) -> Tensor:
    """Queries [B, L, H, D] over the filled places of a cache, and up to their own: [B, L, H, D].

    ``held`` are its keys and values [B, Hk, M, D], of which each row sees places ``starts`` to ``offset`` (int64 [B]);
    ``own`` [B, L, Hk, D] are those of the queries. All float32.
    """
    return paddle._C_ops._run_custom_op("paddlemix_attend", q, *held, *own, offset, starts, scale)[0]
