# SPDX-License-Identifier: Apache-2.0
"""Addresses, answers of servers and images of any form: read, or refused with an error of ours."""

import functools
import io
import ipaddress
import random
import socket
import warnings
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from PIL import Image

from paddlemix.imaging.load import OWN_LIMITS, image_size, load_image
from paddlemix.utils import addresses, exchange, files
from tests.fuzz.fuzz_kit import drawn, fuzz

HOSTS = (
    "a.example", "127.0.0.1", "127.1", "2130706433", "0x7f.1", "0", "[::1]", "[::ffff:10.0.0.1]", "[64:ff9b::7f00:1]",
    "10.0.0.1", "xn--a", "\u2460.0.0.1", "b\u00fccher.example", "a" * 64, "a..b", "-a", "[fe80::1%eth0]", "[v1.x]", "[",
    "%31", "a\u00ad", "\uff0e", "\U0001f600.example", "", "a.", "1.2.3", "1e3", "\ud800", "a_b.example", "[::]",
)  # fmt: skip
PIECES = (
    "@",
    "\\",
    "/",
    "//",
    "?",
    "#",
    ":",
    ":80",
    ":99999",
    ":x",
    ":\u0663",
    "..",
    " ",
    "\t",
    "\0",
    "%00",
    "user:pw@",
    "[",
    "]",
    ";",
)
PUBLIC = "93.184.215.14"


def _address(rng: random.Random) -> str:
    scheme = rng.choice(("http://", "https://", "HTTP://", "http:", "http:///", "ftp://", "", "data:,", "file:///"))
    parts = [rng.choice(HOSTS), *(rng.choice(PIECES + HOSTS) for _ in range(rng.randrange(4)))]
    if rng.randrange(3) == 0:
        rng.shuffle(parts)
    return scheme + "".join(parts) + rng.choice(("", "/", "/a?b=c#d", "/\u56fe\u7247.png", "/%zz", "/a\nHost: b"))


def _looked_up(host: str, port: int, **rest: object) -> list[tuple]:
    try:
        ip = socket.inet_ntoa(socket.inet_aton(host))
    except (OSError, UnicodeError):
        try:
            ip = str(ipaddress.IPv6Address(host))
        except ValueError:
            ip = PUBLIC
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port))]


@fuzz(drawn(_address))
def test_addresses(folder: Path, url: str) -> None:
    """Whatever is written as an address, nothing but public ones are ever connected to."""
    reached = []

    class Silent(_Answering):
        def connect(self, place: tuple) -> None:
            reached.append(place[0])
            raise OSError("nobody answers")

    try:
        with _network(Silent(b"")), mock.patch.object(addresses, "_resolve", _resolved):
            files.fetch(url)
    finally:
        assert all(ipaddress.ip_address(ip).is_global for ip in reached)


def _resolved(address: addresses.Address, seconds: float) -> list[addresses.Endpoint]:
    """The answer of the resolver of these tests, without a thread for each."""
    return [addresses.Endpoint(row[0], row[4]) for row in _looked_up(address.host, address.port)]


class _Answering:
    """A socket that says what it was made with, and nothing more."""

    def __init__(self, data: bytes) -> None:
        self.data = io.BytesIO(data)

    def __enter__(self) -> "_Answering":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def close(self) -> None:
        pass

    def settimeout(self, seconds: float) -> None:
        pass

    def connect(self, place: tuple) -> None:
        pass

    def sendall(self, data: bytes) -> None:
        pass

    def recv_into(self, target: memoryview) -> int:
        return self.data.readinto(target)


def _network(answering: _Answering) -> object:
    trusting = SimpleNamespace(wrap_socket=lambda sock, server_hostname: sock)
    return mock.patch.multiple(
        exchange,
        socket=SimpleNamespace(socket=lambda *kind: answering, SOCK_STREAM=1),
        _trust=lambda: trusting,
    )


LINES = (
    b"HTTP/1.1 200 OK", b"HTTP/1.0 200 OK", b"HTTP/1.1 302 Found", b"HTTP/1.1 100 Continue", b"HTTP/1.1 -1 x",
    b"HTTP/1.1", b"Content-Length: 3", b"Content-Length: -3", b"Content-Length: 99999999999999999999",
    b"Content-Length: x",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"Location: /x", b"Location: //[",
    b"Location: \xff", b"Location: http://10.0.0.1/", b"Content-Encoding: gzip", b"Connection: keep-alive", b" folded",
    b"no colon", b": x", b"",
    b"3", b"abc", b"0", b"ffffffffff", b"-1", b"3;x=y", b"\0", b"\xff\xfe", b"a" * 300,
)  # fmt: skip


def _answer(rng: random.Random) -> bytes:
    start = [rng.choice(LINES[:3])] if rng.randrange(5) else []
    lines = [*start, *(rng.choice(LINES) for _ in range(rng.randrange(8)))]
    return rng.choice((b"\r\n", b"\r\n", b"\n")).join(lines) + rng.choice((b"", b"\r\n", b"\r\n\r\nabc"))


@fuzz(drawn(_answer))
def test_answers(folder: Path, data: bytes) -> None:
    """An answer of any form is a body of at most the limit, or an error."""
    with _network(_Answering(data)), mock.patch.object(addresses, "_resolve", _resolved):
        assert len(files.fetch("http://a.example/x", max_bytes=100)) <= 100


ORIENTED = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"
KINDS = (
    ("JPEG", {}), ("JPEG", {"progressive": True, "exif": ORIENTED}), ("PNG", {}), ("PNG", {"exif": ORIENTED}),
    ("GIF", {}), ("BMP", {}), ("WEBP", {}), ("TIFF", {}),
)  # fmt: skip


@functools.cache
def _pictures() -> tuple[bytes, ...]:
    found = []
    for kind, options in KINDS:
        stream = io.BytesIO()
        Image.linear_gradient("L").resize((12, 9)).convert("RGB").save(stream, kind, **options)
        found.append(stream.getvalue())
    return tuple(found)


def _picture(rng: random.Random) -> bytes:
    data = bytearray(rng.choice(_pictures()))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(min(len(data), 200) if rng.randrange(3) else len(data))
        data[at] = rng.choice((0, 1, 255, 127, 128, data[at] ^ 1 << rng.randrange(8)))
    return bytes(data[: rng.randrange(len(data))] if rng.randrange(12) == 0 else data)


@fuzz(drawn(_picture))
def test_pictures(folder: Path, data: bytes) -> None:
    """An image of any form is RGB within the limits, or an error; so is its size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about tags that it passes over
        size = image_size(data, OWN_LIMITS)
        picture = load_image(data, OWN_LIMITS, transpose_exif=True)
    assert picture.mode == "RGB"
    assert sorted(size) == sorted((picture.height, picture.width))
