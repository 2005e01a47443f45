# SPDX-License-Identifier: Apache-2.0
"""Processes that read batches: in step with the run, watched, and never left behind."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from paddlemix.trainer.workers import SIGNALS, read_batches
from paddlemix.utils.errors import DataError, PaddleMixError, TrainingError

pytestmark = pytest.mark.usefixtures("usual_signals")


class Rows:
    """Row n is n numbers; ``act`` is called in the process that reads row ``at``."""

    def __init__(self, at=None, act=None):
        self.at, self.act = at, act

    def __getitem__(self, index):
        if index == self.at:
            self.act()
        return np.full([index], index, np.float32)


def collate(items):
    return {"rows": np.concatenate(items), "process": np.array([os.getpid()])}


def read(rows, plan=None, workers=2, timeout=60.0):
    plan = [[n, n + 1] for n in range(0, 12, 2)] if plan is None else plan
    return read_batches(rows, collate, plan, workers, timeout=timeout, where=lambda index: f"rows.json: /{index}")


def suicide(number):
    return lambda: os.kill(os.getpid(), number)


def refuse(text="rows.json: /5: no such image"):
    raise DataError(text)


@pytest.mark.parametrize("workers", [1, 2, 5, 9])
def test_batches_come_in_the_order_of_the_plan_whatever_they_weigh(workers):
    plan = [[7], [1, 2], [300_000, 4], [0], [5, 6, 8], [3]]
    found = list(read(Rows(), plan, workers))
    for indices, batch in zip(plan, found, strict=True):
        assert np.array_equal(batch["rows"], np.concatenate([Rows()[index] for index in indices]))
        batch["rows"] += 1  # nobody else's memory
    assert len({int(batch["process"][0]) for batch in found}) == min(workers, len(plan))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("kind", [*PaddleMixError.__subclasses__(), PaddleMixError])
def test_an_error_of_the_project_arrives_as_it_was_raised_and_after_the_batches_before_it(kind):
    batches = read(Rows(5, lambda: (_ for _ in ()).throw(kind("rows.json: /5: no such image"))))
    assert [next(batches) is not None for _ in range(2)] == [True, True]
    with pytest.raises(kind, match=r"^rows\.json: /5: no such image$") as caught:
        next(batches)
    assert type(caught.value) is kind
    assert multiprocessing.active_children() == []


def test_a_fault_of_the_program_keeps_its_traceback_and_names_the_row(capfd):
    with pytest.raises(TrainingError, match=r"at rows.json: /5, failed"):
        list(read(Rows(5, lambda: {}["missing key"])))
    assert "KeyError: 'missing key'" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGXCPU])
def test_a_worker_that_dies_is_told_with_its_row(number):
    with pytest.raises(TrainingError, match=rf"\(process \d+\), at rows.json: /5, was ended by {number.name}"):
        list(read(Rows(5, suicide(number))))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("act", [suicide(signal.SIGSTOP), lambda: time.sleep(600)], ids=["stopped", "hanging"])
def test_a_worker_that_stands_still_is_told_with_its_row_and_does_not_stay(act):
    with pytest.raises(TrainingError, match=r"at rows.json: /5, has made no progress .*dataloader_timeout"):
        list(read(Rows(5, act), timeout=1.0))
    assert multiprocessing.active_children() == []


def test_the_signals_of_a_run_do_not_reach_its_workers():
    batches = read(Rows(), [[n] for n in range(20)])
    next(batches)
    children = multiprocessing.active_children()
    assert len(children) == 2
    for child in children:
        for number in SIGNALS:
            os.kill(child.pid, number)
    assert len(list(batches)) == 19


def test_a_row_that_is_read_slowly_is_no_standstill():
    class Slow(Rows):
        def __getitem__(self, index):
            time.sleep(0.4)  # the batch takes longer than the limit, each of its rows does not
            return super().__getitem__(index)

    assert len(list(read(Slow(), [list(range(8))], timeout=2.0))) == 1


def test_a_forked_process_does_not_hold_the_folder_of_the_run(tmp_path):
    from paddlemix.trainer.folder_lock import lock

    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    with lock(tmp_path):
        child = context.Process(target=lambda: (there.send("forked"), time.sleep(600)))
        child.start()
    try:
        assert here.recv() == "forked"
        with lock(tmp_path):
            assert child.is_alive()
    finally:
        child.kill()
        child.join()


KEPT = """
import os, sys, time
sys.path[:0] = [{root!r}]
from tests.trainer.test_trainer_workers import Rows, read
from paddlemix.trainer.folder_lock import lock
from multiprocessing import active_children
with lock({folder!r}):
    batches = read(Rows({at}, lambda: time.sleep(600)), [[n] for n in range(40)], 2)
    first = next(batches)
    print(*(child.pid for child in active_children()), flush=True)
    {then}
"""


def keep(folder, then, at=None):
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    code = KEPT.format(root=root, folder=str(folder), then=then, at=at)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def alive(pid):
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.parametrize("at", [None, 3], ids=["waiting", "reading"])
def test_a_killed_run_takes_its_workers_with_it_and_frees_its_folder(tmp_path, at):
    from paddlemix.trainer.folder_lock import lock

    with keep(tmp_path, "time.sleep(600)", at) as run:
        workers = [int(word) for word in run.stdout.readline().split()]
        assert len(workers) == 2
        run.kill()
    with lock(tmp_path):  # at once, whether the workers are gone already or not
        pass
    deadline = time.monotonic() + 60
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in workers if alive(pid)] == []


@pytest.mark.parametrize("then", ["pass", "raise KeyError"])
def test_a_run_that_ends_in_the_middle_of_an_epoch_does_not_wait_for_its_workers(tmp_path, then):
    with keep(tmp_path, then, at=3) as run:
        workers = [int(word) for word in run.stdout.readline().split()]
        try:
            run.wait(60)
        finally:
            run.kill()
    assert [pid for pid in workers if alive(pid)] == []
