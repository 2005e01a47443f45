# SPDX-License-Identifier: Apache-2.0
"""What is known about one settings key: its kind, its range, its meaning, and whether a value may be set at all."""

import dataclasses
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from paddlemix.utils.errors import ConfigError
from paddlemix.utils.foreign import JsonValue
from paddlemix.utils.paths import expanded
from paddlemix.utils.registry import nearest
from paddlemix.utils.shown import as_json

SettingValue: TypeAlias = bool | int | float | str | tuple[Any, ...] | dict[str, Any] | None
"""What the settings hold: a JSON value with tuples in place of lists."""
KeyFact: TypeAlias = bool | float | str | tuple[Any, ...] | Callable[[Any], str | None] | None
"""Value of a field of ``Key``."""


@dataclass(frozen=True)
class Key:
    """The facts about one key that its annotation does not tell.

    ``low``/``high`` bound numbers, both ends included; ``above`` is an excluded lower end. ``choices`` are the accepted
    texts. ``path``: the text is a path, in which ``~`` and ``$NAME`` are replaced. ``fixed`` is the reason why only the
    default (or a value in ``also``) is accepted: a key that would have no effect is refused, never taken and forgotten.
    ``check`` returns what is wrong with a value, or None. ``meant``: for words of other projects, the choice they mean.
    """

    meaning: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    meant: tuple[tuple[str, str], ...] = ()
    fixed: str | None = None
    also: tuple[Any, ...] = ()
    needed: bool = False
    path: bool = False
    check: Callable[[Any], str | None] | None = None


def key(default: SettingValue, meaning: str, **facts: KeyFact) -> Any:
    """A dataclass field with its ``Key``."""
    return dataclasses.field(default=default, metadata={"key": Key(meaning, **facts)})


def path_key(default: SettingValue, meaning: str, **facts: KeyFact) -> Any:
    """Like ``key``, for the path of a file or a folder."""
    return key(default, meaning, path=True, **facts)


@dataclass(frozen=True)
class Kind:
    """The accepted type of a key: ``base`` is bool, int, float, str, dict or tuple (of ``item``)."""

    base: type
    item: type | None
    optional: bool
    text: bool = False
    """A list that may also be written as one text."""

    def __str__(self) -> str:
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", dict: "an object"}
        text = f"a list of {self.item.__name__}" if self.base is tuple and self.item else names.get(self.base, "a list")
        text += " or a text" if self.text else ""
        return f"{text} or null" if self.optional else text


def kind_of(annotation: type | types.UnionType | types.GenericAlias) -> Kind:
    """Kind of a field annotation such as ``int | None`` or ``tuple[str, ...] | None``."""
    members = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    optional = type(None) in members
    first, *others = [member for member in members if member is not type(None)]
    origin = typing.get_origin(first) or first
    item = typing.get_args(first)[0] if origin is tuple else None
    return Kind(origin, item if isinstance(item, type) else None, optional, others == [str])


@dataclass(frozen=True)
class Known:
    """A key in its place: name, group, kind, default and facts."""

    name: str
    group: str
    kind: Kind
    default: Any
    facts: Key

    def accept(self, value: JsonValue, at: str) -> SettingValue:
        """``value`` as the settings hold it. ``at`` names the place, such as ``sft.json: "/lora_rank"``.

        null stands for the default. ConfigError begins with ``at`` and tells the value and what was expected.
        """
        if value is None:
            if self.facts.needed:
                raise ConfigError(f"{at} is null, but it is required: {self.facts.meaning}")
            return self.default
        value = self._typed(value, at)
        if self.facts.path:
            value = expanded_at(value, at)
        self._in_range(value, at)
        facts = self.facts
        if facts.choices and value not in facts.choices:
            meant = dict(facts.meant).get(str(value).lower())
            hint = f', which is "{meant}" here;' if meant else nearest(str(value), facts.choices)
            raise ConfigError(f"{at} is {as_json(value)}{hint or ':'} expected one of {', '.join(facts.choices)}")
        problem = facts.check(value) if facts.check else None
        if problem:
            raise ConfigError(f"{at} is {as_json(value)}: {problem}")
        if facts.fixed and value != self.default and value not in facts.also:
            raise ConfigError(f"{at} is {as_json(value)}, but only {as_json(self.default)} is accepted: {facts.fixed}")
        return value

    def _typed(self, value: JsonValue, at: str) -> SettingValue:
        base = self.kind.base
        if base is bool and type(value) is int and value in (0, 1):
            return bool(value)  # shipped recipes of PaddleMIX write "amp_master_grad": 1
        if base is float and type(value) is int:
            return float(value)
        if self.kind.text and isinstance(value, str):
            return value
        if base is tuple and isinstance(value, list | tuple):
            return tuple(self._item(item, index, at) for index, item in enumerate(value))
        if type(value) is not base:
            raise ConfigError(f"{at} is {as_json(value)} ({json_kind(value)}); expected {self.kind}")
        return value

    def _item(self, item: JsonValue, index: int, at: str) -> SettingValue:
        if isinstance(item, list):
            return tuple(item)
        if self.kind.item is not None and type(item) is not self.kind.item:
            given = f"item {index} is {as_json(item)} ({json_kind(item)})"
            raise ConfigError(f"{at}: {given}; expected {Kind(self.kind.item, None, False)}")
        return item

    def _in_range(self, value: SettingValue, at: str) -> None:
        if type(value) not in (int, float):
            return
        facts = self.facts
        low = facts.above if facts.above is not None else facts.low
        if not math.isfinite(value):
            raise ConfigError(f"{at} is {value}: expected a finite number{self.range_text()}")
        too_low = low is not None and (value < low or (facts.above is not None and value == low))
        if too_low or (facts.high is not None and value > facts.high):
            raise ConfigError(f"{at} is {as_json(value)}: out of range{self.range_text()}")

    def range_text(self) -> str:
        """``" (more than 0, at most 1)"`` or an empty string."""
        facts = self.facts
        parts = [
            f"{words} {value:g}"
            for words, value in (("more than", facts.above), ("at least", facts.low), ("at most", facts.high))
            if value is not None
        ]
        return f" ({', '.join(parts)})" if parts else ""


def expanded_at(text: str, at: str) -> str:
    """``text`` as a path with ``~`` and ``$NAME`` replaced; ConfigError that begins with ``at``."""
    try:
        return expanded(text)
    except ConfigError as error:
        raise ConfigError(f"{at}: {error}") from error


def json_kind(value: JsonValue) -> str:
    """Name of a JSON value's type for a message."""
    names = {bool: "true/false", int: "a whole number", float: "a number", str: "a text", dict: "an object"}
    return names.get(type(value), "null" if value is None else "a list")


def known_keys(group: str, kind: type) -> dict[str, Known]:
    """Every field of the dataclass ``kind`` as a ``Known`` of ``group``."""
    hints = typing.get_type_hints(kind)
    return {
        field.name: Known(field.name, group, kind_of(hints[field.name]), field.default, field.metadata["key"])
        for field in dataclasses.fields(kind)
    }
