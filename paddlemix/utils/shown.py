# SPDX-License-Identifier: Apache-2.0
"""Foreign text in messages: cut to a readable length, without the characters that rule a terminal."""

import re
import unicodedata
from typing import Any

VALUE = 200
"""Characters that are shown of one value."""
MESSAGE = 8000
"""Characters that are shown of one message; a list of faults has room in it."""

_TAIL = 40


def escaped(text: str, kept: str = "\n\t") -> str:
    """``text`` with everything that moves the cursor, colours, hides or turns text around as ``\\x1b``, ``\\u202e``.

    Halves of surrogate pairs, which no terminal takes, are escaped too. Characters of ``kept`` stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(letter if _harmless(letter) or letter in kept else _escape(letter) for letter in text)


def shown(value: object, limit: int = VALUE) -> str:
    """A value from outside for a message: on one line, escaped, at most ``limit`` characters and a note of the rest.

    The beginning and the end are kept: a path ends with its file's name.
    """
    text = value if isinstance(value, str) else str(value)
    return escaped(cut(text, limit), kept="")


def as_json(value: dict[str, Any] | list[Any] | tuple[Any, ...] | str | float | None) -> str:
    """A value for a message: as JSON writes it, and never longer than a line."""
    named = {True: "true", False: "false", None: "null"}
    if value is None or isinstance(value, bool):
        return named[value]
    text = f'"{value}"' if isinstance(value, str) else str(list(value) if isinstance(value, tuple) else value)
    text = re.sub(r"\s+", " ", text)
    return text if len(text) <= 80 else text[:76] + "..."


def counted(number: int, one: str, many: str = "") -> str:
    """``1 row``, ``1,200 rows``; ``many`` where it is not ``one`` with an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def amount(size: float) -> str:
    """Bytes as ``8.4 GB``, ``12 MB`` or ``9 kB``: two or three digits, never a power of ten."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale / 10:
            return f"{size / scale:.{0 if size >= 100 * scale else 1 if size >= scale else 2}f} {unit}"
    return f"{size:.0f} bytes"


def cut(text: str, limit: int) -> str:
    """The beginning and the end of a text that is longer than ``limit`` characters, and how much is missing."""
    if len(text) <= limit:
        return text
    tail = min(_TAIL, limit // 4)
    return f"{text[: limit - tail]}...({len(text) - limit} more characters)...{text[len(text) - tail :]}"


def readable(message: str) -> str:
    """A whole message as it may be shown or written to a log: lines stay, each long word is cut like a value."""
    if len(message) > VALUE:
        message = "\n".join(" ".join(cut(word, VALUE) for word in line.split(" ")) for line in message.split("\n"))
        message = cut(message, MESSAGE)
    return escaped(message)


def _harmless(letter: str) -> bool:
    return letter.isprintable() or unicodedata.category(letter) == "Zs"


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")
