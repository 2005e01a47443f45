# SPDX-License-Identifier: Apache-2.0
"""The entries of ``dataset``: are their keys known, and of the right kind, and do they go together?"""

from typing import Any

from paddlemix.settings.run import mixtures
from paddlemix.settings.run.keys import expanded_at, json_kind
from paddlemix.utils.errors import ConfigError
from paddlemix.utils.foreign import JsonValue
from paddlemix.utils.registry import nearest
from paddlemix.utils.shown import as_json

_PARTS = ("train", "eval", "test")
_PATHS = ("data_files", "chat_template", "image_folder")
_ENTRY = ("name", "data_files", "chat_template", "image_folder", "splits", *mixtures.NUMBERS, mixtures.STRATEGY)


def check_dataset(dataset: dict[str, JsonValue], where: str) -> None:
    """Check ``{"train": [entry, ...], "eval": [...]}``; ConfigError has the JSON pointer of what is wrong."""
    for part, entries in dataset.items():
        at = f"/dataset/{part}"
        if part not in _PARTS:
            raise ConfigError(f'{where}: unknown key "{at}"{nearest(part, _PARTS)} (known: {", ".join(_PARTS)})')
        if entries == []:
            raise ConfigError(f'{where}: "{at}" is an empty list; name a data set in it, or take the key away')
        if not isinstance(entries, list):
            raise ConfigError(
                f'{where}: "{at}" is {json_kind(entries)} ({as_json(entries)}); expected a list of data sets'
            )
        for index, entry in enumerate(entries):
            _check_entry(entry, f"{at}/{index}", where)
        _check_amounts(part, entries, where)


def _check_entry(entry: JsonValue, at: str, where: str) -> None:
    if not isinstance(entry, dict):
        raise ConfigError(f'{where}: "{at}" is {json_kind(entry)} ({as_json(entry)}); expected an object')
    for name, value in entry.items():
        place = f'{where}: "{at}/{name}"'
        if name not in _ENTRY:
            raise ConfigError(f'{where}: unknown key "{at}/{name}"{nearest(name, _ENTRY)} (known: {", ".join(_ENTRY)})')
        if name == "splits" and value is not None:
            raise ConfigError(f"{place} is {as_json(value)}, but only null is accepted: each entry names its own file")
        if name in (*mixtures.NUMBERS, mixtures.STRATEGY):
            expected = None if value is None else mixtures.wrong_amount(name, value)
            if expected:
                raise ConfigError(f"{place} is {as_json(value)} ({json_kind(value)}); {expected}")
            continue
        several = name == "data_files" and isinstance(value, list) and value
        if not all(isinstance(item, str) and item for item in (value if several else [value])) and value is not None:
            raise ConfigError(f"{place} is {as_json(value)} ({json_kind(value)}); expected a text")
    if entry.get("weight") is not None and entry.get("repeat") is not None:
        raise ConfigError(
            f'{where}: "{at}" has both weight and repeat: a share of an epoch, or so many times its rows; choose one'
        )
    if not entry.get("data_files"):
        raise ConfigError(f'{where}: "{at}/data_files" is missing; it names the file with the rows')


def _check_amounts(part: str, entries: list[dict[str, Any]], where: str) -> None:
    """Keys of entries that say how much of each is read, beside those of the other entries."""
    weighed = [entry.get("weight") is not None for entry in entries]
    if any(weighed) and not all(weighed):
        raise ConfigError(
            f'{where}: "/dataset/{part}/{weighed.index(False)}" has no weight; give every entry one, or use repeat'
        )
    for index, entry in enumerate(entries if part != "train" else ()):
        given = next((name for name in ("weight", "repeat", "eval_split") if entry.get(name) is not None), None)
        if given:
            raise ConfigError(
                f'{where}: "/dataset/{part}/{index}/{given}" is a key of training data; other rows are read once'
            )


def expand_dataset(dataset: dict[str, Any], where: str) -> dict[str, Any]:
    """``dataset`` with ``~`` and ``$NAME`` replaced in its paths. It has passed ``check_dataset``."""

    def text(value: JsonValue, at: str) -> JsonValue:
        if isinstance(value, list):
            return [text(item, at) for item in value]
        return expanded_at(value, at) if isinstance(value, str) else value

    return {
        part: [
            {key: text(value, f'{where}: "/dataset/{part}/{i}/{key}"') if key in _PATHS else value
             for key, value in entry.items()}
            for i, entry in enumerate(entries or [])
        ]
        for part, entries in dataset.items()
    }  # fmt: skip
