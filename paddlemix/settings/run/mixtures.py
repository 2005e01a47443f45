# SPDX-License-Identifier: Apache-2.0
"""Several data sets in one run: the keys of an entry that say how much of it is read, and files of other projects.

``data_path`` may name LLaVA-NeXT's YAML (``datasets: [{json_path, sampling_strategy}]``) or InternVL's meta file
(``{name: {root, annotation, repeat_time}}``); both become entries of ``dataset.train``.
"""

import math
import re
from pathlib import Path
from typing import Any

from paddlemix.settings.run.keys import json_kind
from paddlemix.settings.strict_json import read_object
from paddlemix.utils.errors import ConfigError
from paddlemix.utils.foreign import JsonValue
from paddlemix.utils.registry import nearest
from paddlemix.utils.shown import as_json

NUMBERS = ("weight", "repeat", "max_samples", "eval_split")
"""Keys of an entry that are numbers."""
STRATEGY = "sampling_strategy"
_STRATEGY = re.compile(r"all|(first|last|end|random):(\d+%?)")
_YAML = (".yaml", ".yml")
_MOST_BYTES = 4 << 20
_NEXT_KEYS = ("json_path", STRATEGY)
_META_KEYS = ("root", "annotation", "repeat_time", "data_augment", "length")


def wrong_amount(name: str, value: JsonValue) -> str | None:
    """What is expected of the key ``name`` of an entry, if ``value`` is something else."""
    if name == STRATEGY:
        found = _STRATEGY.fullmatch(value) if isinstance(value, str) else None
        amount = found and found[2]
        good = found and (amount is None or int(amount.rstrip("%")) > 0)
        if good and not (amount and amount.endswith("%") and int(amount[:-1]) > 100):
            return None
        return (
            'expected "all", or first, last, end or random with a number from 1 or a percentage to 100: "first:5%" '
            '(rows come more than once by "repeat")'
        )
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
    whole = number and isinstance(value, int)
    if name == "max_samples":
        return None if whole else "expected a whole number from 1"
    if name == "eval_split":
        return None if whole or (number and value < 1) else "expected a share between 0 and 1, or a number of rows"
    return None if number else "expected a number above 0"


def entries_in(path: str) -> list[dict[str, Any]] | None:
    """The entries that a mixture file means; None when ``path`` is a file of rows, or is not there.

    ConfigError names file, entry and key of what cannot be done.
    """
    if path.lower().endswith(_YAML):
        return _next(path)
    if path.lower().endswith(".json") and (meta := _meta_of(path)) is not None:
        return [_from_meta(f'{path}: "/{name}"', name, facts) for name, facts in meta.items()]
    return None


def _next(path: str) -> list[dict[str, Any]]:
    import yaml  # here: settings are checked before it is said which packages are missing

    try:
        with Path(path).open("rb") as stream:
            data = yaml.safe_load(stream.read(_MOST_BYTES))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file (data_path)") from error
    except (OSError, UnicodeDecodeError, RecursionError, ValueError, yaml.YAMLError) as error:
        first = " ".join(str(error).split())
        raise ConfigError(f"{path}: cannot be read as YAML ({first[:200]})") from error
    listed = data.get("datasets") if isinstance(data, dict) else None
    if not isinstance(listed, list) or not listed or set(data) != {"datasets"}:
        raise ConfigError(f'{path}: expected LLaVA-NeXT\'s form, "datasets:" with a list of json_path and {STRATEGY}')
    return [_from_next(f'{path}: "/datasets/{index}"', entry) for index, entry in enumerate(listed)]


def _from_next(at: str, entry: JsonValue) -> dict[str, Any]:
    _require_object(at, entry, _NEXT_KEYS)
    return {"data_files": _text(at, entry, "json_path"), STRATEGY: entry.get(STRATEGY) or "all"}


def _meta_of(path: str) -> dict[str, Any] | None:
    """The content of InternVL's meta file; None for another file."""
    try:
        with Path(path).open("rb") as stream:
            head = stream.read(_MOST_BYTES)
    except (OSError, ValueError):
        return None
    if not head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") or b'"annotation"' not in head:
        return None
    data = read_object(path)
    known = data and all(isinstance(facts, dict) and "annotation" in facts for facts in data.values())
    return data if known else None


def _from_meta(at: str, name: str, facts: dict[str, Any]) -> dict[str, Any]:
    _require_object(at, facts, _META_KEYS)
    if facts.get("data_augment"):
        raise ConfigError(
            f"{at}: data_augment is {as_json(facts['data_augment'])}: rows are trained on as they are; set it to false"
        )
    found = {"name": name, "data_files": _text(at, facts, "annotation"), "repeat": facts.get("repeat_time", 1)}
    if facts.get("root"):
        found["image_folder"] = _text(at, facts, "root")
    return found


def _require_object(at: str, entry: JsonValue, known: tuple[str, ...]) -> None:
    if not isinstance(entry, dict):
        raise ConfigError(f"{at} is {json_kind(entry)}; expected an object with {', '.join(known)}")
    strange = next((str(key) for key in entry if key not in known), None)
    if strange is not None:
        raise ConfigError(f'{at}: unknown key "{strange}"{nearest(strange, known)} (known: {", ".join(known)})')


def _text(at: str, entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise ConfigError(f'{at}: "{key}" is {json_kind(value)}; expected the path of a file')
    return value
