# SPDX-License-Identifier: Apache-2.0
"""PaddleNLP's ``chat_template.json`` as a layout: structured segments instead of one string to take apart again.

The file holds ``system``, ``conversation`` (a template for the user's and one for the assistant's part of a round) and
``query``. Its texts are a small part of jinja: ``{{ expression }}``, ``{% if %} {% elif %} {% else %} {% endif %}`` and
``{# comment #}``, with ``-`` and the line rules that PaddleNLP sets (trim_blocks, lstrip_blocks). Expressions are
names, literals, ``+ - %``, comparisons, ``and or not`` and the filter ``trim``; nothing is executed.
"""

import ast
import json
import operator
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddlemix.text.messages import Message, Segment, check_turns
from paddlemix.utils import foreign
from paddlemix.utils.errors import DataError
from paddlemix.utils.foreign import JsonValue
from paddlemix.utils.logging import get_logger
from paddlemix.utils.paths import begins_at

KEYS = ("system", "conversation", "query")
NAMES = ("system", "user", "bot", "query", "index", "is_first", "is_last", "length", "is_training")
_QUOTED = ("system", "user", "bot", "query")
_TAG = re.compile(r"\{\{-?(?P<out>.*?)-?\}\}|\{%-?(?P<block>.*?)-?%\}|\{#.*?#\}", re.DOTALL)
_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mod: operator.mod,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


@dataclass(frozen=True)
class _Part:
    kind: str  # text, out, if, elif, else, endif
    text: str


class ChatTemplate:
    """A ``chat_template.json``. It can stand wherever a ``Template`` can (``render``, ``placed_messages``).

    The prompt for an answer is the ``conversation`` text in front of it, so prompts and samples agree; a ``query`` that
    says something else is reported once and not used. Spaces at the end of that text move to the answer, because
    sentencepiece joins them to its first word.
    """

    mmtag = assistant_first = False
    train_as = None

    def __init__(self, data: dict[str, Any], name: str = "chat_template.json") -> None:
        self.name = name
        self.data = _checked(data, name)
        self._system = _parse(data.get("system") or "", f"{name}: /system")
        user, bot = data["conversation"]
        self._user = _parse(user, f"{name}: /conversation/0")
        self._bot = _parse(bot, f"{name}: /conversation/1")
        self._query = _parse(data["query"], f"{name}: /query") if data.get("query") else None
        self._compare_query()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChatTemplate) and other.data == self.data

    def __hash__(self) -> int:
        return hash(json.dumps(self.data, sort_keys=True))

    @property
    def stops(self) -> tuple[str, ...]:
        """The text behind an answer, which ends it; empty when the file has none."""
        context = {
            "user": "",
            "bot": "",
            "index": 0,
            "is_first": True,
            "is_last": True,
            "length": 1,
            "is_training": True,
        }
        parts = self._write(self._bot, context)
        names = [name for _, name in parts]
        tail = "".join(text for text, _ in parts[names.index("bot") + 1 :]).strip()
        return (tail,) if tail else ()

    @property
    def takes_system(self) -> bool:
        """Whether a system message fills a variable of the file's ``system``; else it stands in its place."""
        return any(part.kind == "out" and "system" in part.text for part in self._system)

    def program(self, key: str) -> list[tuple[str, str]]:
        """``system`` or ``user`` as (kind, text): text, out, if, elif, else, endif."""
        return [(part.kind, part.text) for part in {"system": self._system, "user": self._user}[key]]

    def answer_program(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """The assistant's part: what stands before the answer, and the answer with what stands behind it.

        DataError when the answer stands inside of an ``if``.
        """
        parts = [(part.kind, part.text) for part in self._bot]
        cut = next(i for i, part in enumerate(self._bot) if _variable(part) == "bot")
        if _depth(self._bot[:cut]):
            raise DataError(f"{self.name}: /conversation/1: the answer stands inside of an if, which has no other form")
        return parts[:cut], parts[cut:]

    def segments(self, messages: Sequence[Message], *, answer_open: bool) -> list[Segment]:
        """Messages as segments; a leading system message replaces the file's ``system`` (or fills its variable)."""
        system, turns = check_turns(messages)
        if answer_open and (not turns or turns[-1].role != "user"):
            raise DataError(f'template "{self.name}": a prompt must end with a user message')
        rounds = [turns[i : i + 2] for i in range(0, len(turns), 2)]
        found = self._system_segments(system)
        for i, pair in enumerate(rounds):
            is_open = len(pair) == 1
            context = {
                "user": pair[0].text,
                "bot": "" if is_open else pair[1].text,
                "index": i,
                "is_first": i == 0,
                "is_last": i == len(rounds) - 1,
                "length": len(rounds),
                "is_training": not answer_open,
            }
            found += self._round(context, is_open, learns=is_open or pair[1].learns)
        return [part for part in found if part.text]

    def _system_segments(self, system: str | None) -> list[Segment]:
        if system is None:
            return [Segment(text) for text, _ in self._write(self._system, {"system": ""})]
        if self.takes_system:
            return [
                Segment(text, quoted=name == "system") for text, name in self._write(self._system, {"system": system})
            ]
        return [Segment(system, quoted=True)]

    def _round(self, context: dict[str, Any], is_open: bool, learns: bool = True) -> list[Segment]:
        user, bot = self._write(self._user, context), self._write(self._bot, context)
        cut = next((i for i, (_, name) in enumerate(bot) if name == "bot"), len(bot))
        head = [Segment(text, quoted=name in _QUOTED) for text, name in [*user, *bot[:cut]]]
        lead = ""
        while head and not head[-1].quoted and head[-1].text.endswith(" "):
            text = head.pop().text
            lead = text[len(text.rstrip(" ")) :] + lead
            if text.rstrip(" "):
                head.append(Segment(text.rstrip(" ")))
                break
        if is_open:
            return head
        answer = (Segment(text, learns, name in _QUOTED) for text, name in bot[cut:])
        return [*head, Segment(lead, learns), *answer]

    def _compare_query(self) -> None:
        if self._query is None:
            return
        for index in (0, 1):
            context = {
                "index": index,
                "is_first": index == 0,
                "is_last": True,
                "length": index + 1,
                "is_training": False,
            }
            query = "".join(text for text, _ in self._write(self._query, context | {"query": "?"}))
            head = "".join(part.text for part in self._round(context | {"user": "?", "bot": ""}, True))
            if query.rstrip(" ") != head:
                get_logger(__name__).warning(
                    '%s: "query" writes %r where "conversation" writes %r; prompts follow "conversation"',
                    self.name,
                    query,
                    head,
                )
                return

    def _write(self, parts: Sequence[_Part], context: dict[str, Any]) -> list[tuple[str, str]]:
        """Texts in order, each with the name of the variable it comes from ("" for template text)."""
        found: list[tuple[str, str]] = []
        open_ifs: list[tuple[bool, bool]] = []  # (this branch is written, some branch was taken)
        for part in parts:
            written = all(live for live, _ in open_ifs)
            if part.kind == "if":
                hit = bool(written and _value(part.text, context, self.name))
                open_ifs.append((hit, hit or not written))
            elif part.kind in ("elif", "else"):
                taken = open_ifs.pop()[1]
                hit = not taken and (part.kind == "else" or bool(_value(part.text, context, self.name)))
                open_ifs.append((hit, taken or hit))
            elif part.kind == "endif":
                open_ifs.pop()
            elif written:
                text = part.text if part.kind == "text" else str(_value(part.text, context, self.name))
                found.append((text, _variable(part)))
        return found


def load(path: str | Path) -> ChatTemplate:
    """Read a ``chat_template.json``. DataError names the file, the key and what was expected."""
    path = Path(path)
    if not os.path.lexists(path):
        remedy = f'give the "chat_template" of the data set an existing path{begins_at(path)}'
        raise DataError(f"{path}: no such file; {remedy}")
    data = foreign.parse_json(foreign.read_text(path, DataError), str(path), DataError)
    with foreign.reading(f"{path}: the template is", DataError):
        return ChatTemplate(data, str(path))


def _checked(data: JsonValue, name: str) -> dict[str, Any]:
    if isinstance(data, dict) and "chat_template" in data:
        raise DataError(
            f"{name}: this is the chat template of a HF transformers folder; expected the keys {', '.join(KEYS)} "
            '(or drop it and choose a template by name with "version")'
        )
    if not isinstance(data, dict) or set(data) - set(KEYS):
        raise DataError(f"{name}: expected an object with the keys {', '.join(KEYS)}, got {data!r:.200}")
    rounds = data.get("conversation")
    if not isinstance(rounds, list) or len(rounds) != 2 or not all(isinstance(text, str) for text in rounds):
        raise DataError(f"{name}: /conversation is {rounds!r:.200}; expected [user template, assistant template]")
    if not re.search(r"\{\{.*?\bbot\b.*?\}\}", rounds[1]):
        raise DataError(f"{name}: /conversation/1 is {rounds[1]!r}; it must hold {{{{bot}}}}")
    for key in ("system", "query"):
        if not isinstance(data.get(key), (str, type(None))):
            raise DataError(f"{name}: /{key} is {data[key]!r:.200}; expected a text")
    return data


def _parse(text: str, where: str) -> list[_Part]:
    parts: list[_Part] = []
    at, trim = 0, False
    for match in _TAG.finditer(text):
        before = text[at : match.start()]
        parts.append(_Part("text", _around(before, match.group(), trim)))
        at, trim = match.end(), match.group()[-3] == "-"
        is_block = match.group("out") is None
        if is_block and text[at : at + 1] == "\n":
            at += 1  # trim_blocks
        if match.group("out") is not None:
            parts.append(_Part("out", match.group("out").strip()))
            _value(match.group("out").strip(), None, where)
        elif match.group("block") is not None:
            parts.append(_block(match.group("block").strip(), where))
    parts.append(_Part("text", text[at:].lstrip() if trim else text[at:]))
    _check_nesting(parts, where)
    return [part for part in parts if part.kind != "text" or part.text]


def _around(text: str, tag: str, trim: bool) -> str:
    if trim:
        text = text.lstrip()
    if tag[2] == "-":
        return text.rstrip()
    line = text.rpartition("\n")[2]
    only_indent = tag[1] != "{" and not line.strip() and "\n" in text
    return text[: len(text) - len(line)] if only_indent else text  # lstrip_blocks


def _block(text: str, where: str) -> _Part:
    word, _, rest = text.partition(" ")
    if word in ("if", "elif") and rest.strip():
        _value(rest.strip(), None, where)
        return _Part(word, rest.strip())
    if text in ("else", "endif"):
        return _Part(text, "")
    raise DataError(f"{where}: {{% {text} %}} is not supported; known are if, elif, else and endif")


def _check_nesting(parts: Sequence[_Part], where: str) -> None:
    depth = 0
    for part in parts:
        depth += (part.kind == "if") - (part.kind == "endif")
        if depth < 0 or (part.kind in ("elif", "else") and not depth):
            raise DataError(f"{where}: {{% {part.kind} %}} stands without its {{% if %}}")
    if depth:
        raise DataError(f"{where}: an {{% if %}} has no {{% endif %}}")


def _depth(parts: Sequence[_Part]) -> int:
    return sum((part.kind == "if") - (part.kind == "endif") for part in parts)


def _variable(part: _Part) -> str:
    return next((name for name in _QUOTED if part.kind == "out" and re.search(rf"\b{name}\b", part.text)), "")


def _value(text: str, context: dict[str, Any] | None, where: str) -> Any:
    """Value of an expression; with ``context=None`` it is only checked."""
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise DataError(f"{where}: cannot read the expression {text!r}") from error
    return _evaluate(tree, context, f"{where}: expression {text!r}")


def _evaluate(node: ast.AST, context: dict[str, Any] | None, where: str) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name) and node.id in NAMES:
        return None if context is None else context.get(node.id, "")
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return not _evaluate(node.operand, context, where)
    if isinstance(node, ast.BoolOp):
        values = [_evaluate(value, context, where) for value in node.values]
        return all(values) if isinstance(node.op, ast.And) else any(values)
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        return _operate(node.ops[0], node.left, node.comparators[0], context, where)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _filtered(node, context, where)
    if isinstance(node, ast.BinOp):
        return _operate(node.op, node.left, node.right, context, where)
    raise DataError(f"{where} is not supported; known are the names {', '.join(NAMES)}, literals and comparisons")


def _operate(kind: ast.AST, left: ast.AST, right: ast.AST, context: dict[str, Any] | None, where: str) -> Any:
    if type(kind) not in _OPERATORS:
        raise DataError(f"{where}: the operator {type(kind).__name__} is not supported")
    values = [_evaluate(side, context, where) for side in (left, right)]
    return None if context is None else _OPERATORS[type(kind)](*values)


def _filtered(node: ast.BinOp, context: dict[str, Any] | None, where: str) -> Any:
    if not isinstance(node.right, ast.Name) or node.right.id != "trim":
        raise DataError(f'{where}: the only known filter is "trim"')
    value = _evaluate(node.left, context, where)
    return None if context is None else str(value).strip()
