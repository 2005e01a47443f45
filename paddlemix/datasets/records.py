# SPDX-License-Identifier: Apache-2.0
"""Records of data files as JSON gives them: where one stands, and the values and keys that JSON alone would lose."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from paddlemix.utils.errors import DataError
from paddlemix.utils.foreign import JsonValue
from paddlemix.utils.registry import nearest

_SHOWN_KEYS = 8
_LONG_ENOUGH = 4300
"""Digits of a number that Python turns into an int without being asked twice."""


@dataclass(frozen=True)
class LongNumber:
    """A whole number of more digits than Python reads. As a value of a row it is a fault of that row alone."""

    digits: int


def whole_number(text: str) -> int | LongNumber:
    """``parse_int`` of Python's json."""
    return int(text) if len(text) <= _LONG_ENOUGH else LongNumber(len(text.lstrip("-")))


@dataclass(frozen=True)
class Place:
    """Where a row stands. ``pointer`` is its JSON pointer, empty for JSON lines."""

    file: str
    pointer: str

    @property
    def text(self) -> str:
        """``file: /12`` or ``file:13``."""
        return f"{self.file}: {self.pointer}" if self.pointer else self.file

    def fault(self, path: str, problem: str) -> DataError:
        """The error for the value at ``path`` (a JSON pointer inside the row)."""
        at = f"{self.pointer}{path}"
        return DataError(f"{self.file}: {at}: {problem}" if at else f"{self.file}: {problem}")


class _Repeated(dict[str, Any]):
    """An object in which ``key`` stands twice."""

    key = ""


class RepeatedKeys:
    """``object_pairs_hook`` of Python's json, which settles keys that stand twice by dropping the first one."""

    def __init__(self) -> None:
        self.seen = False

    def __call__(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """The object."""
        found = dict(pairs)
        if len(found) == len(pairs):
            return found
        self.seen = True
        twice = _Repeated(found)
        twice.key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        return twice

    def check(self, row: JsonValue, place: Place) -> None:
        """DataError for a row in which a key stands twice."""
        left = [("", row)] if self.seen else []
        while left:
            at, value = left.pop()
            if isinstance(value, _Repeated):
                raise place.fault(at, f'the key "{value.key[:80]}" stands twice in one object; keep one of them')
            members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
            left += [(f"{at}/{name}", member) for name, member in members]


class UnreadKeys:
    """Counts the keys of rows, turns and parts that nothing reads."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._known: dict[str, tuple[str, ...]] = {}

    def see(self, data: dict[str, Any], known: tuple[str, ...]) -> list[str]:
        """Count the keys of one object that are not ``known`` and hold something; returns them."""
        found = [key for key, value in data.items() if key not in known and value not in (None, "", [], {})]
        for key in found:
            self.counts[key] += 1
            self._known.setdefault(key, known)
        return found

    def add(self, other: "UnreadKeys") -> None:
        """Count what another one counted."""
        self.counts.update(other.counts)
        self._known |= {key: known for key, known in other._known.items() if key not in self._known}

    def note(self) -> str | None:
        """``keys of rows that are not read: "img" (12 times, did you mean "image"?), ...``; None without any."""
        if not self.counts:
            return None
        common = self.counts.most_common()
        named = [f'"{key[:80]}" ({count} times{self._hint(key)})' for key, count in common[:_SHOWN_KEYS]]
        more = f" and {len(common) - _SHOWN_KEYS} more" if len(common) > _SHOWN_KEYS else ""
        return f"keys of rows that are not read: {', '.join(named)}{more}"

    def _hint(self, key: str) -> str:
        return nearest(key.lower(), self._known[key])


def kind_of(value: "JsonValue | LongNumber") -> str:
    """What a JSON value is, for a message."""
    if isinstance(value, LongNumber):
        return f"a number of {value.digits} digits"
    if value in ([], ""):
        return "empty"
    names = {dict: "an object", list: "a list", str: "a text", bool: "true/false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
