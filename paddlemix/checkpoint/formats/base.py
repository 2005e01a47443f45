# SPDX-License-Identifier: Apache-2.0
"""What every weight file offers: tensor infos, mapped views, and casting straight into the parameter's memory."""

import math
import mmap
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from paddlemix.utils.errors import CheckpointError
from paddlemix.utils.foreign import open_regular

ARRAY_TYPES: dict[str, np.dtype[Any]] = {
    "float64": np.dtype("<f8"),
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),  # numpy has no bfloat16; its 16 bits are the upper half of a float32
    "int64": np.dtype("<i8"),
    "int32": np.dtype("<i4"),
    "int16": np.dtype("<i2"),
    "int8": np.dtype("i1"),
    "uint8": np.dtype("u1"),
    "bool": np.dtype("?"),
}
"""How the values of each dtype lie in a numpy array."""

FLOATS = ("float64", "float32", "float16", "bfloat16")
"""Dtypes that a weight may have. Quantised integers and fp8 need their scales and are refused."""

BLOCK_VALUES = 1 << 17
"""Values that are cast at a time: what a block needs, about 1.5 MiB, stays close to the second-level cache."""

_TILE = (512, BLOCK_VALUES // 512)
"""Rows and columns that are transposed at a time. Tall, so that the rows written to the target are long."""

_PADDING = 64
"""Bytes after each row of a copied tile: rows a power of two apart would push each other out of the cache."""

_INFINITY = {"float64": 0x7FF << 52, "float32": 0x7F800000, "float16": 0x7C00, "bfloat16": 0x7F80}
"""Bits of positive infinity: an exponent of ones. Those of NaN lie above."""

_HALF_SCALE = np.float32(2.0**112)
"""Between the exponents of float16 and float32: 2 ** (127 - 15)."""

_HALF_BITS = np.int32(-0x70000001)
"""The sign (bit 31), and exponent and mantissa of a float16 moved up by 13 bits (bits 0 to 27)."""

_MAX_THREADS = 8
_WORTH_THREADS = 4 * BLOCK_VALUES
"""Values below which starting threads costs more than they save."""


@dataclass(frozen=True)
class TensorInfo:
    """Shape, dtype name and file of one stored tensor."""

    shape: tuple[int, ...]
    dtype: str
    file: Path

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return int(np.prod(self.shape, dtype=np.int64)) * ARRAY_TYPES[self.dtype].itemsize


class TensorFile(Protocol):
    """One weight file, opened: its header is checked, its values are read on demand."""

    path: Path

    def infos(self) -> dict[str, TensorInfo]:
        """Every tensor of the file."""

    def view(self, name: str) -> np.ndarray:
        """Read-only array that looks into the file, shape and dtype as in ``infos``; bfloat16 comes as uint16."""

    def release(self, name: str) -> None:
        """Give the pages of a tensor back after it was read."""


class MappedFile:
    """A file mapped read-only, whose pages can be given back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open_regular(path, CheckpointError) as handle:
                self.size = handle.seek(0, 2)
                self._map = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) if self.size else None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise CheckpointError(f"{path}: cannot be read ({reason})") from error
        self.map: mmap.mmap | bytes = self._map if self._map is not None else b""
        self.bytes = memoryview(self._map) if self._map is not None else memoryview(b"")

    def release(self, start: int, length: int) -> None:
        """Drop the whole pages inside ``[start, start + length)`` from this process."""
        page = mmap.PAGESIZE
        first = -(-start // page) * page
        count = (start + length) // page * page - first
        if self._map is not None and count > 0 and hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED, first, count)


def to_float32(values: np.ndarray, dtype: str) -> np.ndarray:
    """Values of any float dtype and any shape as float32. bfloat16 is exact: its bits become the upper half."""
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(np.float32)


def from_float32(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values of any shape in ``dtype``; bfloat16 (as uint16) rounds to nearest even and keeps NaN a NaN."""
    if dtype != "bfloat16":
        with np.errstate(over="ignore"):
            return values.astype(ARRAY_TYPES[dtype], copy=False)
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)


def cast(values: np.ndarray, source_dtype: str, target_dtype: str) -> np.ndarray:
    """Values (any shape) of one float dtype in another; bfloat16 is uint16. The same array when nothing changes."""
    if source_dtype == target_dtype:
        return values
    return from_float32(to_float32(values, source_dtype), target_dtype)


def is_finite(values: np.ndarray, dtype: str) -> bool:
    """False when a value (any shape, float ``dtype``) is NaN or infinite, by the bits: their exponents are all ones."""
    width, infinity = ARRAY_TYPES[dtype].itemsize, _INFINITY[dtype]
    flat = values.reshape(-1) if values.flags.c_contiguous else np.atleast_1d(values)
    for start in range(0, len(flat), BLOCK_VALUES):
        block = flat[start : start + BLOCK_VALUES]
        # Signed integers: no negative value is in the way. Unsigned ones: the negative values come last.
        if block.view(f"<i{width}").max() >= infinity:
            return False
        if block.view(f"<u{width}").max() >= infinity + (1 << (8 * width - 1)):
            return False
    return True


def fill(
    source: np.ndarray, source_dtype: str, target: np.ndarray, target_dtype: str, *, transpose: bool = False
) -> bool:
    """Write ``source`` into ``target`` in blocks; False when a value is not finite.

    ``source`` may be any strided view; ``target`` is ``[in, out]`` for a ``[out, in]`` source with ``transpose``.
    A large tensor is shared by a few threads, each with a block at a time, so the extra memory is about 1.5 MiB for
    each of them whatever the size of the tensor.
    """
    if source.ndim == 0 or source.size == 0:
        target[...] = cast(source, source_dtype, target_dtype)
        return source.size == 0 or is_finite(source, source_dtype)
    places = _blocks(source.shape, transpose)

    def write(place: tuple[slice, ...], spare: "_Spare") -> bool:
        block = source[place]
        if not transpose:
            return _put(block, source_dtype, target[place], target_dtype, spare, is_finite(block, source_dtype))
        return _put_turned(block, source_dtype, target[place[::-1]], target_dtype, spare)

    return _share(write, places, _threads() if source.size >= _WORTH_THREADS else 1)


def _blocks(shape: tuple[int, ...], tiles: bool) -> list[tuple[slice, ...]]:
    """Blocks of rows, or tiles of a matrix, in order."""
    if not tiles:
        step = max(1, BLOCK_VALUES * shape[0] // math.prod(shape))
        return [(slice(start, start + step),) for start in range(0, shape[0], step)]
    (rows, columns), (high, wide) = shape, _TILE
    return [
        (slice(row, row + high), slice(column, column + wide))
        for row in range(0, rows, high)
        for column in range(0, columns, wide)
    ]


def _threads() -> int:
    """Threads for one tensor: the processors this process may use, and not more than memory can feed."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, _MAX_THREADS)


def _share(write: Callable[[tuple[slice, ...], "_Spare"], bool], places: list[tuple[slice, ...]], threads: int) -> bool:
    """Whether every block that was written is finite. An error of a thread, or Ctrl-C, ends the others at once."""
    threads = min(threads, len(places))
    if threads == 1:
        spare = _Spare()
        return all([write(place, spare) for place in places])
    rest = iter(places)  # each place goes to one thread: a step of a list's iterator holds the interpreter's lock

    def run() -> bool:
        try:
            spare = _Spare()
            return all([write(place, spare) for place in rest])
        finally:
            leave()

    def leave() -> None:
        for _ in rest:
            pass

    with ThreadPoolExecutor(threads, "weights") as pool:
        try:
            runs = [pool.submit(run) for _ in range(threads)]
            return all([run.result() for run in runs])
        finally:
            leave()


class _Spare:
    """Memory of one thread, used for one block after the other: fresh memory would be fetched page by page."""

    def __init__(self) -> None:
        self._memory: dict[str, np.ndarray] = {}
        # Widening float16 by multiplication needs subnormal numbers, which a process can have switched off.
        self.has_subnormals = bool((np.full(1, 2.0**-149, np.float32) * _HALF_SCALE)[0])

    def array(self, use: str, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> np.ndarray:
        """An array with any values in it, valid until the next call with the same ``use``."""
        needed = math.prod(shape) * dtype.itemsize
        if use not in self._memory or self._memory[use].size < needed:
            self._memory[use] = np.empty(needed, np.uint8)
        return self._memory[use][:needed].view(dtype).reshape(shape)


def _put_turned(block: np.ndarray, source_dtype: str, place: np.ndarray, target_dtype: str, spare: _Spare) -> bool:
    """Transpose a tile into its place. Half-precision values are turned while they are narrow, then widened."""
    rows, columns = block.shape
    near = spare.array("tile", (rows, columns + _PADDING // block.itemsize), block.dtype)[:, :columns]
    near[...] = block
    finite = is_finite(near, source_dtype)
    turned = near.T
    if source_dtype != target_dtype and block.itemsize == 2:
        turned = spare.array("turned", (columns, rows), block.dtype)
        turned[...] = near.T
    return _put(turned, source_dtype, place, target_dtype, spare, finite)


def _put(
    values: np.ndarray, source_dtype: str, place: np.ndarray, target_dtype: str, spare: _Spare, finite: bool
) -> bool:
    """Cast a block into its place; gives ``finite`` back."""
    if (source_dtype, target_dtype) == ("bfloat16", "float32"):
        np.left_shift(values, 16, out=place.view(np.uint32), dtype=np.uint32)
    elif (source_dtype, target_dtype) == ("float16", "float32") and finite and spare.has_subnormals:
        # Exact for every finite value, subnormal ones too, and three times as fast as numpy's own cast.
        wide = spare.array("wide", values.shape, np.dtype(np.int32))
        np.left_shift(values.view(np.int16), 13, out=wide, dtype=np.int32)
        np.bitwise_and(wide, _HALF_BITS, out=wide)
        np.multiply(wide.view(np.float32), _HALF_SCALE, out=place)
    else:
        place[...] = cast(values, source_dtype, target_dtype)
    return finite
