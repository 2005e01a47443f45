# SPDX-License-Identifier: Apache-2.0
"""Signals while a run has nothing to save."""

import contextlib
import os
import signal
import threading

import pytest

from paddlemix.utils import early_stop


@pytest.fixture(autouse=True)
def ignored(usual_signals):
    """As deploy/npu/launch.sh starts a rank."""
    before = {number: signal.getsignal(number) for number in NUMBERS}
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


NUMBERS = [getattr(signal, name) for name in early_stop.SIGNALS]


def now():
    return [signal.getsignal(number) for number in NUMBERS]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_before_the_first_step_ends_the_run_with_75(number, capsys):
    before = now()
    with pytest.raises(SystemExit) as ended, early_stop.ending_early():
        os.kill(os.getpid(), number)
    assert ended.value.code == 75
    assert f"{number.name} before the first step" in capsys.readouterr().err
    assert now() == before


def test_what_is_said_is_that_of_the_innermost_part(capsys):
    with early_stop.ending_early(), pytest.raises(SystemExit), early_stop.ending_early("in the evaluation"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert capsys.readouterr().err == "SIGTERM in the evaluation\n"


def test_nohup_stays_in_force():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with early_stop.ending_early():
        os.kill(os.getpid(), signal.SIGHUP)


def test_a_signal_that_a_library_takes_while_it_is_imported_comes_after_the_import():
    done = []

    def load():
        with early_stop.held_back():
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
            signal.signal(signal.SIGTERM, lambda *_: done.append("the library's handler"))
            done.append("import")

    with pytest.raises(SystemExit), early_stop.ending_early():
        load()
    assert done == ["import"]


def test_a_signal_that_another_thread_takes_during_an_import_comes_after_it_too():
    done, over = [], threading.Event()
    waits = threading.Thread(target=over.wait)  # started before: a thread inherits what the one that starts it blocks
    waits.start()
    arrived, write = os.pipe2(os.O_NONBLOCK)
    os.set_blocking(arrived, True)

    def load():
        with early_stop.held_back():
            signal.pthread_kill(waits.ident, signal.SIGTERM)
            os.read(arrived, 1)
            done.append("import")

    before = signal.set_wakeup_fd(write)
    try:
        with pytest.raises(SystemExit), early_stop.ending_early():
            load()
    finally:
        signal.set_wakeup_fd(before)
        over.set()
        waits.join()
    assert done == ["import"]


def test_an_exit_that_a_library_swallows_comes_back_when_the_training_begins():
    with early_stop.ending_early():
        with contextlib.suppress(BaseException):  # as paddlenlp does around an import
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(SystemExit) as ended:
            early_stop.training_begins()
    assert ended.value.code == 75


def test_the_training_takes_over_and_gives_back_what_was_there_before():
    before = now()
    with early_stop.ending_early():
        signal.signal(signal.SIGTERM, lambda *_: None)
        assert early_stop.training_begins() == dict(zip(NUMBERS, before, strict=True))
        os.kill(os.getpid(), signal.SIGTERM)  # the training's affair
    assert early_stop.training_begins() == {}


def test_another_thread_leaves_the_signals_alone():
    seen, before = [], now()

    def run():
        with early_stop.ending_early():
            seen.extend(now())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == before
