# SPDX-License-Identifier: Apache-2.0
"""A tokenizer as fields of a GGUF file, and a byte-level ``tokenizer.json`` made of such fields."""

from collections.abc import Mapping, Sequence
from typing import Any

from paddlemix.checkpoint.gguf.package import Field
from paddlemix.settings.decoders import qwen2
from paddlemix.settings.decoders.table import LLAVA_DECODER
from paddlemix.text import spm
from paddlemix.text.byte_files import steps_of
from paddlemix.text.spm_export import SPACE
from paddlemix.text.tokenizer import BYTES, Tokenizer
from paddlemix.text.vocabulary import rowless
from paddlemix.utils.errors import CheckpointError
from paddlemix.utils.shown import shown

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
"""llama.cpp's kinds of tokens. Sentencepiece numbers its pieces alike, and has 6 for a byte."""
PREFIX = "tokenizer.ggml."
_NEVER_MERGED = -1000.0
"""Score of a token that is no piece of sentencepiece, as llama.cpp's converter gives it."""

_CONTRACTED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _split(digits: str) -> dict[str, Any]:
    pattern = {"Regex": _CONTRACTED + digits + _REST}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


def _bytes(*, regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": regex}


_QWEN = qwen2.DECODER.kind
PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [_bytes(regex=True)],
    "smollm": [{"type": "Digits", "individual_digits": True}, _bytes(regex=True)],
    _QWEN: [_split(r"\p{N}"), _bytes(regex=False)],
    "llama-bpe": [_split(r"\p{N}{1,3}"), _bytes(regex=False)],
}
"""llama.cpp's names of the rules that cut a text before pieces are merged, as steps of ``tokenizer.json``."""
_LIKE = {"gpt2": "gpt-2", "llama3": "llama-bpe", "llama-v3": "llama-bpe"}
"""Other names that llama.cpp takes for the same rule."""
_TELLING = ("type", "individual_digits", "use_regex", "pattern")


def tokenizer_fields(tokenizer: Tokenizer, rows: int, notes: list[str]) -> dict[str, Field]:
    """The fields of a vocabulary of ``rows`` tokens, the rows of the embedding table.

    Rows without a token become ``[PAD1]`` and so on, kind "unused". CheckpointError for a tokenizer that needs more
    rows, and for a byte-level one whose rule of cutting a text has no name in llama.cpp.
    """
    missing = rowless(tokenizer, rows)
    if missing:
        raise CheckpointError(
            f"{tokenizer.files.where}: the weights have {rows} rows, none for {missing[0]}; put the tokenizer files "
            "that belong to these weights in its place"
        )
    fields = _byte_level(tokenizer) if tokenizer.kind == BYTES else _sentencepiece(tokenizer, notes)
    names: list[str] = fields[f"{PREFIX}tokens"]
    kinds: list[int] = fields[f"{PREFIX}token_type"]
    scores: list[float] = fields.get(f"{PREFIX}scores", [])
    names += [f"[PAD{number}]" for number in range(1, rows - len(names) + 1)]
    kinds += [UNUSED] * (rows - len(kinds))
    scores += [_NEVER_MERGED] * (rows - len(scores)) if scores else []
    for token in tokenizer.added_tokens:
        if token.id < rows:
            names[token.id] = token.content
            if kinds[token.id] != UNKNOWN:
                kinds[token.id] = CONTROL if token.special else USER_DEFINED
    return {**fields, **_special_ids(tokenizer, rows)}


def _sentencepiece(tokenizer: Tokenizer, notes: list[str]) -> dict[str, Field]:
    model = tokenizer.files.model
    settings, pieces = spm.read_settings(model), spm.read_model(model)
    if not settings.bpe:
        raise CheckpointError(
            f"{tokenizer.files.where}: it is no BPE model, the only kind that llama.cpp's llama reads"
        )
    if settings.charsmap or settings.removes_spaces or not settings.escapes_spaces:
        notes.append(f"{tokenizer.files.where}: it changes a text before it splits it, which llama.cpp does not do")
    whole = [piece.text for piece in pieces if piece.kind == USER_DEFINED]
    if whole:
        notes.append(
            f"{tokenizer.files.where}: llama.cpp sets a space behind the {len(whole)} pieces that are never split "
            f"({shown(whole[0])}, ...), so texts with them have other ids there"
        )
    return {
        f"{PREFIX}model": LLAVA_DECODER.kind,  # llama.cpp names every sentencepiece BPE model after Llama
        f"{PREFIX}pre": "default",
        f"{PREFIX}tokens": [_written(piece) for piece in pieces],
        f"{PREFIX}scores": [piece.score for piece in pieces],
        f"{PREFIX}token_type": [piece.kind for piece in pieces],
        f"{PREFIX}add_space_prefix": settings.dummy_prefix,
    }


def _written(piece: spm.Piece) -> str:
    """The text of a piece. llama.cpp looks for a user-defined one in the text before it marks the spaces."""
    return piece.text.replace(SPACE, " ") if piece.kind == USER_DEFINED else piece.text


def _byte_level(tokenizer: Tokenizer) -> dict[str, Field]:
    pipeline = tokenizer.files.pipeline
    vocab: dict[str, int] = pipeline["model"]["vocab"]
    merges = pipeline["model"].get("merges", [])
    return {
        f"{PREFIX}model": "gpt2",
        f"{PREFIX}pre": _pre_name(pipeline, tokenizer.files.where),
        f"{PREFIX}tokens": sorted(vocab, key=vocab.__getitem__),
        f"{PREFIX}token_type": [NORMAL] * len(vocab),
        f"{PREFIX}merges": [pair if isinstance(pair, str) else " ".join(pair) for pair in merges],
        f"{PREFIX}add_space_prefix": False,
    }


def _special_ids(tokenizer: Tokenizer, rows: int) -> dict[str, Field]:
    found = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "unknown_token_id": tokenizer.unk_id if tokenizer.files.roles.get("unk_token") else None,
        "padding_token_id": tokenizer.pad_id,
    }
    ids: dict[str, Field] = {f"{PREFIX}{role}": i for role, i in found.items() if i is not None and i < rows}
    adds = tokenizer.add_bos and tokenizer.bos_id is not None
    return {**ids, f"{PREFIX}add_bos_token": adds, f"{PREFIX}add_eos_token": False}


def _pre_name(pipeline: Mapping[str, Any], where: str) -> str:
    steps = _told(steps_of(pipeline.get("pre_tokenizer"), "pre_tokenizer"))
    for name, known in PRE_TOKENIZERS.items():
        if steps == _told(known):
            return name
    raise CheckpointError(
        f"{where}: its pre_tokenizer has no name in llama.cpp that is known here (known: {', '.join(PRE_TOKENIZERS)})"
    )


def _told(steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What makes a difference in steps; ``use_regex`` is true where it is not said."""
    return [
        {
            **({"use_regex": True} if step.get("type") == "ByteLevel" else {}),
            **{k: step[k] for k in _TELLING if k in step},
        }
        for step in steps
    ]


def pipeline_of(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The content of ``tokenizer.json`` for the byte-level vocabulary of a GGUF file; CheckpointError for any other."""
    kind, pre = fields.get(f"{PREFIX}model"), str(fields.get(f"{PREFIX}pre"))
    steps = PRE_TOKENIZERS.get(_LIKE.get(pre, pre))
    if kind != "gpt2" or steps is None:
        raise CheckpointError(
            f'{where}: its tokenizer is "{kind}" with the rule "{pre}"; read are "gpt2" with '
            f"{', '.join(PRE_TOKENIZERS)}"
        )
    tokens, kinds = fields[f"{PREFIX}tokens"], fields[f"{PREFIX}token_type"]
    marks = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": number, "content": token, **marks, "special": token_kind == CONTROL}
        for number, (token, token_kind) in enumerate(zip(tokens, kinds, strict=True))
        if token_kind in (CONTROL, USER_DEFINED)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if steps is PRE_TOKENIZERS[_QWEN] else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": None,
        "decoder": _bytes(regex=True),
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": steps is PRE_TOKENIZERS["llama-bpe"],
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": list(fields[f"{PREFIX}merges"]),
        },
    }  # fmt: skip
