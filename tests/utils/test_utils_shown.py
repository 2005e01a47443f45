# SPDX-License-Identifier: Apache-2.0
"""Foreign text in messages: cut, on one line where it is a value, and without power over a terminal."""

import pickle

import pytest

from paddlemix.utils.errors import ConfigError, DataError
from paddlemix.utils.logging import fit, get_logger
from paddlemix.utils.shown import MESSAGE, VALUE, amount, counted, cut, escaped, readable, shown

POWERS = {
    "\x1b[2J": "\\x1b[2J",
    "\r": "\\r",
    "\b": "\\x08",
    "\x00": "\\x00",
    "\x7f": "\\x7f",
    "\x9b1m": "\\x9b1m",
    "\u202eabc": "\\u202eabc",
    "\u2066": "\\u2066",
    "\u200b": "\\u200b",
    "\u2028": "\\u2028",
    "\ufeff": "\\ufeff",
    "\ud800": "\\ud800",
    "\U000e0041": "\\U000e0041",
}


@pytest.mark.parametrize("text", POWERS)
def test_what_rules_a_terminal_is_shown_as_its_escape(text):
    assert shown(text) == escaped(text) == readable(text) == POWERS[text]
    assert str(DataError(f"a {text} b")) == f"a {POWERS[text]} b"
    assert fit(f"a{text}") == f"a{POWERS[text]}"


@pytest.mark.parametrize("text", ["chair", "图片 一", "a\u3000b", "a\u00a0b", "naïve", "\U0001f600", "C:\\x1b"])
def test_what_can_be_read_stays_as_it_is(text):
    assert shown(text) == escaped(text) == readable(text) == text


def test_a_value_is_on_one_line_and_a_message_keeps_its_lines():
    assert shown("a\nb\tc") == "a\\nb\\tc"
    assert readable("a\nb\tc") == "a\nb\tc"


@pytest.mark.parametrize("size", [VALUE + 1, 5000, 3_000_000])
def test_long_values_are_cut_and_keep_their_ends(size):
    path = "/folder/" + "x" * (size - 16) + "/end.png"
    short = shown(path)
    assert len(short) < VALUE + 40
    assert short.startswith("/folder/x")
    assert short.endswith("x/end.png")
    assert f"({size - VALUE} more characters)" in short
    message = str(ConfigError(f"{path}: no such file; choose another one"))
    assert message.endswith("x/end.png: no such file; choose another one")
    assert len(message) < VALUE + 100


def test_a_message_of_many_words_has_an_end_too():
    assert len(str(DataError("word " * 1_000_000))) < MESSAGE + 100
    assert cut("abc", 3) == "abc"


def test_an_error_passes_between_processes_as_it_is():
    error = pickle.loads(pickle.dumps(DataError("a\x1b" + "b" * 500)))
    assert str(error) == str(DataError(str(error)))


def test_log_lines_show_escapes(capsys):
    get_logger("test").warning("tensor \x1b[31m")
    assert capsys.readouterr().err == "warning: tensor \\x1b[31m\n"


def test_numbers_of_things_and_of_bytes_read_like_a_sentence():
    assert [counted(1, "row"), counted(1200, "row"), counted(2, "process", "processes")] == [
        "1 row", "1,200 rows", "2 processes",
    ]  # fmt: skip
    assert [amount(size) for size in (12, 8450, 99_000_000, 250_000_000, 3_210_000_000, 140e9)] == [
        "12 bytes", "8.4 kB", "99.0 MB", "0.25 GB", "3.2 GB", "140 GB",
    ]  # fmt: skip
