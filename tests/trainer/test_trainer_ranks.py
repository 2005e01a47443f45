# SPDX-License-Identifier: Apache-2.0
"""A process that is lost or started differently is named, and the others end."""

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import paddle
import pytest

from paddlemix.trainer import llava_trainer, ranks
from paddlemix.utils.errors import ConfigError
from tests.trainer.trainer_kit import Rows, make_trainer, settings, tiny

WORKER = Path(__file__).with_name("ranks_worker.py")


def launched(how: str, folder: Path) -> str:
    """What the first process of the run says."""
    command = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--backend", "gloo"]
    done = subprocess.run(
        [*command, "--log_dir", str(folder / "log"), str(WORKER), how, str(folder / "out")],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    said = (folder / "log" / "workerlog.0").read_text(encoding="utf-8")
    assert done.returncode != 0, said
    return said


@pytest.mark.dist
@pytest.mark.timeout(300)
def test_a_process_that_is_killed_is_named_and_ends_the_run(tmp_path):
    said = launched("killed", tmp_path)
    assert "error: step 3: rank 1 has ended (process " in said
    assert "last seen at step " in said
    assert "goes on from the last checkpoint" in said


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_process_that_stops_is_named_and_ends_the_run(tmp_path):
    assert "error: step 3: rank 1 gives no sign of life for " in launched("stopped", tmp_path)


@pytest.mark.dist
@pytest.mark.timeout(300)
def test_processes_that_were_started_differently_end_before_the_first_step(tmp_path):
    said = launched("other", tmp_path)
    assert "error: the processes of this run were started with different things: learning_rate is 0.001 on" in said
    assert "rank 0 and 0.002 on rank 1" in said


def test_other_rows_and_other_weights_are_named(tmp_path, monkeypatch):
    sent: list[dict[str, object]] = []

    def gather(found, facts):
        sent.append(facts)
        found += [sent[0], facts]  # rank 0 is the first trainer that has asked

    logging.getLogger("PaddleNLP").setLevel(logging.ERROR)
    monkeypatch.setattr(paddle.distributed, "all_gather_object", gather)
    monkeypatch.setattr(llava_trainer, "require_alike", lambda facts, _: ranks.require_alike(facts, 2))
    run = settings(tmp_path, tune_mm_mlp_adapter=True)
    for _ in range(2):
        make_trainer(run).require_alike()
    with pytest.raises(ConfigError, match=r"the training data \(fingerprint\) is .* on rank 0 and .* on rank 1"):
        make_trainer(run, rows=Rows(11)).require_alike()
    with pytest.raises(ConfigError, match=r"the weights of llama\..* on rank 0 and .* on rank 1"):
        make_trainer(run, model=tiny(seed=1)).require_alike()


def watch(folder: Path) -> ranks.RankWatch:
    (folder / ranks.FOLDER).mkdir(exist_ok=True)
    return ranks.RankWatch(folder, 0, 3, lambda: 7)


def leave(folder: Path, rank: int, **sign: object) -> None:
    (folder / ranks.FOLDER).mkdir(exist_ok=True)
    text = json.dumps({"process": os.getpid(), "host": os.uname().nodename, "step": 4, "beat": 1, **sign})
    (folder / ranks.FOLDER / f"rank-{rank:05d}.json").write_text(text, encoding="utf-8")


def test_processes_that_have_not_begun_or_have_finished_are_not_lost(tmp_path):
    assert watch(tmp_path).lost() == {}


def test_a_process_of_this_machine_that_is_gone_is_lost_at_once(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    leave(tmp_path, 1)
    leave(tmp_path, 2, process=gone.pid)
    (text,) = watch(tmp_path).lost().values()
    assert text == f"has ended (process {gone.pid} on {os.uname().nodename}, last seen at step 4)"


@pytest.fixture
def clock(monkeypatch):
    """The seconds that the watch sees, in a list."""
    now = [100.0]
    monkeypatch.setattr(ranks.time, "monotonic", lambda: now[0])
    return now


def looks(seen: ranks.RankWatch, clock: list[float], seconds: float) -> dict[int, str]:
    """What is known after looking every second for so long."""
    found = {}
    for _ in range(int(seconds)):
        clock[0] += 1.0
        found = seen.lost()
    return found


def test_a_process_of_another_machine_is_lost_when_its_sign_does_not_change(tmp_path, clock):
    seen = watch(tmp_path)
    leave(tmp_path, 1, host="elsewhere", process=1)
    assert looks(seen, clock, ranks.SILENT_ELSEWHERE) == {}
    leave(tmp_path, 1, host="elsewhere", process=1, beat=2)
    assert looks(seen, clock, ranks.SILENT_ELSEWHERE) == {}
    assert list(looks(seen, clock, 2)) == [1]
    leave(tmp_path, 1, host="elsewhere", process=1, beat=3)
    assert seen.lost() == {}


def test_a_process_of_this_machine_is_lost_sooner_and_with_the_launcher_within_thirty_seconds(tmp_path, clock):
    seen = watch(tmp_path)
    leave(tmp_path, 1)
    assert looks(seen, clock, ranks.SILENT) == {}
    assert list(looks(seen, clock, 2)) == [1]
    assert ranks.SILENT + 2 * ranks.EVERY + 18 <= 30


def test_nobody_is_silent_while_the_whole_machine_pauses(tmp_path, clock):
    seen = watch(tmp_path)
    leave(tmp_path, 1)
    seen.lost()
    for _ in range(3):
        clock[0] += 600.0
        assert seen.lost() == {}


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"process": 1}', "null"])
def test_a_sign_that_cannot_be_read_is_none(tmp_path, text):
    seen = watch(tmp_path)
    (tmp_path / ranks.FOLDER / "rank-00001.json").write_text(text, encoding="utf-8")
    assert seen.lost() == {}


def test_where_things_lie_on_a_machine_may_differ():
    ranks.require_alike({"learning_rate": 1.0}, 1)
    assert {"output_dir", "image_folder", "model_name_or_path"} <= ranks.LOCAL
    assert not {"learning_rate", "seed", "max_length", "lora_rank"} & ranks.LOCAL


def test_the_others_end_after_the_first_process():
    first = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"])
    ranks._outlive(os.uname().nodename, first.pid, 60.0)
    assert first.poll() is not None
    ranks._outlive(os.uname().nodename, os.getpid(), 0.1)  # one that goes on is not waited for without end
    ranks._outlive("elsewhere", 1, 0.1)


def test_only_the_others_wait_at_their_end(monkeypatch):
    waiting = []
    monkeypatch.setattr(ranks.atexit, "register", lambda *call: waiting.append(call))
    monkeypatch.setattr(paddle.distributed, "all_gather_object", lambda found, own: found.extend([own, ("b", 2)]))
    monkeypatch.setattr(paddle.distributed, "barrier", lambda: None)
    for rank in (0, 1):
        monkeypatch.setattr(paddle.distributed, "get_rank", lambda rank=rank: rank)
        ranks.leave_in_order(2)
    ranks.leave_in_order(1)
    assert waiting == [(ranks._outlive, os.uname().nodename, os.getpid(), ranks.LEAVING)]


@pytest.mark.timeout(60)
def test_the_end_of_a_process_of_this_machine_is_seen_before_the_launcher_ends_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "EVERY", 3600.0)
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    leave(tmp_path, 1, process=other.pid)
    seen = watch(tmp_path)
    assert seen.lost() == {}
    threading.Timer(0.3, other.kill).start()
    assert not seen._rests()  # and not only after an hour
    assert list(seen.lost()) == [1]
    other.wait()
    seen._over.set()
    assert seen._rests()
