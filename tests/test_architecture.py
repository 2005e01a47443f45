# SPDX-License-Identifier: Apache-2.0
"""The two journeys of docs/architecture.md come first, what they name is there, and every room says where to begin."""

import ast
import importlib
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
JOURNEYS = PAGE.partition("## Two journeys\n")[2].partition("\n## ")[0]
NAME = re.compile(r"`([a-z_]+(?:\.\w+)+)`")


def exists(name: str) -> bool:
    """Whether ``room.module.function`` (or ``room.module.Class.method``) can be imported from the package."""
    parts = name.split(".")
    for length in range(len(parts), 1, -1):
        try:
            found = importlib.import_module(".".join(["paddlemix", *parts[:length]]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part, None)
        return found is not None
    return False


def test_the_journeys_stand_before_the_signatures():
    assert re.findall(r"^## (.*)", PAGE, re.MULTILINE)[:2] == ["Two journeys", "utils"]
    assert len(re.findall(r"^\*\*A .*\*\*$", JOURNEYS, re.MULTILINE)) == 2


def test_every_step_names_what_does_it():
    steps = re.split(r"^\d+\. ", JOURNEYS, flags=re.MULTILINE)[1:]
    assert len(steps) >= 12
    assert [step for step in steps if not NAME.search(step)] == []


def test_what_the_journeys_name_can_be_imported():
    names = NAME.findall(JOURNEYS)
    assert len(names) > 30
    assert [name for name in names if not exists(name)] == []


def test_every_room_says_what_it_is_for_and_where_to_begin():
    """Three lines of text at least, of which one names something in the room."""
    short = []
    for path in sorted((ROOT / "paddlemix").glob("*/__init__.py")):
        text = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()
        if len(text) < 3 or not any("``" in line or ".md" in line for line in text[2:]):
            short.append(path.parent.name)
    assert short == []
