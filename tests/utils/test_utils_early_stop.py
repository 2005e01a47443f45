# SPDX-License-Identifier: Apache-2.0
"""SIGUSR1 while a run is being set up."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from paddlemix.utils import early_stop

ROOT = Path(__file__).resolve().parents[2]

SWALLOWS = """
import os, signal
from paddlemix.utils import early_stop
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
with early_stop.ending_on_sigusr1():
    try:  # as a library does around an import
        os.kill(os.getpid(), signal.SIGUSR1)
    except BaseException:
        pass
    print("went on")
"""


@pytest.fixture(autouse=True)
def ignored():
    """As deploy/npu/launch.sh starts a rank."""
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGUSR1, before)


def test_a_signal_before_the_first_step_ends_the_run_with_75_whatever_a_library_catches():
    done = subprocess.run([sys.executable, "-c", SWALLOWS], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (75, ""), done.stderr
    assert done.stderr == "SIGUSR1 before the first step: nothing to save; the same command starts again\n"


def test_the_training_takes_over_and_gives_back_what_was_there_before():
    with early_stop.ending_on_sigusr1():
        mine = signal.signal(signal.SIGUSR1, lambda *_: None)
        assert mine is early_stop._end
        assert early_stop.training_begins() is signal.SIG_IGN
        os.kill(os.getpid(), signal.SIGUSR1)  # the training's affair
    assert early_stop.training_begins() is None


def test_a_run_that_never_trains_gives_the_signal_back():
    with early_stop.ending_on_sigusr1():
        pass
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN


def test_another_thread_leaves_the_signal_alone():
    seen = []

    def run():
        with early_stop.ending_on_sigusr1():
            seen.append(signal.getsignal(signal.SIGUSR1))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_IGN]
