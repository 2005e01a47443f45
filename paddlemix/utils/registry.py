# SPDX-License-Identifier: Apache-2.0
"""Tables of things that settings choose by their exact name."""

import difflib
import importlib
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from paddlemix.utils.errors import ConfigError

T = TypeVar("T")


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """``', did you mean "x"?'`` for the closest known name, or an empty string."""
    found = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f', did you mean "{found[0]}"?' if found else ""


def named(entry: str) -> Any:
    """What ``module:Name`` names; the module is imported now. ValueError when there is nothing of that name."""
    module, _, name = entry.partition(":")
    found = getattr(importlib.import_module(module), name, None)
    if found is None:
        raise ValueError(f"{module} has no {name}")
    return found


class Registry(Generic[T]):
    """Exact names to values of one kind. An unknown name raises ConfigError with the nearest one."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._table: dict[str, T] = {}

    def add(self, *names: str) -> Callable[[T], T]:
        """Decorator that enters a value under every one of ``names``."""

        def enter(value: T) -> T:
            for name in names:
                if name in self._table:
                    raise ValueError(f"{self.kind} {name!r} is registered twice")
                self._table[name] = value
            return value

        return enter

    def get(self, name: str) -> T:
        """The value named ``name``; ConfigError names the choices when there is none."""
        if name not in self._table:
            hint = nearest(name, list(self._table))
            raise ConfigError(f'unknown {self.kind} "{name}"{hint} (known: {", ".join(sorted(self._table))})')
        return self._table[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __contains__(self, name: object) -> bool:
        return name in self._table
