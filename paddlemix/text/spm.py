# SPDX-License-Identifier: Apache-2.0
"""The two protobuf messages of sentencepiece that we read ourselves: the model file and an encoded text.

Reading them here keeps the protobuf package out of the project (two libraries that both register
``sentencepiece_model.proto`` in one process crash each other), lets a damaged model file be refused before native code
sees it, and gives the byte offset of every piece in all versions of sentencepiece from 0.2.1 on.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from paddlemix.utils.shown import shown

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of a piece (field 3 of a piece in the model file)."""

WITHOUT_DUMMY_PREFIX = b"\x1a\x02\x18\x00"
"""Appended to a model file it overrides one setting: field 3 (normalizer), its field 3 (add_dummy_prefix) = false."""

MAX_PIECES = 1 << 19
"""Pieces of a vocabulary; the largest published ones have half as many."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
_MODEL_FIELDS = {1: _BYTES, 2: _BYTES, 3: _BYTES, 4: _BYTES, 5: _BYTES}


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary of a model file."""

    text: str
    kind: int
    score: float = 0.0
    """Of two neighbours, those whose piece has the best score are joined first."""


@dataclass(frozen=True)
class Settings:
    """What a model file says about its algorithm and about the text before it."""

    bpe: bool
    charsmap: bool
    dummy_prefix: bool
    removes_spaces: bool
    escapes_spaces: bool
    space_behind: bool


def fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """Walk one protobuf message: ``(field number, wire type, value)``. ValueError names the offset of damage."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise ValueError(f"field number 0 before byte {at}")
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, wire, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire} before byte {at}")
        if at + size > end:
            raise ValueError(f"field {number} wants {size} bytes at byte {at}, only {end - at} are left")
        yield number, wire, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data):
            raise ValueError(f"the data ends inside a number at byte {at}")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError(f"a number of more than 10 bytes at byte {at}")


def read_model(data: bytes) -> list[Piece]:
    """The vocabulary of a sentencepiece model file. ValueError says what is wrong with a damaged one."""
    if not data:
        raise ValueError("the file is empty")
    pieces: list[Piece] = []
    trainer = False
    for number, wire, value in fields(data):
        # Fields from 200 on are the extension range of the format; anything else unknown means another kind of file.
        if number < 200 and _MODEL_FIELDS.get(number) != wire:
            raise ValueError(f"field {number} of wire type {wire} does not belong to a sentencepiece model")
        if number == 1:
            pieces.append(_read_piece(value, len(pieces)))
            if len(pieces) > MAX_PIECES:
                raise ValueError(f"it holds more than {MAX_PIECES} pieces")
        trainer = trainer or number == 2
    if not pieces or not trainer:
        raise ValueError("it holds no vocabulary" if not pieces else "it holds no trainer settings")
    if len({piece.text for piece in pieces}) != len(pieces):
        raise ValueError("a piece stands twice in its vocabulary")
    if sum(piece.kind == UNKNOWN for piece in pieces) != 1:
        raise ValueError("its vocabulary must hold exactly one unknown piece")
    return pieces


def _read_piece(data: bytes, index: int) -> Piece:
    text, kind, score = "", NORMAL, 0.0
    for number, wire, value in fields(data):
        if number == 1 and wire == _BYTES:
            text = value.decode("utf-8")
        elif number == 2 and wire == _FIXED32:
            score = struct.unpack("<f", value)[0]
        elif number == 3 and wire == _VARINT:
            kind = value
    if not text or not NORMAL <= kind <= BYTE or (kind == BYTE and not _BYTE_PIECE.fullmatch(text)):
        raise ValueError(f"piece {index} has text {shown(text)} and kind {kind}")
    return Piece(text, kind, score)


def read_settings(data: bytes) -> Settings:
    """The settings of a model file that ``read_model`` accepts; the defaults are those of the format."""
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, _, value in fields(data):
        if number in (2, 3) and isinstance(value, bytes):
            part = trainer if number == 2 else normalizer
            part |= {key: item for key, _, item in fields(value)}
    return Settings(
        bpe=trainer.get(3, 1) == 2,
        charsmap=bool(normalizer.get(2)),
        dummy_prefix=bool(normalizer.get(3, 1)),
        removes_spaces=bool(normalizer.get(4, 1)),
        escapes_spaces=bool(normalizer.get(5, 1)),
        space_behind=bool(trainer.get(24, 0)),
    )


def read_encoded(data: bytes) -> list[tuple[int, int]]:
    """``(id, first byte of its text)`` for every piece of a serialized encoding, in order. ValueError when damaged."""
    try:
        found = _read_pieces(data)
    except IndexError:
        found = None
    return _read_any_pieces(data) if found is None else found


_PIECES, _PIECE_ID, _PIECE_BEGIN = 0x12, 0x10, 0x20
_NUMBERS, _TEXTS = (_PIECE_ID, _PIECE_BEGIN, 0x28), (0x0A, 0x1A)
"""First bytes of the fields of an encoding and of its pieces: field number times 8, plus wire type."""


def _read_pieces(data: bytes) -> list[tuple[int, int]] | None:
    """``read_encoded`` of what sentencepiece itself writes; None (or IndexError) for anything else.

    All text of a data set goes through here, a piece at a time: no call and no copy for each number.
    """
    found: list[tuple[int, int]] = []
    at, end = 0, len(data)
    while at < end:
        key, size = data[at], data[at + 1]
        at += 2
        if size > 0x7F:
            size, at = _varint(data, at - 1)
        if key == _PIECES:
            piece = _read_one(data, at, at + size)
            if piece is None:
                return None
            found.append(piece)
        elif key != _TEXTS[0]:
            return None
        at += size
    return found if at == end else None


def _read_one(data: bytes, at: int, stop: int) -> tuple[int, int] | None:
    number = begin = 0
    while at < stop:
        key, value = data[at], data[at + 1]
        at += 2
        if value > 0x7F:
            value, at = _varint(data, at - 1)
        if key == _PIECE_ID:
            number = value
        elif key == _PIECE_BEGIN:
            begin = value
        elif key in _TEXTS:
            at += value
        elif key not in _NUMBERS:
            return None
    return (number, begin) if at == stop else None


def _read_any_pieces(data: bytes) -> list[tuple[int, int]]:
    found = []
    for number, _, value in fields(data):
        if number == 2:
            parts = {key: part for key, _, part in fields(value)}
            found.append((parts.get(2, 0), parts.get(4, 0)))
    return found
