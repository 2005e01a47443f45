# SPDX-License-Identifier: Apache-2.0
"""The layers hold, and the checker sees what it should see."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEADER = "# SPDX-License-Identifier: Apache-2.0\n"
SENTENCE = "`paddlemix/X` is what the library ships; root `X` is what the repository adds around it."


def _load_checker():
    spec = importlib.util.spec_from_file_location("check_layers", ROOT / "tools" / "check_layers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check_layers = _load_checker()


def _tree(folder: Path, **files: str) -> Path:
    """A small repository; ``models__llava="..."`` is paddlemix/models/llava.py."""
    for name, text in files.items():
        path = folder / "paddlemix" / ((name if name == "__init__" else name.replace("__", "/")) + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(HEADER + text, encoding="utf-8")
    return folder


def test_every_file_of_the_repository_is_in_its_place():
    assert check_layers.check(ROOT) == []


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"utils__a": "from paddlemix.models import b\n", "models__b": ""}, "paddlemix.models.b (layer 4, above"),
        ({"models__a": "import paddlemix.datasets.b\n", "datasets__b": ""}, "layer 4, beside it"),
        ({"models__a": "def f():\n    from paddlemix.trainer import b\n", "trainer__b": ""}, "layer 7, above it"),
        ({"text__a": "from . import b\n"}, "a.py:2: relative import"),
        ({"text__a": "from json import *\n"}, "a.py:2: star import"),
        ({"text__a": "import paddle\n"}, "the room text works without paddle"),
        ({"utils__device": "import paddle\n"}, "the room utils works without paddle"),
        ({"settings__a": "def f():\n    import paddle\n"}, "the room settings works without paddle"),
        ({"models__a": "from paddlenlp.trainer import Trainer\n"}, "paddlenlp is imported in paddlemix/trainer/ only"),
        ({"models__a": "import requests\n"}, "requests is imported in paddlemix/utils/files.py only"),
        ({"text__a": "import urllib.request\n"}, "urllib.request is imported in no file only"),
        ({"text__a": "from urllib import request\n"}, "urllib.request is imported in no file only"),
        ({"text__a": "from urllib.request import urlopen\n"}, "urllib.request is imported in no file only"),
        ({"text__a": "def f():\n    import http.client\n"}, "http.client is imported in paddlemix/utils/exchange.py"),
        ({"text__a": "from http import client\n"}, "http.client is imported in paddlemix/utils/exchange.py only"),
        ({"text__a": "import socket\n"}, "socket is imported in paddlemix/utils/addresses.py"),
        ({"models__a": "import os\nx = os.environ['A']\n"}, "a.py:3: environment variables are read in"),
        ({"models__a": "from os import getenv\n"}, "environment variables are read in"),
        ({"text__a": "import paddlemix.text.b\n", "text__b": "import paddlemix.text.a\n"}, "circle paddlemix.text.a"),
        ({"helpers__a": ""}, "the room helpers is in no layer"),
        ({"__init__": "import paddlemix.utils.a\n", "utils__a": ""}, "importing the package does nothing"),
    ],
)
def test_a_violation_is_found_and_named(tmp_path, files, told):
    found = check_layers.check(_tree(tmp_path, **files))
    assert len(found) == 1
    assert told in found[0]


def test_a_file_without_licence_line_is_found(tmp_path):
    (_tree(tmp_path, text__a="") / "paddlemix/text/a.py").write_text("x = 1\n")
    assert "the first line has to be" in check_layers.check(tmp_path)[0]


@pytest.mark.parametrize(
    "files",
    [
        {"models__a": "from paddlemix.ops import b\nimport paddle\n", "ops__b": "import paddle\n"},
        {"utils__device": "def f():\n    import paddle\n"},
        {"utils__env": "import os\nx = os.environ\n"},
        {"text__a": "import urllib.parse\nfrom http import HTTPStatus\n"},
        {"text__a": "from paddlemix.text.b import c\n", "text__b": "c = 1\n"},
    ],
)
def test_what_is_allowed_is_not_reported(tmp_path, files):
    assert check_layers.check(_tree(tmp_path, **files)) == []


def test_the_checker_exits_with_one_when_something_is_found(tmp_path, capsys):
    assert check_layers.main([str(_tree(tmp_path, text__a="import paddle\n"))]) == 1
    assert "1 violations" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["config", "examples", "tools"])
def test_a_root_folder_and_its_namesake_share_no_file(name):
    ours = {path.relative_to(ROOT / name) for path in (ROOT / name).rglob("*") if path.is_file()}
    shipped = {
        path.relative_to(ROOT / "paddlemix" / name) for path in (ROOT / "paddlemix" / name).rglob("*") if path.is_file()
    }
    both = {path for path in ours & shipped if path.name not in ("README.md", "__init__.py") and path.suffix != ".pyc"}
    assert both == set()


@pytest.mark.parametrize("name", ["config", "examples", "tools", "deploy"])
def test_a_root_folder_says_what_it_is_for(name):
    assert (ROOT / name / "README.md").read_text(encoding="utf-8").startswith(SENTENCE)


def test_there_are_no_symbolic_links():
    folders = ("paddlemix", "config", "examples", "tools", "deploy", "docs")
    assert [path for name in folders for path in (ROOT / name).rglob("*") if path.is_symlink()] == []
