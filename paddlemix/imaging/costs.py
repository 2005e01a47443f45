# SPDX-License-Identifier: Apache-2.0
"""What decoding an image file would cost, read from its structure before Pillow opens it.

A small file can ask for a lot: a progressive JPEG repeats its scans, a list of tags points to the same megabytes a
thousand times, and Pillow walks through chunks, segments and comments one by one in Python. A file that could only have
been made to do so is refused here; what honest files need is told, for the limits of ``load``.
"""

import re
import struct
from collections.abc import Container
from dataclasses import dataclass

from paddlemix.utils.files import MIB


class CostError(ValueError):
    """The file is built to cost more than an image can. The text goes behind its name."""


@dataclass(frozen=True)
class Costs:
    """What a decoder holds beside the image: bytes for each pixel, and bytes in all. ``scans``: passes over it."""

    per_pixel: float = 0.0
    fixed: int = 0
    scans: int = 1


_TINY = 2 * MIB
"""Pieces that a run-length coded BMP may have, which Pillow decodes in Python: bytes of the file."""
_MAX_SEGMENTS = 500
_MAX_CHUNKS = 50_000
_MAX_BLOCKS = 20_000
_MAX_COMMENT_BLOCKS = 2_000
_MAX_TAGS = 4096
_MAX_JUNK = 64 * 1024
_TEXT_BYTES = 64 * MIB
"""What Pillow unfolds of compressed texts at most, a MiB of each."""

_MARKER = re.compile(rb"\xff+[^\x00\xff]", re.DOTALL)
_ARITHMETIC = (0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_PROGRESSIVE = (0xC2, 0xC6)
_FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *_ARITHMETIC)
_BARE = (0x01, *range(0xD0, 0xDA))
"""Markers without a length."""
_EXIF, _MULTI = b"Exif\0\0", b"MPF\0"
_TAG_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_MANY = "has far more parts than an image needs"


def costs_of(data: bytes, size: int, formats: Container[str], *, header: bool = False) -> Costs | None:
    """The costs of a file of ``size`` bytes, by its beginning ``data``; None when more of the file is needed for that.

    ``formats`` are those that will be tried, by Pillow's names. ``header`` asks only for what happens before the pixels
    are decoded. CostError for a file that is built to cost.
    """
    for head, (name, read) in _READERS.items():
        if name in formats and data.startswith(head):
            return read(data, size, header)
    return Costs()


def check_exif(exif: bytes) -> None:
    """CostError for an Exif block that unfolds: its tags may not claim more bytes than it has."""
    start = 0
    while exif.startswith(_EXIF, start):
        start += len(_EXIF)
        if start > 8 * len(_EXIF):  # Pillow copies the rest for each of them
            raise CostError(_MANY)
    _check_tags(exif[start:], len(exif) - start)


def _jpeg(data: bytes, size: int, header: bool) -> Costs | None:
    position, junk, exif, layers, progressive = 2, 0, b"", [], False
    for _ in range(_MAX_SEGMENTS):
        found = _MARKER.search(data, position)
        if found is None or position > len(data):
            return None
        junk += found.start() - position
        marker, position = data[found.end() - 1], found.end()
        if junk > _MAX_JUNK:
            raise CostError("holds much that belongs to no image")
        if marker in _BARE:
            continue
        body = data[position + 2 : position + max(2, int.from_bytes(data[position : position + 2], "big"))]
        if marker in _ARITHMETIC:
            raise CostError("is arithmetic coded, which takes too long to decode; save it as baseline JPEG")
        if marker in _FRAMES:
            layers, progressive = _layers(body), marker in _PROGRESSIVE
        elif marker == 0xE1 and body.startswith(_EXIF):
            exif += body[len(_EXIF) :] if exif else body  # as Pillow puts the parts together
        elif marker == 0xE2 and body.startswith(_MULTI):
            _check_tags(body[len(_MULTI) :], len(body) - len(_MULTI))
        elif marker == 0xDA:
            check_exif(exif)
            several = progressive or body[:1] != bytes([len(layers)])
            return _scans(data, position, layers) if several and not header else Costs()
        position += 2 + len(body)
    raise CostError(_MANY)


def _layers(body: bytes) -> list[tuple[int, int]]:
    """(horizontal, vertical) sampling of each component of a frame header."""
    return [(body[at + 1] >> 4, body[at + 1] & 15) for at in range(6, len(body) - 2, 3)]


def _scans(data: bytes, position: int, layers: list[tuple[int, int]]) -> Costs:
    # All coefficients are kept until the last scan, two bytes each.
    whole = max((h for h, _ in layers), default=1) * max((v for _, v in layers), default=1)
    samples = sum(h * v for h, v in layers) / max(1, whole)
    return Costs(per_pixel=2 * samples, scans=1 + data.count(b"\xff\xda", position))


def _png(data: bytes, size: int, header: bool) -> Costs | None:
    position, texts = 8, 0
    for _ in range(_MAX_CHUNKS):
        if position + 8 > len(data):
            return Costs(fixed=min(texts * MIB, _TEXT_BYTES)) if len(data) == size else None
        length, name = struct.unpack_from(">I4s", data, position)
        if header and name == b"IDAT":
            return Costs()
        texts += name in (b"zTXt", b"iTXt", b"iCCP")
        position += 12 + length
    raise CostError(_MANY)


def _gif(data: bytes, size: int, header: bool) -> Costs | None:
    """Walks to the first frame. Its pixels are read in C, whatever the size of their blocks."""
    position = 13 + (3 << (data[10] & 7) + 1 if len(data) > 10 and data[10] & 0x80 else 0)
    blocks = comments = 0
    while position < len(data) and data[position] != 0x2C:
        blocks += 1
        comment = data[position : position + 2] == b"\x21\xfe"
        if data[position] != 0x21:  # a stray byte
            position += 1
        else:
            position += 2
            while position < len(data) and data[position]:
                position += 1 + data[position]
                blocks, comments = blocks + 1, comments + comment
                if blocks > _MAX_BLOCKS or comments > _MAX_COMMENT_BLOCKS:
                    raise CostError(_MANY)
            position += 1
        if blocks > _MAX_BLOCKS:
            raise CostError(_MANY)
    return Costs() if position < len(data) else None


def _bmp(data: bytes, size: int, header: bool) -> Costs:
    if size > _TINY and int.from_bytes(data[30:34], "little") in (1, 2):
        raise CostError(f"is run-length coded and larger than {_TINY} bytes; save it as PNG")
    return Costs()


def _webp(data: bytes, size: int, header: bool) -> Costs:
    # The decoder keeps two canvases and a copy of the frame, and the file twice.
    return Costs(per_pixel=12.0, fixed=2 * size) if data[8:12] == b"WEBP" else Costs()


def _tiff(data: bytes, size: int, header: bool) -> Costs | None:
    return Costs() if _check_tags(data, size) else None


def _check_tags(data: bytes, size: int) -> bool:
    """Look through the first list of tags of a TIFF structure; Pillow keeps a copy of the value of each.

    False when the list is not (wholly) in ``data``.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"\x2b\0", b"\0\x2b")
    offset_kind, count_kind, entry_kind = ("Q", "Q", "HHQ8s") if big else ("I", "H", "HHI4s")
    head, inline = (8, 8) if big else (4, 4)
    try:
        (start,) = struct.unpack_from(order + offset_kind, data, head)
        (count,) = struct.unpack_from(order + count_kind, data, start)
    except struct.error:
        return False
    if count > _MAX_TAGS:
        raise CostError(_MANY)
    entry = struct.Struct(order + entry_kind)
    begin = start + struct.calcsize("=" + count_kind)
    places = range(begin, begin + count * entry.size, entry.size)
    total = 0
    for place in places:
        if place + entry.size > len(data):
            break
        _, kind, number, _ = entry.unpack_from(data, place)
        value = _TAG_BYTES.get(kind, 0) * number
        total += value if value > inline else 0
    if total > size:
        raise CostError("has tags that claim more bytes than it has")
    return not places or places[-1] + entry.size <= len(data)


_READERS = {
    b"\xff\xd8": ("JPEG", _jpeg),
    b"\x89PNG": ("PNG", _png),
    b"GIF8": ("GIF", _gif),
    b"BM": ("BMP", _bmp),
    b"RIFF": ("WEBP", _webp),
    b"II": ("TIFF", _tiff),
    b"MM": ("TIFF", _tiff),
}
"""First bytes: the format and what reads its costs."""
