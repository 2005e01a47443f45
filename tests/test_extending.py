# SPDX-License-Identifier: Apache-2.0
"""docs/extending.md is followed step by step in a copy of the library, and the toys that it adds work there."""

import subprocess
import sys

import pytest

from tests import extending_kit as kit
from tools import check_layers

WORKER = "tests/extending_worker.py"


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The library with every toy of the page in it."""
    return kit.copied(tmp_path_factory.mktemp("extended"))


def test_the_toys_work(copy):
    call = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", WORKER]
    run = subprocess.run(call, capture_output=True, text=True, cwd=copy, check=False, timeout=600)
    assert run.returncode == 0, run.stdout[-20000:] + run.stderr[-2000:]


def test_the_toys_are_in_their_layers(copy):
    assert check_layers.check(copy) == []


def test_a_tower_is_two_new_files_and_two_lines_of_a_table():
    tower = kit.recipes()["A vision tower"]
    assert len(tower.files) == 2
    assert {name for name, _ in tower.changes} == {"paddlemix/settings/towers/table.py"}
    assert sum(line.startswith("+") for _, hunk in tower.changes for line in hunk.splitlines()) == 2


def test_every_block_of_the_page_is_taken():
    page = kit.PAGE.read_text(encoding="utf-8")
    taken = [
        block
        for recipe in kit.recipes().values()
        for block in (*recipe.files.values(), *(hunk for _, hunk in recipe.changes), *recipe.scripts)
    ]
    assert page.count("\n```") == 2 * len(taken)
    assert all(path is not None for recipe in kit.recipes().values() for path, _ in recipe.changes)


def test_a_hunk_whose_place_is_gone_is_named():
    with pytest.raises(AssertionError, match=r"table\.py: 0 places for"):
        kit.changed("a\nb\n", "-c\n+d\n", "table.py")
    with pytest.raises(AssertionError, match="2 places"):
        kit.changed("a\na\n", "-a\n+d\n", "table.py")
    assert kit.changed("a\nb\n", " a\n+c\n", "table.py") == "a\nc\nb\n"


def test_the_code_of_the_page_is_written_as_all_code_is(copy):
    new = [str(copy / name) for recipe in kit.recipes().values() for name in recipe.files]
    config = str(kit.ROOT / "pyproject.toml")
    for command in (["check"], ["format", "--check"]):
        run = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--config", config, *new],
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stdout + run.stderr
