# SPDX-License-Identifier: Apache-2.0
"""The worker under abuse: bounds, keys, clients that dawdle or leave, and the way it ends."""

import base64
import contextlib
import json
import random
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from paddlemix.serve.access import access_of
from paddlemix.utils.errors import ConfigError
from tests.serve.serve_kit import Running, address, chat, image, running, words

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


def head(*more: str, path: str = "/v1/chat/completions") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", *more, "", ""]
    return "\r\n".join(lines).encode()


def idle(server: Running) -> bool:
    """Whether every slot is free and nobody waits, within a few seconds."""
    for _ in range(500):
        if not (server.engine.running or server.engine.waiting or server.worker.gate.requests):
            state = server.engine.call(lambda _: (server.engine._batch.busy, len(server.engine._jobs))).result(10)
            return state == (False, 0) and server.worker.gate.held == 0
        time.sleep(0.01)
    return False


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


def test_overload_is_told_at_once_and_the_others_are_answered() -> None:
    with running(requests=3, slots=1) as server, ThreadPoolExecutor(12) as pool:
        hold = threading.Event()
        held = server.engine.call(lambda _: hold.wait(20))
        waiting = [pool.submit(server.ask, chat("why?", max_tokens=2)) for _ in range(3)]
        for _ in range(500):
            if server.worker.gate.requests == 3:
                break
            time.sleep(0.01)
        assert server.ask(None, "/ready")[0] == 503
        assert server.ask(None, "/health")[0] == 200, "the event loop goes on while the engine is busy"
        refused = [pool.submit(server.ask, chat("why?", max_tokens=2)) for _ in range(9)]
        for found in refused:  # they are answered while the engine stands still
            status, answer, headers = found.result(10)
            assert (status, answer["error"]["type"]) == (429, "rate_limit_error")
            assert "rate limit" in answer["error"]["message"]
            assert int(headers["retry-after"]) >= 1
        hold.set()
        held.result(10)
        assert [found.result(20)[0] for found in waiting] == [200] * 3
        assert server.ask(None, "/ready")[0] == 200


def test_bodies_of_all_requests_together_are_bounded() -> None:
    with running(held_bytes=50_000) as server:
        assert server.ask(chat("a " * 20_000))[0] == 400
        status, answer, _ = server.ask(chat("a " * 30_000))
        assert (status, "memory" in answer["error"]["message"]) == (429, True)
        assert server.worker.gate.held == 0


def test_a_request_that_takes_too_long_fails_and_frees_its_slot() -> None:
    with running(request_seconds=0.3, slots=1) as server:
        hold = threading.Event()
        server.engine.call(lambda _: hold.wait(20))
        status, answer, _ = server.ask(chat("why?"))
        assert (status, answer["error"]["code"]) == (503, "timeout")
        hold.set()
        assert idle(server)


def test_an_answer_that_nobody_waits_for_ends_within_a_token(server: Running) -> None:
    body = json.dumps(chat("why?", stream=True, n=4)).encode()
    before = server.number("paddlemix_cancelled_total")
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as line:
        line.sendall(head(f"Content-Length: {len(body)}") + body)
        assert line.recv(100).startswith(b"HTTP/1.1 200")
    assert idle(server)
    assert server.number("paddlemix_cancelled_total") == before + 1


def test_a_thousand_clients_that_leave_at_any_moment_leak_no_slot(server: Running) -> None:
    draw = random.Random(0)
    bodies = [
        json.dumps(chat(content, stream=stream, max_tokens=20)).encode()
        for content in ("why?", [image(1), words("what is it?")]) for stream in (True, False)
    ]  # fmt: skip

    def leave(moment: float) -> None:
        body = bodies[int(moment * 1000) % 4]
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as line:
            data = head(f"Content-Length: {len(body)}") + body
            line.sendall(data[: len(data) if moment > 0.2 else int(5 * moment * len(data))])
            time.sleep(moment / 50)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(leave, [draw.random() for _ in range(1000)]))
    assert idle(server)
    assert server.ask(chat("why?", max_tokens=3))[0] == 200


def test_a_fault_in_one_request_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as server, ThreadPoolExecutor(4) as pool:
        expected = server.ask(chat("is it red?", max_tokens=30))[1]["choices"][0]["message"]["content"]
        begin = type(server.engine._batch)._begin

        def failing(batch: Any, row: Any) -> Any:
            if "poison" in row.prompt.text:
                raise MemoryError("a secret of the server")
            return begin(batch, row)

        monkeypatch.setattr(type(server.engine._batch), "_begin", failing)
        texts = ["is it red?", "poison", "is it red?", "poison"]
        found = list(pool.map(lambda text: server.ask(chat(text, max_tokens=30)), texts))
        assert [status for status, _, _ in found] == [200, 500, 200, 500]
        assert "secret" not in json.dumps(found[1][1])
        assert found[1][2]["x-request-id"] in found[1][1]["error"]["message"]
        assert {answer["choices"][0]["message"]["content"] for _, answer, _ in found[::2]} == {expected}
        assert idle(server)


def test_a_failing_step_of_all_fails_those_and_no_later_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as server:
        kind, faults = type(server.engine._batch), [True]
        decode = kind._decode

        def failing(batch: Any) -> Any:
            if batch.running and faults:
                faults.pop()
                raise RuntimeError("out of memory")
            return decode(batch)

        monkeypatch.setattr(kind, "_decode", failing)
        assert server.ask(chat("why?", max_tokens=5))[0] == 500
        assert server.ask(chat("why?", max_tokens=5))[0] == 200
        assert idle(server)


def test_an_engine_that_ended_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as server:
        monkeypatch.setattr(server.engine, "_count", None)
        server.engine.call(lambda _: None).result(10)
        assert server.engine.join(10)
        assert server.ask(None, "/health")[0] == 500
        assert server.ask(None, "/ready")[0] == 503
        status, answer, _ = server.ask(chat("why?", max_tokens=2))
        assert (status, answer["error"]["code"]) == (503, "engine_failed")


def test_a_step_that_never_ends_is_told() -> None:
    with running(stuck_seconds=0.05) as server:
        hold = threading.Event()
        server.engine._commands.put(lambda: hold.wait(20))
        monitor = [server.ask(None, "/health")[0]]
        server.engine._since = time.monotonic() - 1
        monitor.append(server.ask(None, "/health")[0])
        assert server.ask(None, "/ready")[0] == 503
        hold.set()
        assert monitor == [200, 500]


def test_stopping_lets_open_answers_end_and_takes_no_new_ones() -> None:
    with running() as server, ThreadPoolExecutor(2) as pool:
        hold = threading.Event()
        server.engine.call(lambda _: hold.wait(20))
        answer = pool.submit(server.ask, chat("why?", max_tokens=5))
        while not server.worker.gate.requests:
            time.sleep(0.01)
        server.server.handle_exit(15, None)
        assert not server.server.force_exit
        time.sleep(0.2)
        with pytest.raises(ConnectionError):
            server.ask(chat("why?"))
        hold.set()
        assert answer.result(20)[0] == 200
        server.stop()
        assert not server.server.force_exit


def test_stopping_fails_what_does_not_end_in_time() -> None:
    with running(drain_seconds=0.3) as server, ThreadPoolExecutor(2) as pool:
        hold = threading.Event()
        server.engine.call(lambda _: hold.wait(20))
        answer = pool.submit(server.ask, chat("why?", max_tokens=5))
        while not server.worker.gate.requests:
            time.sleep(0.01)
        server.server.handle_exit(15, None)
        server.worker.engine._commands.put(hold.clear)
        time.sleep(0.5)
        hold.set()
        status, told, _ = answer.result(20)
        assert (status, told["error"]["code"]) == (503, "shutting_down")


def test_the_log_has_a_line_of_json_a_request_without_texts_and_keys(capsys: pytest.CaptureFixture[str]) -> None:
    with running(access_of("127.0.0.1", [KEY], None)) as server:
        given = {"authorization": f"Bearer {KEY}"}
        server.ask(chat("a secret question\nwith lines", max_tokens=2), **given)
        server.ask(None, "/nothing%0a%1b[31m", **given)
        server.ask(chat("a secret question", max_tokens=-1), **given)
    said = capsys.readouterr().err
    lines = [json.loads(line) for line in said.splitlines() if not line.startswith("listening")]
    assert [line["status"] for line in lines] == [200, 404, 400]
    assert lines[0]["completion_tokens"] == 2
    assert "\x1b" not in said
    assert "secret" not in said
    assert KEY not in said
