# SPDX-License-Identifier: Apache-2.0
"""What a file is that is no image for us, recognised by its first bytes, with what to do about it."""

from collections.abc import Iterable

HEAD = 64
"""Bytes that are looked at."""

_SAVE = "save it as PNG or JPEG"
_HEIF = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1")
_KINDS: tuple[tuple[bytes, str], ...] = (
    (b"%PDF", f"is a PDF document; {_SAVE} page by page"),
    (b"%!PS", f"is PostScript, which is a program; {_SAVE}"),
    (b"\xc5\xd0\xd3\xc6", f"is PostScript, which is a program; {_SAVE}"),
    (b"8BPS", f"is a Photoshop file; {_SAVE}"),
    (b"\xff\x0a", f"is JPEG XL, which is not read; {_SAVE}"),
    (b"\0\0\0\x0cJXL ", f"is JPEG XL, which is not read; {_SAVE}"),
    (b"\0\0\0\x0cjP  ", f"is JPEG 2000, which is not read; {_SAVE}"),
    (b"\xff\x4f\xff\x51", f"is JPEG 2000, which is not read; {_SAVE}"),
    (b"PK\x03\x04", "is a zip archive; unpack it"),
    (b"\x1f\x8b", "is packed with gzip; unpack it"),
    (b"\x1aE\xdf\xa3", "is a video; give single frames as images"),
)
_FORMATS: tuple[tuple[bytes, str], ...] = (
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"\x89PNG", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
)


def what_it_is(head: bytes, formats: Iterable[str]) -> str | None:
    """``is HEIC (...), which is not read; save it as ...`` for a file that begins with ``head``; None when unknown.

    ``formats`` are those that are read here, by Pillow's names.
    """
    if head[4:8] == b"ftyp":
        return _boxed(head[8:12])
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "is a web page, perhaps what a failed download left; download the image again"
    if text.startswith((b"<svg", b"<?xml")):
        return f"is SVG or another XML text, which is not read; {_SAVE}"
    found = next((words for begin, words in _KINDS if head.startswith(begin)), None)
    if found is not None:
        return found
    name = next((name for begin, name in _FORMATS if head.startswith(begin)), None)
    return None if name is None or name in formats else f"is {name}, which is not read here; {_SAVE}"


def _boxed(brand: bytes) -> str:
    if brand in _HEIF:
        return f"is HEIC, as telephones save images, which is not read; {_SAVE} (ImageMagick: magick a.heic a.jpg)"
    if brand in (b"avif", b"avis"):
        return f"is AVIF, which is not read; {_SAVE} (ImageMagick: magick a.avif a.png)"
    return "is a video; give single frames as images"
