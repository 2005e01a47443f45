# SPDX-License-Identifier: Apache-2.0
"""``tokenizer.model`` made again from a ``tokenizer.json`` that HF transformers derived from one (Llama, Mistral, Yi).

transformers turns a sentencepiece BPE model into a vocabulary and a list of merges: for every piece all its splits
into two other pieces, best score first (transformers ``convert_slow_tokenizer.generate_merges``). sentencepiece needs
nothing but that order: it joins the neighbours whose piece has the best score, leftmost first. So the score of a piece
here is minus the place of its merges in the list, and the list is accepted only when it is exactly such a one: all
splits of every piece, those of one piece side by side. (The order of the splits of one piece differs between versions
of transformers; sentencepiece has no such order.) Everything else is refused, never guessed.
"""

import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddlemix.text.spm import BYTE, CONTROL, MAX_PIECES, NORMAL, UNKNOWN, USER_DEFINED
from paddlemix.utils.errors import CheckpointError
from paddlemix.utils.foreign import JsonValue

SPACE = "\u2581"
MAX_CHARS = 1 << 22
"""Characters of all pieces together. Llama, Mistral and Yi have 32,000 to 64,000 short pieces."""
MAX_PIECE = 256
"""Characters of one piece. sentencepiece trains up to 16 unless it is told otherwise."""

_REMEDY = "copy tokenizer.model from the base language model into this folder"
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
_BYTES = [f"<0x{value:02X}>" for value in range(256)]
_TO_SPACE = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
_FROM_SPACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_PREPEND = {"type": "Prepend", "prepend": SPACE}
_DECODER = [_TO_SPACE, {"type": "ByteFallback"}, {"type": "Fuse"}]
_STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
_PLAIN = {"dropout": (None, 0), "continuing_subword_prefix": (None, ""), "end_of_word_suffix": (None, "")}
_PLAIN |= {"ignore_merges": (None, False)}
"""Settings of the BPE model that sentencepiece does not have, and the values that mean "none"."""


@dataclass(frozen=True)
class Rebuilt:
    """The bytes of a ``tokenizer.model``, and what the file says of keys of ``tokenizer_config.json``.

    ``add_bos`` is None when it says nothing. ``legacy`` is None for the pipeline of transformers 4 (``Prepend``), which
    is the same for both rules; True and False are those of transformers 5 (``Metaspace``).
    """

    model: bytes
    add_bos: bool | None
    legacy: bool | None


def rebuild(data: dict[str, Any], path: Path, roles: dict[str, str | None]) -> Rebuilt:
    """The model file behind the content ``data`` of the file ``path`` (named in errors).

    ``roles``: bos_token, eos_token, unk_token, pad_token and their texts. CheckpointError for another kind of tokenizer
    and for a vocabulary that no sentencepiece model has.

    Six pieces behind the special tokens and the bytes, and all splits of the joined ones, best score first:

        >>> special = ["<unk>", "<s>", "</s>"]
        >>> pieces = [*special, *_BYTES, "▁", "h", "i", "▁h", "hi", "▁hi"]
        >>> model = {"type": "BPE", "byte_fallback": True, "unk_token": "<unk>", "vocab": {}}
        >>> model["vocab"] = {piece: number for number, piece in enumerate(pieces)}
        >>> model["merges"] = ["h i", "▁ h", "▁ hi", "▁h i"]
        >>> added = [{"id": number, "content": text, "special": True} for number, text in enumerate(special)]
        >>> normalizer = {"type": "Sequence", "normalizers": [_PREPEND, _FROM_SPACE]}
        >>> decoder = {"type": "Sequence", "decoders": [*_DECODER, _STRIP]}
        >>> data = {"model": model, "added_tokens": added, "normalizer": normalizer, "decoder": decoder}
        >>> roles = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": None}
        >>> made = rebuild(data, Path("tokenizer.json"), roles)

    A piece scores minus the number of pieces whose merges stand before its own; single characters score worst:

        >>> {piece.text: int(piece.score) for piece in spm.read_model(made.model)[-6:]}
        {'▁': -3, 'h': -3, 'i': -3, '▁h': -1, 'hi': 0, '▁hi': -2}

    A list that lacks a split came from no sentencepiece model:

        >>> model["merges"].remove("▁h i")
        >>> rebuild(data, Path("tokenizer.json"), roles)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        paddlemix.utils.errors.CheckpointError: tokenizer.json: its merges lack ('▁h', 'i'), which ...
    """
    source = _Source(path)
    try:
        return _rebuild(data, roles, source)
    except RecursionError as error:
        raise source.error("it is nested too deeply") from error


def _rebuild(data: dict[str, Any], roles: dict[str, str | None], source: "_Source") -> Rebuilt:
    scheme = _scheme(data, source)
    model = data["model"]
    pieces = _pieces(model.get("vocab"), source)
    kinds = _kinds(pieces, data.get("added_tokens", []), model.get("unk_token"), roles, source)
    scores = _scores(kinds, model.get("merges"), source)
    proto = _write(pieces, kinds, scores, roles, dummy_prefix=scheme != "never")
    legacy = None if scheme == "prepend" else scheme != "first"
    return Rebuilt(proto, adds_bos(data.get("post_processor"), roles["bos_token"]), legacy)


@dataclass(frozen=True)
class _Source:
    path: Path

    def error(self, what: str, remedy: str = _REMEDY) -> CheckpointError:
        return CheckpointError(f"{self.path}: {what}; {remedy}")

    def another_kind(self, what: str) -> CheckpointError:
        return self.error(
            f"{what}; without tokenizer.model only tokenizers that came from sentencepiece BPE can be read"
        )


def _scheme(data: dict[str, Any], source: _Source) -> str:
    """Where the dummy space goes: "prepend" (every text, always), or Metaspace's "first", "always", "never"."""
    model = data.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        raise source.another_kind(f"its model is {_name(model)}")
    if "ByteLevel" in json.dumps([data.get(key) for key in ("pre_tokenizer", "normalizer", "decoder")]):
        steps = _names(_steps(data, "normalizer")), _names(_steps(data, "pre_tokenizer"))
        raise source.error(
            "its decoder is that of a byte-level BPE (as of Llama-3, Qwen), but no step in front turns a text into "
            f"bytes: its normalizer is {steps[0]}, its pre-tokenizer {steps[1]}",
            "copy tokenizer.json from the base language model into this folder",
        )
    if model.get("byte_fallback") is not True:
        raise source.another_kind(f'"model.byte_fallback" is {_short(model.get("byte_fallback"))}')
    for key, none in _PLAIN.items():
        if model.get(key) not in none:
            raise source.another_kind(f'"model.{key}" is {_short(model[key])}')
    normalizers, splitters = _steps(data, "normalizer"), _steps(data, "pre_tokenizer")
    scheme = None
    if not splitters and normalizers in ([_PREPEND, _FROM_SPACE], [_FROM_SPACE]):
        scheme = "prepend" if len(normalizers) == 2 else "never"
    elif not normalizers and len(splitters) == 1 and _is_metaspace(splitters[0]):
        scheme = splitters[0]["prepend_scheme"]
    if scheme is None:
        raise source.another_kind(f"its normalizer is {_names(normalizers)} and its pre-tokenizer {_names(splitters)}")
    decoders = _steps(data, "decoder")
    if decoders != [*_DECODER, *[_STRIP] * (scheme != "never")]:
        raise source.another_kind(f'its decoder is {_names(decoders)}, which does not fit the dummy space "{scheme}"')
    return scheme


def _steps(data: dict[str, Any], key: str) -> list[Any]:
    """The steps of a part of the pipeline: of a Sequence its members."""
    value = data.get(key)
    if isinstance(value, dict) and value.get("type") == "Sequence":
        value = next((value[name] for name in (f"{key}s", "pretokenizers") if name in value), value)
    return value if isinstance(value, list) else [value] * (value is not None)


def _is_metaspace(step: JsonValue) -> bool:
    wanted = {"type": "Metaspace", "replacement": SPACE, "split": False}
    known = isinstance(step, dict) and {key: step.get(key) for key in wanted} == wanted
    return known and step.get("prepend_scheme") in ("first", "always", "never")


def _short(value: JsonValue) -> str:
    return repr(value)[:60]


def _names(steps: list[Any]) -> str:
    return ", ".join(map(_name, steps[:4])) or "absent"


def _name(step: JsonValue) -> str:
    """The type of a step with its settings, short enough for a line."""
    if not isinstance(step, dict) or not isinstance(step.get("type"), str):
        return "of no known form"
    rest = {key: value for key, value in step.items() if key not in ("type", "vocab", "merges")}
    return step["type"] + (f" {json.dumps(rest)[:160]}" if rest and len(step) < 6 else "")


def _pieces(vocab: JsonValue, source: _Source) -> list[str]:
    """The pieces in the order of their ids."""
    if not isinstance(vocab, dict) or not 0 < len(vocab) <= MAX_PIECES:
        size = f"{len(vocab)} entries" if isinstance(vocab, dict) else f"{type(vocab).__name__}"
        raise source.error(f'"model.vocab" has {size}; expected an object of 1 to {MAX_PIECES} pieces')
    pieces: list[str | None] = [None] * len(vocab)
    for piece, number in vocab.items():
        if type(number) is not int or not 0 <= number < len(pieces) or pieces[number] is not None:
            raise source.error(
                f"piece {_short(piece)} has id {_short(number)}; expected 0 to {len(pieces) - 1}, each of them once"
            )
        if not 0 < len(piece) <= MAX_PIECE or "\0" in piece or not _is_text(piece):
            raise source.error(
                f"piece {number} is {_short(piece)} ({len(piece)} characters); expected 1 to {MAX_PIECE} of text"
            )
        pieces[number] = piece
    if sum(map(len, vocab)) > MAX_CHARS:
        raise source.error(f"its pieces have more than {MAX_CHARS} characters")
    missing = [name for name in _BYTES if name not in vocab]
    if missing:
        raise source.error(f"its vocabulary lacks {len(missing)} of the 256 byte pieces, {missing[0]} first")
    return [piece for piece in pieces if piece is not None]


def _is_text(piece: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in piece)


def _kinds(
    pieces: list[str], added: JsonValue, unknown: JsonValue, roles: dict[str, str | None], source: _Source
) -> dict[str, int]:
    """The kind of every piece.

    By transformers' rule the other way round: control pieces become added tokens with ``special``, user-defined ones
    without (``SpmConverter.tokenizer``).
    """
    ids = {piece: number for number, piece in enumerate(pieces)}
    kinds = dict.fromkeys(pieces, NORMAL)
    if not isinstance(added, list) or not all(isinstance(row, dict) for row in added):
        raise source.error('"added_tokens" is no list of objects')
    taken: dict[int, str] = dict(enumerate(pieces))
    for row in added:
        content, number = row.get("content"), row.get("id")
        if not isinstance(content, str) or type(number) is not int or taken.setdefault(number, content) != content:
            raise source.error(
                f"added token {_short(content)} has id {_short(number)}, which is no number or another piece's"
            )
        if ids.get(content, number) != number:
            raise source.error(
                f"added token {_short(content)} has id {number}, in the vocabulary it has {ids[content]}"
            )
        if content in kinds:
            kinds[content] = CONTROL if row.get("special") else USER_DEFINED
    kinds |= {content: CONTROL for content in roles.values() if content in kinds}
    kinds |= dict.fromkeys(_BYTES, BYTE)
    unknown = roles["unk_token"] if unknown is None else unknown
    if not isinstance(unknown, str) or unknown not in kinds or kinds[unknown] == BYTE:
        raise source.error(f"its unknown token {_short(unknown)} is not in its vocabulary")
    return kinds | {unknown: UNKNOWN}


def _scores(kinds: dict[str, int], merges: JsonValue, source: _Source) -> dict[str, float]:
    """The score of every piece that can be joined, by the place of its merges; checks that the list is a whole one.

    Merges that make or use a control, byte or other special piece do not count: such tokens are cut out of the text
    before, and sentencepiece never joins them.
    """
    if not isinstance(merges, list):
        raise source.error(f'"model.merges" is {type(merges).__name__}; expected a list')
    scores: dict[str, float] = {}
    seen: set[tuple[str, str]] = set()
    previous = None
    for number, merge in enumerate(merges):
        left, right = pair = _pair(merge, number, source)
        whole = left + right
        strange = next((piece for piece in (left, right, whole) if piece not in kinds), None)
        if strange is not None:
            raise source.error(f"merge {number} needs the piece {_short(strange)}, which is not in its vocabulary")
        if pair in seen or (whole != previous and whole in scores):
            raise source.error(f"merge {number} ({left!r}, {right!r}) is not beside the others that make {whole!r}")
        if kinds[left] == kinds[right] == kinds[whole] == NORMAL:
            scores.setdefault(whole, -float(len(scores)))
            seen.add(pair)
            previous = whole
    _require_all_splits(kinds, seen, source)
    return scores


def _require_all_splits(kinds: dict[str, int], seen: set[tuple[str, str]], source: _Source) -> None:
    for piece, kind in kinds.items():
        if kind != NORMAL or len(piece) == 1:
            continue
        if not all(char in kinds for char in piece):
            # sentencepiece would find it, transformers never: there the character turns into bytes first.
            raise source.error(f"piece {piece!r} holds a character that is no piece of its own")
        for at in range(1, len(piece)):
            left, right = piece[:at], piece[at:]
            if kinds.get(left) == kinds.get(right) == NORMAL and (left, right) not in seen:
                raise source.error(f"its merges lack ({left!r}, {right!r}), which a sentencepiece model always has")


def _pair(merge: JsonValue, number: int, source: _Source) -> tuple[str, str]:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) and part for part in parts):
        raise source.error(f"merge {number} is {_short(merge)}; expected two pieces")
    return parts[0], parts[1]


def adds_bos(processor: JsonValue, bos: str | None) -> bool | None:
    """Whether the template of a post-processor begins with the begin token; None when there is no template."""
    single = processor.get("single") if isinstance(processor, dict) else None
    if not isinstance(single, list) or not single:
        return None
    first = single[0].get("SpecialToken") if isinstance(single[0], dict) else None
    return isinstance(first, dict) and first.get("id") == bos


# ---- the model file: field numbers of sentencepiece_model.proto ---------------------------------------------------


def _write(
    pieces: list[str], kinds: dict[str, int], scores: dict[str, float], roles: dict[str, str | None], dummy_prefix: bool
) -> bytes:
    lowest = -float(len(scores))
    ids = {piece: number for number, piece in enumerate(pieces)}
    out = []
    for piece in pieces:
        score = scores.get(piece, lowest if kinds[piece] == NORMAL else 0.0)
        entry = _text(1, piece) + _key(2, 5) + struct.pack("<f", score) + _number(3, kinds[piece])
        out.append(_bytes(1, entry))
    named = {role: roles[f"{role}_token"] for role in ("bos", "eos", "pad")}
    named["unk"] = next(piece for piece in pieces if kinds[piece] == UNKNOWN)
    trainer = [_number(3, 2), _number(4, len(pieces)), _number(35, 1)]  # BPE, vocabulary, byte_fallback
    for field, role in enumerate(("unk", "bos", "eos", "pad"), 40):
        number = ids.get(named[role] or "", -1)
        trainer += [_number(field, number), _text(field + 5, pieces[number] if number >= 0 else f"<{role}>")]
    # Identity without a map of characters; spaces stay and are written as the space sign.
    normalizer = [_text(1, "identity"), _number(3, int(dummy_prefix)), _number(4, 0), _number(5, 1)]
    return b"".join([*out, _bytes(2, b"".join(trainer)), _bytes(3, b"".join(normalizer))])


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative numbers are written as 64 bits
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _key(field: int, wire: int) -> bytes:
    return _varint(field << 3 | wire)


def _number(field: int, value: int) -> bytes:
    return _key(field, 0) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _key(field, 2) + _varint(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode("utf-8"))
