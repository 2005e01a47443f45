# SPDX-License-Identifier: Apache-2.0
"""Reading and writing the files of a tokenizer folder as HF transformers lays them out."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paddlemix.settings.decoders.table import tokenizer_of
from paddlemix.text.byte_files import is_byte_level, pipeline_of_vocabulary
from paddlemix.text.spm_rebuild import Rebuilt, adds_bos, rebuild
from paddlemix.utils import foreign
from paddlemix.utils.errors import CheckpointError
from paddlemix.utils.foreign import JsonValue, read_optional
from paddlemix.utils.paths import begins_at
from paddlemix.utils.shown import shown

MODEL_FILE = "tokenizer.model"
JSON_FILE = "tokenizer.json"
VOCABULARY, MERGES = "vocab.json", "merges.txt"
"""Qwen's vocabulary in the form of transformers' slow tokenizers."""
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
_DEFAULTS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None}
MODEL_BYTES = 16 << 20
"""Largest tokenizer.model. Llama's has half a MiB, the largest published ones five."""
_JSON_BYTES = 24 << 20
"""Largest tokenizer.json. Those of 64,000 pieces have four MiB, that of Llama-3 seventeen."""
_JSON_VALUES = 1_600_000
"""Values of one tokenizer.json. That of Llama-3 has 1.1 million, each of its 280,000 merges being a pair."""
_MAX_ID = 1 << 31
_REMEDY = "copy them from the base language model again"
_UNBOUNDED = 1_000_000
"""HF writes 1e30 for "no limit"; anything above this is read as None."""


@dataclass(frozen=True)
class AddedToken:
    """A token that is cut out of the text before sentencepiece sees it."""

    content: str
    id: int
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False


@dataclass
class TokenizerFiles:
    """What the files of a folder say, before any rule is applied. ``config`` keeps every key as it stood."""

    model: bytes
    where: str
    config: dict[str, Any] = field(default_factory=dict)
    roles: dict[str, str | None] = field(default_factory=dict)
    added: list[AddedToken] = field(default_factory=list)
    kind: str = "slow"
    pipeline: dict[str, Any] = field(default_factory=dict)
    """The content of a byte-level ``tokenizer.json``; ``model`` is empty then."""

    @property
    def model_max_length(self) -> int | None:
        """Tokens the tokenizer was set up for; None when the files name no limit."""
        value = self.config.get("model_max_length")
        return int(value) if type(value) in (int, float) and 0 < value <= _UNBOUNDED else None


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer of its own."""
    alone = any((folder / name).is_file() for name in (MODEL_FILE, JSON_FILE))
    return alone or all((folder / name).is_file() for name in (VOCABULARY, MERGES))


def read_files(folder: str | Path) -> TokenizerFiles:
    """Read a tokenizer folder. CheckpointError names the file, what is wrong with it and what to do."""
    with foreign.reading(f"{folder}: its tokenizer files are", CheckpointError, _REMEDY):
        return _read_files(Path(folder))


def _read_files(folder: Path) -> TokenizerFiles:
    path = folder / MODEL_FILE
    foreign.refuse_special(folder, CheckpointError)
    foreign.require_regular(folder, (MODEL_FILE, JSON_FILE, VOCABULARY, MERGES), CheckpointError)
    if not has_tokenizer(folder):
        remedy = f"copy {MODEL_FILE} or {JSON_FILE} from the base language model into this folder{begins_at(path)}"
        raise CheckpointError(f"{path}: no such file; {remedy}")
    config = read_optional(folder / "tokenizer_config.json", CheckpointError)
    special_map = read_optional(folder / "special_tokens_map.json", CheckpointError)
    fast = _read_pipeline(folder)
    bytewise = is_byte_level(fast)
    roles: dict[str, str | None] = {}
    for role in ROLES:
        # The map wins over the config in the layout without "added_tokens_decoder", as in transformers 4.37.
        first, second = (config, special_map) if "added_tokens_decoder" in config else (special_map, config)
        named = _content(first.get(role)) or _content(second.get(role))
        roles[role] = named or (None if bytewise else _DEFAULTS[role])
        if not isinstance(roles[role], (str, type(None))):
            raise CheckpointError(f'{folder}: its "{role}" is {shown(roles[role])}; expected a text')
    if bytewise:
        where = JSON_FILE if (folder / JSON_FILE).is_file() else VOCABULARY
        files = TokenizerFiles(b"", str(folder / where), _with_bos(config, fast, roles), roles, pipeline=fast)
    elif path.is_file():
        files = TokenizerFiles(foreign.read_bytes(path, CheckpointError, MODEL_BYTES), str(path), config, roles)
    else:
        rebuilt = rebuild(fast, folder / JSON_FILE, roles)
        files = TokenizerFiles(rebuilt.model, str(folder / JSON_FILE), _with_rules(config, rebuilt), roles)
    files.added = _read_added(folder, config, fast, roles)
    files.kind = "byte_bpe" if bytewise else _kind(folder, files.config)
    return files


def _read_pipeline(folder: Path) -> dict[str, Any]:
    """The content of ``tokenizer.json``, or what ``vocab.json`` and ``merges.txt`` stand for; empty without any."""
    path = folder / JSON_FILE
    if os.path.lexists(path):
        text = foreign.read_text(path, CheckpointError, _JSON_BYTES)
        data = foreign.parse_json(text, str(path), CheckpointError, max_values=_JSON_VALUES)
        if not isinstance(data, dict):
            raise CheckpointError(f"{path}: expected an object {{...}} at the top, got {type(data).__name__}")
        return data
    if (folder / MODEL_FILE).is_file() or not (folder / MERGES).is_file():
        return {}
    vocab = foreign.read_json(folder / VOCABULARY, CheckpointError, _JSON_BYTES)
    lines = foreign.read_text(folder / MERGES, CheckpointError, _JSON_BYTES).splitlines()
    return pipeline_of_vocabulary(vocab, [line for line in lines if line and not line.startswith("#version")])


def _with_bos(config: dict[str, Any], fast: dict[str, Any], roles: dict[str, str | None]) -> dict[str, Any]:
    """tokenizer_config.json, with what the template of tokenizer.json says of the begin token where it is silent."""
    if config.get("add_bos_token") is not None:
        return config
    steps = fast.get("post_processor")
    inner = steps.get("processors") if isinstance(steps, dict) and steps.get("type") == "Sequence" else None
    found = [adds_bos(step, roles["bos_token"]) for step in (inner if isinstance(inner, list) else [steps])]
    return config | {"add_bos_token": bool(roles["bos_token"]) and any(found)}


def _with_rules(config: dict[str, Any], rebuilt: Rebuilt) -> dict[str, Any]:
    """tokenizer_config.json and what tokenizer.json says: its pipeline is the rule, its template only a default."""
    if rebuilt.legacy is not None and "tokenizer_kind" not in config:
        config = config | {"legacy": rebuilt.legacy, "tokenizer_kind": "fast_5"}
    if rebuilt.add_bos is not None and config.get("add_bos_token") is None:
        config = config | {"add_bos_token": rebuilt.add_bos}
    return config


def _content(value: JsonValue) -> str | None:
    return value.get("content") if isinstance(value, dict) else value


def _read_added(
    folder: Path, config: dict[str, Any], fast: dict[str, Any], roles: dict[str, str | None]
) -> list[AddedToken]:
    """Added tokens in the order of their ids; the richest file that names a token wins."""
    found: dict[str, AddedToken] = {}
    for content, number in read_optional(folder / "added_tokens.json", CheckpointError).items():
        _check_id(folder / "added_tokens.json", content, number)
        found[content] = AddedToken(content, number)
    rows = [(JSON_FILE, row.get("id") if isinstance(row, dict) else None, row) for row in fast.get("added_tokens", [])]
    for number, row in config.get("added_tokens_decoder", {}).items():
        rows.append(("tokenizer_config.json", int(number) if number.isdecimal() else number, row))
    for name, number, row in rows:
        token = _added(folder / name, number, row)
        found[token.content] = token
    for role in ROLES:
        row = config.get(role)
        if isinstance(row, dict) and row.get("content") in found:
            found[row["content"]] = _added(folder / "tokenizer_config.json", found[row["content"]].id, row)
    return sorted(found.values(), key=lambda token: token.id)


def _added(path: Path, number: JsonValue, row: JsonValue) -> AddedToken:
    if not isinstance(row, dict) or not isinstance(row.get("content"), str):
        raise CheckpointError(f'{path}: added token {shown(number)} is no object with a text as "content"; remove it')
    _check_id(path, row["content"], number)
    if row.get("single_word"):
        raise CheckpointError(
            f'{path}: token "{shown(row["content"])}" has single_word=true, which is not supported; set it to false'
        )
    keys = ("special", "lstrip", "rstrip", "normalized")
    return AddedToken(row["content"], number, **{key: bool(row[key]) for key in keys if key in row})


def _check_id(path: Path, content: str, number: JsonValue) -> None:
    if type(number) is not int or not 0 <= number < _MAX_ID or not content:
        raise CheckpointError(
            f'{path}: added token "{shown(content)}" has id {shown(number)}; expected an integer from 0 on'
        )


def _kind(folder: Path, config: dict[str, Any]) -> str:
    """Whose rules the checkpoint was made with: its own word for it, or else what its original code loads."""
    if "tokenizer_kind" in config:
        return str(config["tokenizer_kind"])
    model = read_optional(folder / "config.json", CheckpointError)
    parts = [part for part in (model.get("text_config"), model) if isinstance(part, dict)]
    return tokenizer_of(str(part.get("model_type", "")) for part in parts)


def write_files(
    folder: str | Path, files: TokenizerFiles, added: list[AddedToken], roles: dict[str, str | None]
) -> None:
    """Write a folder that ``read_files`` reads back to the same tokenizer."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL_FILE).write_bytes(files.model)
    decoder = {str(token.id): {"content": token.content, "single_word": False} | _marks(token) for token in added}
    config = files.config | {"added_tokens_decoder": decoder} | roles | {"tokenizer_class": "LlamaTokenizer"}
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", {role: value for role, value in roles.items() if value is not None})
    extra = {token.content: token.id for token in added if token.content not in _base_contents(roles)}
    _write_json(folder / "added_tokens.json", extra)


def write_byte_level(
    folder: str | Path,
    pipeline: dict[str, Any],
    config: dict[str, Any],
    added: list[AddedToken],
    roles: dict[str, str | None],
) -> None:
    """Write a folder with a byte-level ``tokenizer.json`` that ``read_files`` reads back to the same tokenizer."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = {token.id: {"content": token.content, "single_word": False, **_marks(token)} for token in added}
    whole = pipeline | {"added_tokens": [{"id": number, **row} for number, row in rows.items()]}
    (folder / JSON_FILE).write_text(json.dumps(whole, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | config | roles
    _write_json(
        folder / "tokenizer_config.json", config | {"added_tokens_decoder": {str(k): v for k, v in rows.items()}}
    )
    _write_json(folder / "special_tokens_map.json", {role: value for role, value in roles.items() if value is not None})
    _write_json(folder / "added_tokens.json", {token.content: token.id for token in added})


def _marks(token: AddedToken) -> dict[str, bool]:
    return {name: getattr(token, name) for name in ("lstrip", "rstrip", "normalized", "special")}


def _base_contents(roles: dict[str, str | None]) -> set[str | None]:
    return {roles["bos_token"], roles["eos_token"], roles["unk_token"]}


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
