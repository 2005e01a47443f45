# SPDX-License-Identifier: Apache-2.0
"""Reader and writer of Paddle's ``.pdparams`` without ``paddle.load``, which runs whatever a file asks for.

A ``.pdparams`` of weights is one pickle (protocol 2, 3 or 4) of a dict: names to numpy arrays, a table of parameter
names, and for protocol 2 and 3 a table of the pieces of arrays above 1 GiB. The closed machine of ``pickle_machine``
walks it over the mapped file; the values of the arrays are not touched until they are asked for.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from paddlemix.checkpoint.formats.base import ARRAY_TYPES, MappedFile, TensorInfo
from paddlemix.checkpoint.formats.limits import addressable, brief, plain_name
from paddlemix.checkpoint.formats.pickle_machine import MARK, MAX_RANK, Known, Machine, PickleRefusedError, is_size
from paddlemix.checkpoint.formats.safetensors import Stored
from paddlemix.utils.errors import CheckpointError

NAMES_TABLE = "StructuredToParameterName@@"
PIECES_TABLE = "UnpackBigParamInfor@@"
"""Paddle's own keys, spelt as it spells them (framework/io.py)."""

_LONG_TEXT = 4096
_BLOCK = 1 << 20
_HOW_TO = "use the safetensors or .bin files of the same model, or save the weights again with paddle.save(state_dict)"

# numpy's code of a dtype -> ours. Paddle has no uint16: such an array is the bits of a bfloat16.
_DTYPES = {
    "f8": "float64",
    "f4": "float32",
    "f2": "float16",
    "u2": "bfloat16",
    "i8": "int64",
    "i4": "int32",
    "i2": "int16",
    "i1": "int8",
    "u1": "uint8",
    "b1": "bool",
}
_CODES = {name: code for code, name in _DTYPES.items()}


@dataclass(frozen=True)
class _Bytes:
    """Bytes of the file; ``latin1``: written as UTF-8 text whose characters are the bytes (protocol 2).

    ``inline`` holds a short text's bytes themselves.
    """

    start: int
    size: int
    latin1: bool = False
    inline: bytes | None = None


class _DType:
    """``numpy.dtype``; its byte order comes with BUILD."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.built = False


class _Array:
    """``numpy.ndarray``; shape and values come with BUILD."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] | None = None
        self.dtype = ""
        self.fortran = False
        self.values = _Bytes(0, 0)


class _Machine(Machine):
    """The opcodes and names of Paddle's files."""

    protocols = (2, 3, 4)
    limit = None

    def _text(self) -> None:
        size = self._number("<I")
        if size <= _LONG_TEXT:
            self._push(self._take(size).decode("utf-8"))
        else:
            self._skip(size, latin1=True)

    def _skip(self, size: int, latin1: bool = False) -> None:
        if size > len(self._data) - self._at:
            raise PickleRefusedError(f"the pickle ends inside a value at byte {self._at}")
        self._push(_Bytes(self._at, size, latin1))
        self._at += size

    def _short_text(self) -> None:
        self._push(self._take(self._number("<B")).decode("utf-8"))

    def _frame(self) -> None:
        if self._number("<Q") > len(self._data) - self._at:
            raise PickleRefusedError(f"a frame reaches past the end at byte {self._at}")

    def _memoize(self) -> None:
        if self._stack[-1] is MARK:
            raise PickleRefusedError(f"a mark is put into the memo at byte {self._at}")
        self._memo[len(self._memo)] = self._stack[-1]

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if type(name) is not str or type(module) is not str:
            raise PickleRefusedError(f"a global name that is no text at byte {self._at}")
        self._push(self._known(module, name))

    def _build(self) -> None:
        state, target = self._pop(), self._stack[-1]
        if type(target) is _DType:
            self._build_dtype(target, state)
        elif type(target) is _Array:
            self._build_array(target, state)
        else:
            raise PickleRefusedError(f"BUILD on a {type(target).__name__} at byte {self._at}")

    def _build_dtype(self, target: _DType, state: Any) -> None:
        order = "|" if ARRAY_TYPES[target.name].itemsize == 1 else "<"
        if target.built or state != (3, order, None, None, None, -1, -1, 0):
            raise PickleRefusedError(f"a dtype {target.name} of another byte order or kind: {brief(state)}")
        target.built = True

    def _build_array(self, target: _Array, state: Any) -> None:
        if target.shape is not None or type(state) is not tuple or len(state) != 5 or state[0] != 1:
            raise PickleRefusedError(f"an array whose state is none, at byte {self._at}")
        _, shape, dtype, fortran, values = state
        if type(shape) is not tuple or len(shape) > MAX_RANK or not all(map(is_size, shape)):
            raise PickleRefusedError(f"an array of shape {brief(shape)}")
        if type(dtype) is not _DType or not dtype.built or type(fortran) is not bool or type(values) is not _Bytes:
            raise PickleRefusedError(f"an array whose values are no plain bytes, at byte {self._at}")
        target.shape, target.dtype, target.fortran, target.values = shape, dtype.name, fortran, values
        if not addressable(shape, dtype.name):
            raise PickleRefusedError(f"an array of shape {brief(shape)}, which is larger than any memory")
        needed = target_bytes(shape, dtype.name)
        shortest = (values.size + 1) // 2 if values.latin1 else values.size  # as text a byte takes one or two
        if not shortest <= needed <= values.size:
            raise PickleRefusedError(f"an array of shape {brief(shape)} needs {needed} bytes, it has {values.size}")


def target_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of an array; exact also where 64 bits are too few."""
    count = ARRAY_TYPES[dtype].itemsize
    for size in shape:
        count *= size
    return count


def _dtype(args: tuple[Any, ...]) -> _DType:
    if len(args) != 3 or type(args[0]) is not str or args[0] not in _DTYPES:
        raise PickleRefusedError(f"a numpy dtype {brief(args[:1])}, which no weight has")
    return _DType(_DTYPES[args[0]])


def _reconstruct(args: tuple[Any, ...]) -> _Array:
    if len(args) != 3 or args[0] != Known("ndarray") or args[1] != (0,) or type(args[2]) is not _Bytes:
        raise PickleRefusedError("an array that is built in another way than numpy does")
    return _Array()


def _encode(args: tuple[Any, ...]) -> _Bytes:
    if len(args) != 2 or args[1] != "latin1" or type(args[0]) not in (str, _Bytes):
        raise PickleRefusedError("a text that is no byte string")
    if type(args[0]) is _Bytes:
        return args[0]
    data = args[0].encode("latin-1")
    return _Bytes(0, len(data), inline=data)


def _no_bytes(args: tuple[Any, ...]) -> _Bytes:
    if args:
        raise PickleRefusedError("bytes with arguments")
    return _Bytes(0, 0, inline=b"")


def _named(args: tuple[Any, ...]) -> _Array:
    """paddle.save writes a tensor outside a state dict as ``tuple((name, array))``."""
    pair = args[0] if len(args) == 1 else None
    if type(pair) is not tuple or len(pair) != 2 or type(pair[0]) is not str or type(pair[1]) is not _Array:
        raise PickleRefusedError("a tuple that is no tensor")
    return pair[1]


_Machine.names = {
    **{
        f"{module} _reconstruct": Known("array")
        for module in ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core._multiarray_umath")
    },
    "numpy ndarray": Known("ndarray"),
    "numpy dtype": Known("dtype"),
    "_codecs encode": Known("encode"),
    "__builtin__ bytes": Known("bytes"),
    "builtins bytes": Known("bytes"),
    "__builtin__ tuple": Known("tuple"),
    "builtins tuple": Known("tuple"),
}
_Machine.builders = {"array": _reconstruct, "dtype": _dtype, "encode": _encode, "bytes": _no_bytes, "tuple": _named}
_NOT_HERE = (ord("Q"), ord("G"))  # storages and floats are torch's
_Machine.steps = {
    **{code: step for code, step in Machine.steps.items() if code not in _NOT_HERE},
    0x80: Machine._protocol,
    ord("X"): _Machine._text,
    ord("b"): _Machine._build,
    ord("C"): lambda m: m._skip(m._number("<B")),  # SHORT_BINBYTES
    ord("B"): lambda m: m._skip(m._number("<I")),  # BINBYTES
    0x8C: _Machine._short_text,  # SHORT_BINUNICODE
    0x8E: lambda m: m._skip(m._number("<Q")),  # BINBYTES8
    0x93: _Machine._stack_global,  # STACK_GLOBAL
    0x94: _Machine._memoize,  # MEMOIZE
    0x95: _Machine._frame,  # FRAME
}


class PdparamsFile:
    """One opened ``.pdparams``. CheckpointError names the file and what is wrong with it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = MappedFile(path)
        self._arrays: dict[str, list[_Array]] = {}
        self._infos: dict[str, TensorInfo] = {}
        try:
            items = self._read()
            self._enter(items)
        except PickleRefusedError as error:
            raise CheckpointError(f"{path}: refused, {error}; if you trust the file, {_HOW_TO}") from error

    def infos(self) -> dict[str, TensorInfo]:
        """Every tensor of the file."""
        return dict(self._infos)

    def view(self, name: str) -> np.ndarray:
        """Read-only array over the mapped file, shape and dtype as in ``infos`` (bfloat16: uint16).

        A copy where the file holds pieces or text.
        """
        info, arrays = self._infos[name], self._arrays[name]
        dtype = ARRAY_TYPES[info.dtype]
        if len(arrays) == 1 and not arrays[0].values.latin1:
            return self._shaped(self._plain(arrays[0].values, dtype), info, arrays[0])
        flat = np.empty(target_bytes(info.shape, info.dtype), np.uint8)
        at = 0
        for array in arrays:
            at = self._decode(name, array.values, flat, at)
        if at != flat.size:
            raise CheckpointError(f'{self.path}: tensor "{name}" has {at} bytes, {flat.size} are needed')
        return self._shaped(flat.view(dtype), info, arrays[0])

    def release(self, name: str) -> None:
        """Give the pages of a tensor back."""
        for array in self._arrays[name]:
            if array.values.inline is None:
                self._file.release(array.values.start, array.values.size)

    def _read(self) -> dict[str, Any]:
        head = bytes(self._file.bytes[:2])
        if head[:1] != b"\x80":
            what = "empty" if not head else "a zip (torch's format?)" if head == b"PK" else "no pickle"
            raise CheckpointError(f"{self.path}: it is {what}, not a file of paddle.save; download it again")
        value = _Machine(self._file.map).run()
        if type(value) is not dict:
            raise CheckpointError(f"{self.path}: it holds a {type(value).__name__}, expected a dict of arrays")
        return value

    def _enter(self, items: dict[str, Any]) -> None:
        pieces = items.pop(PIECES_TABLE, {})
        items.pop(NAMES_TABLE, None)
        for name, facts in _check_pieces(pieces).items():
            shape, parts = facts
            arrays = [items.pop(part, None) for part in parts]
            if not all(type(array) is _Array and array.shape is not None for array in arrays):
                raise PickleRefusedError(f"the pieces of {brief(name)} are not all there")
            self._add(name, shape, arrays)
        for name, array in items.items():
            if type(name) is not str or type(array) is not _Array or array.shape is None:
                raise PickleRefusedError(
                    f"{brief(name)} holds a {type(array).__name__.strip('_')}, expected names and arrays only "
                    "(is it an optimizer or a training state?)"
                )
            self._add(name, array.shape, [array])

    def _add(self, name: str, shape: tuple[int, ...], arrays: list[_Array]) -> None:
        if not plain_name(name):
            raise PickleRefusedError(f"{brief(name)} is no name of a tensor")
        dtype = arrays[0].dtype
        if not addressable(shape, dtype):
            raise PickleRefusedError(f"an array of shape {brief(shape)}, which is larger than any memory")
        needed = target_bytes(shape, dtype)
        held = sum(target_bytes(array.shape or (), array.dtype) for array in arrays)
        if name in self._infos or held != needed or any(array.dtype != dtype for array in arrays):
            raise PickleRefusedError(f"the pieces of {brief(name)} do not make an array of shape {brief(shape)}")
        self._arrays[name], self._infos[name] = arrays, TensorInfo(shape, dtype, self.path)

    def _plain(self, values: _Bytes, dtype: npt.DTypeLike) -> np.ndarray:
        if values.inline is not None:
            return np.frombuffer(values.inline, dtype)
        return np.frombuffer(self._file.bytes, np.uint8, values.size, values.start).view(dtype)

    def _shaped(self, flat: np.ndarray, info: TensorInfo, array: _Array) -> np.ndarray:
        values = flat.reshape(info.shape[::-1]).T if array.fortran else flat.reshape(info.shape)
        values.flags.writeable = False
        return values

    def _decode(self, name: str, values: _Bytes, target: np.ndarray, at: int) -> int:
        """Write the bytes of one piece behind ``at``; the place behind them. The file's pages are given back."""
        if not values.latin1:
            piece = self._plain(values, np.uint8)
            for first in range(0, piece.size, _BLOCK):
                part = piece[first : first + _BLOCK]
                target[at + first : at + first + part.size] = part
                if values.inline is None:
                    self._file.release(values.start + first, part.size)
            return at + piece.size
        start, end = values.start, values.start + values.size
        while start < end:
            stop = min(end, start + _BLOCK)
            while stop < end and self._file.bytes[stop] & 0xC0 == 0x80:  # never cut a character
                stop -= 1
            try:
                block = bytes(self._file.bytes[start:stop]).decode("utf-8").encode("latin-1")
            except ValueError as error:
                raise CheckpointError(
                    f'{self.path}: tensor "{name}" is damaged ({error}); download it again'
                ) from error
            if at + len(block) > target.size:
                raise CheckpointError(f'{self.path}: tensor "{name}" has more values than its shape; download it again')
            target[at : at + len(block)] = np.frombuffer(block, np.uint8)
            self._file.release(start, stop - start)
            at, start = at + len(block), stop
        return at


def _check_pieces(table: Any) -> dict[str, tuple[tuple[int, ...], list[str]]]:
    if type(table) is not dict:
        raise PickleRefusedError(f"{PIECES_TABLE} is a {type(table).__name__}")
    found = {}
    for name, facts in table.items():
        shape = facts.get("OriginShape") if type(facts) is dict else None
        parts = facts.get("slices") if type(facts) is dict else None
        sizes = type(shape) is tuple and len(shape) <= MAX_RANK and all(map(is_size, shape))
        fits = type(name) is str and sizes and type(parts) is list
        if not fits or not parts or not all(type(part) is str for part in parts):
            raise PickleRefusedError(f"{PIECES_TABLE} of {brief(name)} names no shape and pieces")
        found[name] = (shape, parts)
    return found


def write_pdparams(path: Path, tensors: Iterable[Stored]) -> None:
    """Write what ``paddle.load`` reads: a dict of numpy arrays (protocol 4), bfloat16 as uint16, one at a time."""
    with path.open("wb") as handle:
        handle.write(b"\x80\x04}")
        for item in tensors:
            _write_array(handle, item)
        handle.write(b".")


def _write_array(handle: BinaryIO, item: Stored) -> None:
    values = np.ascontiguousarray(item.values(), dtype=ARRAY_TYPES[item.dtype])
    if values.size * values.itemsize != item.nbytes:
        raise ValueError(f"{item.name}: {values.shape} values for a tensor of shape {item.shape}")
    order = "|" if values.itemsize == 1 else "<"
    dtype = b"cnumpy\ndtype\n" + _text(_CODES[item.dtype]) + b"\x89\x88\x87R"
    dtype += b"(" + _int(3) + _text(order) + b"NNN" + _int(-1) + _int(-1) + _int(0) + b"tb"
    shape = b"(" + b"".join(_int(size) for size in item.shape) + b"t"
    handle.write(_text(item.name) + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + _int(0) + b"\x85")
    handle.write(b"C\x01b\x87R(" + _int(1) + shape + dtype + b"\x89\x8e" + struct.pack("<Q", item.nbytes))
    if values.size:
        handle.write(memoryview(values.reshape(-1)).cast("B"))
    handle.write(b"tbs")


def _text(value: str) -> bytes:
    data = value.encode("utf-8")
    return b"X" + struct.pack("<I", len(data)) + data


def _int(value: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)
