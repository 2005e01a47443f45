"""~ and $NAME mean the same wherever a path is named."""

import argparse
from pathlib import Path

import pytest

from paddlemix.utils.errors import ConfigError, PaddleMixError
from paddlemix.utils.paths import begins_at, expanded, new_file


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


def _readers():
    """(name, function that opens a path) for everything that takes a path of the user's and finds nothing there."""
    from paddlemix.annotate.objects import read_objects
    from paddlemix.checkpoint.folders import projector_file, resolve
    from paddlemix.checkpoint.formats.source import open_file, open_folder
    from paddlemix.datasets.sources import DatasetEntry, read
    from paddlemix.imaging.load import image_size, load_image
    from paddlemix.settings.published.config import load_config
    from paddlemix.settings.run.loader import load_settings
    from paddlemix.settings.strict_json import read_object
    from paddlemix.text import chat_template
    from paddlemix.text.tokenizer import load_tokenizer
    from paddlemix.utils import foreign
    from paddlemix.utils.errors import DataError

    return {
        "a file of settings": lambda path: load_settings([path]),
        "a strict JSON file": read_object,
        "a foreign JSON file": lambda path: foreign.read_json(path, DataError),
        "a data file": lambda path: read(DatasetEntry((path,))),
        "an image of a relative folder": lambda path: load_image(f"photos/{path}"),
        "the header of an image": image_size,
        "a chat template": chat_template.load,
        "a model, as a command names it": lambda path: resolve(path, "the model"),
        "a model folder": load_config,
        "a tokenizer": load_tokenizer,
        "a projector": lambda path: projector_file(Path(path)),
        "a file of weights": open_file,
        "a folder of weights": open_folder,
        "the objects of a batch tool": lambda path: read_objects(Path(path), "id"),
    }


@pytest.mark.parametrize("what", sorted(_readers()))
def test_whatever_is_not_there_the_error_says_where_a_relative_path_begins(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PADDLEMIX_HUB", "off")
    opens = _readers()[what]
    with pytest.raises(PaddleMixError) as relative:
        opens("mistyped.json")
    assert f"relative paths begin at the current folder, {tmp_path}" in str(relative.value)
    if "relative" not in what:
        with pytest.raises(PaddleMixError) as absolute:
            opens(str(tmp_path / "mistyped.json"))
        assert "relative paths" not in str(absolute.value)


def test_a_file_for_the_end_of_long_work_needs_its_folder_at_the_start(tmp_path):
    assert new_file(str(tmp_path / "found.json")) == tmp_path / "found.json"
    with pytest.raises(argparse.ArgumentTypeError, match="missing to write found.json into"):
        new_file(str(tmp_path / "missing" / "found.json"))
