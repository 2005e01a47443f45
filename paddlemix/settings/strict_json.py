# SPDX-License-Identifier: Apache-2.0
"""A JSON object from a file, read strictly: every fault is reported with file, line, column and the text around it.

Python's json module takes NaN, keeps the last of two equal keys, and overflows 1e400 to infinity without a word.
"""

import re
from json.decoder import JSONDecodeError, scanstring
from pathlib import Path
from typing import Any

from paddlemix.utils.errors import ConfigError, PaddleMixError
from paddlemix.utils.foreign import JsonValue, read_text

MAX_BYTES = 4 << 20
"""Largest settings file. A data set does not belong into one."""

MAX_DEPTH = 32

_BLANK = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?")
_WORDS = {"true": True, "false": False, "null": None}
_WORD = re.compile(r"[A-Za-z_]+")
_STRING_TAIL = re.compile(r"( starting)? at$")


def read_object(path: str | Path, error: type[PaddleMixError] = ConfigError) -> dict[str, Any]:
    """The object in the file ``path``. A BOM is accepted; anything but UTF-8 and strict JSON raises ``error``."""
    return parse_object(read_text(path, error, MAX_BYTES), str(path), error)


def parse_object(text: str, where: str, error: type[PaddleMixError] = ConfigError) -> dict[str, Any]:
    """The object in ``text``; ``where`` is the name of the source in messages."""
    value = parse(text, where, error)
    if not isinstance(value, dict):
        raise error(f"{where}: expected an object {{...}} at the top, got {_kind(value)}")
    return value


def parse(text: str, where: str, error: type[PaddleMixError] = ConfigError) -> Any:
    """The JSON value in ``text``."""
    if not text.strip():
        raise error(f"{where}: empty; expected an object {{...}}")
    reader = _Reader(text, where, error)
    value, end = reader.value(reader.skip(0), 1)
    end = reader.skip(end)
    if end != len(text):
        reader.fail(end, "text after the end of the value")
    return value


class _Reader:
    """Recursive descent over one text. Positions are offsets; ``fail`` turns them into line and column."""

    def __init__(self, text: str, where: str, error: type[PaddleMixError]) -> None:
        self.text = text
        self.where = where
        self.error = error

    def line_of(self, position: int) -> int:
        return self.text.count("\n", 0, position) + 1

    def fail(self, position: int, problem: str) -> Any:
        """Raise with file:line:column and the text around the place."""
        start = self.text.rfind("\n", 0, position) + 1
        end = self.text.find("\n", position)
        line = self.text[start : end if end >= 0 else len(self.text)]
        column = position - start
        excerpt = line[max(0, column - 30) : column + 30].strip()
        near = f" near `{excerpt}`" if excerpt else " at the end of the line"
        raise self.error(f"{self.where}:{self.line_of(position)}:{column + 1}: {problem}{near}")

    def skip(self, position: int) -> int:
        return _BLANK.match(self.text, position).end()  # type: ignore[union-attr]

    def value(self, position: int, depth: int) -> tuple[Any, int]:
        if depth > MAX_DEPTH:
            self.fail(position, f"nested deeper than {MAX_DEPTH}")
        letter = self.text[position : position + 1]
        if letter == "{":
            return self.object(position + 1, depth)
        if letter == "[":
            return self.array(position + 1, depth)
        if letter == '"':
            return self.string(position)
        return self.scalar(position)

    def scalar(self, position: int) -> tuple[Any, int]:
        if match := _NUMBER.match(self.text, position):
            return self.number(match), match.end()
        word = _WORD.match(self.text, position + (self.text[position : position + 1] == "-"))
        if word and word.group() in _WORDS and word.start() == position:
            return _WORDS[word.group()], word.end()
        if word and word.group() in ("NaN", "Infinity"):
            return self.fail(position, f"{word.group()} is not a number of JSON")
        if self.text[position : position + 2] in ("//", "/*") or self.text[position : position + 1] == "#":
            return self.fail(position, "comments are not part of JSON")
        return self.fail(position, "expected a value" if position < len(self.text) else "the text ends too early")

    def number(self, match: re.Match[str]) -> int | float:
        if match.group(1) is None and match.group(2) is None:
            if len(match.group()) > 300:
                self.fail(match.start(), "a number of more than 300 digits")
            return int(match.group())
        value = float(match.group())
        if value in (float("inf"), float("-inf")):
            self.fail(match.start(), "the number is out of range")
        return value

    def string(self, position: int) -> tuple[str, int]:
        try:
            text, end = scanstring(self.text, position + 1, True)
        except JSONDecodeError as cause:
            return self.fail(min(cause.pos, len(self.text)), _STRING_TAIL.sub("", cause.msg).lower())
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            self.fail(position, "half of a surrogate pair")
        if "\0" in text:
            self.fail(position, "a NUL character, which no name of a file can hold")
        return text, end

    def array(self, position: int, depth: int) -> tuple[list[Any], int]:
        items: list[Any] = []
        position = self.skip(position)
        if self.text[position : position + 1] == "]":
            return items, position + 1
        while True:
            item, position = self.value(position, depth + 1)
            items.append(item)
            position, done = self.after_item(position, "]")
            if done:
                return items, position

    def object(self, position: int, depth: int) -> tuple[dict[str, Any], int]:
        items: dict[str, Any] = {}
        lines: dict[str, int] = {}
        position = self.skip(position)
        if self.text[position : position + 1] == "}":
            return items, position + 1
        while True:
            if self.text[position : position + 1] != '"':
                self.fail(position, "expected a key in double quotes")
            start = position
            name, position = self.string(position)
            if name in lines:
                self.fail(start, f'key "{name}" stands twice (lines {lines[name]} and {self.line_of(start)})')
            lines[name] = self.line_of(start)
            position = self.skip(position)
            if self.text[position : position + 1] != ":":
                self.fail(position, f'expected ":" after the key "{name}"')
            items[name], position = self.value(self.skip(position + 1), depth + 1)
            position, done = self.after_item(position, "}")
            if done:
                return items, position

    def after_item(self, position: int, closing: str) -> tuple[int, bool]:
        """Position of the next item, or the position behind ``closing`` and True."""
        position = self.skip(position)
        letter = self.text[position : position + 1]
        if letter == closing:
            return position + 1, True
        if letter != ",":
            self.fail(position, f'expected "," or "{closing}"')
        after = self.skip(position + 1)
        if self.text[after : after + 1] == closing:
            self.fail(position, f'a comma before "{closing}"')
        return after, False


def _kind(value: JsonValue) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return {list: "a list", str: "a text"}.get(type(value), "a number")
