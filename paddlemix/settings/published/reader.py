# SPDX-License-Identifier: Apache-2.0
"""A foreign JSON object whose keys are taken one by one, so that what nobody took is seen at the end."""

from collections.abc import Container
from pathlib import Path
from typing import Any, NoReturn

from paddlemix.settings.published import unknown_keys
from paddlemix.settings.strict_json import read_object
from paddlemix.utils.dtypes import DTYPES, dtype_named
from paddlemix.utils.errors import CheckpointError, ConfigError
from paddlemix.utils.foreign import JsonValue
from paddlemix.utils.registry import nearest
from paddlemix.utils.shown import as_json


class KeyReader:
    """One object of a config.json. ``pointer`` is its place in the file, empty at the top.

    A file that points to code of its own (``auto_map``) is refused; ``built_in`` says that this code is not needed,
    because the model is one of ours.
    """

    def __init__(self, data: dict[str, Any], file: Path | str, pointer: str = "", *, built_in: bool = False) -> None:
        self.data = dict(data)
        self.file = file
        self.pointer = pointer
        self._taken: set[str] = set()
        self._unread: dict[str, unknown_keys.Unread] = {}
        """Keys that nobody took, of this object and of those below it whose readers have finished; by their place."""
        if built_in:
            self._taken.add("auto_map")
        else:
            self._refuse_code()

    @classmethod
    def of_file(cls, path: Path, built_in: Container[str] = ()) -> "KeyReader":
        """Reader of a whole file. CheckpointError when it is not there or not a JSON object.

        ``built_in`` are the values of ``model_type`` whose code is ours.
        """
        data = read_object(path, CheckpointError)
        kind = data.get("model_type")
        return cls(data, path, built_in=isinstance(kind, str) and kind in built_in)

    def take(self, name: str, kind: type | tuple[type, ...], default: JsonValue) -> Any:
        """Value of ``name``; ``default`` when it is absent or null. A whole number may stand for a float."""
        self._taken.add(name)
        value = self.data.get(name)
        if value is None:
            return default
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if float in kinds and type(value) is int:
            return float(value)
        if type(value) not in kinds:
            names = " or ".join(item.__name__ for item in kinds)
            self.wrong(name, value, f"expected {names}, got {type(value).__name__}")
        return value

    def need(self, name: str, kind: type) -> Any:
        """Like ``take`` for a key that must be there."""
        value = self.take(name, kind, None)
        if value is None:
            hint = nearest(name, [key for key in self.data if key not in self._taken])
            raise CheckpointError(f'{self.file}: "{self.pointer}{name}" is missing{hint}')
        return value

    def child(self, name: str, default: dict[str, Any]) -> "KeyReader":
        """Reader of the object under ``name``."""
        value = self.take(name, dict, default)
        found = KeyReader(value, self.file, f"{self.pointer}{name}/")
        found._unread = self._unread
        return found

    def updated(self, newer: dict[str, Any]) -> "KeyReader":
        """A reader whose values are those of ``newer`` where it has them."""
        found = KeyReader({**self.data, **newer}, self.file, self.pointer)
        found._unread = self._unread
        return found

    def triple(self, name: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
        """Three numbers, one for each colour channel."""
        value = self.take(name, list, list(default))
        if len(value) != 3 or not all(type(item) in (int, float) for item in value):
            self.wrong(name, value, "expected three numbers")
        return (float(value[0]), float(value[1]), float(value[2]))

    def pairs(self, name: str) -> tuple[tuple[int, int], ...]:
        """A list of pairs of positive whole numbers; empty when the key is absent."""
        value = self.take(name, list, [])
        for pair in value:
            fits = isinstance(pair, list) and len(pair) == 2
            if not fits or not all(type(side) is int and 0 < side <= 1 << 16 for side in pair):
                self.wrong(name, pair, "expected a list of [width, height] in pixels")
        return tuple((pair[0], pair[1]) for pair in value)

    def dtype(self) -> str | None:
        """``dtype`` or ``torch_dtype`` as float32, float16 or bfloat16; None when neither is there."""
        name = "dtype" if self.data.get("dtype") is not None else "torch_dtype"
        self._taken.update(("dtype", "torch_dtype"))
        value = self.data.get(name)
        if value is None:
            return None
        try:
            return dtype_named(value)
        except ConfigError:
            self.wrong(name, value, f"expected one of {', '.join(DTYPES)}")

    def expect(self, name: str, *accepted: JsonValue, why: str) -> None:
        """Refuse any value of ``name`` but those ``accepted`` (absent and null are fine)."""
        self._taken.add(name)
        value = self.data.get(name)
        if value is not None and value not in accepted:
            self.wrong(name, value, why)

    def positive(self, values: dict[str, Any], *names: str) -> None:
        """Refuse zero and negative numbers."""
        for name in names:
            if values[name] <= 0:
                self.wrong(name, values[name], "expected a number above 0")

    def at_most(self, values: dict[str, Any], limits: dict[str, int]) -> None:
        """Refuse numbers that no model has: a model of that size would be laid out before its weights are missed."""
        for name, limit in limits.items():
            if values.get(name) is not None and values[name] > limit:
                self.wrong(name, values[name], f"expected at most {limit}")

    def wrong(self, name: str, value: JsonValue, why: str) -> NoReturn:
        """CheckpointError that names file, key, value and what is wrong with it."""
        raise CheckpointError(f'{self.file}: "{self.pointer}{name}" is {as_json(value)}: {why}')

    def ignore(self, *tables: dict[str, str]) -> None:
        """Take the keys of tables of reasons, without using them."""
        for table in tables:
            self._taken.update(table)

    def finish(self) -> None:
        """Look at the keys that were neither used nor ignored by name, by the rules of ``unknown_keys``.

        Those of objects inside others are told with the whole file, whose reader finishes last.
        """
        left = {name: self.data[name] for name in sorted(set(self.data) - self._taken)}
        left = {name: value for name, value in left.items() if not unknown_keys.is_harmless(name, value)}
        for name, value in left.items():
            why = unknown_keys.refusal(name, value)
            if why is not None:
                self.wrong(name, value, why)
            self._unread[f"{self.pointer}{name}"] = (value, nearest(name, sorted(self._taken)))
        if not self.pointer:
            unknown_keys.tell(str(self.file), self._unread)

    def _refuse_code(self) -> None:
        for name in ("auto_map", "custom_pipelines", "trust_remote_code"):
            if self.data.get(name):
                self.wrong(name, self.data[name], "code from a model folder is never run; remove the key")
