# SPDX-License-Identifier: Apache-2.0
"""SIGUSR1 while a run is being set up."""

import contextlib
import os
import signal
import threading

import pytest

from paddlemix.utils import early_stop


@pytest.fixture(autouse=True)
def ignored():
    """As deploy/npu/launch.sh starts a rank."""
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGUSR1, before)


def test_a_signal_before_the_first_step_ends_the_run_with_75(capsys):
    with pytest.raises(SystemExit) as ended, early_stop.ending_on_sigusr1():
        os.kill(os.getpid(), signal.SIGUSR1)
    assert ended.value.code == 75
    assert "SIGUSR1 before the first step" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN


def test_an_exit_that_a_library_swallows_comes_back_when_the_training_begins():
    with early_stop.ending_on_sigusr1():
        with contextlib.suppress(BaseException):  # as paddlenlp does around an import
            os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(SystemExit) as ended:
            early_stop.training_begins()
    assert ended.value.code == 75


def test_the_training_takes_over_and_gives_back_what_was_there_before():
    with early_stop.ending_on_sigusr1():
        mine = signal.signal(signal.SIGUSR1, lambda *_: None)
        assert mine is not signal.SIG_IGN
        assert early_stop.training_begins() is signal.SIG_IGN
        os.kill(os.getpid(), signal.SIGUSR1)  # the training's affair
    assert early_stop.training_begins() is None


def test_another_thread_leaves_the_signal_alone():
    seen = []

    def run():
        with early_stop.ending_on_sigusr1():
            seen.append(signal.getsignal(signal.SIGUSR1))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_IGN]
