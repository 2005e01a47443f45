# SPDX-License-Identifier: Apache-2.0
"""What may be opened, what becomes of each mode, and how refusals read."""

import base64
import contextlib
import io
import os
import struct
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from paddlemix.imaging import load
from paddlemix.imaging.load import LIMITS, OWN_LIMITS, image_size, load_image
from paddlemix.utils.errors import DataError

NOISE = np.random.default_rng(1).integers(0, 256, (33, 47, 3), dtype=np.uint8)


def encoded(kind: str, picture: Image.Image | None = None, **options: object) -> bytes:
    stream = io.BytesIO()
    (picture or Image.fromarray(NOISE)).save(stream, kind, **options)
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    return png(struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"\0" * 200_000)


def png(head: bytes, rows: bytes) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def message(source: object, limits: load.ImageLimits = LIMITS) -> str:
    with pytest.raises(DataError) as caught:
        load_image(source, limits)
    text = str(caught.value)
    assert "0x" not in text
    return text


def test_path_bytes_data_address_and_picture_give_the_same_pixels(tmp_path: Path):
    data = encoded("PNG")
    (tmp_path / "图 片.png").write_bytes(data)
    address = "data:image/png;base64," + base64.b64encode(data).decode()
    for source in (tmp_path / "图 片.png", str(tmp_path / "图 片.png"), data, address, Image.fromarray(NOISE)):
        assert np.array_equal(np.asarray(load_image(source)), NOISE)
        assert image_size(source) == (33, 47)


def test_addresses_go_through_the_one_fetch_with_the_limits(monkeypatch: pytest.MonkeyPatch):
    seen = []

    def fetch(url, max_bytes, timeout, *, private):
        seen.append((url, max_bytes, timeout, private))
        return encoded("PNG")

    monkeypatch.setattr(load, "fetch", fetch)
    limits = replace(LIMITS, max_bytes=99_999, fetch_seconds=3.0)
    for private in (False, True):
        limits = replace(limits, private_hosts=private)
        assert load_image("https://example.org/a.png", limits).size == (47, 33)
    assert seen == [("https://example.org/a.png", 99_999, 3.0, private) for private in (False, True)]
    assert not LIMITS.private_hosts
    assert not OWN_LIMITS.private_hosts


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("GIF", {}),
        ("TIFF", {}),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_file_cut_anywhere_is_refused_or_complete(kind, options):
    data = encoded(kind, **options)
    whole = np.asarray(load_image(data, OWN_LIMITS))
    step = max(1, len(data) // 60)
    for length in [*range(1, len(data), step), len(data) - 2, len(data) - 1]:
        try:
            picture = load_image(data[:length], OWN_LIMITS)
        except DataError:
            continue
        assert np.array_equal(np.asarray(picture), whole), f"{kind} cut to {length} of {len(data)} bytes"


@pytest.mark.parametrize("head", [b"SIMPLE  =", b"DanM", b"QWERTY"])
def test_formats_outside_the_list_are_not_an_image(head):
    assert "accepted formats (JPEG, PNG, WEBP, BMP, GIF)" in message(head + b"\0" * 600)


def test_missing_empty_and_special_files_are_named(tmp_path: Path):
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "pipe")
    assert message(tmp_path / "no.png") == f"{tmp_path}/no.png: no such image file; check the path and the image folder"
    assert "empty.png: the file is empty" in message(tmp_path / "empty.png")
    assert "is not a regular file" in message(tmp_path / "pipe")
    assert "is not a regular file" in message(tmp_path)
    assert "is not a regular file" in message("/dev/zero")
    assert "cannot be read" in message("bad\0name.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (10_000, 10_000), (7_100, 7_100)])
def test_pixel_bombs_are_refused_from_the_header(width, height, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("its pixels were decoded"))
    assert "50000000" in message(png_header(width, height))


def test_sides_aspect_and_bytes_have_limits():
    assert "sides must be 1 to 16384" in message(Image.new("L", (16385, 100)))
    assert "the long side may be 200 times the short one" in message(Image.new("L", (5000, 1)))
    assert "the limit is 100; make the file smaller" in message(encoded("PNG"), replace(LIMITS, max_bytes=100))
    assert "sides must be 2 to" in message(Image.new("L", (1, 1)), replace(LIMITS, min_side=2))
    for size in ((1, 1), (1, 200), (200, 1)):
        assert load_image(encoded("PNG", Image.new("RGB", size))).size == size


def test_invalid_base64_is_refused():
    assert "not valid base64" in message("data:image/png;base64,!!!!aGVsbG8=@@")
    assert 'expected "data:image' in message("data:image/png,abc")


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    deep = Image.fromarray(np.full((5, 5), 40000, dtype=np.uint16))
    assert load_image(deep).getpixel((0, 0)) == (156, 156, 156)
    assert load_image(encoded("PNG", deep)).getpixel((0, 0)) == (156, 156, 156)


def test_sixteen_bit_rgb_is_scaled_and_not_clipped():
    rows = (b"\0" + struct.pack(">HHH", 40000, 256, 65535) * 5) * 5
    data = png(struct.pack(">IIBBBBB", 5, 5, 16, 2, 0, 0, 0), rows)
    assert set(load_image(data).getdata()) == {(156, 1, 255)}


def test_pixels_without_an_agreed_scale_are_refused():
    assert "32-bit pixels" in message(Image.fromarray(np.full((5, 5), 1 << 20, dtype=np.int32)))
    assert "floating point" in message(Image.fromarray(np.zeros((5, 5), dtype=np.float32)))


@pytest.mark.filterwarnings("error")
def test_alpha_is_dropped_and_not_blended():
    red = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    for data in (
        encoded("PNG", red),
        encoded("PNG", palette, transparency=b"\x80\x40"),
        encoded("WEBP", red, lossless=True, exact=True),
    ):
        assert load_image(data).getpixel((0, 0)) == (255, 0, 0)
    assert load_image(encoded("PNG", Image.new("LA", (4, 4), (90, 0)))).getpixel((0, 0)) == (90, 90, 90)


def test_cmyk_jpeg_is_converted():
    picture = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red, green, blue = load_image(encoded("JPEG", picture, quality=95)).getpixel((8, 8))
    assert red > 245
    assert green < 10
    assert blue < 10


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_ignored_unless_asked_for(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded("PNG", exif=exif)
    assert np.array_equal(np.asarray(load_image(data)), NOISE)
    turned = load_image(data, transpose_exif=True)
    assert turned.size == ((33, 47) if orientation > 4 else (47, 33))
    assert np.array_equal(np.asarray(turned), NOISE) == (orientation == 1)


def test_broken_exif_and_icc_do_not_hide_the_picture():
    for options in ({"exif": b"Exif\0\0garbage"}, {"icc_profile": b"garbage"}):
        assert load_image(encoded("JPEG", **options)).size == (47, 33)


def test_a_text_chunk_that_unfolds_is_refused_or_left_alone():
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    data, bomb = encoded("PNG"), chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * 50_000_000, 9))
    tracemalloc.start()
    try:
        with contextlib.suppress(DataError):
            assert np.array_equal(np.asarray(load_image(data[:33] + bomb + data[33:])), NOISE)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_the_first_frame_is_used_and_more_can_be_refused():
    frames = [Image.new("RGB", (8, 8), (10 * index, 0, 0)) for index in range(1, 9)]
    for kind in ("GIF", "WEBP", "PNG"):
        data = encoded(
            kind, frames[0], save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
        )
        assert load_image(data).getpixel((0, 0)) == (10, 0, 0)
        assert "several frames" in message(data, replace(LIMITS, animated=False))


def test_mutated_files_raise_only_our_error():
    rng = np.random.default_rng(3)
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF"):
        data = np.frombuffer(encoded(kind), dtype=np.uint8)
        for _ in range(60):
            broken = data.copy()
            broken[rng.integers(0, len(data), 6)] = rng.integers(0, 256, 6)
            with contextlib.suppress(DataError):
                assert load_image(broken.tobytes()).mode == "RGB"
