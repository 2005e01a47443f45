# SPDX-License-Identifier: Apache-2.0
"""Arguments are typed, and functions that take or give arrays state shape and dtype, in the rooms that compute."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "paddlemix"
ROOMS = ("models", "checkpoint")
_ARRAY = re.compile(r"\b(Tensor|ndarray)\b")
_SHAPE = re.compile(r"\[[^\]\s][^\]]*\]|[Aa]ny shape|\bshapes?\b|scalar|contract")
_LOOSE = ("Any", "object", "Any | None", "object | None")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(room: str) -> Iterator[tuple[str, Function, bool]]:
    """(file:line, function, whether it is public) for everything in a room; methods of private classes are private."""

    def walk(node: ast.AST, public: bool, file: str) -> Iterator[tuple[str, Function, bool]]:
        for child in ast.iter_child_nodes(node):
            shown = public and not getattr(child, "name", "").startswith("_")
            if isinstance(child, Function):
                yield f"{file}:{child.lineno}: {child.name}", child, shown or (public and child.name == "__call__")
            yield from walk(child, shown and not isinstance(child, Function), file)

    for path in sorted((PACKAGE / room).rglob("*.py")):
        yield from walk(ast.parse(path.read_text(encoding="utf-8")), True, path.relative_to(PACKAGE).as_posix())


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


@pytest.mark.parametrize("room", ROOMS)
def test_less_than_two_of_a_hundred_arguments_may_be_anything(room):
    found, count = loose(room)
    assert count > 100
    assert len(found) < 0.02 * count, found


@pytest.mark.parametrize("room", ROOMS)
def test_nine_of_ten_functions_with_arrays_state_shapes(room):
    found, count = without_shape(room)
    assert count > 15
    assert len(found) <= 0.1 * count, found
