# SPDX-License-Identifier: Apache-2.0
"""Small files that ask for a lot. As a program, it opens them one by one and prints what each has cost.

python tests/imaging/bombs.py
"""

import contextlib
import io
import json
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

from PIL import Image

sys.path[0] = str(Path(__file__).resolve().parents[2])

MIB = 1 << 20
FULL = 20 * MIB - 2000


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    width: int, height: int, kind: int, depth: int = 8, *, rows: int | None = None, more: bytes = b"", end: bytes = b""
) -> bytes:
    """A black PNG; ``kind`` is 0 grey, 2 RGB, 4 grey and alpha, 6 RGBA. ``rows``: how many of them are there."""
    row = bytes(1 + width * {0: 1, 2: 3, 4: 2, 6: 4}[kind] * depth // 8)
    packer = zlib.compressobj(1)
    body = b"".join(packer.compress(row) for _ in range(height if rows is None else rows)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + more + chunk(b"IDAT", body) + end + chunk(b"IEND", b"")


def saved(kind: str, size: tuple[int, int] = (64, 64), mode: str = "RGB", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, kind, **options)
    return stream.getvalue()


def scans(size: tuple[int, int], times: int, *, claimed: tuple[int, int] | None = None, **options: object) -> bytes:
    """A progressive JPEG whose last scan stands ``times`` times more; its header says ``claimed`` pixels."""
    data = saved("JPEG", size, quality=30, progressive=True, **options)
    last = data[data.rfind(b"\xff\xda") : -2]
    data = data[:-2] + last * min(times, (FULL - len(data)) // len(last)) + data[-2:]
    at = data.index(b"\xff\xc2") + 5
    width, height = claimed or size
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def segments(marker: int, *bodies: bytes) -> bytes:
    head = saved("JPEG")
    parts = b"".join(b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body for body in bodies)
    return head[:2] + parts + head[2:]


def tags(count: int, size: int, at: int = 8) -> bytes:
    """A TIFF structure whose ``count`` tags all have the same ``size`` bytes as their value."""
    entries = b"".join(struct.pack("<HHII", 40000 + number, 7, size, 8) for number in range(count))
    return b"II*\0" + struct.pack("<I", at) + b"\0" * (at - 8) + struct.pack("<H", count) + entries + b"\0" * 4


def tiff(count: int, size: int) -> bytes:
    """An honest TIFF of 8 x 8 pixels, with tags that share their value behind its own."""
    data = saved("TIFF", (8, 8))
    (start,) = struct.unpack_from("<I", data, 4)
    (own,) = struct.unpack_from("<H", data, start)
    entries = data[start + 2 : start + 2 + 12 * own] + tags(count, size)[10:-4]
    whole = data + struct.pack("<H", own + count) + entries + b"\0" * (4 + size)
    return whole[:4] + struct.pack("<I", len(data)) + whole[8:]


def tiled(side: int) -> bytes:
    """A TIFF of 64 x 64 pixels that says its data are one tile of ``side`` pixels, most of it never seen."""
    packed = zlib.compress(bytes(side * side // 64), 9)
    facts = {256: 64, 257: 64, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 8, 325: len(packed)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in facts.items())
    head = b"II*\0" + struct.pack("<I", 8 + len(packed))
    return head + packed + struct.pack("<H", len(facts)) + entries + b"\0" * 4


def gif(extension: bytes) -> bytes:
    data = saved("GIF", mode="P")
    at = data.index(b"\x2c", 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0))
    return data[:at] + extension + data[at:]


def bmp(width: int, height: int, data: bytes) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(data), 0, 0, 1078) + head + b"\0" * 1024 + data


REFUSED: dict[str, Callable[[], bytes]] = {
    "RGBA of 50 MP": lambda: png(8192, 6103, 6, rows=1),
    "grey and alpha of 50 MP": lambda: png(8192, 6103, 4, rows=1),
    "16-bit RGBA of 50 MP": lambda: png(8192, 6103, 6, 16, rows=1),
    "progressive JPEG of 42 MP": lambda: scans((64, 64), 0, claimed=(8400, 5000)),
    "progressive JPEG of 30 MP without subsampling": lambda: scans((64, 64), 0, claimed=(6000, 5000), subsampling=0),
    "CMYK JPEG of 36 MP": lambda: saved("JPEG", (6000, 6000), "CMYK", quality=30),
    "WEBP of 20 MP": lambda: saved("WEBP", (5000, 4000), lossless=True, method=0),
    "many scans": lambda: scans((64, 64), 150, claimed=(3000, 3000)),
    "scans without end": lambda: scans((64, 64), FULL),
    "JPEG of empty segments": lambda: segments(0xE5, *[b""] * 100_000),
    "JPEG of Exif segments": lambda: segments(0xE1, *[b"Exif\0\0......"] * 600),
    "JPEG of Exif prefixes": lambda: segments(0xE1, *[b"Exif\0\0" * 10000] * 20),
    "JPEG whose Exif unfolds": lambda: segments(0xE1, b"Exif\0\0" + tags(4000, 60000)),
    "JPEG whose list of images unfolds": lambda: segments(0xE2, b"MPF\0" + tags(4000, 60000)),
    "JPEG behind 20 MB of nothing": lambda: b"\xff\xd8" + b"\0" * FULL + saved("JPEG"),
    "PNG of empty chunks": lambda: png(64, 64, 2, more=chunk(b"abCd", b"") * (FULL // 12)),
    "PNG with chunks behind": lambda: png(64, 64, 2, end=chunk(b"abCd", b"") * (FULL // 12)),
    "PNG of empty IDAT": lambda: png(64, 64, 2, end=chunk(b"IDAT", b"") * (FULL // 12)),
    "GIF with a long comment": lambda: gif(b"\x21\xfe" + b"\x01a" * (FULL // 2) + b"\0"),
    "GIF of extensions": lambda: gif(b"\x21\xf9\x04\0\0\0\0\0" * (FULL // 8)),
    "GIF behind nothing": lambda: gif(b"\0" * FULL),
    "TIFF whose tags unfold": lambda: tiff(400, 5_000_000),
    "TIFF of one tile": lambda: tiled(32768),
    "TIFF with one strip": lambda: saved("TIFF", (8192, 6103), "RGBA", compression="tiff_lzw", tiffinfo={278: 6103}),
    "BMP of runs": lambda: bmp(7000, 1400, b"\x01\x05" * (FULL // 2)),
}
"""What may not be opened, whatever its header says."""

TAKEN: dict[str, Callable[[], bytes]] = {
    "RGB of 50 MP": lambda: png(8192, 6100, 2),
    "grey of 50 MP": lambda: png(8192, 6100, 0),
    "16-bit grey of 47 MP": lambda: png(8192, 5700, 0, 16),
    "RGBA of 35 MP": lambda: png(8192, 4300, 6),
    "wide": lambda: png(16384, 82, 2),
    "tall": lambda: png(82, 16384, 2),
    "WEBP of 16 MP": lambda: saved("WEBP", (4096, 4096), lossless=True, method=0),
    "progressive JPEG of 38 MP": lambda: scans((7600, 5000), 14),
    "progressive JPEG of 26 MP without subsampling": lambda: scans((6500, 4000), 0, subsampling=0),
    "PNG with texts that unfold": lambda: png(
        64, 64, 2, more=chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * (MIB - 9), 9)) * 60
    ),
    "BMP of long runs": lambda: bmp(7000, 7000, (b"\xff\x05" * 27 + b"\x73\x05\0\0") * 7000 + b"\0\1"),
}
"""The largest that may be opened."""


def main() -> None:
    """One JSON line for each file: opened and prepared in "pad" mode."""
    from paddlemix.imaging.load import OWN_LIMITS, image_size, load_image
    from paddlemix.imaging.preprocess import preprocess
    from paddlemix.settings.model import ImageConfig
    from paddlemix.utils.errors import DataError
    from tests.cost_kit import cost

    def use(data: bytes) -> None:
        with contextlib.suppress(DataError):  # what the pixels cost is not its business
            image_size(data, OWN_LIMITS)
        preprocess(load_image(data, OWN_LIMITS, transpose_exif=True), ImageConfig(336, 336, aspect="pad"))

    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        load_image(saved(kind), OWN_LIMITS)
    for name, make in {**REFUSED, **TAKEN}.items():
        print(json.dumps({"name": name, **cost(use, make())}), flush=True)


if __name__ == "__main__":
    main()
