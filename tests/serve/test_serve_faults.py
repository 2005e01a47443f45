# SPDX-License-Identifier: Apache-2.0
"""The worker under load and when something fails: overload, clients that leave, faults, and the way it ends."""

import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from paddlemix.generation.continuous import ContinuousBatch
from paddlemix.serve.access import access_of
from paddlemix.serve.running import drain
from tests.serve.serve_kit import Running, chat, head, idle, image, running, words

KEY = "a-key-of-enough-letters"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as found:
        yield found


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
        begin = ContinuousBatch._begin

        def failing(batch: Any, row: Any) -> Any:
            if "poison" in row.prompt.text:
                raise MemoryError("a secret of the server")
            return begin(batch, row)

        monkeypatch.setattr(ContinuousBatch, "_begin", failing)
        texts = ["is it red?", "poison", "is it red?", "poison"]
        found = list(pool.map(lambda text: server.ask(chat(text, max_tokens=30)), texts))
        assert [status for status, _, _ in found] == [200, 500, 200, 500]
        assert "secret" not in json.dumps(found[1][1])
        assert found[1][2]["x-request-id"] in found[1][1]["error"]["message"]
        assert {answer["choices"][0]["message"]["content"] for _, answer, _ in found[::2]} == {expected}
        assert idle(server)


def test_a_failing_step_of_all_fails_those_and_no_later_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as server:
        kind, faults = ContinuousBatch, [True]
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


def test_a_connection_that_is_open_already_gets_no_new_answer_while_the_server_stops() -> None:
    with running() as server:
        drain(server.worker)
        status, answer, _ = server.ask(chat("why?", max_tokens=1))
        assert (status, answer["error"]["code"]) == (503, "shutting_down")
        assert server.ask(None, "/ready")[0] == 503
        assert server.ask(None, "/health")[0] == 200


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


def test_questions_and_answers_are_logged_when_the_operator_asks_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    with running(log_prompts=True) as server:
        _, answer, _ = server.ask(chat("a question\nwith lines", max_tokens=2))
    line = json.loads(next(line for line in capsys.readouterr().err.splitlines() if line.startswith("{")))
    assert line["messages"] == [["user", "a question\nwith lines"]]
    assert line["answers"] == [answer["choices"][0]["message"]["content"]]
