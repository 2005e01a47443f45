# SPDX-License-Identifier: Apache-2.0
"""The package ``gguf``, and one tensor file written with it: fields first, then one tensor after the other."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from paddlemix.utils.errors import CheckpointError
from paddlemix.utils.install import install_line

if TYPE_CHECKING:
    from gguf import GGUFWriter

Field: TypeAlias = bool | int | float | str | list[int] | list[float] | list[str]
"""Value of a GGUF field. Written as bool, uint32, float32, string, or an array of int32, float32 or strings."""

TYPES = {"f32": 0, "f16": 1, "q8_0": 8}
"""ggml's numbers of the forms of a tensor (``GGMLQuantizationType``)."""
BLOCK = 32
"""Values of a q8_0 block: 32 bytes of values and a float16 scale."""
_BLOCK_BYTES = BLOCK + 2
_ROWS_AT_A_TIME = 1024


def library() -> ModuleType:
    """The package ``gguf``. CheckpointError with the line that installs it when it is not there."""
    try:
        import gguf
    except ModuleNotFoundError as error:
        if error.name != "gguf":
            raise
        raise CheckpointError(f"a GGUF file needs the package gguf: {install_line('gguf')}") from error
    return gguf


@dataclass(frozen=True)
class Item:
    """A tensor of a file: its name, its form (a key of ``TYPES``), its shape as numpy has it, and its values.

    ``values`` gives float16 for ``f16`` and float32 for the other two; it is called when its turn comes.
    """

    name: str
    form: str
    shape: tuple[int, ...]
    values: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        size = int(np.prod(self.shape, dtype=np.int64))
        return size // BLOCK * _BLOCK_BYTES if self.form == "q8_0" else size * (2 if self.form == "f16" else 4)


def write_file(path: Path, arch: str, fields: Mapping[str, Field], items: Iterable[Item]) -> list[Item]:
    """Write one GGUF file and return its tensors. One tensor is in memory at a time.

    CheckpointError when a value is too large for float16.
    """
    gguf = library()
    logging.getLogger("gguf.gguf_writer").setLevel(logging.WARNING)  # it tells the temporary names of files
    writer = gguf.GGUFWriter(path, arch)
    try:
        for key, value in fields.items():
            _add(writer, key, value)
        listed = list(items)
        for item in listed:
            raw = gguf.GGMLQuantizationType(TYPES[item.form])
            if item.form == "q8_0":
                shape = (*item.shape[:-1], item.shape[-1] // BLOCK * _BLOCK_BYTES)
                writer.add_tensor_info(item.name, shape, np.dtype(np.uint8), item.nbytes, raw)
            else:
                dtype = np.dtype(np.float16 if item.form == "f16" else np.float32)
                writer.add_tensor_info(item.name, item.shape, dtype, item.nbytes, raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for item in listed:
            writer.write_tensor_data(_stored_values(gguf, item))
    finally:
        writer.close()
    return listed


def _add(writer: "GGUFWriter", key: str, value: Field) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)


def _stored_values(gguf: ModuleType, item: Item) -> np.ndarray:
    """The bytes of a tensor as the file holds them."""
    values = item.values()
    if item.form == "f16" and not np.isfinite(values).all():
        raise CheckpointError(f'tensor "{item.name}" holds values that float16 cannot: write it with 32 bits')
    if item.form != "q8_0":
        return np.ascontiguousarray(values, np.float16 if item.form == "f16" else np.float32)
    rows = values.reshape(-1, item.shape[-1])
    made = np.empty((len(rows), item.shape[-1] // BLOCK * _BLOCK_BYTES), np.uint8)
    for start in range(0, len(rows), _ROWS_AT_A_TIME):
        block: Any = np.ascontiguousarray(rows[start : start + _ROWS_AT_A_TIME], np.float32)
        made[start : start + len(block)] = gguf.quants.quantize(block, gguf.GGMLQuantizationType.Q8_0)
    return made
