# SPDX-License-Identifier: Apache-2.0
"""Opens images that nobody has checked: limits before decoding, one rule a mode, errors that say what to do."""

import base64
import binascii
import io
import os
import stat
import struct
import urllib.parse
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from paddlemix.imaging.costs import CostError, Costs, check_exif, costs_of
from paddlemix.imaging.kinds import HEAD, what_it_is
from paddlemix.imaging.layout import Size
from paddlemix.utils.errors import DataError
from paddlemix.utils.files import MIB, fetch
from paddlemix.utils.foreign import refuse_pointer
from paddlemix.utils.paths import begins_at

ImageSource = str | os.PathLike | bytes | Image.Image
"""A path, an http(s) or ``data:`` address, the bytes of a file, or an image."""


@dataclass(frozen=True)
class ImageLimits:
    """What an image may be. Formats are Pillow's names; lengths in pixels; ``max_aspect`` is long side / short side.

    ``max_memory``: bytes that decoding and converting may hold at a time, the file included. ``max_passes``: pixels
    times scans of a JPEG with several scans (a progressive one has about ten; one of 12 million pixels may have 80).
    EPS, PSD, FITS, PDF and the like are outside the list on purpose: their readers start programs or had overflows.
    ``animated`` False refuses files with several frames; otherwise the first one is used. ``private_hosts`` True lets
    addresses lead to this machine and to private networks; only a person at the keyboard may ask for that. ``keys`` is
    what a setting of a limit is called (``max_image_{}``), for messages of a command that has such settings.
    """

    formats: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
    max_bytes: int = 20 * MIB
    max_pixels: int = 50_000_000
    min_side: int = 1
    max_side: int = 16384
    max_aspect: float = 200.0
    max_memory: int = 285_000_000
    max_passes: int = 1_000_000_000
    animated: bool = True
    fetch_seconds: float = 10.0
    private_hosts: bool = False
    keys: str | None = None


LIMITS = ImageLimits()
OWN_LIMITS = replace(LIMITS, formats=(*LIMITS.formats, "TIFF"))
"""Limits for the user's own files: libtiff prints a line on stderr for every bad file, so TIFF is read only there."""

# What Pillow raises on broken files (found by mutating 300,000 of them) besides its own errors.
_BROKEN = (
    UnidentifiedImageError,
    OSError,
    SyntaxError,
    ValueError,
    IndexError,
    TypeError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
    MemoryError,
    zlib.error,
    EOFError,
)

_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_HELD = {"1": 1, "L": 1, "P": 1, **dict.fromkeys(_SIXTEEN_BIT[:4], 2)}
"""Bytes of a pixel in Pillow's memory, by mode; 4 for all others."""
_SCAN_PIXELS = 100_000
"""What a scan costs besides its pixels (tables), in pixels."""
_STRIP = 1 << 20
"""Pixels that are converted at a time."""
_HEAD = 64 * 1024
"""Bytes that usually hold the header of an image."""
_IMAGE_WIDTH, _IMAGE_LENGTH = 256, 257
_BITS_PER_SAMPLE, _ROWS_PER_STRIP, _TILE_WIDTH, _TILE_LENGTH = 258, 278, 322, 323
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By the value of EXIF's orientation."""
_ON_ITS_SIDE = (5, 6, 7, 8)
"""Those of them that exchange width and height."""


def load_image(
    source: ImageSource, limits: ImageLimits = LIMITS, *, transpose_exif: bool = False, name: str | None = None
) -> Image.Image:
    """The image as RGB, fully decoded.

    The original's ``convert("RGB")`` decides: alpha is dropped, not blended; palette, grey and CMYK are converted; EXIF
    orientation is ignored unless ``transpose_exif`` (but Pillow always obeys a TIFF's). The one exception is 16-bit
    grey, scaled by ``>> 8`` instead of clipped at 255. ``name`` is how errors call the image (default: the path or
    address).
    Raises DataError naming the source and the remedy; limits are checked before anything is decoded.
    """
    name = name or _name_of(source)
    if isinstance(source, Image.Image):
        with _told(name, limits):
            _check_size(source, limits, name)
            return _turned(_to_rgb(source, name), source, transpose_exif)
    with _opened(source, limits, name) as file, _told(name, limits, file):
        data = file.read()
        costs = costs_of(data, len(data), limits.formats) or Costs()
        with Image.open(io.BytesIO(data), formats=limits.formats) as picture:
            _check_size(picture, limits, name)
            _check_costs(picture, costs, len(data), limits, name)
            if not limits.animated and getattr(picture, "is_animated", False):
                raise DataError(f"{name}: has several frames; give one image")
            picture.load()
            return _turned(_to_rgb(picture, name, ours=True), picture, transpose_exif)


def image_size(
    source: ImageSource, limits: ImageLimits = LIMITS, *, transpose_exif: bool = False, name: str | None = None
) -> Size:
    """(height, width) in pixels from the header, without decoding. Same errors as ``load_image``.

    A PNG may have its EXIF data behind the pixels; these do not count here.
    """
    name = name or _name_of(source)
    if isinstance(source, Image.Image):
        _check_size(source, limits, name)
        return _turned_size(source, transpose_exif)
    with _opened(source, limits, name) as file, _told(name, limits, file):
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if costs_of(file.read(_HEAD), size, limits.formats, header=True) is None:
            file.seek(0)
            costs_of(file.read(), size, limits.formats, header=True)
        file.seek(0)
        with Image.open(file, formats=limits.formats) as picture:
            _check_size(picture, limits, name)
            return _turned_size(picture, transpose_exif)


def is_turned(source: ImageSource, limits: ImageLimits = LIMITS, *, name: str | None = None) -> bool:
    """Whether the EXIF data of an image that ``load_image`` takes turn it."""
    name = name or _name_of(source)
    with (
        _opened(source, limits, name) as file,
        _told(name, limits, file),
        Image.open(file, formats=limits.formats) as picture,
    ):
        return _orientation(picture) in _TURNS


def is_address(source: object) -> bool:
    """True for text that begins like an http(s) or ``data:`` address."""
    return isinstance(source, str) and source[:8].lower().startswith(("http://", "https://", "data:"))


def _name_of(source: ImageSource) -> str:
    if isinstance(source, Image.Image):
        return getattr(source, "filename", "") or "the given image"
    if isinstance(source, bytes):
        return "the given image bytes"
    text = os.fspath(source)
    return f"{text[:40]}..." if text[:5].lower() == "data:" else str(text)


@contextmanager
def _opened(source: str | os.PathLike | bytes, limits: ImageLimits, name: str) -> Iterator[Any]:
    """A seekable binary stream of at most ``max_bytes``."""
    if is_address(source):
        source = _data_bytes(source, limits, name) if source[:5].lower() == "data:" else _fetched(source, limits)
    if isinstance(source, bytes):
        _check_bytes(len(source), limits, name)
        yield io.BytesIO(source)
        return
    with _open_file(Path(source), limits, name) as stream:
        yield stream


def _fetched(address: str, limits: ImageLimits) -> bytes:
    return fetch(address, limits.max_bytes, limits.fetch_seconds, private=limits.private_hosts)


def _data_bytes(address: str, limits: ImageLimits, name: str) -> bytes:
    head, comma, body = address.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise DataError(f'{name}: expected "data:image/...;base64,..."')
    _check_bytes(max(1, len(body) * 3 // 4 - 2), limits, name)
    try:
        return base64.b64decode(urllib.parse.unquote(body), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{name}: not valid base64") from error


def _open_file(path: Path, limits: ImageLimits, name: str) -> Any:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{name}: is not a regular file; give the path of an image")
        _check_bytes(status.st_size, limits, name)
        return open(path, "rb")
    except FileNotFoundError as error:
        remedy = f"check the path and the image folder{begins_at(path)}"
        raise DataError(f"{name}: no such image file; {remedy}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise DataError(f"{name}: cannot be read ({reason})") from error


def _check_bytes(count: int, limits: ImageLimits, name: str) -> None:
    if count > limits.max_bytes:
        remedy = f"make the file smaller{_or_raise(limits, 'bytes')}"
        raise DataError(f"{name}: {count} bytes, the limit is {limits.max_bytes}; {remedy}")
    if count <= 0:
        raise DataError(f"{name}: the file is empty (0 bytes)")


def _check_costs(picture: Image.Image, costs: Costs, count: int, limits: ImageLimits, name: str) -> None:
    pixels = picture.width * picture.height
    found = f"{name}: {picture.width} x {picture.height} pixels"
    if costs.scans > 1 and costs.scans * (pixels + _SCAN_PIXELS) > limits.max_passes:
        raise DataError(f"{found} in {costs.scans} scans take too long to decode; save it as baseline JPEG")
    held = _HELD.get(picture.mode, 4) * pixels
    decoding = max(costs.per_pixel * pixels, _tile_bytes(picture))
    converting = 0 if picture.mode == "RGB" else 4 * pixels
    need = count + costs.fixed + held + max(decoding, converting)
    if need > limits.max_memory:
        raise DataError(
            f"{found} in this form ({picture.format}, {picture.mode}) need {need / 1e6:.0f} MB of memory to decode, "
            f"the limit is {limits.max_memory / 1e6:.0f}; scale the image down, or save it as baseline JPEG"
            f"{_or_raise(limits, 'memory')}"
        )


def _tile_bytes(picture: Image.Image) -> int:
    """Bytes of the largest piece that a TIFF is decoded by."""
    tags = getattr(picture, "tag_v2", None)
    if tags is None:
        return 0
    bits = tags.get(_BITS_PER_SAMPLE, 8)
    deep = max(4, sum(bits if isinstance(bits, tuple) else (bits,)) / 8)
    tile = int(tags.get(_TILE_WIDTH, 0)) * int(tags.get(_TILE_LENGTH, 0))
    strip = picture.width * min(picture.height, int(tags.get(_ROWS_PER_STRIP, picture.height)))
    return int(deep * (tile or strip))


def _check_size(picture: Image.Image, limits: ImageLimits, name: str) -> None:
    width, height = picture.size
    short, long = min(width, height), max(width, height)
    found = f"{name}: {width} x {height} pixels"
    if width * height > limits.max_pixels:
        remedy = f"scale the image down{_or_raise(limits, 'pixels')}"
        raise DataError(f"{found}, the limit is {limits.max_pixels} in all; {remedy}")
    if short < limits.min_side or long > limits.max_side:
        remedy = f"scale the image{_or_raise(limits, 'side')}"
        raise DataError(f"{found}, sides must be {limits.min_side} to {limits.max_side}; {remedy}")
    if long > limits.max_aspect * short:
        remedy = f"crop the image{_or_raise(limits, 'aspect')}"
        raise DataError(f"{found}, the long side may be {limits.max_aspect:g} times the short one; {remedy}")


def _or_raise(limits: ImageLimits, name: str) -> str:
    return f", or raise {limits.keys.format(name)}" if limits.keys else ""


@contextmanager
def _told(name: str, limits: ImageLimits, file: BinaryIO | None = None) -> Iterator[None]:
    """Turns everything Pillow raises on a broken file into a DataError. Pillow's own text may hold object addresses."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: {_why_unknown(name, limits, file)}") from error
    except CostError as error:
        raise DataError(f"{name}: {error}; replace the file") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name}: far more than {limits.max_pixels} pixels; scale the image down") from error
    except _BROKEN as error:
        raise DataError(f"{name}: damaged or truncated image ({type(error).__name__}); replace the file") from error


def _why_unknown(name: str, limits: ImageLimits, file: BinaryIO | None) -> str:
    head = b""
    if file is not None:
        file.seek(0)
        head = file.read(HEAD)
    refuse_pointer(head, name, DataError)
    formats = ", ".join(limits.formats)
    return what_it_is(head, limits.formats) or f"not an image, or of none of the accepted formats ({formats})"


def _to_rgb(picture: Image.Image, name: str, *, ours: bool = False) -> Image.Image:
    """The pixels as RGB. ``ours``: nobody else holds the image, so it may be changed or given back itself."""
    if picture.mode in _SIXTEEN_BIT:
        return _from_sixteen_bit(picture, name)
    if picture.mode == "F":
        raise DataError(f"{name}: floating point pixels have no agreed scale; save it with 8 bits per channel")
    if picture.mode == "RGB":
        # A copy would be a second image in memory; only a WebP keeps its decoder for as long as it lives.
        return picture if ours and picture.format != "WEBP" else picture.copy()
    if picture.mode in ("P", "L", "1") and "transparency" in picture.info:
        # It does not change a pixel of the result, but Pillow would warn for every such file.
        picture = picture if ours else picture.copy()
        picture.info.pop("transparency")
    return picture.convert("RGB")


def _turned(picture: Image.Image, source: Image.Image, transpose_exif: bool) -> Image.Image:
    """The RGB ``picture`` of a file turned as the EXIF data of ``source`` say."""
    turn = _TURNS.get(_orientation(source)) if transpose_exif else None
    return picture if turn is None else picture.transpose(turn)


def _turned_size(picture: Image.Image, transpose_exif: bool) -> Size:
    """(height, width) that an opened image will have when it is loaded."""
    width, height = picture.size
    tags = getattr(picture, "tag_v2", None)
    if tags is not None:
        # Pillow turns TIFF images itself; whether their size says so before they are loaded depends on its version.
        width, height = int(tags.get(_IMAGE_WIDTH, width)), int(tags.get(_IMAGE_LENGTH, height))
    lies = (transpose_exif or tags is not None) and _orientation(picture) in _ON_ITS_SIDE
    return (width, height) if lies else (height, width)


def _orientation(source: Image.Image) -> object:
    exif, text = source.info.get("exif"), source.info.get("Raw profile type exif")
    if isinstance(text, str) and exif is None:
        exif = bytes.fromhex("".join(text.split("\n")[3:]))
    if isinstance(exif, bytes):
        check_exif(exif)
    return source.getexif().get(ExifTags.Base.Orientation)


def _from_sixteen_bit(picture: Image.Image, name: str) -> Image.Image:
    # convert("RGB") would clip: 40000 becomes 255. The high byte of 40000 is 156.
    result = Image.new("RGB", picture.size)
    rows = max(1, _STRIP // max(1, picture.width))
    for top in range(0, picture.height, rows):
        values = np.asarray(picture.crop((0, top, picture.width, min(picture.height, top + rows))))
        if values.size and not 0 <= values.min() <= values.max() <= 0xFFFF:
            raise DataError(f"{name}: 32-bit pixels have no agreed scale; save it with 8 or 16 bits per channel")
        result.paste(Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB"), (0, top))
    return result
