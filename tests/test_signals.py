# SPDX-License-Identifier: Apache-2.0
"""Tests that send signals do not depend on those that the whole run was started with (nohup, background, CI)."""

import re
import signal
from pathlib import Path

import pytest

SENDS = re.compile(r"(send_signal|pthread_kill|os\.kill|killpg)\((?!.*SIGKILL)|\.terminate\(\)")


@pytest.fixture
def ignored():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("ignored", "usual_signals")
def test_the_usual_signals_stand_also_where_they_were_ignored():
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        assert signal.getsignal(number) == signal.SIG_DFL


def test_every_test_file_that_sends_a_signal_sets_the_usual_ones():
    texts = {path.name: path.read_text("utf-8") for path in Path(__file__).parent.rglob("test_*.py")}
    sending = [name for name, text in texts.items() if SENDS.search(text)]
    assert len(sending) > 3
    assert [name for name in sending if "usual_signals" not in texts[name]] == []
