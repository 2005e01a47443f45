# SPDX-License-Identifier: Apache-2.0
"""JSON that a client has written: read within limits, and its fields with the error that names them."""

import json
import math
import re
from typing import Any, NoReturn

from paddlemix.serve.faults import RequestError, refused
from paddlemix.serve.limits import Limits
from paddlemix.utils.foreign import JsonValue
from paddlemix.utils.shown import shown


def read_object(body: bytes, limits: Limits) -> dict[str, Any]:
    """The JSON object in ``body``; RequestError for anything else, NaN and keys that stand twice included."""
    if sum(body.count(mark) for mark in (b"[", b"{", b",")) > limits.marks:
        raise RequestError(413, f"the body has more than {limits.marks} brackets and commas; send less in one request")
    try:
        found = json.loads(body, parse_constant=_no_number, object_pairs_hook=_unique)
    except RecursionError:
        raise refused("the body is nested too deeply") from None
    except UnicodeDecodeError:
        raise refused("the body is not UTF-8") from None
    except ValueError as error:
        raise refused(f"the body is not JSON: {shown(error)}") from None
    if not isinstance(found, dict):
        raise refused("the body has to be a JSON object")
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


LARGEST = (1 << 62) - 1
"""Above every count that can be meant."""
_HALF = re.compile("[\ud800-\udfff]")


class Fields:
    """The fields of an object by type and range. A field that is null is not there."""

    def __init__(self, data: dict[str, Any], prefix: str = "") -> None:
        self.data = data
        self.prefix = prefix

    def get(self, name: str) -> JsonValue:
        """The value as it is."""
        return self.data.get(name)

    def whole(self, name: str, low: int, high: int = LARGEST, default: int | None = None) -> int | None:
        """A whole number of ``low`` to ``high``, or of any size that a count can have."""
        value = self.data.get(name)
        if value is None:
            return default
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int or not low <= value <= high:
            expected = f"of at least {low}" if high == LARGEST else f"from {low} to {high}"
            raise self.wrong(name, f"a whole number {expected}")
        return value

    def number(self, name: str, low: float, high: float, default: float, *, above: bool = False) -> float:
        """A number of ``low`` (not itself when ``above``) to ``high``."""
        value = self.data.get(name)
        if value is None:
            return default
        good = type(value) in (int, float) and low <= value <= high and not (above and value == low)
        if not good or not math.isfinite(value):
            raise self.wrong(name, f"a number {'above' if above else 'from'} {low:g} {'' if above else 'to '}"
                                   f"{'and at most ' if above else ''}{high:g}")  # fmt: skip
        return float(value)

    def flag(self, name: str) -> bool:
        """True or false; false when it is not there."""
        value = self.data.get(name)
        if value is not None and type(value) is not bool:
            raise self.wrong(name, "true or false")
        return bool(value)

    def text(self, name: str) -> str | None:
        """A text that UTF-8 can hold, without NUL."""
        value = self.data.get(name)
        return None if value is None else self.checked_text(value, name)

    def checked_text(self, value: JsonValue, name: str) -> str:
        """``value`` as a text."""
        if not isinstance(value, str):
            raise self.wrong(name, "a text", value)
        if "\0" in value or _HALF.search(value):
            name = f"{self.prefix}{name}"
            raise refused(f"{name} holds a NUL or half a surrogate pair; remove it", name)
        return value

    def texts(self, name: str, most: int, longest: int) -> tuple[str, ...]:
        """A text, or a list of at most ``most`` of them, of at most ``longest`` characters; empty ones are left out."""
        value = self.data.get(name)
        items = [] if value is None else value if isinstance(value, list) else [value]
        if len(items) > most:
            raise self.wrong(name, f"at most {most} texts", f"{len(items)} of them")
        found = [self.checked_text(item, name) for item in items]
        if any(len(item) > longest for item in found):
            raise self.wrong(name, f"texts of at most {longest} characters", "a longer one")
        return tuple(item for item in found if item)

    def wrong(self, name: str, expected: str, value: object = ...) -> RequestError:
        """The error for a field."""
        given = self.data.get(name) if value is ... else value
        told = f'"{shown(given)}"' if value is ... and isinstance(given, str) else shown(given)
        return refused(f"{self.prefix}{name} is {told}; expected {expected}", f"{self.prefix}{name}")
