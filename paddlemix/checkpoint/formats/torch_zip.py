# SPDX-License-Identifier: Apache-2.0
"""Reader of torch's zip ``.bin`` files without torch: a checked archive, our closed pickle machine, mapped storages."""

import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from paddlemix.checkpoint.formats.base import ARRAY_TYPES, MappedFile, TensorInfo
from paddlemix.checkpoint.formats.limits import brief, plain_name
from paddlemix.checkpoint.formats.pickle_machine import MAX_BYTES, Machine, PickleRefusedError, StorageRef, TensorRef
from paddlemix.utils.errors import CheckpointError

_LOCAL_HEADER = 30
_MAX_DIRECTORY = 8 << 20
"""Bytes of the list of members: 100,000 storages. Each takes ten times as much in memory."""
_HOW_TO = (
    "open it once with torch 1.6 or newer on a machine you trust, with weights_only=True, "
    "and save its state dict again (as safetensors, or with torch.save)"
)


class TorchZipFile:
    """One opened torch ``.bin``. The CRC of a storage is checked when it is first read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = MappedFile(path)
        self._entries = _read_archive(path, self._file)
        self._root = _find_root(path, self._entries)
        self._sound: set[str] = set()
        self._check_byte_order()
        self._tensors = self._read_pickle()

    def infos(self) -> dict[str, TensorInfo]:
        """Every tensor of the file."""
        return {name: TensorInfo(ref.shape, ref.storage.dtype, self.path) for name, ref in self._tensors.items()}

    def view(self, name: str) -> np.ndarray:
        """Read-only, maybe strided array over the mapped file, shape and dtype as in ``infos`` (bfloat16: uint16)."""
        ref = self._tensors[name]
        dtype = ARRAY_TYPES[ref.storage.dtype]
        start, _ = self._storage(ref.storage)
        flat = np.frombuffer(self._file.bytes, dtype, count=ref.storage.count, offset=start)
        strides = tuple(step * dtype.itemsize for step in ref.stride)
        return np.lib.stride_tricks.as_strided(flat[ref.offset :], ref.shape, strides, writeable=False)

    def release(self, name: str) -> None:
        """Give the pages of the tensor's storage back."""
        entry = self._entries[f"{self._root}/data/{self._tensors[name].storage.key}"]
        self._file.release(entry.start, entry.size)

    def _storage(self, storage: StorageRef) -> tuple[int, int]:
        entry = self._entries[f"{self._root}/data/{storage.key}"]
        self._check_crc(entry)
        return entry.start, entry.size

    def _check_crc(self, entry: "_Entry") -> None:
        if entry.name in self._sound:
            return
        if zlib.crc32(self._file.bytes[entry.start : entry.start + entry.size]) != entry.crc:
            raise CheckpointError(f"{self.path}: {entry.name} is damaged (its checksum differs); download it again")
        self._sound.add(entry.name)
        self._file.release(entry.start, entry.size)

    def _bytes(self, entry: "_Entry") -> bytes:
        self._check_crc(entry)
        return bytes(self._file.bytes[entry.start : entry.start + entry.size])

    def _check_byte_order(self) -> None:
        entry = self._entries.get(f"{self._root}/byteorder")
        if entry is not None and self._bytes(entry) != b"little":
            raise CheckpointError(f"{self.path}: it was written on a big-endian machine; {_HOW_TO}")

    def _read_pickle(self) -> dict[str, TensorRef]:
        entry = self._entries[f"{self._root}/data.pkl"]
        if entry.size > MAX_BYTES:
            raise CheckpointError(f"{self.path}: data.pkl has {entry.size} bytes, the limit is {MAX_BYTES}")
        try:
            value = Machine(self._bytes(entry)).run()
        except PickleRefusedError as error:
            raise CheckpointError(f"{self.path}: refused, {error}; if you trust the file, {_HOW_TO}") from error
        if not isinstance(value, dict):
            raise CheckpointError(f"{self.path}: it holds a {type(value).__name__}, expected a dict of tensors")
        for name, item in value.items():
            self._check_item(name, item)
        return value

    def _check_item(self, name: Any, item: Any) -> None:
        if type(name) is not str or type(item) is not TensorRef or not plain_name(name):
            raise CheckpointError(
                f"{self.path}: {brief(name)} holds a {type(item).__name__}, expected names and tensors only "
                "(is it an optimizer or a training state?)"
            )
        entry = self._entries.get(f"{self._root}/data/{item.storage.key}")
        needed = item.storage.count * ARRAY_TYPES[item.storage.dtype].itemsize
        if entry is None or entry.size != needed:
            found = "is missing" if entry is None else f"has {entry.size} bytes instead of {needed}"
            raise CheckpointError(f'{self.path}: the storage {item.storage.key} of "{name}" {found}')


class _Entry:
    """Name, place, size and checksum of one stored member."""

    __slots__ = ("crc", "name", "size", "start")

    def __init__(self, name: str, start: int, size: int, crc: int) -> None:
        self.name, self.start, self.size, self.crc = name, start, size, crc


class _Directory(io.FileIO):
    """A file whose directory of members ``zipfile`` may read, in one piece, only when it is of a sensible size."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Like the file's; BadZipFile for more than any torch file has."""
        if size is not None and size > _MAX_DIRECTORY:
            raise zipfile.BadZipFile(f"a directory of {size} bytes; at most {_MAX_DIRECTORY} are read")
        return super().read(_MAX_DIRECTORY if size is None or size < 0 else size)


def _read_archive(path: Path, file: MappedFile) -> dict[str, _Entry]:
    if bytes(file.bytes[:4]) != b"PK\x03\x04":
        raise CheckpointError(f"{path}: {_what_is_it(bytes(file.bytes[:64]))}")
    try:
        with _Directory(path) as stream, zipfile.ZipFile(stream) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, struct.error, NotImplementedError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: the archive is broken ({error}); download it again") from error
    entries: dict[str, _Entry] = {}
    for member in members:
        if member.filename in entries:
            raise CheckpointError(f"{path}: {member.filename} stands twice in the archive")
        entries[member.filename] = _check_member(path, file, member)
    end = 0
    for entry in sorted(entries.values(), key=lambda item: item.start):
        if entry.start < end:
            raise CheckpointError(f"{path}: {entry.name} overlaps another member of the archive")
        end = entry.start + entry.size
    return entries


def _what_is_it(head: bytes) -> str:
    if not head:
        return "the file is empty; download it again"
    if head.lstrip()[:1] in (b"<", b"{"):
        return "it is text (an error page of a download?), not weights; download it again"
    if head[:1] == b"\x80":
        return f"it is in torch's old format (before 1.6, not a zip), which is not read; {_HOW_TO}"
    return f"it is neither a torch zip nor anything known; {_HOW_TO}"


def _check_member(path: Path, file: MappedFile, member: zipfile.ZipInfo) -> _Entry:
    name = member.filename
    if member.flag_bits & 0x1:
        raise CheckpointError(f"{path}: {name} is encrypted")
    if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
        raise CheckpointError(f"{path}: {name} is compressed; torch stores its members as they are")
    begin = member.header_offset
    local = bytes(file.bytes[begin : begin + _LOCAL_HEADER]) if begin >= 0 else b""
    if len(local) < _LOCAL_HEADER or local[:4] != b"PK\x03\x04":
        raise CheckpointError(f"{path}: the archive is broken at {name}; download it again")
    method, name_length, extra_length = struct.unpack("<8xH16xHH", local)
    start = begin + _LOCAL_HEADER + name_length + extra_length
    stored_name = bytes(file.bytes[begin + _LOCAL_HEADER : begin + _LOCAL_HEADER + name_length])
    if method != 0 or stored_name != name.encode("utf-8"):
        raise CheckpointError(f"{path}: {name} has another name or method in its own header than in the directory")
    if start + member.file_size > file.size:
        raise CheckpointError(f"{path}: {name} reaches past the end of the file; it is truncated, download it again")
    return _Entry(name, start, member.file_size, member.CRC)


def _find_root(path: Path, entries: dict[str, _Entry]) -> str:
    if any(name.split("/")[1:2] == ["code"] or name.endswith("/constants.pkl") for name in entries):
        raise CheckpointError(f"{path}: it is a TorchScript program, not weights; {_HOW_TO}")
    pickles = [name for name in entries if name.endswith("data.pkl") and name.count("/") == 1]
    if len(pickles) != 1 or not pickles[0].endswith("/data.pkl"):
        raise CheckpointError(f"{path}: {len(pickles)} data.pkl in the archive, expected one; it is no torch file")
    return pickles[0].split("/")[0]
