# SPDX-License-Identifier: Apache-2.0
"""The worker under abuse: bounds, keys, clients that dawdle or leave, and the way it ends."""

import base64
import contextlib
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paddlemix.serve.access import access_of
from paddlemix.utils.errors import ConfigError
from tests.serve.serve_kit import NAME, Running, address, chat, head, idle, image, running, words

KEY = "a-key-of-enough-letters"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(header_seconds=0.3, body_seconds=0.3, linger_seconds=0.2) as found:
        yield found


def raw(server: Running, data: bytes, wait: float = 5.0) -> bytes:
    """What the server says to these bytes until it closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait) as line:
        line.sendall(data)
        return _rest(line)


def _rest(line: socket.socket) -> bytes:
    said = b""
    with contextlib.suppress(ConnectionError, TimeoutError):
        while piece := line.recv(65536):
            said += piece
    return said


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400), (b"[1]", 400), (b"null", 400), (b'{"a": NaN}', 400), (b'{"a": 1, "a": 2}', 400),
        (b"\xff\xfe{}", 400), (b"[" * 10_000, 400), (b'{"a":' * 10_000, 400), (b"[" * 400_000, 413),
        (b"", 400), (b'{"a": ' + b"9" * 5000 + b"}", 400),
    ],
)  # fmt: skip
def test_a_body_that_is_no_request_is_refused(server: Running, body: bytes, status: int) -> None:
    found, answer, _ = server.ask(body)
    assert found == status, answer
    assert answer["error"]["message"]


@pytest.mark.parametrize("extra", ['"x": NaN', '"x": -Infinity', '"n": 1, "n": 1', '"x": [{"a": 1, "a": 2}]'])
def test_what_json_has_not_is_refused_also_in_a_field_that_nobody_reads(server: Running, extra: str) -> None:
    body = json.dumps(chat("why?", max_tokens=1))
    assert server.ask(body.encode())[0] == 200
    status, answer, _ = server.ask(f"{body[:-1]}, {extra}}}".encode())
    assert (status, "not JSON" in answer["error"]["message"]) == (400, True)


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "/etc/passwd", "../x.png", "/dev/zero", "http://169.254.169.254/latest",
     "https://example.com/a.png", "http://localhost/", "HTTP://127.1/", "http://2130706433/",
     "http://good.com\\@127.0.0.1/", "http://[::1]/", "ftp://a/b", "", 5, None,
     "data:text/html;base64,AAAA", "data:image/png,AAAA", "data:image/png;base64,!!!!", "data:image/png;base64,aGVsbG8",
     "data:image/png;base64,aGVsbG8=", "data:image/png;base64,"],
)  # fmt: skip
def test_what_is_no_image_is_refused_and_nothing_is_opened(
    server: Running, url: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("an address was looked up")

    monkeypatch.setattr("paddlemix.serve.pictures.fetch", never)
    status, answer, _ = server.ask(chat([{"type": "image_url", "image_url": {"url": url}}, words("?")]))
    assert status == 400, answer
    assert answer["error"]["param"].startswith("messages[0].content[0]")
    assert server.ask(chat([{"type": "image", "image": "/etc/passwd"}]))[0] == 400


def test_only_hosts_of_the_list_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetched(url: str, max_bytes: int, seconds: float) -> bytes:
        asked.append(url)
        return base64.b64decode(address().partition(",")[2])

    monkeypatch.setattr("paddlemix.serve.pictures.fetch", fetched)
    with running(image_hosts=("pictures.example",)) as server:
        for url, status in (
            ("https://pictures.example/a.png", 200), ("https://PICTURES.example./a.png", 200),
            ("https://pictures.example.evil.com/a.png", 400), ("https://evil.com/pictures.example", 400),
            ("https://evil.com\\@pictures.example/", 400), ("https://u:p@pictures.example/", 400),
        ):  # fmt: skip
            body = chat([{"type": "image_url", "image_url": {"url": url}}, words("?")], max_tokens=1)
            assert server.ask(body)[0] == status, url
    assert len(asked) == 2


def png_header(side: int) -> str:
    """A PNG that says to have so many pixels a side, and has none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def test_images_beyond_the_bounds_are_refused_before_any_is_decoded(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr("paddlemix.serve.pictures.load_image", never)
    huge = [{"type": "image_url", "image_url": {"url": png_header(50_000)}}, words("?")]
    status, answer, _ = server.ask(chat(huge))
    assert (status, answer["error"]["param"]) == (400, "messages[0].content[0].image_url")
    assert "50000000 pixels" in answer["error"]["message"]
    status, answer, _ = server.ask(chat([image()] * 10_000))
    assert (status, "parts" in answer["error"]["message"]) == (400, True)
    status, answer, _ = server.ask(chat([image()] * 17))
    assert (status, "16 images" in answer["error"]["message"]) == (400, True)
    large = [{"type": "image_url", "image_url": {"url": png_header(7000)}}] * 3
    status, answer, _ = server.ask(chat(large))
    assert (status, "together" in answer["error"]["message"]) == (400, True)
    assert idle(server)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/worker_generate_stream"])
def test_a_text_that_is_far_too_long_takes_no_time_of_the_engine(server: Running, path: str) -> None:
    text, go_on = "星" * 200_000, threading.Event()
    busy = server.engine.call(lambda _: go_on.wait(20))
    body = chat(text) if path.startswith("/v1") else {"model": NAME, "prompt": text}
    status, said, _ = server.ask(body, path)
    go_on.set()
    assert busy.result(10)
    assert status == 400
    assert "context has 512" in str(said)


def test_a_body_of_100_mb_is_refused_at_its_head(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as line:
        line.sendall(head("Content-Length: 104857600") + b"x" * 1000)
        assert line.recv(65536).startswith(b"HTTP/1.1 413")


def test_an_endless_body_is_refused_at_the_bound() -> None:
    with running(body_bytes=100_000) as server, socket.create_connection(("127.0.0.1", server.port), timeout=5) as line:
        line.sendall(head("Transfer-Encoding: chunked"))
        with contextlib.suppress(ConnectionError):
            for _ in range(30):
                line.sendall(b"1000\r\n" + b" " * 4096 + b"\r\n")
        assert line.recv(65536).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", b"408"), (b"POST /v1/chat", b"408"), (head("Content-Length: 100") + b"{", b"408"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000, b"400"), (b"\x00\x01garbage\r\n\r\n", b"400"),
        (head("Content-Length: -5"), b"400"), (head("Content-Length: 5", "Content-Length: 6"), b"400"),
    ],
)  # fmt: skip
def test_heads_and_bodies_that_do_not_come_are_closed(server: Running, sent: bytes, status: bytes) -> None:
    assert raw(server, sent).split(b" ")[1] == status
    assert server.ask(None, "/health")[0] == 200


def test_a_head_beyond_the_bound_is_refused_also_when_it_comes_at_once(server: Running) -> None:
    for extra in ({"X-A": "a" * 40_000}, {f"X-{number}": "a" * 100 for number in range(400)}):
        status, said, _ = server.ask(None, "/health", **extra)
        assert (status, said["error"]["message"]) == (431, "the head of the request has more than 32768 bytes")


def test_a_head_that_drips_is_closed_in_its_time(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as line:
        with contextlib.suppress(ConnectionError):
            for letter in b"GET / HTTP/1.1\r\nX-A: " + b"b" * 200:
                line.sendall(bytes([letter]))
                time.sleep(0.01)
        assert line.recv(65536).startswith(b"HTTP/1.1 408")


def test_a_client_that_never_reads_gives_its_place_back() -> None:
    with running(write_seconds=0.2) as server, socket.socket() as line:
        server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        line.connect(("127.0.0.1", server.port))
        body = json.dumps(chat("why?", stream=True, max_tokens=80, logprobs=True, top_logprobs=20)).encode()
        line.sendall(head(f"Content-Length: {len(body)}") + body)
        while not server.worker.gate.requests:
            time.sleep(0.01)
        assert idle(server)


def test_keys_guard_every_route() -> None:
    with running(access_of("127.0.0.1", [KEY, "another-key-of-letters"], None)) as server:
        paths = ["/v1/models", "/health", "/ready", "/metrics", "/nothing", "//v1/models"]
        refusals = set()
        for given in ({}, {"authorization": "Bearer wrong-key-of-letters"}, {"authorization": KEY},
                      {"authorization": f"Basic {KEY}"}, {"authorization": f"Bearer {KEY}x"}):  # fmt: skip
            for path in [*paths, f"/v1/models?api_key={KEY}"]:
                status, answer, headers = server.ask(None, path, **given)
                assert status == 401
                assert headers["www-authenticate"] == "Bearer"
                refusals.add(json.dumps(answer))
            assert server.ask(chat("why?"), **given)[0] == 401
        assert len(refusals) == 1
        for key in (KEY, "another-key-of-letters"):
            given = {"authorization": f"Bearer {key}"}
            assert [server.ask(None, path, **given)[0] for path in paths] == [200, 200, 200, 200, 404, 404]
            assert server.ask(chat("why?", max_tokens=1), **given)[0] == 200


def test_a_server_for_other_machines_needs_a_key(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# ours\n{KEY}\n\n")
    with pytest.raises(ConfigError, match="--api-key-file"):
        access_of("0.0.0.0", [], None)
    assert len(access_of("0.0.0.0", [], file).keys) == 1
    for key in ("short", "with a blank in the key", "ключ-ключ-ключ-ключ"):
        with pytest.raises(ConfigError, match="16"):
            access_of("127.0.0.1", [key], None)
    file.write_text("\n")
    with pytest.raises(ConfigError, match="no key"):
        access_of("127.0.0.1", [], file)


def test_pages_of_the_web_cannot_ask(server: Running) -> None:
    body = chat("why?", max_tokens=1)
    assert server.ask(body, origin="https://evil.example")[0] == 403
    assert server.ask(body, origin="null")[0] == 403
    assert server.ask(body, host="evil.example")[0] == 403
    assert server.ask(body, **{"content-type": "text/plain"})[0] == 415
    assert server.ask(body, origin=server.url)[0] == 200
    status, _, headers = server.ask(None, "/health")
    assert status == 200
    assert not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "TRACE", "PUT", "GET", "BREW"])
def test_other_methods_are_not_allowed(server: Running, method: str) -> None:
    said = raw(
        server, f"{method} /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    )
    assert said.split(b" ")[1] == b"405"


@pytest.mark.parametrize(
    "path", ["/", "//v1/models", "/v1/../metrics", "/v1/chat/completions/", "/docs", "/openapi.json"]
)
def test_other_paths_are_not_found(server: Running, path: str) -> None:
    status, answer, _ = server.ask(None, path)
    assert (status, answer["error"]["type"]) == (404, "not_found_error")
