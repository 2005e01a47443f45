# SPDX-License-Identifier: Apache-2.0
"""Writer of torch's zip ``.bin`` without torch, for the small files that LLaVA's own loader reads with torch.load."""

import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from paddlemix.checkpoint.formats.base import ARRAY_TYPES
from paddlemix.checkpoint.formats.pickle_machine import STORAGES
from paddlemix.checkpoint.formats.safetensors import Stored

_STORAGE = {dtype: name for name, dtype in STORAGES.items()}
_ORDERED = b"ccollections\nOrderedDict\n)R"


def write_torch(path: Path, tensors: Iterable[Stored]) -> None:
    """Write a state dict of contiguous tensors, one at a time; bfloat16 comes as uint16 arrays."""
    items = list(tensors)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_member("data.pkl"), _pickle(items))
        archive.writestr(_member("byteorder"), b"little")
        for key, item in enumerate(items):
            values = np.ascontiguousarray(item.values(), dtype=ARRAY_TYPES[item.dtype])
            with archive.open(_member(f"data/{key}"), "w", force_zip64=True) as handle:
                if values.size:
                    handle.write(memoryview(values.reshape(-1)).cast("B"))
        archive.writestr(_member("version"), b"3\n")


def _member(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(f"archive/{name}")  # the date is always the same, so the bytes are


def _pickle(items: list[Stored]) -> bytes:
    body = b"".join(_text(item.name) + _tensor(str(key), item) for key, item in enumerate(items))
    return b"\x80\x02}(" + body + b"u."


def _tensor(key: str, item: Stored) -> bytes:
    count = item.nbytes // ARRAY_TYPES[item.dtype].itemsize
    storage = (_text("storage"), f"ctorch\n{_STORAGE[item.dtype]}\n".encode(), _text(key), _text("cpu"), _int(count))
    strides, step = [], 1
    for size in reversed(item.shape):
        strides.append(step)
        step *= size
    shape, stride = _tuple(*map(_int, item.shape)), _tuple(*map(_int, reversed(strides)))
    arguments = _tuple(_tuple(*storage) + b"Q", _int(0), shape, stride, b"\x89", _ORDERED)
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


def _tuple(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def _text(value: str) -> bytes:
    data = value.encode("utf-8")
    return b"X" + struct.pack("<I", len(data)) + data


def _int(value: int) -> bytes:
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)
