# SPDX-License-Identifier: Apache-2.0
"""Products with weights of few bits: compiled kernels or numpy on a CPU, paddle's operator on a card.

    weights = hold(runtime, [packed])         # the kernel is chosen, and reported, once
    y = weights.product(x, bias)              # [..., in] to [..., out]

On a CPU activations stay float32 and each code is widened on its way: the codes are read where they lie, in a mapped
file too. Many rows at once are multiplied by paddle's own product, a portion of the weight at a time.
"""

import ctypes
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import paddle
from paddle import Tensor, nn

from paddlemix.ops.dispatch import Kernel, Operator
from paddlemix.ops.low_bits import build
from paddlemix.ops.low_bits.form import Packed
from paddlemix.ops.npu import library
from paddlemix.ops.runtime import Runtime
from paddlemix.utils.errors import BackendError
from paddlemix.utils.logging import get_logger

NAME = "LOW_BITS"

FEW_ROWS = 16
"""Rows up to which widening each code on its way is faster than widening a portion for paddle's product."""

_PORTION = 1 << 20
"""Values that are widened at a time: the portion is still in the cache when it is multiplied."""


class Request(NamedTuple):
    """What a kernel is asked about."""

    bits: int
    shapes: tuple[tuple[int, int], ...]
    """(out, in) of each weight."""


class Weights(Protocol):
    """Weights that are held by one kernel. ``shape`` is (out, in) of all of them side by side, ``bits`` the fewest."""

    bits: int
    shape: tuple[int, int]
    parts: Sequence[Packed]

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x`` [..., in] times the weights, plus ``bias`` [out], to [..., out] in the dtype of x.

        On a CPU ValueError: x has rows of another width.
        """

    def joins(self, x: Tensor) -> bool:
        """Whether the product of ``x`` [..., in] gains when several weights are side by side."""

    def rows(self, ids: Tensor) -> Tensor:
        """The rows of the weight that int64 ``ids`` [...] name: float32 [..., in]. ValueError: there is no such row."""


class _OnCpu:
    """What both kernels of a CPU have in common: many rows go through paddle's product."""

    def __init__(self, parts: Sequence[Packed]) -> None:
        self.parts = list(parts)
        self.bits = min(part.bits for part in self.parts)
        self.shape = (sum(part.shape[0] for part in self.parts), self.parts[0].shape[1])

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """See ``Weights``."""
        self._check(x)
        pieces = list(self._pieces(x.reshape([-1, self.shape[1]])))
        out = pieces[0] if len(pieces) == 1 else paddle.concat(pieces, axis=-1)
        out = out.reshape([*x.shape[:-1], self.shape[0]])
        return out if bias is None else out + bias

    def joins(self, x: Tensor) -> bool:
        """See ``Weights``: x is [..., in]."""
        return math.prod(x.shape[:-1]) <= FEW_ROWS

    def _pieces(self, rows: Tensor) -> Iterator[Tensor]:
        """``rows`` [N, in] times one portion of the weights after another: [N, n] each."""
        step = max(1, _PORTION // self.shape[1])
        for number, part in enumerate(self.parts):
            for first in range(0, part.shape[0], step):
                wide = self.widened(number, first, min(step, part.shape[0] - first))
                yield paddle.matmul(rows, wide, transpose_y=True)

    def _check(self, x: Tensor) -> None:
        if x.shape[-1] != self.shape[1]:
            raise ValueError(f"rows of {x.shape[-1]} values for a weight of {self.shape[1]} inputs")

    def widened(self, number: int, first: int, count: int) -> Tensor:
        """Rows ``first`` to ``first + count`` of part ``number`` as float32 [count, in]."""
        raise NotImplementedError


class Plain(_OnCpu):
    """By numpy and paddle alone: correct everywhere, and several times slower than float32."""

    def widened(self, number: int, first: int, count: int) -> Tensor:
        """See ``_OnCpu``: float32 [count, in]."""
        return paddle.to_tensor(self.parts[number].rows(first, first + count))

    def rows(self, ids: Tensor) -> Tensor:
        """See ``Weights``: float32 [..., in]."""
        (part,) = self.parts
        chosen = ids.numpy().reshape(-1)
        if chosen.size and not 0 <= chosen.min() <= chosen.max() < self.shape[0]:
            raise ValueError(_no_row(chosen, self.shape[0]))
        scales = None if part.scales is None else part.scales[chosen]
        picked = Packed(part.bits, (len(chosen), part.shape[1]), part.codes[chosen], scales)
        return paddle.to_tensor(picked.rows(0, len(chosen))).reshape([*ids.shape, self.shape[1]])


class Compiled(_OnCpu):
    """By the kernels of ``kernels.c``. The sum of a row does not depend on the other rows or on the threads."""

    def __init__(self, parts: Sequence[Packed]) -> None:
        super().__init__(parts)
        found = build.library()
        self._product, self._widen, self._rows, self._put = (
            _typed(getattr(found, f"paddlemix_{name}"), kinds) for name, kinds in _ARGUMENTS.items()
        )
        self._fork, self._threads = build.team()
        # The arrays are kept by ``parts``; ctypes would look their addresses up again in each call.
        self._places = [(_address(part.codes), _address(part.scales), part.shape[0]) for part in self.parts]
        self._device = paddle.CPUPlace()

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """See ``Weights``: float32 [..., out]."""
        out, width = self.shape
        if not paddle.in_dynamic_mode():
            raise BackendError(f"a weight of {self.bits} bits is not traced into a static graph; export the floats")
        before = x.shape[:-1]
        self._check(x)  # the kernel would read past the rows
        rows = math.prod(before)  # x.size would be an operator
        if x.dtype != paddle.float32:
            return super().product(x, bias)
        if rows > FEW_ROWS:
            return self._of_many(x, bias)
        x = x if x.is_contiguous() else x.contiguous()
        y = paddle._C_ops.empty([*before, out], paddle.float32, self._device)  # paddle.empty takes 3 us more
        place, given, added = y.data_ptr(), x.data_ptr(), None if bias is None else bias.data_ptr()
        for part, (codes, scales, count) in zip(self.parts, self._places, strict=True):
            if self._product(
                part.bits, codes, scales, given, rows, width, count, place, out, added, self._fork, self._team()
            ):
                raise MemoryError(f"no memory for {rows} rows of {width} values")
            place += 4 * count
            added = None if added is None else added + 4 * count
        return y

    def table(self, most: int) -> list[int]:
        """Bits, address of codes and of scales (0: none) and outputs of each part, and zeros up to ``most`` parts."""
        found = []
        for part, (codes, scales, count) in zip(self.parts, self._places, strict=True):
            found += [part.bits, codes, scales or 0, count]
        return found + [0] * (4 * most - len(found))

    def _of_many(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Each portion's product goes to its place at once: joined at the end, they would be in memory twice."""
        flat, out = x.reshape([-1, self.shape[1]]), self.shape[0]
        rows = flat.shape[0]
        y = paddle.empty([*x.shape[:-1], out], dtype="float32")
        place, added = y.data_ptr(), None if bias is None else bias.data_ptr()
        for piece in self._pieces(flat):
            count = piece.shape[1]
            self._put(piece.data_ptr(), rows, count, place, out, added)
            place += 4 * count
            added = None if added is None else added + 4 * count
        return y

    def widened(self, number: int, first: int, count: int) -> Tensor:
        """See ``_OnCpu``: float32 [count, in]."""
        y = paddle.empty([count, self.shape[1]], dtype="float32")
        codes, scales, _ = self._places[number]
        bits, width = self.parts[number].bits, self.shape[1]
        self._widen(bits, codes, scales, first, count, width, y.data_ptr(), self._fork, self._team())
        return y

    def rows(self, ids: Tensor) -> Tensor:
        """See ``Weights``: float32 [..., in]."""
        ids = ids.astype("int64").contiguous()
        y = paddle.empty([*ids.shape, self.shape[1]], dtype="float32")
        codes, scales, out = self._places[0]
        count, width = math.prod(ids.shape), self.shape[1]
        if self._rows(self.bits, codes, scales, ids.data_ptr(), count, width, out, y.data_ptr()):
            raise ValueError(_no_row(ids.numpy().reshape(-1), self.shape[0]))
        return y

    def _team(self) -> int:
        return 1 if self._threads is None else self._threads()


class Table(nn.Layer):
    """A table of tokens of few bits, in place of ``nn.Embedding``."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.low_bits = weights

    def forward(self, ids: Tensor) -> Tensor:
        """``[B, L]`` ids to float32 ``[B, L, D]``. ValueError: an id has no row."""
        return self.low_bits.rows(ids)


class OnCard:
    """By paddle's ``weight_only_linear``, whose codes lie in an order of the card's own.

    Its groups are of 64 values, so the values of a file are rounded once more there.
    """

    group = 64

    def __init__(self, parts: Sequence[Packed]) -> None:
        from paddle.nn import quant

        self.parts = list(parts)
        self.bits = self.parts[0].bits
        self.shape = (sum(part.shape[0] for part in self.parts), self.parts[0].shape[1])
        values = np.concatenate([part.rows(0, part.shape[0]) for part in self.parts]).T
        dtype = "bfloat16" if paddle.amp.is_bfloat16_supported() else "float16"
        weight = paddle.to_tensor(np.ascontiguousarray(values)).astype(dtype)
        self._codes, self._scales = quant.weight_quantize(
            weight, algo=f"weight_only_int{self.bits}", group_size=self.group
        )
        self._linear = quant.weight_only_linear
        self.parts = []  # what the card holds now

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """See ``Weights``: float32 [..., out]."""
        return self._linear(
            x, self._codes, bias=bias, weight_scale=self._scales.astype(x.dtype), weight_dtype=f"int{self.bits}",
            group_size=self.group,
        )  # fmt: skip

    def joins(self, x: Tensor) -> bool:
        """See ``Weights``: x is [..., in]."""
        return True

    def rows(self, ids: Tensor) -> Tensor:
        """A card keeps its table of tokens in 16 bits."""
        raise NotImplementedError


_INT, _LONG, _PLACE = ctypes.c_int, ctypes.c_long, ctypes.c_void_p
_WEIGHT = (_INT, _PLACE, _PLACE)
_ARGUMENTS = {
    "product": (*_WEIGHT, _PLACE, _LONG, _LONG, _LONG, _PLACE, _LONG, _PLACE, _PLACE, _INT),
    "widen": (*_WEIGHT, _LONG, _LONG, _LONG, _PLACE, _PLACE, _INT),
    "rows": (*_WEIGHT, _PLACE, _LONG, _LONG, _LONG, _PLACE),
    "put": (_PLACE, _LONG, _LONG, _PLACE, _LONG, _PLACE),
}
"""Of the functions of ``kernels.c``: bits, codes, scales (where there is a weight), then what each is about."""


def _typed(function: Any, kinds: tuple[type, ...]) -> Any:
    function.argtypes = kinds
    return function


def _address(array: np.ndarray | None) -> int | None:
    return None if array is None else array.ctypes.data


def _no_row(ids: np.ndarray, count: int) -> str:
    wrong = next(int(number) for number in ids if not 0 <= number < count)
    return f"id {wrong}: the table has rows 0 to {count - 1}"


@functools.cache
def _tell_slow(reason: str) -> None:
    get_logger(__name__).warning(
        f"weights of few bits are widened by numpy, several times slower than float32: {reason}; with a C compiler "
        "(gcc, clang) on the PATH they are faster"
    )


def _why_not_compiled(runtime: Runtime, request: Request) -> str | None:
    return build.why_not()


def _why_not_card(runtime: Runtime, request: Request) -> str | None:
    if request.bits not in (8, 4):
        return f"a card has weights of 8 and 4 bits, not of {request.bits}"
    if any(out % 16 or width % OnCard.group for out, width in request.shapes):
        return f"weight_only_linear takes widths that are multiples of {OnCard.group}, and 16 for what comes out"
    if not hasattr(paddle.nn.quant, "weight_only_linear"):
        return "this paddle has no weight_only_linear"
    if runtime.device == "npu" and not library.kernel_dtypes("weight_only_linear"):
        return "the npu plug-in has no weight_only_linear"
    return None


def _plain(runtime: Runtime, request: Request) -> str | None:
    return None


LOW_BITS = Operator(
    NAME,
    (
        Kernel("card", _why_not_card, OnCard, ("gpu", "npu")),
        Kernel("compiled", _why_not_compiled, Compiled, ("cpu",)),
        Kernel("plain", _plain, Plain, ("cpu",)),
    ),
    cost="weights of 8 and 4 bits are refused",
    plugin="weight_only_linear",
)
"""Its kernels make ``Weights`` of the ``Packed`` parts that they are called with."""


def why_not(runtime: Runtime, bits: int, *shapes: tuple[int, int]) -> str | None:
    """Why a model cannot hold weights of so many bits, of the ``shapes`` (out, in), on the device of ``runtime``."""
    try:
        LOW_BITS.choose(runtime, Request(bits, shapes))
    except BackendError as error:
        return str(error)
    return None


def hold(runtime: Runtime, parts: Sequence[Packed]) -> Weights:
    """``parts`` of one width and number of bits, side by side, by the kernel that serves them on this device."""
    request = Request(parts[0].bits, tuple(part.shape for part in parts))
    kernel = runtime.keep((NAME, request), lambda: LOW_BITS.choose(runtime, request))
    reason = build.why_not() if kernel.call is Plain and not runtime.choice(NAME).forced else None
    if reason is not None:
        _tell_slow(reason)
    return kernel.call(parts)
