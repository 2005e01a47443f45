# SPDX-License-Identifier: Apache-2.0
"""``paddlemix serve --cards``: one command for several cards; what ends is started again, and signals reach all."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import openai
import pytest

from paddlemix.serve import cards, controller, model_worker

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "tests/data/golden/llava/hub/liuhaotian/llava-v1.5-tiny"
KEY = "a-key-of-enough-letters"
PARENT = """
import sys
from paddlemix.serve import cards
cards.EARLIEST = 0.1
python = [sys.executable, "-c"]
sys.exit(cards.Cards([*python, sys.argv[1]], lambda address: {"card 0": [*python, sys.argv[2], address]}).run())
"""
LISTENS = "print('listening at http://127.0.0.1:5', flush=True); import time; time.sleep({seconds})"
DRAINS = "import signal, time, sys; signal.signal(15, lambda *_: (time.sleep({seconds}), sys.exit(0)));" + LISTENS


@contextlib.contextmanager
def begun(*words: str, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    environment = {**os.environ, "PADDLEMIX_HUB": "off", "OMP_NUM_THREADS": "1"}
    with open(log, "wb") as stream:
        process = subprocess.Popen([sys.executable, *words], stderr=stream, stdout=stream, env=environment, cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.wait(20)


def wait_for(pattern: str, log: Path, seconds: float = 60, times: int = 1) -> list[str]:
    until = time.monotonic() + seconds
    while len(found := re.findall(pattern, log.read_text())) < times:
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.05)
    return found


def with_children(controller: str, worker: str, log: Path) -> contextlib.AbstractContextManager:
    return begun("-c", PARENT, controller, worker, log=log)


def test_what_never_answered_ends_all_with_its_code(tmp_path: Path, usual_signals: None) -> None:
    log = tmp_path / "log"
    with with_children(LISTENS.format(seconds=60), "import sys; print(sys.argv[1]); sys.exit(2)", log) as process:
        assert process.wait(20) == 2
    said = log.read_text()
    assert "controller: listening at http://127.0.0.1:5\n" in said
    assert "card 0: http://127.0.0.1:5\n" in said
    assert "card 0: has ended with exit code 2 before it could answer" in said


def test_what_ends_is_started_again_and_a_signal_lets_all_end(tmp_path: Path, usual_signals: None) -> None:
    log = tmp_path / "log"
    drains = DRAINS.format(seconds=60).replace("time.sleep(60), ", "time.sleep(0.5), print('drained', flush=True), ")
    with with_children(
        drains, LISTENS.format(seconds=0) + "; sys.exit(7)".replace("sys", "__import__('sys')"), log
    ) as one:
        wait_for("card 0: has ended with exit code 7", log, times=3)
        assert re.findall(r"again in (\S+) s", log.read_text())[:3] == ["0.1", "0.2", "0.4"]
        one.send_signal(signal.SIGTERM)
        assert one.wait(20) == 0
    assert "controller: drained" in log.read_text()


def test_a_second_signal_does_not_wait(tmp_path: Path, usual_signals: None) -> None:
    log = tmp_path / "log"
    stubborn = "import signal, sys; n = []; signal.signal(15, lambda *_: n.append(1) or len(n) < 2 or sys.exit(3));"
    listens = LISTENS.format(seconds=0) + "\nwhile True: time.sleep(0.1)"
    with with_children(stubborn + listens, stubborn + listens, log) as process:
        wait_for("card 0: listening", log)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143


def test_children_end_when_their_parent_is_killed(tmp_path: Path, usual_signals: None) -> None:
    log = tmp_path / "log"
    mark = "import os; open({file!r}, 'w').write(str(os.getpid()));"
    file = str(tmp_path / "pid")
    with with_children(LISTENS.format(seconds=60), mark.format(file=file) + LISTENS.format(seconds=60), log) as process:
        wait_for("card 0: listening", log)
        process.kill()
        process.wait(20)
    child = int(Path(file).read_text())
    until = time.monotonic() + 20
    while Path(f"/proc/{child}").exists() and ") Z " not in Path(f"/proc/{child}/stat").read_text():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
def test_two_cards_behind_one_address(tmp_path: Path, usual_signals: None) -> None:
    log, keys = tmp_path / "log", tmp_path / "keys"
    keys.write_text(KEY + "\n")
    words = ["-m", "paddlemix", "serve", "--model-path", str(MODEL), "--cards", "0,1", "--device", "cpu", "--port", "0"]
    with begun(*words, "--api-key-file", str(keys), log=log) as process:
        wait_for(r"card \d: listening at \S+", log, 120, times=2)
        (url,) = re.findall(r"controller: listening at (\S+)", log.read_text())
        with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=60) as client:
            name = MODEL.name
            until = time.monotonic() + 60
            while not client.models.list().data and time.monotonic() < until:
                time.sleep(0.1)
            body = {
                "model": name,
                "messages": [{"role": "user", "content": "hello"}],
                "max_tokens": 8,
                "temperature": 0,
            }
            answers = {client.chat.completions.create(**body).choices[0].message.content for _ in range(6)}
            assert len(answers) == 1
            served = [json.loads(line.partition(": ")[2])["worker"] for line in log.read_text().splitlines()
                      if line.startswith("controller: {") and '"worker"' in line]  # fmt: skip
            assert len(set(served)) == 2
            for line in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
                if b"npu" in (command := Path(f"/proc/{line}/cmdline").read_bytes()) or b"model_worker" in command:
                    os.kill(int(line), signal.SIGKILL)
                    break
            wait_for(r"card \d: has ended with exit code -9", log)
            # The other one answers; whoever is sent to the dead one is handed on.
            for _ in range(4):
                assert client.chat.completions.create(**body).choices[0].message.content in answers
            wait_for(r"card \d: listening at \S+", log, 120, times=3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--cards", "0,x"], "--cards 0,x"),
        (["--cards", "1,1"], "twice"),
        (["--cards", "0,1", "--device", "npu:1"], "--device npu:1"),
        (["--cards", "0,1", "--num-gpus", "2"], "--num-gpus"),
        (["--cards", "0", "--port", "65535"], "--port 65535"),
        (["--cards", "0", "--controller-address", "http://127.0.0.1:1", "--controller-token-file", "{token}"],
         "controller of its own"),
        (["--num-gpus", "0"], "--num-gpus 0"),
    ],
)  # fmt: skip
def test_cards_that_cannot_be_are_told(
    flags: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token = tmp_path / "token"
    token.write_text(KEY)
    words = [flag.format(token=token) for flag in flags]
    assert model_worker.main(["--model-path", "no-such-model", *words]) == 2
    assert told in capsys.readouterr().err


def test_the_controller_of_the_cards_gives_a_request_the_time_that_the_workers_give(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commands = []

    class Noted:
        def __init__(self, words: Sequence[str], workers: object) -> None:
            commands.append(words)

        def run(self) -> int:
            return 0

    monkeypatch.setattr(cards, "Cards", Noted)
    flags = ["--model-path", "any", "--device", "cpu", "--cards", "0,1", "--request-seconds", "900"]
    assert model_worker.main(flags) == 0
    python, _, module, *words = commands[0]
    assert (python, module) == (sys.executable, "paddlemix.serve.controller")
    assert controller.parser().parse_args(words).request_seconds == 900
