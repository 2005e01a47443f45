# SPDX-License-Identifier: Apache-2.0
"""A sentencepiece tokenizer as ``tokenizer.json``, the one file that every version of transformers reads the same way.

The way back of ``spm_rebuild``. The vocabulary becomes a list of merges: every split of a piece into two others, the
pieces by their scores (transformers' converter does so). The dummy space becomes a normalizer, and where it goes
follows from the rules of the checkpoint (see ``text.tokenizer``):

- before every text between two special tokens: transformers' usual pipeline;
- before a text as a whole only, which is the rule of LLaVA's Vicuna models (``legacy`` false). LLaVA encodes what
  stands between two images as a text of its own, so ``<image>`` begins a new one and ``</s>`` does not: the special
  tokens are looked for after the normalizer (``normalized``), the image before it.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from paddlemix.text import spm
from paddlemix.text.tokenizer import FAST_5, SLOW, SLOW_4_31, Tokenizer
from paddlemix.text.tokenizer_files import AddedToken
from paddlemix.utils.constants import IMAGE_TOKEN
from paddlemix.utils.errors import CheckpointError

SPACE = "\u2581"


def tokenizer_json(tokenizer: Tokenizer) -> tuple[dict[str, Any], list[AddedToken], str | None]:
    """The content of ``tokenizer.json``, its added tokens, and what it cannot express (None: nothing).

    ``tokenizer_config.json`` must list the added tokens with the same marks: transformers 4 puts its own over the
    file's. CheckpointError for a vocabulary that is no plain BPE model: its text would be changed before it is split.
    """
    model = tokenizer.files.model
    _require_plain(spm.read_settings(model), tokenizer.files.where)
    pieces = spm.read_model(model)
    whole = tokenizer.kind in (SLOW, SLOW_4_31, FAST_5) and not tokenizer.legacy
    added = _added_tokens(tokenizer, pieces, whole)
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_row(token) for token in added],
        "normalizer": _normalizer(tokenizer, added),
        "pre_tokenizer": None,
        "post_processor": _bos_in_front(tokenizer),
        "decoder": _decoder(_prefixes(tokenizer)),
        "model": _model(pieces, tokenizer),
    }
    lost = None
    if tokenizer.kind == SLOW_4_31 and not tokenizer.legacy:
        lost = (
            f"{tokenizer.files.where}: words behind </s> are split as transformers 4.31 does, which tokenizer.json "
            "cannot express; a conversation of several rounds has other ids there"
        )
    return data, added, lost


def _require_plain(settings: spm.Settings, where: str) -> None:
    reason = None
    if not settings.bpe:
        reason = "it is no BPE model"
    elif settings.charsmap or settings.removes_spaces or not settings.escapes_spaces:
        reason = "it changes the text before it splits it"
    elif settings.space_behind:
        reason = "it puts the space behind a word"
    if reason:
        raise CheckpointError(f"{where}: {reason}, so there is no tokenizer.json for it")


def _prefixes(tokenizer: Tokenizer) -> bool:
    """Whether a text gets a dummy space at all."""
    by_rule = tokenizer.kind == SLOW and not tokenizer.legacy  # these put it there themselves
    return by_rule or spm.read_settings(tokenizer.files.model).dummy_prefix


def _added_tokens(tokenizer: Tokenizer, pieces: list[spm.Piece], whole: bool) -> list[AddedToken]:
    """The tokens that are cut out of the text; a piece of several characters that sentencepiece never splits is one."""
    found = {token.content: token for token in tokenizer.added_tokens}
    for number, piece in enumerate(pieces):
        if piece.kind == spm.USER_DEFINED and len(piece.text) > 1:
            found.setdefault(piece.text, AddedToken(piece.text, number, special=False))
    defined = {piece.text for piece in pieces if piece.kind == spm.USER_DEFINED}
    tokens = [
        replace(token, normalized=content in defined or (whole and content != IMAGE_TOKEN))
        for content, token in found.items()
    ]
    return sorted(tokens, key=lambda token: token.id)


def _row(token: AddedToken) -> dict[str, Any]:
    return {
        "id": token.id,
        "content": token.content,
        "single_word": False,
        "lstrip": token.lstrip,
        "rstrip": token.rstrip,
        "normalized": token.normalized,
        "special": token.special,
    }


def _normalizer(tokenizer: Tokenizer, added: Iterable[AddedToken]) -> dict[str, Any]:
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if not _prefixes(tokenizer):
        return {"type": "Sequence", "normalizers": [spaces]}
    spared = [f"[ {SPACE}]"] if tokenizer.kind == FAST_5 else []
    # The contents of tokens that are looked for after it go through the normalizer too, and must come out as they are.
    spared += [re.escape(token.content) + r"\z" * (not token.special) for token in added if token.normalized]
    if not spared:
        return {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, spaces]}
    begin = rf"\A(?!\z|{'|'.join(spared)})"
    return {
        "type": "Sequence",
        "normalizers": [{"type": "Replace", "pattern": {"Regex": begin}, "content": SPACE}, spaces],
    }


def _bos_in_front(tokenizer: Tokenizer) -> dict[str, Any] | None:
    if not tokenizer.add_bos:
        return None
    bos = tokenizer.token(tokenizer.bos_id)

    def begin(kind: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": bos, "type_id": kind}}

    def text(name: str, kind: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": kind}}

    return {
        "type": "TemplateProcessing",
        "single": [begin(0), text("A", 0)],
        "pair": [begin(0), text("A", 0), begin(1), text("B", 1)],
        "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos_id], "tokens": [bos]}},
    }


def _decoder(prefixed: bool) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    return {"type": "Sequence", "decoders": [*steps, strip] if prefixed else steps}


def _model(pieces: list[spm.Piece], tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": tokenizer.token(tokenizer.unk_id),
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": any(piece.kind == spm.BYTE for piece in pieces),
        "vocab": {piece.text: number for number, piece in enumerate(pieces)},
        "merges": _merges(pieces),
    }


def _merges(pieces: list[spm.Piece]) -> list[str]:
    """Every split of a piece into two others, the piece with the best score first, then by the ids of the two.

    As "left right", which all versions of the tokenizers package read; a piece holds no space.
    """
    ids = {piece.text: number for number, piece in enumerate(pieces) if piece.kind == spm.NORMAL}
    ranked = []
    for piece in pieces:
        if piece.kind == spm.NORMAL:
            halves = ((piece.text[:at], piece.text[at:]) for at in range(1, len(piece.text)))
            ranked += [(-piece.score, ids[a], ids[b], f"{a} {b}") for a, b in halves if a in ids and b in ids]
    return [merge for *_, merge in sorted(ranked, key=lambda row: row[:3])]
