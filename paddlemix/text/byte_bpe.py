# SPDX-License-Identifier: Apache-2.0
"""Byte-level BPE (Llama-3, Qwen, SmolLM): a ``tokenizer.json`` run by the library ``tokenizers``.

The library splits and merges what stands between added tokens; which tokens are cut out of a text, and where they stay
text, is decided by ``Tokenizer`` as for sentencepiece. There is no dummy space and no unknown character: every byte is
a piece, so a character may be several ids, and a stream waits for its last byte (``text/stream.py``).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddlemix.text.byte_files import steps_of
from paddlemix.text.spm_tokenizer import BYTES, Pieces, Tokenizer
from paddlemix.text.tokenizer_files import AddedToken, TokenizerFiles, write_byte_level
from paddlemix.utils.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

_REMEDY = "copy tokenizer.json from the base language model into this folder"
_STEPS = {
    "normalizer": ("NFC", "ByteLevel"),
    "pre_tokenizer": ("ByteLevel", "Split", "Digits"),
    "decoder": ("ByteLevel",),
}
"""Steps of the pipeline that are known to leave every byte of a text in its ids."""
_MODEL = {
    "type": ("BPE",),
    "dropout": (None, 0),
    "byte_fallback": (None, False),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
}


def byte_table() -> dict[str, int]:
    """The character that stands for each byte in a byte-level vocabulary: 256 characters to bytes.

    Printable bytes of Latin-1 stand for themselves, the others for the characters from U+0100 on, in order (GPT-2).
    """
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [value for value in range(256) if value not in shown]
    return {**{chr(value): value for value in shown}, **{chr(256 + i): value for i, value in enumerate(hidden)}}


class ByteTokenizer(Tokenizer):
    """A byte-level vocabulary with the added tokens and the rules of one checkpoint."""

    def __init__(self, files: TokenizerFiles) -> None:
        super().__init__(files, kind=BYTES, legacy=True)

    def _read_vocabulary(self, files: TokenizerFiles) -> None:
        data = files.pipeline
        _require_known(data, files.where)
        if files.roles.get("eos_token") is None:
            beside = "tokenizer_config.json and special_tokens_map.json"
            raise CheckpointError(
                f'{files.where}: no file beside it names the "eos_token" that ends an answer; copy {beside} from the '
                "base language model into this folder"
            )
        vocab = data["model"]["vocab"]
        self._pieces = sorted(vocab, key=vocab.__getitem__)
        if [vocab[piece] for piece in self._pieces] != list(range(len(self._pieces))):
            raise CheckpointError(f"{files.where}: the ids of its vocabulary are not 0 to n - 1; {_REMEDY}")
        self._table = byte_table()
        self._bare = self._prefixing = _library(data, files.where)
        self._byte_values = {}
        self._unk_pieces = 0
        self._drops_space = False

    # ---- facts -----------------------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """One more than the largest id that can come out of ``encode``."""
        return max([self.base_size, *(token.id + 1 for token in self._added.values())])

    @property
    def pad_id(self) -> int:
        """Id for padding: that of the pad token, of the unknown one, or of the one that ends a text."""
        for role in ("pad_token", "unk_token", "eos_token"):
            if self._roles[role]:
                return self._role_id(role)
        return 0

    def piece_bytes(self, number: int) -> bytes:
        """The bytes behind an id, which may be a part of a character. CheckpointError outside of the vocabulary."""
        return _bytes_of(self.token(number), self._table)

    # ---- text to ids and back --------------------------------------------------------------------------------

    def _segment(self, text: str, *, first: bool, then: AddedToken | None, offsets: bool) -> Pieces:
        del first, then
        return self._spm(self._bare, text, 0, offsets)

    def _spm(self, processor: "Library", text: str, skip: int, offsets: bool) -> Pieces:
        """Ids of a text without added tokens, and where each one's character stands."""
        del skip, offsets
        found = processor.encode(text, add_special_tokens=False)
        return Pieces(found.ids, [begin for begin, _ in found.offsets])

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of ids. ``skip_special`` leaves out special tokens; bytes that are no valid UTF-8 become U+FFFD."""
        kept = (int(number) for number in ids if not (skip_special and int(number) in self._special_ids))
        return b"".join(map(self.piece_bytes, kept)).decode("utf-8", "replace")

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json`` and the other JSON files; ``load_tokenizer`` gives the same tokenizer back."""
        config = {"clean_up_tokenization_spaces": False} | self.files.config | {"add_bos_token": self.add_bos}
        write_byte_level(folder, self.files.pipeline, config, self.added_tokens, self._roles)


def _bytes_of(piece: str, table: dict[str, int]) -> bytes:
    """The bytes that a piece spells; a piece with a character that stands for no byte is its own text."""
    values = [table.get(char) for char in piece]
    return piece.encode() if None in values else bytes(values)


def _require_known(data: dict[str, Any], where: str) -> None:
    model = data.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict) or not model["vocab"]:
        raise CheckpointError(f'{where}: its "model" has no vocabulary; {_REMEDY}')
    for key, accepted in _MODEL.items():
        if model.get(key) not in accepted:
            raise CheckpointError(f'{where}: "model.{key}" is {model[key]!r}, which is not supported; {_REMEDY}')
    if any(type(number) is not int for number in model["vocab"].values()):
        raise CheckpointError(f"{where}: an id of its vocabulary is no whole number; {_REMEDY}")
    for part, known in _STEPS.items():
        for step in steps_of(data.get(part), part):
            kind = step.get("type") if isinstance(step, dict) else None
            if kind not in known:
                raise CheckpointError(
                    f"{where}: its {part} has the step {str(kind)!r}; byte-level ones with {', '.join(known)} are read"
                )
            if step.get("behavior") == "Removed":
                raise CheckpointError(
                    f'{where}: its {part} has a step that takes characters out ("Removed"); {_REMEDY}'
                )
            if step.get("add_prefix_space") and kind == "ByteLevel" and part == "pre_tokenizer":
                raise CheckpointError(f"{where}: a space in front of every text (add_prefix_space) is not supported")


def _library(data: dict[str, Any], where: str) -> "Library":
    """The pipeline without its added tokens, which are cut out before, and without templates."""
    from tokenizers import Tokenizer as Library  # here: other checkpoints need no such library

    bare = {**data, "added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    bare["model"] = {**data["model"], "unk_token": None}
    try:
        return Library.from_str(json.dumps(bare))
    except Exception as error:
        raise CheckpointError(f"{where}: tokenizers cannot read it ({error}); {_REMEDY}") from error
