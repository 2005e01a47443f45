# SPDX-License-Identifier: Apache-2.0
"""What every weight file offers: tensor infos, mapped views, and casting straight into the parameter's memory."""

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from paddlemix.utils.errors import CheckpointError

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

BLOCK_VALUES = 1 << 18
"""Values that are cast at a time: 1 MiB of float32 stays in the second-level cache."""


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
        """Read-only array that looks into the file; bfloat16 comes as uint16."""

    def release(self, name: str) -> None:
        """Give the pages of a tensor back after it was read."""


class MappedFile:
    """A file mapped read-only, whose pages can be given back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as handle:
                self.size = handle.seek(0, 2)
                self._map = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) if self.size else None
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
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
    """Values of any float dtype as float32. bfloat16 is exact: its bits become the upper half."""
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(np.float32)


def from_float32(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values in ``dtype``; bfloat16 (as uint16) rounds to nearest even and keeps NaN a NaN."""
    if dtype != "bfloat16":
        with np.errstate(over="ignore"):
            return values.astype(ARRAY_TYPES[dtype], copy=False)
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)


def cast(values: np.ndarray, source_dtype: str, target_dtype: str) -> np.ndarray:
    """Values of one float dtype in another; the same array when nothing changes."""
    if source_dtype == target_dtype:
        return values
    return from_float32(to_float32(values, source_dtype), target_dtype)


def is_finite(values: np.ndarray, dtype: str) -> bool:
    """False when a value is NaN or infinite. The sum is looked at first because it is quick."""
    numbers = to_float32(values, dtype) if dtype in ("bfloat16", "float16") else values
    with np.errstate(all="ignore"):
        total = numbers.sum()
    return bool(np.isfinite(total)) or bool(np.isfinite(numbers).all())


def fill(
    source: np.ndarray, source_dtype: str, target: np.ndarray, target_dtype: str, *, transpose: bool = False
) -> bool:
    """Write ``source`` into ``target`` in blocks of rows; False when a value is not finite.

    ``source`` may be any strided view; ``target`` is ``[in, out]`` for a ``[out, in]`` source with ``transpose``.
    One block is cast at a time, so the extra memory is a few MiB whatever the size of the tensor.
    """
    if source.ndim == 0 or source.size == 0:
        target[...] = cast(source, source_dtype, target_dtype)
        return is_finite(np.atleast_1d(source), source_dtype)
    rows = source.shape[0]
    step = max(1, BLOCK_VALUES * rows // source.size)
    finite = True
    for start in range(0, rows, step):
        block = source[start : start + step]
        if source_dtype in ("float16", "bfloat16"):
            # Widened once, for the check and for the cast.
            wide = to_float32(block, source_dtype)
            finite = finite and is_finite(wide, "float32")
            values = block if source_dtype == target_dtype else from_float32(wide, target_dtype)
        else:
            finite = finite and is_finite(block, source_dtype)
            values = cast(block, source_dtype, target_dtype)
        if transpose:
            target[:, start : start + step] = values.T
        else:
            target[start : start + step] = values
    return finite
