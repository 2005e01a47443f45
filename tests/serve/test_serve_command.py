# SPDX-License-Identifier: Apache-2.0
"""``paddlemix serve`` as a process: what it refuses before it loads anything, and how it ends."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from paddlemix.generation.continuous import ContinuousBatch
from paddlemix.generation.predictor import Predictor
from paddlemix.serve import model_worker
from paddlemix.serve.access import access_of
from paddlemix.serve.clean import CleanText
from paddlemix.serve.running import Serving, serve
from paddlemix.utils.addresses import free_ports
from tests.serve.serve_kit import LIMITS, tiny_predictor

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "tests/data/golden/llava/hub/liuhaotian/llava-v1.5-tiny"


@contextlib.contextmanager
def started(*flags: str, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int, Path]]:
    """The command with a tiny model: its process, port and stderr."""
    log = folder / "log"
    words = [sys.executable, "-m", "paddlemix.serve.model_worker", "--model-path", str(MODEL), "--port", "0", *flags]
    environment = {**os.environ, "PADDLEMIX_HUB": "off", "OMP_NUM_THREADS": "1"}
    with open(log, "wb") as stream:
        process = subprocess.Popen(words, stderr=stream, stdout=stream, env=environment, cwd=ROOT)
    try:
        while not (found := re.search(r"listening at http://127.0.0.1:(\d+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        yield process, int(found[1]), log
    finally:
        process.kill()
        process.wait(20)


def begun_stream(port: int, tokens: int) -> HTTPConnection:
    """A connection on which an answer has begun."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    body = {"messages": [{"role": "user", "content": "hello"}], "stream": True, "max_tokens": tokens, "temperature": 0}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    return connection


def test_sigterm_lets_an_answer_end_and_the_exit_code_is_0(tmp_path: Path, usual_signals: None) -> None:
    with started(folder=tmp_path) as (process, port, log):
        connection = begun_stream(port, 60)
        answer = connection.getresponse()
        process.send_signal(signal.SIGTERM)
        text = answer.read().decode()
        assert text.endswith("data: [DONE]\n\n")
        assert process.wait(20) == 0
        line = json.loads(log.read_text().splitlines()[-1])
        assert (line["status"], line["completion_tokens"]) == (200, 60)


@pytest.mark.slow
def test_a_second_sigterm_ends_at_once(tmp_path: Path, usual_signals: None) -> None:
    with started(folder=tmp_path) as (process, port, _):
        answer = begun_stream(port, 1900).getresponse()
        answer.read(10)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143


def test_sigterm_ends_a_worker_that_still_loads_its_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a handler of its own: the first process of a container gets no signal without one."""

    def left(code: int) -> None:
        raise SystemExit(code)

    def load() -> Predictor:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)
        raise AssertionError("the worker went on")

    monkeypatch.setattr(os, "_exit", left)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        serve(Serving("127.0.0.1", 0, ("tiny",), LIMITS, access_of("127.0.0.1", [], None)), load)
    assert ended.value.code == 143
    assert "stopped before the model was loaded" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_worker_whose_engine_has_ended_leaves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], usual_signals: None
) -> None:
    def broken(batch: ContinuousBatch) -> None:
        raise SystemExit("broken")

    monkeypatch.setattr(ContinuousBatch, "step", broken)
    (port,) = free_ports(1)
    told: list[tuple[int, bytes]] = []

    def ask() -> None:
        while True:
            try:
                answer = begun_stream(port, 5).getresponse()
            except OSError:
                time.sleep(0.05)
                continue
            told.append((answer.status, answer.read()))
            return

    thread = threading.Thread(target=ask)
    thread.start()
    access = access_of("127.0.0.1", [], None)
    assert serve(Serving("127.0.0.1", port, ("tiny",), LIMITS, access), tiny_predictor) == 1
    thread.join(20)
    ((_, said),) = told
    assert json.loads(said.split(b"data: ")[-1])["error"]["code"] == "engine_failed"
    assert "the engine has ended (SystemExit: broken)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--host", "0.0.0.0"], "--api-key-file"),
        (["--api-key", "short"], "16"),
        (["--slots", "0"], "--slots 0"),
        (["--port", "70000"], "--port 70000"),
        (["--load-4bit", "--load-8bit"], "--load-8bit and --load-4bit"),
        (["--fp16", "--dtype", "float32"], "--dtype"),
        (["--conv-mode", "nonsense"], "nonsense"),
        (["--model-names", ","], "--model-names"),
        (["--api-key-file", "not-there"], "not-there"),
    ],
)
def test_what_cannot_be_is_told_before_a_model_is_opened(
    flags: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert model_worker.main(["--model-path", "no-such-model", *flags]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert "no-such-model" not in said


def test_a_port_in_use_is_told_before_a_model_is_opened(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert model_worker.main(["--model-path", "no-such-model", "--port", str(port), "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert str(port) in said
    assert "no-such-model" not in said


def test_a_model_that_is_not_there_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert model_worker.main(["--model-path", "./no-such-model", "--port", "0", "--device", "cpu"]) == 2
    assert "no-such-model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "names"),
    [("/a/llava-v1.5-7b/", ("llava-v1.5-7b",)), ("out/checkpoint-30", ("out_checkpoint-30",)), ("x/y", ("y",))],
)
def test_a_model_is_called_as_its_folder(path: str, names: tuple[str, ...]) -> None:
    assert model_worker.names_of(model_worker.parser().parse_args(["--model-path", path])) == names
    given = ["--model-path", path, "--model-names", "a, b"]
    assert model_worker.names_of(model_worker.parser().parse_args(given)) == ("a", "b")


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_the_text_of_a_stream_is_that_of_the_answer(size: int) -> None:
    for whole in ("  a <image>b \n", "<im<image>age>", " \n ", "<image>", "a<imag", "x  <image>  y ", "<<image>image>"):
        clean = CleanText()
        pieces = [clean.put(whole[place : place + size]) for place in range(0, len(whole), size)]
        assert "".join([*pieces, clean.end()]) == whole.replace("<image>", "").strip(), whole
