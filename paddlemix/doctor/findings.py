# SPDX-License-Identifier: Apache-2.0
"""What the doctor writes down: one line for each thing that was looked at."""

from dataclasses import dataclass, field
from typing import Any

from paddlemix.utils.foreign import JsonValue

OK, NOTE, WARN, FAIL = "ok", "note", "WARN", "FAIL"


@dataclass(frozen=True)
class Finding:
    """``state``: ``ok``, ``note`` (worth reading), ``WARN`` (works at a cost) or ``FAIL`` (cannot be used so)."""

    state: str
    name: str
    text: str
    values: dict[str, Any] = field(default_factory=dict)


def ok(name: str, text: str, **values: JsonValue) -> Finding:
    """A line about something that is as it should be."""
    return Finding(OK, name, text, values)


def note(name: str, text: str, **values: JsonValue) -> Finding:
    """A line about something that a person should read."""
    return Finding(NOTE, name, text, values)


def warn(name: str, text: str, **values: JsonValue) -> Finding:
    """A line about something that works and costs memory or time that it need not."""
    return Finding(WARN, name, text, values)


def fail(name: str, text: str, **values: JsonValue) -> Finding:
    """A line about something that stops the work."""
    return Finding(FAIL, name, text, values)
