# SPDX-License-Identifier: Apache-2.0
"""How a weight of few bits lies in memory and in a file, and the rounding. numpy only.

A weight is ``[out, in]``, so that what is summed lies side by side. Each row is cut into groups of 32 values, the last
one filled with zeros, and each group has one scale (bfloat16, ``[out, groups]``):

    bits  codes                                                              value
    16    uint16 [out, groups * 32]: bfloat16                                the code; no scales
    8     int8 [out, groups * 32]                                            code * scale
    4     uint8 [out, groups * 16]: byte i of a group holds value i in its   (code - 8) * scale
          low half and value i + 16 in its high half
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

GROUP = 32
BITS = (16, 8, 4)
CODES = {16: "bfloat16", 8: "int8", 4: "uint8"}
"""Dtype of the codes in a file."""
SCALES = "_scales"
"""Behind the name of a weight: the tensor of its scales."""

_ARRAYS = {16: np.dtype("<u2"), 8: np.dtype("i1"), 4: np.dtype("u1")}
_BLOCK = 1 << 20
"""Values that are rounded at a time."""
_SHRUNK = (1.0, 0.94, 0.88)
"""Scales of 4 bits that are tried, as shares of the one that holds the largest value of a group."""


@dataclass(frozen=True, eq=False)
class Packed:
    """A weight of few bits. ``shape`` is (out, in) as the product sees it; the arrays may look into a file."""

    bits: int
    shape: tuple[int, int]
    codes: np.ndarray
    scales: np.ndarray | None

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def rows(self, first: int, last: int) -> np.ndarray:
        """Rows ``first`` to ``last`` as float32 ``[last - first, in]``."""
        scales = None if self.scales is None else self.scales[first:last]
        return unpack(self.codes[first:last], scales, self.bits, self.shape[1])


def groups_of(width: int) -> int:
    """Groups of a row of ``width`` values."""
    return -(-width // GROUP)


def shapes_of(shape: tuple[int, int], bits: int) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """Shapes of the codes and of the scales (None for 16 bits) of a weight ``(out, in)``."""
    out, groups = shape[0], groups_of(shape[1])
    codes = (out, groups * (GROUP // 2 if bits == 4 else GROUP))
    return codes, None if bits == 16 else (out, groups)


def nbytes_of(shape: tuple[int, int], bits: int) -> int:
    """Bytes of a weight ``(out, in)``, its scales included."""
    codes, scales = shapes_of(shape, bits)
    return math.prod(codes) * _ARRAYS[bits].itemsize + (0 if scales is None else 2 * math.prod(scales))


def empty(shape: tuple[int, int], bits: int) -> Packed:
    """A weight ``(out, in)`` whose codes and scales are to be filled in."""
    codes, scales = shapes_of(shape, bits)
    return Packed(bits, shape, np.empty(codes, _ARRAYS[bits]), None if scales is None else np.empty(scales, "<u2"))


def blocks_of(shape: tuple[int, int]) -> Iterator[slice]:
    """The rows of a weight ``(out, in)`` in portions that are rounded at a time."""
    step = max(1, _BLOCK // max(1, shape[1]))
    return (slice(first, min(first + step, shape[0])) for first in range(0, shape[0], step))


def packed(values: np.ndarray | Callable[[slice], np.ndarray], shape: tuple[int, int], bits: int) -> Packed:
    """A weight ``[out, in]`` of float32 values, or of what ``values`` gives for a slice of its rows, in ``bits``.

    ValueError when a value is NaN or infinite. Beyond the result it needs the memory of a portion.
    """
    read = values if callable(values) else values.__getitem__
    made = empty(shape, bits)
    for rows in blocks_of(shape):
        codes, scales = pack(read(rows), bits)
        made.codes[rows] = codes
        if made.scales is not None:
            made.scales[rows] = scales
    return made


def pack(values: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray | None]:
    """float32 ``[n, in]`` to codes and scales, each value to the nearest code. ValueError: a value is not finite."""
    if not np.isfinite(values).all():
        raise ValueError("NaN or infinity")
    rows, width = values.shape
    groups = groups_of(width)
    if groups * GROUP != width:
        filled = np.zeros((rows, groups * GROUP), np.float32)
        filled[:, :width] = values
        values = filled
    if bits == 16:
        return _to_bfloat16(values), None
    grouped = np.ascontiguousarray(values, np.float32).reshape(rows, groups, GROUP)
    if bits == 8:
        scales = _to_bfloat16(np.abs(grouped).max(-1) * np.float32(1 / 127))
        return np.clip(_codes(grouped, from_bfloat16(scales)), -127, 127).astype(np.int8).reshape(rows, -1), scales
    codes, scales = _best_of_four(grouped)
    unsigned = (codes + 8).astype(np.uint8)
    return (unsigned[..., : GROUP // 2] | unsigned[..., GROUP // 2 :] << 4).reshape(rows, -1), scales


def _best_of_four(grouped: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The value of the largest magnitude becomes -8, or a little is cut off it where the others gain more.

    Of each try the scale is the one with the least squares for its codes.
    """
    place = np.abs(grouped).argmax(-1)[..., None]
    largest = np.take_along_axis(grouped, place, -1)[..., 0] * np.float32(-1 / 8)
    best: tuple[np.ndarray, ...] = ()
    for share in _SHRUNK:
        steps = largest * np.float32(share)
        codes = np.clip(_codes(grouped, steps), -8, 7)
        squares = (codes * codes).sum(-1)
        scales = _to_bfloat16((codes * grouped).sum(-1) / np.where(squares == 0, np.float32(1), squares))
        wrong = np.square(codes * from_bfloat16(scales)[..., None] - grouped).sum(-1)
        if not best:
            best = codes, scales, wrong
            continue
        better = wrong < best[2]
        best = (
            np.where(better[..., None], codes, best[0]),
            np.where(better, scales, best[1]),
            np.where(better, wrong, best[2]),
        )
    return best[0], best[1]


def _codes(grouped: np.ndarray, steps: np.ndarray) -> np.ndarray:
    return np.rint(grouped / np.where(steps == 0, np.float32(1), steps)[..., None])


def unpack(codes: np.ndarray, scales: np.ndarray | None, bits: int, width: int) -> np.ndarray:
    """Codes and scales of some rows to float32 ``[n, width]``."""
    rows = len(codes)
    if bits == 16:
        return from_bfloat16(codes[:, :width])
    if bits == 4:
        pairs = codes.reshape(rows, -1, GROUP // 2)
        values = np.concatenate([pairs & 15, pairs >> 4], -1).astype(np.float32) - np.float32(8)
    else:
        values = codes.reshape(rows, -1, GROUP).astype(np.float32)
    values *= from_bfloat16(scales)[..., None]
    return values.reshape(rows, -1)[:, :width]


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """bfloat16 (as uint16, any shape) as float32: the bits are the upper half."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def are_finite(bits: np.ndarray) -> bool:
    """Whether bfloat16 values (as uint16, any shape) are numbers: NaN and infinity have all bits of the exponent."""
    return not bool(((bits & np.uint16(0x7F80)) == np.uint16(0x7F80)).any())


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Finite float32 values (any shape) as bfloat16 (uint16), to nearest even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)
