"""~ and $NAME mean the same wherever a path is named."""

import pytest

from paddlemix.utils.errors import ConfigError
from paddlemix.utils.paths import begins_at, expanded


@pytest.fixture(autouse=True)
def home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.delenv("NOWHERE", raising=False)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("~/a b", "/home/me/a b"),
        ("~", "/home/me"),
        ("$HOME/x", "/home/me/x"),
        ("${DATA}/$DATA", "/data//data"),
        ("a/~/b", "a/~/b"),
        ("a$", "a$"),
        ("cost $5", "cost $5"),
        ("https://x/$DATA", "https://x/$DATA"),
    ],
)
def test_home_and_variables_are_replaced(text, path):
    assert expanded(text) == path


def test_a_variable_that_is_not_set_is_an_error_and_no_folder_of_that_name():
    with pytest.raises(ConfigError, match=r'"\$NOWHERE/x": the environment variable NOWHERE is not set'):
        expanded("$NOWHERE/x")


def test_a_relative_path_tells_where_it_begins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert begins_at("a.json") == f" (relative paths begin at the current folder, {tmp_path})"
    assert begins_at("/a.json") == ""
