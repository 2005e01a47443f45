# SPDX-License-Identifier: Apache-2.0
"""OpenAI's routes of the controller: the same answers as the worker's, and no silence when one is gone."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from paddlemix.serve.forwarding import answer_of
from paddlemix.serve.registering import HeartBeat, Registration
from tests.serve.controller_kit import TOKEN, Ruling, post
from tests.serve.serve_kit import NAME, Running, chat, idle, image, running, words

KEY = "a-key-of-enough-letters"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    from paddlemix.serve.access import access_of

    # As the command starts it: the worker takes the controller's token for a key.
    with running(access_of("127.0.0.1", [TOKEN], None), model_max_position_embeddings=2048) as found:
        yield found


@pytest.fixture
def ruling() -> Iterator[Ruling]:
    found = Ruling(keys=[KEY])
    yield found
    found.stop()


@pytest.fixture
def client(ruling: Ruling) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{ruling.url}/v1", api_key=KEY, max_retries=0, timeout=30) as found:
        yield found


def test_an_answer_through_the_controller_is_the_workers(
    ruling: Ruling, server: Running, client: openai.OpenAI
) -> None:
    ruling.register(server.url, NAME, "charts")
    ruling.register("http://127.0.0.1:1", "other")
    assert [card.id for card in client.models.list()] == ["charts", "other", NAME]
    assert client.models.retrieve("charts").id == "charts"
    body = chat([image(1), words("what is shown?")], max_tokens=12)
    _, alone, _ = server.ask(body, authorization=f"Bearer {TOKEN}")
    text = alone["choices"][0]["message"]["content"]
    assert client.chat.completions.create(**body).choices[0].message.content == text
    pieces = list(client.chat.completions.create(**body, stream=True, stream_options={"include_usage": True}))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == text
    assert len(pieces) > 4
    assert pieces[-1].usage.completion_tokens == 12


def test_errors_of_workers_and_controller_have_openais_form(
    ruling: Ruling, server: Running, client: openai.OpenAI
) -> None:
    with pytest.raises(openai.InternalServerError, match="no worker has the model") as none:
        client.chat.completions.create(**chat("hello"))
    assert (none.value.status_code, none.value.response.headers["retry-after"]) == (503, "5")
    ruling.register(server.url, NAME)
    with pytest.raises(openai.BadRequestError, match="temperature") as wrong:
        client.chat.completions.create(**{**chat("hello"), "temperature": 9})
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.NotFoundError, match="known are tiny"):
        client.chat.completions.create(**{**chat("hello"), "model": "unknown"})
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("unknown")
    with openai.OpenAI(base_url=f"{ruling.url}/v1", api_key="a-key-of-a-stranger", max_retries=0) as stranger:
        for ask in (stranger.models.list, lambda: stranger.chat.completions.create(**chat("hello"))):
            with pytest.raises(openai.AuthenticationError):
                ask()
    # Whoever names no model means the only one; with several it has to be said.
    unnamed = {name: value for name, value in chat("hello", max_tokens=2).items() if name != "model"}
    authorized = {"authorization": f"Bearer {KEY}"}
    assert post(ruling.port, "/v1/chat/completions", unnamed, **authorized)[0] == 200
    ruling.register("http://127.0.0.1:1", "other")
    status, told = post(ruling.port, "/v1/chat/completions", unnamed, **authorized)
    assert (status, json.loads(told)["error"]["param"]) == (400, "model")


@pytest.fixture
def stub(ruling: Ruling) -> Iterator[Callable[..., None]]:
    """A worker that answers one request with the bytes it was made with, and closes."""
    made = []

    def make(*parts: bytes) -> None:
        listener = socket.create_server(("127.0.0.1", 0))

        def answer() -> None:
            line, _ = listener.accept()
            line.recv(65536)
            for part in parts:
                line.sendall(part)
                time.sleep(0.05)
            line.close()

        thread = threading.Thread(target=answer)
        thread.start()
        made.append((listener, thread))
        ruling.register(f"http://127.0.0.1:{listener.getsockname()[1]}", "m")

    yield make
    for listener, thread in made:
        thread.join(10)
        listener.close()


def ask_stub(ruling: Ruling, **fields: Any) -> tuple[int, str]:
    body = {**chat("hello"), "model": "m", **fields}
    status, said = post(ruling.port, "/v1/chat/completions", body, authorization=f"Bearer {KEY}")
    return status, said.decode()


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def part(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def test_a_worker_that_dies_in_a_stream_gives_an_error_behind_the_last_whole_event(
    ruling: Ruling, stub: Callable[..., None]
) -> None:
    stub(STREAM, part(b'data: {"a": 1}\n\ndata: {"b'), part(b'": 2}\n\ndata: {"half'))
    status, said = ask_stub(ruling, stream=True)
    events = said.split("\n\n")
    assert (status, events[:2], events[3:]) == (200, ['data: {"a": 1}', 'data: {"b": 2}'], [""])
    error = json.loads(events[2].removeprefix("data: "))["error"]
    assert error["code"] == "worker_failed"
    assert "broke off" in error["message"]
    assert ruling.workers.models() == []


def test_a_worker_that_dies_in_a_whole_answer_is_a_502(ruling: Ruling, stub: Callable[..., None]) -> None:
    stub(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n", b'{"choices": [')
    status, said = ask_stub(ruling)
    assert (status, json.loads(said)["error"]["code"]) == (502, "worker_failed")


def test_a_worker_may_be_silent_until_its_whole_answer_is_there() -> None:
    """As long as the request may take: it waits in the worker's queue, or its answer is long. 0.3 s for 300 here."""
    whole = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"

    async def asked(port: int) -> list[Any]:
        loop = asyncio.get_running_loop()
        answer = answer_of(f"http://127.0.0.1:{port}", "/v1/chat/completions", b"{}", TOKEN)
        clock, begun = loop.time, loop.time()
        loop.time = lambda: begun + 1000 * (clock() - begun)  # type: ignore[method-assign]
        threading.Timer(0.2, loop.call_soon_threadsafe, [lambda: None]).start()  # the loop looks at its clock
        return [piece async for piece in answer]

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def slow() -> None:
            line, _ = listener.accept()
            with line:
                line.recv(65536)
                time.sleep(0.3)
                line.sendall(whole)

        thread = threading.Thread(target=slow)
        thread.start()
        head, body = asyncio.run(asked(listener.getsockname()[1]))
        thread.join(10)
    assert (head.status, body) == (200, b"{}")


def test_an_overloaded_worker_is_told_as_it_is(ruling: Ruling, stub: Callable[..., None]) -> None:
    body = json.dumps({"error": {"message": "rate limit", "type": "rate_limit_error"}}).encode()
    head = b"HTTP/1.1 429 Too Many\r\nContent-Type: application/json\r\nRetry-After: 1\r\nContent-Length: %d\r\n\r\n"
    stub(head % len(body) + body)
    client = openai.OpenAI(base_url=f"{ruling.url}/v1", api_key=KEY, max_retries=0)
    with client, pytest.raises(openai.RateLimitError) as found:
        client.chat.completions.create(**{**chat("hello"), "model": "m"}, stream=True)
    assert found.value.response.headers["retry-after"] == "1"


def test_a_worker_that_is_gone_is_passed_over_for_another(ruling: Ruling, server: Running) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        ruling.register(f"http://127.0.0.1:{nobody.getsockname()[1]}", NAME)
        ruling.register(server.url, NAME, queue=5)
        status, _ = ask_stub(ruling, model=NAME, max_tokens=2)
    assert status == 200
    assert list(ruling.workers.alive()) == [server.url]


def test_a_client_that_leaves_ends_the_answer_at_the_worker(
    ruling: Ruling, server: Running, client: openai.OpenAI
) -> None:
    ruling.register(server.url, NAME)
    stream = client.chat.completions.create(**chat("hello", max_tokens=1900), stream=True)
    next(iter(stream))
    stream.close()
    assert idle(server)
    assert server.engine.metrics.registry.get_sample_value("paddlemix_cancelled_total") >= 1
    assert ruling.controller.gate.requests == 0


def test_a_worker_beats_as_often_as_its_controller_wants() -> None:
    ruling = Ruling(beat=0.2)
    status = {"model_names": ["m"], "speed": 1, "queue_length": 0}
    beat = HeartBeat(Registration(ruling.url, "http://127.0.0.1:1", TOKEN), lambda: status)
    try:
        until = time.monotonic() + 10
        while not (known := ruling.workers.alive().get("http://127.0.0.1:1")):
            assert time.monotonic() < until
            time.sleep(0.01)
        first = known.seen
        while known.seen == first:
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        beat.stop()
        ruling.stop()
