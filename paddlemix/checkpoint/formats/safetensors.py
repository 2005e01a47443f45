# SPDX-License-Identifier: Apache-2.0
"""Reader and writer of safetensors files: the header is checked in full, the values are mapped."""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from paddlemix.checkpoint.formats.base import ARRAY_TYPES, MappedFile, TensorInfo
from paddlemix.checkpoint.formats.limits import addressable, brief, plain_name
from paddlemix.utils.errors import CheckpointError
from paddlemix.utils.foreign import JsonValue, parse_json

MAX_HEADER = 16 << 20
"""Bytes of a header: 100,000 tensors with long names. The format allows 100 MB, which unfold to gigabytes."""

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_CODES = {name: code for code, name in _DTYPES.items()}


class SafetensorsFile:
    """One opened ``.safetensors`` file. CheckpointError names the file and what is wrong with it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = MappedFile(path)
        header, self._start = _read_header(path, self._file)
        metadata = header.pop("__metadata__", None)
        self.metadata: dict[str, str] = _check_metadata(path, metadata)
        self._offsets: dict[str, int] = {}
        self._infos: dict[str, TensorInfo] = {}
        spans = []
        for name, entry in header.items():
            info, begin, end = _check_entry(path, name, entry)
            self._infos[name], self._offsets[name] = info, self._start + begin
            spans.append((begin, end, name))
        _check_spans(path, spans, self._file.size - self._start)

    def infos(self) -> dict[str, TensorInfo]:
        """Every tensor of the file."""
        return dict(self._infos)

    def view(self, name: str) -> np.ndarray:
        """Read-only array over the mapped file, shape and dtype as in ``infos`` (bfloat16: uint16)."""
        info = self._infos[name]
        flat = np.frombuffer(
            self._file.bytes, ARRAY_TYPES[info.dtype], count=math.prod(info.shape), offset=self._offsets[name]
        )
        return flat.reshape(info.shape)

    def mapped(self, name: str) -> np.ndarray:
        """Like ``view`` (shape and dtype), but writable: that changes this process's pages, never the file."""
        info = self._infos[name]
        if not math.prod(info.shape):
            return np.empty(info.shape, ARRAY_TYPES[info.dtype])
        return np.memmap(self.path, ARRAY_TYPES[info.dtype], "c", self._offsets[name], info.shape)

    def release(self, name: str) -> None:
        """Give the pages of a tensor back."""
        self._file.release(self._offsets[name], self._infos[name].nbytes)


def _read_header(path: Path, file: MappedFile) -> tuple[dict[str, Any], int]:
    if file.size < 8:
        raise CheckpointError(f"{path}: {file.size} bytes are too few for a safetensors file; download it again")
    length = int.from_bytes(file.bytes[:8], "little")
    if length > min(MAX_HEADER, file.size - 8):
        raise CheckpointError(
            f"{path}: the header claims {length} bytes, the file has {file.size}; "
            "it is truncated or no safetensors file; download it again"
        )
    try:
        text = bytes(file.bytes[8 : 8 + length]).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: the safetensors header cannot be read ({error.reason})") from error
    header = parse_json(text, f"{path}: the safetensors header", CheckpointError, unique=True)
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the safetensors header is {type(header).__name__}, expected an object")
    return header, 8 + length


def _check_metadata(path: Path, metadata: JsonValue) -> dict[str, str]:
    if metadata is None:
        return {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ must be an object of strings")
    return metadata


def _is_count(value: JsonValue) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _check_entry(path: Path, name: str, entry: JsonValue) -> tuple[TensorInfo, int, int]:
    if not plain_name(name):
        raise CheckpointError(f"{path}: {brief(name)} is no name of a tensor (control characters, or too long)")
    where = f'{path}: tensor "{name}"'
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: expected an object of dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in _DTYPES:
        raise CheckpointError(f"{where}: dtype {brief(code)} is not supported (known: {', '.join(_DTYPES)})")
    if not isinstance(shape, list) or len(shape) > 32 or not all(_is_count(size) for size in shape):
        raise CheckpointError(f"{where}: shape {brief(shape)} is not a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        raise CheckpointError(f"{where}: data_offsets {brief(offsets)} is not a pair of sizes")
    if not addressable(shape, _DTYPES[code]):
        raise CheckpointError(f"{where}: shape {brief(shape)} is larger than any memory")
    begin, end = offsets
    needed = math.prod(shape) * ARRAY_TYPES[_DTYPES[code]].itemsize
    if end - begin != needed:
        raise CheckpointError(f"{where}: shape {shape} of {code} needs {needed} bytes, the offsets hold {end - begin}")
    return TensorInfo(tuple(shape), _DTYPES[code], path), begin, end


def _check_spans(path: Path, spans: list[tuple[int, int, str]], length: int) -> None:
    """The tensors must cover the data without a hole, an overlap or a rest."""
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            kind = (
                "overlaps the one before" if begin < position else f"leaves {begin - position} bytes unused before it"
            )
            raise CheckpointError(f'{path}: tensor "{name}" {kind}')
        position = end
    if position != length:
        kind = "truncated" if position > length else "followed by foreign bytes"
        raise CheckpointError(f"{path}: the tensors need {position} bytes, the file holds {length}; it is {kind}")


@dataclass(frozen=True)
class Stored:
    """A tensor to be written; ``values`` is called when its turn comes, so that one copy is alive at a time."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    values: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * ARRAY_TYPES[self.dtype].itemsize


def write_safetensors(path: Path, tensors: Iterable[Stored], metadata: dict[str, str] | None = None) -> None:
    """Write tensors (bfloat16 as uint16 arrays) into one file.

    The data begin on a multiple of 64 bytes and tensors of round sizes come first, so that a mapped file gives
    aligned tensors.
    """
    items = sorted(tensors, key=lambda item: (item.nbytes % 64 != 0, -ARRAY_TYPES[item.dtype].itemsize, item.name))
    header: dict[str, Any] = {"__metadata__": {"format": "paddlemix", **(metadata or {})}}
    position = 0
    for item in items:
        end = position + item.nbytes
        header[item.name] = {"dtype": _CODES[item.dtype], "shape": list(item.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-(len(text) + 8) % 64)
    with path.open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little"))
        handle.write(text)
        for item in items:
            _write_array(handle, item)


def _write_array(handle: BinaryIO, item: Stored) -> None:
    values = np.ascontiguousarray(item.values(), dtype=ARRAY_TYPES[item.dtype])
    if values.size != math.prod(item.shape):
        raise ValueError(f"{item.name}: {values.shape} values for a tensor of shape {item.shape}")
    if values.size:
        handle.write(memoryview(values.reshape(-1)).cast("B"))
