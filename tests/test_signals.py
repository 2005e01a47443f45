# SPDX-License-Identifier: Apache-2.0
"""Tests that send signals do not depend on those that the whole run was started with (nohup, background, CI)."""

import re
import signal
from pathlib import Path

import pytest

SENDS = re.compile(r"(send_signal|pthread_kill|os\.kill|killpg)\((?!.*SIGKILL)|\.terminate\(\)")


@pytest.fixture
def ignored():
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("ignored", "usual_signals")
def test_the_usual_signals_stand_also_where_they_were_ignored():
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_every_test_file_that_sends_a_signal_sets_the_usual_ones():
    texts = {path.name: path.read_text("utf-8") for path in Path(__file__).parent.rglob("test_*.py")}
    sending = [name for name, text in texts.items() if SENDS.search(text)]
    assert len(sending) > 3
    own = re.compile(r"usual_signals|signal\.signal\(")
    assert [name for name in sending if not own.search(texts[name])] == []
