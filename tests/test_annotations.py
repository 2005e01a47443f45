# SPDX-License-Identifier: Apache-2.0
"""Arguments are typed, and functions that take or give arrays state shape and dtype, in every room."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "paddlemix"
ROOMS = tuple(sorted({path.relative_to(PACKAGE).parts[0] for path in PACKAGE.glob("*/**/*.py")}))
WHOLE = "."
"""The package with the files that lie in no room."""
_ARRAY = re.compile(r"\b(Tensor|ndarray)\b")
_SHAPE = re.compile(r"\[[^\]\s][^\]]*\]|[Aa]ny shape|\bshapes?\b|scalar|contract")
_LOOSE = ("Any", "object", "Any | None", "object | None")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(room: str) -> Iterator[tuple[str, Function, bool]]:
    """(file:line, function, whether it is public) for everything in a room; methods of private classes are private."""

    def walk(node: ast.AST, public: bool, file: str) -> Iterator[tuple[str, Function, bool]]:
        for child in ast.iter_child_nodes(node):
            shown = public and not getattr(child, "name", "").startswith("_")
            if isinstance(child, Function):
                yield f"{file}:{child.lineno}: {child.name}", child, shown or (public and child.name == "__call__")
            yield from walk(child, shown and not isinstance(child, Function), file)

    for path in sorted((PACKAGE / room).rglob("*.py")):
        yield from walk(tree(path), True, path.relative_to(PACKAGE).as_posix())


def arguments(function: Function) -> list[ast.arg]:
    given = function.args
    every = [*given.posonlyargs, *given.args, given.vararg, *given.kwonlyargs, given.kwarg]
    return [one for one in every if one is not None and one.arg not in ("self", "cls")]


def loose(room: str) -> tuple[list[str], int]:
    """Arguments that may be anything, and how many arguments there are."""
    found, count = [], 0
    for where, function, _ in functions(room):
        for one in arguments(function):
            count += 1
            if one.annotation is not None and ast.unparse(one.annotation) in _LOOSE:
                found.append(f"{where}({one.arg})")
    return found, count


def without_shape(room: str) -> tuple[list[str], int]:
    """Public functions with arrays whose docstring names no shape, and how many functions with arrays there are."""
    found, count = [], 0
    for where, function, public in functions(room):
        types = [one.annotation for one in arguments(function)] + [function.returns]
        if public and any(kind is not None and _ARRAY.search(ast.unparse(kind)) for kind in types):
            count += 1
            if not _SHAPE.search(ast.get_docstring(function) or ""):
                found.append(where)
    return found, count


def names_for_anything() -> Iterator[str]:
    """Type aliases that are nothing but another name for ``Any`` or ``object``."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(tree(path)):
            value = node.value if isinstance(node, ast.AnnAssign | ast.Assign) else None
            if isinstance(value, ast.Name | ast.BinOp | ast.Constant) and ast.unparse(value).strip("\"'") in _LOOSE:
                yield f"{path.relative_to(PACKAGE).as_posix()}:{node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize(("room", "share"), [*((room, 0.02) for room in ROOMS), (WHOLE, 0.01)])
def test_few_arguments_may_be_anything(room, share):
    found, count = loose(room)
    assert not found or len(found) < share * count, found


@pytest.mark.parametrize(("room", "share"), [*((room, 0.1) for room in ROOMS), (WHOLE, 0.03)])
def test_most_functions_with_arrays_state_shapes(room, share):
    found, count = without_shape(room)
    assert len(found) <= share * count, found


def test_the_whole_package_is_read():
    assert {"models", "checkpoint", "trainer", "ops", "text"} <= set(ROOMS)
    assert loose(WHOLE)[1] > 4000
    assert without_shape(WHOLE)[1] > 150


def test_no_alias_is_another_name_for_anything():
    assert not list(names_for_anything())
