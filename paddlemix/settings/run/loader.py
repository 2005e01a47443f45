# SPDX-License-Identifier: Apache-2.0
"""Command line -> ``TrainingSettings``: one strict JSON file, then ``--key value`` over it; or flags alone.

Defaults < JSON < command line. Nothing is abbreviated, dropped or guessed: what cannot be understood is a ConfigError
(exit code 2) that names file, key, value and expectation. Nothing heavy is imported and nothing is written.
"""

import re
import sys
from pathlib import Path
from typing import Any

from paddlemix.settings.run.entries import check_dataset, expand_dataset
from paddlemix.settings.run.keys import Known, SettingValue
from paddlemix.settings.run.rules import check_conflicts, check_paths, flat_values, resolve
from paddlemix.settings.run.training import ALIASES, FOREIGN, GROUPS, KNOWN, TrainingSettings
from paddlemix.settings.strict_json import parse, read_object
from paddlemix.utils.errors import ConfigError
from paddlemix.utils.foreign import JsonValue
from paddlemix.utils.paths import expanded
from paddlemix.utils.registry import nearest
from paddlemix.utils.shown import as_json

COMMAND_LINE = "command line"

_SECRETS = ("wandb_api_key", "aistudio_token")
_TRUTH = {"true": True, "1": True, "false": False, "0": False}
_NUMBER = {int: re.compile(r"[-+]?\d+"), float: re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")}


def load_settings(argv: list[str], **defaults: SettingValue) -> TrainingSettings:
    """The settings of a run from ``[CONFIG.json] [--key value ...]``; ``defaults`` are those of the command itself.

    ``--help`` prints every key and exits. ``--debug`` belongs to the entry point and is passed over here. ConfigError
    for everything that is wrong, before anything heavy is imported and before anything is written.
    """
    if "--help" in argv or "-h" in argv:
        sys.stdout.write(help_text())
        raise SystemExit(0)
    file, tokens = _split(argv)
    file = None if file is None else expanded(file)
    values: dict[str, Any] = {}
    if file is not None:
        values = _accept_all(read_object(file), file, "/")
    flags = _accept_all(_parse_flags(tokens), COMMAND_LINE, "--")
    values = _overlay(values, flags)
    where = file or COMMAND_LINE
    for name, known in KNOWN.items():
        if known.facts.needed and values.get(name) is None:
            raise ConfigError(f'{where}: "/{name}" is missing: {known.facts.meaning}')
    if values.get("dataset") is not None and values.get("data_path") is not None:
        raise ConfigError(f'{where}: "dataset" and "data_path" do not go together: name the files in one of them')
    if values.get("dataset") is not None:
        check_dataset(values["dataset"], where)
        values["dataset"] = expand_dataset(values["dataset"], where)
    settings = resolve(TrainingSettings().with_changes(**{**defaults, **values}), set(values))
    check_conflicts(settings, where)
    check_paths(settings, where)
    return settings


def _overlay(values: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """The file's values under those of the command line.

    Training files named there replace the file's; what all of its entries agree on (kind, folder, template) stays, and
    so does the eval part.
    """
    merged = values | flags
    if flags.get("dataset") is not None:
        merged["data_path"] = None
    elif flags.get("data_path") is not None and isinstance(values.get("dataset"), dict):
        entry = _agreed(values["dataset"].get("train")) | {"data_files": flags["data_path"]}
        merged["dataset"] = {**values["dataset"], "train": [entry]}
        merged["data_path"] = None
    return merged


def _agreed(entries: JsonValue) -> dict[str, Any]:
    """The keys that all data set entries have with the same value; ``check_dataset`` reports wrong forms later."""
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        return {}
    first, *others = entries
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}


def settings_to_json(settings: TrainingSettings) -> dict[str, Any]:
    """The resolved settings as one flat object that ``load_settings`` reads back. Secrets are left out."""
    flat = flat_values(settings)
    return {name: _plain(value) for name, value in flat.items() if value is not None and name not in _SECRETS}


def differences_from_default(settings: TrainingSettings) -> dict[str, Any]:
    """The keys whose value is not the default, for the console. Secrets are shown as stars."""
    flat = flat_values(settings)
    changed = {name: _plain(value) for name, value in flat.items() if value != KNOWN[name].default}
    return {name: "***" if name in _SECRETS else value for name, value in changed.items()}


def help_text() -> str:
    """All keys with default and meaning, by group."""
    usage = f"usage: {Path(sys.argv[0]).name} [CONFIG.json] [--key value ...]"
    lines = [usage, "", "Keys of CONFIG.json and flags have the same names."]
    short = {target: [alias for alias, goal in ALIASES.items() if goal == target] for target in ALIASES.values()}
    for group, kind in GROUPS.items():
        lines += ["", f"{group}: {(kind.__doc__ or '').strip()}"]
        for known in (item for item in KNOWN.values() if item.group == group):
            lines.append(f"  {known.name} ({known.kind}; default {as_json(known.default)}){known.range_text()}")
            refused = f" Only the default is accepted: {known.facts.fixed}." if known.facts.fixed else ""
            choices = f" One of {', '.join(known.facts.choices)}." if known.facts.choices else ""
            also = f" Also: {', '.join(short[known.name])}." if known.name in short else ""
            lines.append(f"      {known.facts.meaning}{choices}{refused}{also}")
    return "\n".join(lines) + "\n"


def _split(argv: list[str]) -> tuple[str | None, list[str]]:
    words = [word for word in argv if word != "--debug"]
    if not words:
        raise ConfigError(f"{COMMAND_LINE}: expected CONFIG.json or --key value; --help lists the keys")
    if words[0].startswith("--"):
        return None, words
    if not words[0].endswith(".json") and not Path(words[0]).exists():
        raise ConfigError(f'{COMMAND_LINE}: "{words[0]}" is not a .json file and not a --key')
    return words[0], words[1:]


def _parse_flags(tokens: list[str]) -> dict[str, Any]:
    """``--key value``, ``--key=value``, a bare ``--key`` for true, several values for a list."""
    values: dict[str, Any] = {}
    position = 0
    while position < len(tokens):
        token = tokens[position]
        if not token.startswith("--") or len(token) == 2:
            raise ConfigError(f'{COMMAND_LINE}: "{token}" does not belong to a --key')
        name, equals, text = token[2:].partition("=")
        name = name.replace("-", "_")
        end = position + 1
        while not equals and end < len(tokens) and not tokens[end].startswith("--"):
            end += 1
        texts = [text] if equals else tokens[position + 1 : end]
        if name in values:
            raise ConfigError(f'{COMMAND_LINE}: "--{name}" is given twice')
        values[name] = _value_of(_known(name, COMMAND_LINE, "--"), texts, f'{COMMAND_LINE}: "--{name}"')
        position = end
    return values


def _value_of(known: Known, texts: list[str], at: str) -> Any:
    """The JSON value that the words behind a flag stand for; what they cannot be is reported by ``Known.accept``."""
    base = known.kind.base
    if not texts:
        if base is bool:
            return True
        raise ConfigError(f"{at} has no value; expected {known.kind}")
    if len(texts) == 1 and texts[0].lower() in ("null", "none") and texts[0] not in known.facts.choices:
        return None
    if base is dict or (base is tuple and texts[0].lstrip().startswith("[")):
        return parse(" ".join(texts), at)
    if base is tuple and not (known.kind.text and len(texts) == 1):
        return list(texts)
    if len(texts) > 1:
        raise ConfigError(f'{at} has {len(texts)} values ("{texts[0]}", "{texts[1]}"...); expected {known.kind}')
    return _scalar(base, texts[0])


def _scalar(base: type, text: str) -> Any:
    if base is bool:
        return _TRUTH.get(text.lower(), text)
    if base in _NUMBER and _NUMBER[base].fullmatch(text):
        return base(text)
    if base is int and _NUMBER[float].fullmatch(text):
        return float(text)  # refused by the type check, which then says "a number"
    return text


def _accept_all(given: dict[str, Any], where: str, sign: str) -> dict[str, Any]:
    """``given`` by our own names, every value checked."""
    values: dict[str, Any] = {}
    source: dict[str, str] = {}
    for name, value in given.items():
        known = _known(name, where, sign)
        if known.name in values:
            raise ConfigError(f'{where}: "{source[known.name]}" and "{name}" are two names of the same key; give one')
        source[known.name] = name
        values[known.name] = known.accept(value, f'{where}: "{sign}{name}"')
    return values


def _known(name: str, where: str, sign: str) -> Known:
    found = KNOWN.get(ALIASES.get(name, name))
    if found is not None:
        return found
    if name in FOREIGN:
        raise ConfigError(f'{where}: "{sign}{name}" is not a key of ours: {FOREIGN[name]}')
    hint = nearest(name, [*KNOWN, *ALIASES])
    raise ConfigError(f'{where}: unknown key "{sign}{name}"{hint or "; --help lists the keys"}')


def _plain(value: SettingValue) -> JsonValue:
    """Tuples as lists, as JSON has them."""
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
