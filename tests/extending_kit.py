# SPDX-License-Identifier: Apache-2.0
"""docs/extending.md as data: its recipes, and a copy of the library in which they have been followed."""

import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "extending.md"
_BLOCK = re.compile(r"^```(python|diff)\n(.*?)^```\n", flags=re.S | re.M)
_PATH = re.compile(r"`(paddlemix/[\w/]+\.py)`")


@dataclass
class Recipe:
    """One section of the page: new files, changes of files (path and hunk), and code to run afterwards."""

    title: str
    files: dict[str, str] = field(default_factory=dict)
    changes: list[tuple[str, str]] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)


def recipes(page: Path = PAGE) -> dict[str, Recipe]:
    """The recipes by their headings.

    A block of Python right behind the path of a file and a colon is that file, any other is run. A diff changes the
    file whose path stands first in the paragraph before it, or that of the diff before.
    """
    found = {}
    for section in page.read_text(encoding="utf-8").split("\n## ")[1:]:
        recipe = Recipe(section.partition("\n")[0])
        named = None
        end = 0
        for block in _BLOCK.finditer(section):
            before = section[end : block.start()].rstrip()
            end = block.end()
            paths = _PATH.findall(before.rpartition("\n\n")[2])
            if block[1] == "diff":
                named = paths[0] if paths else named
                recipe.changes.append((named, block[2]))
            elif before.endswith("`:") and paths:
                recipe.files[paths[-1]] = block[2]
            else:
                recipe.scripts.append(block[2])
        found[recipe.title] = recipe
    return found


def follow(recipe: Recipe, root: Path) -> None:
    """Write the files of a recipe into ``root`` and make its changes there."""
    for name, text in recipe.files.items():
        path = root / name
        if path.exists():
            raise AssertionError(f"{recipe.title}: {name} is there already")
        path.write_text(text, encoding="utf-8")
    for name, hunk in recipe.changes:
        path = root / name
        path.write_text(changed(path.read_text(encoding="utf-8"), hunk, name), encoding="utf-8")


def changed(text: str, hunk: str, where: str) -> str:
    """``text`` with a hunk (lines that begin with a space, - or +) applied; its old lines must stand there once."""
    lines = hunk.splitlines(keepends=True)
    if any(line[0] not in " -+" for line in lines):
        raise AssertionError(f"{where}: not a hunk: {hunk}")
    old = "".join(line[1:] for line in lines if line[0] in " -")
    if not old or text.count(old) != 1:
        raise AssertionError(f"{where}: {text.count(old)} places for\n{old}")
    return text.replace(old, "".join(line[1:] for line in lines if line[0] in " +"))


def copied(root: Path) -> Path:
    """A copy of the library and of the tests' kits in ``root``, in which every recipe of the page has been followed."""
    for name in ("paddlemix", "tests", "docs"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "data", "images"))
    shutil.copy(ROOT / "pyproject.toml", root)
    for recipe in recipes().values():
        follow(recipe, root)
    return root
