# SPDX-License-Identifier: Apache-2.0
"""Opens pictures that nobody has checked: limits before decoding, one rule a mode, errors that say what to do."""

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
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from paddlemix.imaging.layout import Size
from paddlemix.utils.errors import DataError
from paddlemix.utils.files import MIB, fetch

Source = str | os.PathLike | bytes | Image.Image
"""A path, an http(s) or ``data:`` address, the bytes of a file, or a picture."""


@dataclass(frozen=True)
class ImageLimits:
    """What a picture may be. Formats are Pillow's names; lengths in pixels; ``max_aspect`` is long side / short side.

    EPS, PSD, FITS, PDF and the like are outside the list on purpose: their readers start programs or had overflows.
    ``animated`` False refuses files with several frames; otherwise the first one is used. ``private_hosts`` True lets
    addresses lead to this machine and to private networks; only a person at the keyboard may ask for that.
    """

    formats: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
    max_bytes: int = 20 * MIB
    max_pixels: int = 50_000_000
    min_side: int = 1
    max_side: int = 16384
    max_aspect: float = 200.0
    animated: bool = True
    fetch_seconds: float = 10.0
    private_hosts: bool = False


LIMITS = ImageLimits()
DATASET_LIMITS = replace(LIMITS, formats=(*LIMITS.formats, "TIFF"))
"""libtiff prints a line on stderr for every bad file, so TIFF is read only where the files are the user's own."""

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


def load_image(
    source: Source, limits: ImageLimits = LIMITS, *, transpose_exif: bool = False, name: str | None = None
) -> Image.Image:
    """The picture as RGB, fully decoded.

    The original's ``convert("RGB")`` decides: alpha is dropped, not blended; palette, grey and CMYK are converted; EXIF
    orientation is ignored unless ``transpose_exif``. The one exception is 16-bit grey, scaled by ``>> 8`` instead of
    clipped at 255. ``name`` is how errors call the picture (default: the path or address).
    Raises DataError naming the source and the remedy; limits are checked before anything is decoded.
    """
    name = name or _name_of(source)
    if isinstance(source, Image.Image):
        with _told(name, limits):
            _check_size(source, limits, name)
            return _to_rgb(source, name, transpose_exif)
    with (
        _opened(source, limits, name) as stream,
        _told(name, limits),
        Image.open(stream, formats=limits.formats) as picture,
    ):
        _check_size(picture, limits, name)
        if not limits.animated and getattr(picture, "is_animated", False):
            raise DataError(f"{name}: has several frames; give one picture")
        picture.load()
        return _to_rgb(picture, name, transpose_exif)


def image_size(source: Source, limits: ImageLimits = LIMITS, *, name: str | None = None) -> Size:
    """(height, width) in pixels from the header, without decoding. Same errors and limits as ``load_image``."""
    name = name or _name_of(source)
    if isinstance(source, Image.Image):
        _check_size(source, limits, name)
        return source.height, source.width
    with (
        _opened(source, limits, name) as stream,
        _told(name, limits),
        Image.open(stream, formats=limits.formats) as picture,
    ):
        _check_size(picture, limits, name)
        return picture.height, picture.width


def is_address(source: object) -> bool:
    """True for text that begins like an http(s) or ``data:`` address."""
    return isinstance(source, str) and source[:8].lower().startswith(("http://", "https://", "data:"))


def _name_of(source: Source) -> str:
    if isinstance(source, Image.Image):
        return getattr(source, "filename", "") or "the given picture"
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
            raise DataError(f"{name}: is not a regular file; give the path of a picture")
        _check_bytes(status.st_size, limits, name)
        return open(path, "rb")
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such image file; check the path and the image folder") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise DataError(f"{name}: cannot be read ({reason})") from error


def _check_bytes(count: int, limits: ImageLimits, name: str) -> None:
    if count > limits.max_bytes:
        raise DataError(f"{name}: {count} bytes, the limit is {limits.max_bytes}; make the file smaller")
    if count <= 0:
        raise DataError(f"{name}: the file is empty (0 bytes)")


def _check_size(picture: Image.Image, limits: ImageLimits, name: str) -> None:
    width, height = picture.size
    short, long = min(width, height), max(width, height)
    found = f"{name}: {width} x {height} pixels"
    if width * height > limits.max_pixels:
        raise DataError(f"{found}, the limit is {limits.max_pixels} in all; scale the picture down")
    if short < limits.min_side or long > limits.max_side:
        raise DataError(f"{found}, sides must be {limits.min_side} to {limits.max_side}; scale the picture")
    if long > limits.max_aspect * short:
        raise DataError(f"{found}, the long side may be {limits.max_aspect:g} times the short one; crop the picture")


@contextmanager
def _told(name: str, limits: ImageLimits) -> Iterator[None]:
    """Turns everything Pillow raises on a broken file into a DataError. Pillow's own text may hold object addresses."""
    try:
        yield
    except UnidentifiedImageError as error:
        formats = ", ".join(limits.formats)
        raise DataError(f"{name}: not an image, or of none of the accepted formats ({formats})") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name}: far more than {limits.max_pixels} pixels; scale the picture down") from error
    except _BROKEN as error:
        raise DataError(f"{name}: damaged or truncated image ({type(error).__name__}); replace the file") from error


def _to_rgb(picture: Image.Image, name: str, transpose_exif: bool) -> Image.Image:
    if transpose_exif:
        picture = ImageOps.exif_transpose(picture)
    if picture.mode in _SIXTEEN_BIT:
        return _from_sixteen_bit(picture, name)
    if picture.mode == "F":
        raise DataError(f"{name}: floating point pixels have no agreed scale; save it with 8 bits per channel")
    if picture.mode == "RGB":
        return picture.copy()
    if picture.mode in ("P", "L", "1") and "transparency" in picture.info:
        # It does not change a pixel of the result, but Pillow would warn for every such file.
        picture = picture.copy()
        picture.info.pop("transparency")
    return picture.convert("RGB")


def _from_sixteen_bit(picture: Image.Image, name: str) -> Image.Image:
    # convert("RGB") would clip: 40000 becomes 255. The high byte of 40000 is 156.
    values = np.asarray(picture).astype(np.int64)
    if values.size and not 0 <= values.min() <= values.max() <= 0xFFFF:
        raise DataError(f"{name}: 32-bit pixels have no agreed scale; save it with 8 or 16 bits per channel")
    return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
