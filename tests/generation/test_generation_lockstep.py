# SPDX-License-Identifier: Apache-2.0
"""One model over several cards: the answers of one, and nobody waits for a card that is gone.

Here on the CPU (gloo); ``tests/npu_standin/test_npu_answers.py`` has the stand-in device.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import paddle
import pytest

from paddlemix.checkpoint.convert.layouts import convert
from paddlemix.generation import lockstep
from paddlemix.generation.load import load_chat, load_predictor
from paddlemix.generation.lockstep import common_store
from paddlemix.generation.prefix import Slot
from paddlemix.generation.sampling import Decoding
from paddlemix.models.llava import build_empty
from paddlemix.models.llm.slot_cache import RowCache
from paddlemix.ops.parallel import TensorParallel
from paddlemix.serve.model_worker import OPTIONS
from paddlemix.utils.errors import ConfigError, PaddleMixError
from paddlemix.utils.options import speaking
from tests.tiny import tiny_config

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("lockstep_worker.py")
MODEL = ROOT / "tests/data/golden/llava/hub/liuhaotian/llava-v1.5-tiny"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PADDLEMIX_HUB": "off"}


def told(file: Path, cards: int) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", str(WORKER), str(MODEL), str(cards), "cpu", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=ENVIRONMENT, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(file.read_text())


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.usefixtures("usual_signals")
def test_two_processes_that_share_a_model_answer_as_one(tmp_path: Path) -> None:
    alone, both = told(tmp_path / "one", 1), told(tmp_path / "two", 2)
    assert both == alone
    assert alone["reused"]
    assert alone["interrupted"]
    assert len(alone["batch"]) == 6


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple["subprocess.Popen[bytes]", int, Path]]:
    """A worker over two cards: its process, that of the other card, and the log."""
    log = folder / "log"
    words = [sys.executable, "-m", "paddlemix.serve.model_worker", "--model-path", str(MODEL), "--port", "0"]
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            [*words, "--device", "cpu", "--num-gpus", "2"], stderr=stream, stdout=stream, env=ENVIRONMENT, cwd=ROOT
        )
    try:
        until = time.monotonic() + 120
        while "listening at" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until
            time.sleep(0.1)
        (follower,) = followers(process)
        yield process, int(follower), log
    finally:
        others = followers(process) if process.poll() is None else []
        process.kill()
        process.wait(20)
        for other in others:  # one that was stopped does not see the end of the first
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(other), signal.SIGKILL)


def followers(process: "subprocess.Popen[bytes]") -> list[str]:
    """Processes that any thread of a process has started."""
    return [
        child
        for thread in Path(f"/proc/{process.pid}/task").iterdir()
        for child in (thread / "children").read_text().split()
    ]


def is_gone(process: int, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_card_that_is_lost_is_named_and_all_end(tmp_path: Path, how: signal.Signals) -> None:
    with serving(tmp_path) as (process, follower, log):
        os.kill(follower, how)
        assert process.wait(30) == 1
        reason = "has ended with exit code -9" if how == signal.SIGKILL else "gives no sign of life for 25 s"
        assert f"card 1 (process {follower}) {reason}" in log.read_text()
        assert is_gone(follower, 10)


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize(("how", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 0)])
def test_the_other_cards_end_with_the_first(tmp_path: Path, how: signal.Signals, code: int) -> None:
    with serving(tmp_path) as (process, follower, _):
        process.send_signal(how)
        assert process.wait(30) == code
        assert is_gone(follower, 10)


def test_cards_with_unequal_parts_keep_the_same_rows() -> None:
    """Three heads on two cards: rows on the second one are half as large."""
    config = tiny_config()
    config = config.with_changes(
        text=replace(config.text, num_attention_heads=3, num_key_value_heads=3, hidden_size=24)
    )
    kept = []
    for rank in range(2):
        model = build_empty(config, TensorParallel(rank, 2))
        heads = model.parallel.share(3).count
        store = common_store(model)
        store.max_bytes = 3 * 2 * 4 * 64 * 8 * 2  # three rows of the larger card
        for number in range(5):
            part = (paddle.zeros([1, heads, 64, 8]),)
            store.put([Slot(number)] * 20, RowCache(part, part, 20))
        kept.append([number for number in range(5) if store.find([Slot(number)] * 21)])
    assert heads == 1
    assert kept[0] == kept[1] == [2, 3, 4]


@pytest.mark.parametrize(
    ("cards", "device", "said"),
    [(5, "cpu", "--num-gpus is 5, but the model has only"), (2, "gpu:1", "gpu"), (2, "nonsense", "nonsense")],
)
def test_what_cannot_be_divided_is_told_before_a_process_is_started(cards: int, device: str, said: str) -> None:
    with speaking(OPTIONS), pytest.raises(PaddleMixError, match=said):
        load_predictor(MODEL, cards=cards, device=device)


def test_weights_of_few_bits_are_refused_before_a_process_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lockstep, "Group", None)
    convert(MODEL, tmp_path / "8", "own", bits=8)
    for path, bits, opening in ((tmp_path / "8", 8, {}), (MODEL, 4, {"bits": 4}), (MODEL, 16, {"dtype": "bfloat16"})):
        said = f"weights of {bits} bits are not divided among 2 cards; leave out --num-gpus"
        with speaking(OPTIONS), pytest.raises(ConfigError, match=said):
            load_predictor(path, cards=2, device="cpu", **opening)


def test_beams_are_refused_before_a_process_is_started() -> None:
    with speaking(OPTIONS), pytest.raises(ConfigError, match="2 beams need one card; .* leave out --num-gpus"):
        load_chat(str(MODEL), cards=2, device="cpu", decoding=Decoding(num_beams=2))
