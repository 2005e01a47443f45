# SPDX-License-Identifier: Apache-2.0
"""LLaVA's worker protocol and its controller: NUL-separated JSON, registration, dispatch, workers that die."""

import itertools
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paddlemix.generation.sampling import Decoding
from paddlemix.serve import controller as command
from paddlemix.serve.dispatch import LOTTERY, SHORTEST_QUEUE, Workers
from paddlemix.serve.faults import RequestError
from paddlemix.serve.llava_protocol import status_of
from paddlemix.serve.registering import HeartBeat, Registration
from tests.serve.controller_kit import TOKEN, Ruling, post
from tests.serve.serve_kit import NAME, Running, address, running
from tests.tiny import tiny_image

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as found:
        yield found


def chunks(port: int, body: dict[str, Any], **headers: str) -> tuple[int, list[dict[str, Any]]]:
    """As LLaVA's test_message reads them."""
    status, said = post(port, "/worker_generate_stream", body, **headers)
    assert said.endswith(b"\0"), said
    return status, [json.loads(piece) for piece in said.split(b"\0") if piece]


def picture(kind: int) -> str:
    return address(kind).partition(",")[2]


def case(server: Running, kinds: list[int], tokens: int = 8) -> tuple[dict[str, Any], str]:
    """A request in LLaVA's form, and the text that its last chunk has to hold."""

    def asked(predictor: Any) -> tuple[str, str]:
        pictures = [predictor.picture(tiny_image(kind)) for kind in kinds]
        prompt = predictor.prompt(predictor.question("what is shown?", len(kinds)), pictures)
        return prompt.text, predictor.answer([prompt], Decoding(max_new_tokens=tokens))[0].text

    prompt, answer = server.engine.call(asked).result(60)
    body = {"model": NAME, "prompt": prompt, "temperature": 0, "max_new_tokens": tokens, "stop": "</s>",
            "images": [picture(kind) for kind in kinds]}  # fmt: skip
    return body, prompt + answer


@pytest.mark.parametrize("kinds", [[], [0], [1, 2]])
def test_chunks_hold_the_prompt_and_the_answer_so_far(server: Running, kinds: list[int]) -> None:
    body, whole = case(server, kinds)
    status, found = chunks(server.port, body)
    assert status == 200
    assert {part["error_code"] for part in found} == {0}
    assert found[-1]["text"] == whole
    assert len(found) > 2
    for part, longer in itertools.pairwise(found):
        assert longer["text"].startswith(part["text"])
    assert found[0]["text"].startswith(body["prompt"])


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"images": []}, 400), ({"images": ["!!!!"]}, 400), ({"images": ["http://127.0.0.1/a.png"]}, 400),
        ({"images": ["/etc/passwd"]}, 400), ({"images": "abc"}, 400), ({"images": [5]}, 400), ({"prompt": ""}, 400),
        ({"prompt": None}, 400), ({"max_new_tokens": -1}, 400), ({"temperature": 9}, 400), ({"model": "other"}, 404),
        ({"stop": 5}, 400), ({"prompt": "why " * 2000, "images": []}, 400),
    ],
)  # fmt: skip
def test_what_cannot_be_is_a_chunk_with_a_code(
    server: Running, change: dict[str, Any], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("an address was looked up")

    monkeypatch.setattr("paddlemix.serve.pictures.fetch", never)
    body = {"model": NAME, "prompt": "USER: <image>\nwhy? ASSISTANT:", "temperature": 0, "images": [picture(0)]}
    found, (told,) = chunks(server.port, body | change)
    assert found == status
    assert told["error_code"] == 1
    assert told["text"]


def test_the_status_names_models_and_queue(server: Running) -> None:
    status, said = post(server.port, "/worker_get_status", None)
    assert (status, json.loads(said)) == (200, {"model_names": [NAME], "speed": 1, "queue_length": 0})


@pytest.fixture
def ruling() -> Iterator[Ruling]:
    found = Ruling()
    yield found
    found.stop()


def test_only_workers_with_the_token_register_and_beat(ruling: Ruling) -> None:
    for token in (None, "another-token-of-letters"):
        assert ruling.register("http://127.0.0.1:1", "m", token=token) == 401
        assert ruling.post("/receive_heart_beat", {"worker_name": "http://127.0.0.1:1"}, token)[0] == 401
    assert ruling.post("/list_models")[1] == {"models": []}
    assert ruling.register("http://127.0.0.1:1", "m") == 200
    assert ruling.post("/list_models") == (200, {"models": ["m"]})
    assert ruling.post("/get_worker_address", {"model": "m"})[1] == {"address": "http://127.0.0.1:1"}
    assert ruling.post("/get_worker_address", {"model": "other"})[1] == {"address": ""}
    beat = {"worker_name": "http://127.0.0.1:1", "queue_length": 3}
    assert ruling.post("/receive_heart_beat", beat, TOKEN)[1] == {"exist": True}
    assert ruling.post("/worker_get_status")[1] == {"model_names": ["m"], "speed": 1.0, "queue_length": 3}
    assert ruling.post("/receive_heart_beat", {"worker_name": "http://b"}, TOKEN)[1] == {"exist": False}
    for name in ("file:///etc", "http://a/path", "nothing", "https://a", "http://u:p@a"):
        assert ruling.register(name, "m") == 400


def test_a_request_goes_through_to_a_worker_that_registers_itself(ruling: Ruling, server: Running) -> None:
    registration = Registration(ruling.url, server.url, TOKEN, seconds=0.02)
    beat = HeartBeat(registration, lambda: status_of(server.worker))
    try:
        for _ in range(2):  # a controller that was started anew knows nobody, and is told again
            while not ruling.workers.models():
                time.sleep(0.01)
            ruling.workers.remove(server.url)
        while not ruling.workers.models():
            time.sleep(0.01)
        body, whole = case(server, [3])
        status, found = chunks(ruling.port, body)
        assert (status, found[-1]) == (200, {"text": whole, "error_code": 0})
        status, (told,) = chunks(ruling.port, {**body, "max_new_tokens": -1})
        assert (status, told["error_code"]) == (400, 1)
    finally:
        beat.stop()


def test_a_request_that_no_worker_can_take_is_told(ruling: Ruling) -> None:
    status, (told,) = chunks(ruling.port, {"model": "m", "prompt": "a"})
    assert (status, told["error_code"]) == (503, 2)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        ruling.register(gone, "m")
        status, (told,) = chunks(ruling.port, {"model": "m", "prompt": "a"})
    assert (status, told["error_code"]) == (502, 3)
    assert ruling.post("/list_models")[1] == {"models": []}


def test_a_worker_that_dies_in_its_answer_is_no_silence(ruling: Ruling) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ruling.register(f"http://127.0.0.1:{listener.getsockname()[1]}", "m")

        def die() -> None:
            line, _ = listener.accept()
            line.recv(65536)
            line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b'{"text": "a", "error_code": 0}\0')
            line.close()

        thread = threading.Thread(target=die)
        thread.start()
        status, found = chunks(ruling.port, {"model": "m", "prompt": "a"})
        thread.join(10)
    assert (status, [part["error_code"] for part in found]) == (200, [0, 3])
    assert "broke off" in found[-1]["text"]


def test_a_dead_worker_is_forgotten_after_two_heart_beats() -> None:
    now = [100.0]
    workers = Workers(SHORTEST_QUEUE, 15.0, lambda: now[0])
    workers.register("http://a", ("m",), 1, 0)
    workers.register("http://b", ("m", "n"), 1, 0)
    now[0] += 29
    assert workers.beat("http://a", 0)
    assert workers.models() == ["m", "n"]
    now[0] += 2
    assert workers.models() == ["m"]
    assert workers.pick("m") == "http://a"
    assert not workers.beat("http://b", 0)
    with pytest.raises(RequestError, match="no worker has the model"):
        workers.pick("n")


def test_the_shortest_queue_and_the_lottery_choose() -> None:
    workers = Workers(SHORTEST_QUEUE, 15.0, time.monotonic)
    workers.register("http://a", ("m",), 1, 2)
    workers.register("http://b", ("m",), 2, 1)
    assert [workers.pick("m") for _ in range(6)] == ["http://b"] * 3 + ["http://a"] + ["http://b"] * 2
    workers.method = LOTTERY
    drawn = [workers.pick("m") for _ in range(600)]
    assert 300 < drawn.count("http://b") < 500


def test_a_controller_needs_no_paddle() -> None:
    line = "import sys, paddlemix.serve.controller_app, paddlemix.serve.listening; sys.exit('paddle' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", line], cwd=ROOT, timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("flags", "told"), [(["--port", "-1"], "--port"), (["--heart-beat-seconds", "0"], "--heart-beat-seconds"),
                        (["--host", "0.0.0.0"], "--api-key-file")],
)  # fmt: skip
def test_flags_of_the_controller_that_cannot_be(
    flags: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    assert command.main(["--token-file", str(file), *flags]) == 2
    assert told in capsys.readouterr().err
    file.write_text("short")
    assert command.main(["--token-file", str(file)]) == 2
    assert "16" in capsys.readouterr().err
