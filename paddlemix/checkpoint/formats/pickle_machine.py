# SPDX-License-Identifier: Apache-2.0
"""A closed machine for the pickles of weight files: a few opcodes, a few known names, nothing is ever called.

Rules: only the opcodes in ``Machine.steps`` exist; a global is looked up in a table of exact names and becomes a token
of ours, never a Python object of that name; REDUCE builds one of a few descriptions of ours; everything else raises.
The tables here are those of torch's files; ``pdparams`` has those of Paddle's.
"""

import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from paddlemix.checkpoint.formats.limits import addressable, brief

MAX_BYTES = 16 << 20
"""Bytes of a pickle whose values lie elsewhere: 100,000 tensors."""
MAX_STEPS = 2_000_000
MAX_RANK = 8

STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}


class PickleRefusedError(Exception):
    """The pickle holds something a weight file does not need."""


@dataclass(frozen=True)
class StorageRef:
    """A stored array of ``count`` values under ``data/<key>`` of the archive."""

    dtype: str
    key: str
    count: int


@dataclass(frozen=True)
class TensorRef:
    """A strided view into a storage; offset and strides count values."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Known:
    """A global name that is known; it stands for a builder of ours."""

    name: str


class _Ordered(dict[Any, Any]):
    """Stands for ``collections.OrderedDict``: the only thing that BUILD accepts."""


MARK = object()
"""Lies on the stack where a tuple or a list of items begins."""

_GLOBALS: dict[str, Known] = {
    **{f"torch {name}": Known(name) for name in STORAGES},
    "collections OrderedDict": Known("OrderedDict"),
    "torch._utils _rebuild_tensor_v2": Known("tensor"),
    "torch._utils _rebuild_parameter": Known("parameter"),
    "torch._utils _rebuild_parameter_with_state": Known("parameter_with_state"),
}


class Machine:
    """Runs one pickle. ``run`` returns plain dicts, lists, tuples, numbers, strings and TensorRefs."""

    steps: ClassVar[Mapping[int, Callable[[Any], None]]]
    """What each opcode does; set below, when the functions exist."""
    names: ClassVar[Mapping[str, Known]] = _GLOBALS
    builders: ClassVar[Mapping[str, Callable[[tuple[Any, ...]], Any]]]
    protocols: ClassVar[tuple[int, ...]] = (2,)
    limit: ClassVar[int | None] = MAX_BYTES

    def __init__(self, data: bytes | mmap.mmap) -> None:
        self._data = data
        self._at = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The value of the pickle. PickleRefusedError for anything outside the rules, whatever the bytes."""
        if self.limit is not None and len(self._data) > self.limit:
            raise PickleRefusedError(f"the pickle has {len(self._data)} bytes, the limit is {self.limit}")
        try:
            return self._steps()
        except (IndexError, KeyError, ValueError, TypeError, struct.error, RecursionError, MemoryError) as error:
            raise PickleRefusedError(f"broken pickle at byte {self._at} ({type(error).__name__}: {error})") from error

    def _steps(self) -> Any:
        for _ in range(MAX_STEPS):
            code = self._data[self._at]
            self._at += 1
            if code == 0x2E:  # STOP
                return self._finish()
            step = self.steps.get(code)
            if step is None:
                raise PickleRefusedError(f"opcode 0x{code:02x} at byte {self._at - 1} is not needed for weights")
            step(self)
        raise PickleRefusedError(f"more than {MAX_STEPS} steps")

    def _finish(self) -> Any:
        if len(self._stack) != 1 or self._at != len(self._data):
            raise PickleRefusedError(
                f"{len(self._stack)} values and {len(self._data) - self._at} bytes are left at the end"
            )
        return self._pop()

    def _take(self, count: int) -> bytes:
        if count < 0 or self._at + count > len(self._data):
            raise PickleRefusedError(f"the pickle ends inside a value at byte {self._at}")
        self._at += count
        return self._data[self._at - count : self._at]

    def _number(self, layout: str) -> Any:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is MARK:
            raise PickleRefusedError(f"a mark where a value belongs at byte {self._at}")
        return value

    def _to_mark(self) -> list[Any]:
        items: list[Any] = []
        while self._stack[-1] is not MARK:
            items.append(self._stack.pop())
        self._stack.pop()
        items.reverse()
        return items

    def _tuple(self, count: int) -> None:
        items = [self._pop() for _ in range(count)]
        self._push(tuple(reversed(items)))

    def _protocol(self) -> None:
        version = self._number("<B")
        if self._at != 2 or version not in self.protocols:
            raise PickleRefusedError(
                f"pickle protocol {version} at byte {self._at - 2}; expected {' or '.join(map(str, self.protocols))}"
            )

    def _long(self) -> None:
        self._push(int.from_bytes(self._take(self._number("<B")), "little", signed=True))

    def _text(self) -> None:
        self._push(self._take(self._number("<I")).decode("utf-8"))

    def _global(self) -> None:
        lines = []
        for _ in range(2):
            end = self._data.find(b"\n", self._at, self._at + 256)
            if end < 0:
                raise PickleRefusedError(f"a global name without an end at byte {self._at}")
            lines.append(self._take(end - self._at).decode("ascii"))
            self._at += 1
        self._push(self._known(*lines))

    def _known(self, module: str, name: str) -> Known:
        known = self.names.get(f"{module} {name}")
        if known is None:
            raise PickleRefusedError(f"it names {brief(f'{module}.{name}')}, which is not needed for weights")
        return known

    def _put(self, layout: str) -> None:
        if self._stack[-1] is MARK:
            raise PickleRefusedError(f"a mark is put into the memo at byte {self._at}")
        self._memo[self._number(layout)] = self._stack[-1]

    def _get(self, layout: str) -> None:
        self._push(self._memo[self._number(layout)])

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise PickleRefusedError(f"items are set on a {type(target).__name__} at byte {self._at}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):
                raise PickleRefusedError(f"a {type(key).__name__} is used as a key at byte {self._at}")
            if key in target:
                raise PickleRefusedError(f"the key {brief(key)} stands twice")
            target[key] = value

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def _append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise PickleRefusedError(f"items are appended to a {type(target).__name__} at byte {self._at}")
        target.extend(items)

    def _build(self) -> None:
        state = self._pop()
        if type(self._stack[-1]) is not _Ordered or type(state) not in (dict, tuple):
            raise PickleRefusedError(f"BUILD on a {type(self._stack[-1]).__name__} at byte {self._at}")
        # The state of a state dict is its _metadata (versions of the modules); nothing here needs it.

    def _persistent(self) -> None:
        value = self._pop()
        if type(value) is not tuple or len(value) != 5:
            raise PickleRefusedError(f"a persistent id that is no storage at byte {self._at}")
        kind, storage, key, place, count = value
        known = type(storage) is Known and storage.name in STORAGES
        named = type(key) is str and key.isascii() and key.isdigit() and type(place) is str
        if kind != "storage" or not known or not named or not is_size(count):
            raise PickleRefusedError(f"a persistent id that is no storage at byte {self._at}")
        self._push(StorageRef(STORAGES[storage.name], key, count))

    def _reduce(self) -> None:
        args, function = self._pop(), self._pop()
        if type(args) is not tuple or type(function) is not Known:
            raise PickleRefusedError(f"a call of a {type(function).__name__} at byte {self._at}")
        builder = self.builders.get(function.name)
        if builder is None:
            raise PickleRefusedError(f"a call of {function.name} at byte {self._at}")
        self._push(builder(args))


def is_size(value: Any) -> bool:
    """Whether a value of a pickle can be a size or an offset."""
    return type(value) is int and 0 <= value < 1 << 62


def _ordered(args: tuple[Any, ...]) -> _Ordered:
    if args:
        raise PickleRefusedError("an OrderedDict with arguments")
    return _Ordered()


def _tensor(args: tuple[Any, ...]) -> TensorRef:
    if len(args) not in (6, 7):
        raise PickleRefusedError(f"a tensor of {len(args)} arguments")
    storage, offset, shape, stride, needs_grad, hooks = args[:6]
    plain = type(storage) is StorageRef and type(needs_grad) is bool and type(hooks) is _Ordered and not hooks
    if not plain or type(shape) is not tuple or type(stride) is not tuple or (len(args) == 7 and args[6]):
        raise PickleRefusedError("a tensor whose arguments are not a storage, an offset, a shape and strides")
    sizes = len(shape) == len(stride) <= MAX_RANK and all(map(is_size, (offset, *shape, *stride)))
    if not sizes or not addressable(shape, storage.dtype):
        raise PickleRefusedError(f"a tensor of shape {brief(shape)} and strides {brief(stride)}")
    reach = sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if all(shape) else -1
    values = 1
    for size in shape:
        values *= size
    if (offset + reach >= storage.count and all(shape)) or offset > storage.count or values > storage.count:
        raise PickleRefusedError(
            f"a tensor of shape {brief(shape)} reaches outside its storage of {storage.count} values"
        )
    return TensorRef(storage, offset, shape, stride)


def _parameter(args: tuple[Any, ...]) -> TensorRef:
    if len(args) not in (3, 4) or type(args[0]) is not TensorRef:
        raise PickleRefusedError("a parameter that holds no tensor")
    return args[0]


Machine.builders = {
    "OrderedDict": _ordered,
    "tensor": _tensor,
    "parameter": _parameter,
    "parameter_with_state": _parameter,
}

Machine.steps = {
    0x80: Machine._protocol,  # PROTO
    ord("("): lambda m: m._push(MARK),  # MARK
    ord("}"): lambda m: m._push({}),  # EMPTY_DICT
    ord("]"): lambda m: m._push([]),  # EMPTY_LIST
    ord(")"): lambda m: m._push(()),  # EMPTY_TUPLE
    ord("t"): lambda m: m._push(tuple(m._to_mark())),  # TUPLE
    0x85: lambda m: m._tuple(1),
    0x86: lambda m: m._tuple(2),
    0x87: lambda m: m._tuple(3),
    ord("N"): lambda m: m._push(None),  # NONE
    0x88: lambda m: m._push(True),  # NEWTRUE
    0x89: lambda m: m._push(False),  # NEWFALSE
    ord("J"): lambda m: m._push(m._number("<i")),  # BININT
    ord("K"): lambda m: m._push(m._number("<B")),  # BININT1
    ord("M"): lambda m: m._push(m._number("<H")),  # BININT2
    0x8A: Machine._long,  # LONG1
    ord("G"): lambda m: m._push(m._number(">d")),  # BINFLOAT
    ord("X"): Machine._text,  # BINUNICODE
    ord("c"): Machine._global,  # GLOBAL
    ord("R"): Machine._reduce,  # REDUCE
    ord("b"): Machine._build,  # BUILD
    ord("Q"): Machine._persistent,  # BINPERSID
    ord("q"): lambda m: m._put("<B"),  # BINPUT
    ord("r"): lambda m: m._put("<I"),  # LONG_BINPUT
    ord("h"): lambda m: m._get("<B"),  # BINGET
    ord("j"): lambda m: m._get("<I"),  # LONG_BINGET
    ord("s"): Machine._set_item,  # SETITEM
    ord("u"): lambda m: m._set_items(m._to_mark()),  # SETITEMS
    ord("a"): lambda m: m._append([m._pop()]),  # APPEND
    ord("e"): lambda m: m._append(m._to_mark()),  # APPENDS
}
