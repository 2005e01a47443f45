# SPDX-License-Identifier: Apache-2.0
"""Every name of paddle that the repository uses exists in the paddle that runs, with the arguments that it is given.

CI runs it on the lowest and on the highest paddle that are supported. What moved between them stands in
``paddlemix/ops/compat.py``, which is asked by text and is not seen here.
"""

import ast
import importlib
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import paddle
import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("paddlemix", "tools", "deploy", "tests", "examples")


ADDED = ("fw_storage", "slice_group")
"""Attributes that sharding stage3 gives to the parameters that it divides."""


class Use(NamedTuple):
    """``path`` is dotted and begins with paddle; ``keywords`` are those of the call, None when it is none."""

    where: str
    path: str
    keywords: tuple[str, ...] | None


class Uses(ast.NodeVisitor):
    """All uses of paddle's names in one file: by module, by imported name, as methods of arguments that are tensors."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.names: list[dict[str, str]] = [{}]
        self.found: list[Use] = []

    def add(self, line: int, path: str, keywords: tuple[str, ...] | None = None) -> None:
        self.found.append(Use(f"{self.where}:{line}", path, keywords))

    def visit_Import(self, node: ast.Import) -> None:
        for item in node.names:
            if item.name.partition(".")[0] == "paddle":
                self.add(node.lineno, item.name)
                self.names[0][item.asname or "paddle"] = item.name if item.asname else "paddle"

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if (node.module or "").partition(".")[0] == "paddle":
            for item in node.names:
                self.add(node.lineno, f"{node.module}.{item.name}")
                self.names[0][item.asname or item.name] = f"{node.module}.{item.name}"

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        annotated = [(item.arg, item.annotation) for item in arguments if item.annotation is not None]
        tensors = {name for name, kind in annotated if self.dotted(kind) == "paddle.Tensor"}
        # A tensor's method by an argument that stays what it is; a name that is bound again may become something else.
        bound = {item.id for item in ast.walk(node) if isinstance(item, ast.Name) and isinstance(item.ctx, ast.Store)}
        # Arguments hide what was imported under their name.
        self.names.append({item.arg: "" for item in arguments} | dict.fromkeys(tensors - bound, "paddle.Tensor"))
        self.generic_visit(node)
        self.names.pop()

    def visit_Call(self, node: ast.Call) -> None:
        path = self.dotted(node.func)
        if path:
            self.add(node.lineno, path, tuple(item.arg for item in node.keywords if item.arg))
            for part in (*node.args, *node.keywords):
                self.visit(part)
        else:
            self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        path = self.dotted(node)
        if path:
            self.add(node.lineno, path)
        else:
            self.generic_visit(node)

    def dotted(self, node: ast.AST | None) -> str:
        """``functional.silu`` as ``paddle.nn.functional.silu``; empty for what is not paddle's."""
        if isinstance(node, ast.Attribute):
            before = self.dotted(node.value)
            return f"{before}.{node.attr}" if before else ""
        if isinstance(node, ast.Name):
            return next((names[node.id] for names in reversed(self.names) if node.id in names), "")
        return ""


def uses_of(text: str, where: str) -> list[Use]:
    visitor = Uses(where)
    visitor.visit(ast.parse(text))
    return visitor.found


def all_uses() -> Iterator[Use]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield from uses_of(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))


@cache
def resolve(path: str) -> Any:
    """The object behind a dotted path. AttributeError or ImportError where there is none."""
    names = path.split(".")
    found: Any = importlib.import_module(names[0])
    for i, name in enumerate(names[1:], 1):
        if not hasattr(found, name) and inspect.ismodule(found):
            importlib.import_module(".".join(names[: i + 1]))
        # What stands behind an attribute of an object (a dtype of a tensor, say) is not known here.
        if not inspect.ismodule(found) and not inspect.isclass(found):
            return None
        found = getattr(found, name)
    return found


def wrong(use: Use) -> str | None:
    try:
        if use.path.removeprefix("paddle.Tensor.").partition(".")[0] in ADDED:
            return None
        found = resolve(use.path)
    except (AttributeError, ImportError):
        return f"{use.where}: {use.path} is not in paddle {paddle.__version__}"
    if not use.keywords or not callable(found):
        return None
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        return None  # written in C++
    if any(item.kind == item.VAR_KEYWORD for item in parameters):
        return None
    missing = sorted(set(use.keywords) - {item.name for item in parameters})
    return f"{use.where}: {use.path} of paddle {paddle.__version__} has no {', '.join(missing)}" if missing else None


def test_every_name_of_paddle_and_every_argument_that_we_use_is_in_the_paddle_that_runs() -> None:
    found = list(all_uses())
    assert {"paddle.nn.functional.softmax", "paddle.Tensor.astype", "paddle.matmul"} <= {use.path for use in found}
    told = [text for text in dict.fromkeys(map(wrong, found)) if text]
    assert not told, "\n".join(told)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import paddle\npaddle.no_such_name(1)", "paddle.no_such_name is not in"),
        ("import paddle.distributed as dist\ndist.nowhere", "paddle.distributed.nowhere is not in"),
        (
            "from paddle.nn import functional as F\ndef f(x):\n    return [F.no_act(x)]",
            "paddle.nn.functional.no_act is",
        ),
        ("from paddle.nn.functional import no_act", "paddle.nn.functional.no_act is not in"),
        ("import paddle\npaddle.full([2], 1, shade='red')", "paddle.full of paddle"),
        ("from paddle import nn\nclass A(nn.NoLayer):\n    pass", "paddle.nn.NoLayer is not in"),
        (
            "from paddle import Tensor\ndef f(x: Tensor):\n    return x.no_method(2)",
            "paddle.Tensor.no_method is not in",
        ),
        ("from paddle import Tensor\ndef f(*, x: Tensor):\n    return x.reshape([1]).numpy()", None),
        ("import paddle\ndef f(paddle):\n    return paddle.anything", None),
        ("from paddle import Tensor\ndef f(x: Tensor):\n    x = g(x)\n    return x.anything()", None),
    ],
)
def test_what_is_not_there_is_named(text: str, told: str | None) -> None:
    found = [line for line in map(wrong, uses_of(text, "a.py")) if line]
    assert (found == []) if told is None else (len(found) == 1 and told in found[0]), found
