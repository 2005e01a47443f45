# SPDX-License-Identifier: Apache-2.0
"""Text to ids and back: the only place that knows the rules of bos, special tokens, ``legacy`` and slow or fast.

The rules are those of the LLaVA originals' tokenizer (transformers 4.37, LlamaTokenizer and LlamaTokenizerFast):

- special and added tokens are cut out first, leftmost and longest match; what stands between goes to sentencepiece;
- ``legacy=True`` and the fast kind: each such piece of text gets the dummy space in front ("</s>x" -> "▁x");
- ``legacy=False``: only the text as a whole gets it ("</s>x" -> "x");
- slow and fast differ in decoding: invalid UTF-8 in byte pieces, and spaces beside special tokens;
- the kind slow_4_31 (transformers 4.31, which share4v models were trained with) with ``legacy=False``: each piece of
  text gets the dummy space and then loses it from its first token ("</s>USER" -> "US", "ER" where 4.37 has "USER");
- the kind fast_5 (transformers 5, whose folders hold ``tokenizer.json`` alone) gives no dummy space to a text that
  begins with a space, and with ``legacy=False`` only to the text as a whole.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sentencepiece

from paddlemix.text import spm
from paddlemix.text.batching import encode_rows
from paddlemix.text.tokenizer_files import ROLES, AddedToken, TokenizerFiles, write_files
from paddlemix.utils.constants import IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from paddlemix.utils.errors import CheckpointError
from paddlemix.utils.foreign import require_characters

SPACE = "\u2581"
SLOW, SLOW_4_31, FAST, FAST_5 = "slow", "slow_4_31", "fast", "fast_5"
KINDS = (SLOW, SLOW_4_31, FAST, FAST_5)
BYTES = "byte_bpe"
"""The kind of ``byte_bpe.ByteTokenizer``, which has no sentencepiece vocabulary and none of the rules above."""
FAST_KINDS = (FAST, FAST_5)
Span = tuple[int, int]


@dataclass(frozen=True)
class Pieces:
    """Ids of one text and, for each, the index of the first character it stands for."""

    ids: list[int]
    starts: list[int]


class Tokenizer:
    """A sentencepiece vocabulary with the added tokens and the rules of one checkpoint."""

    def __init__(self, files: TokenizerFiles, *, kind: str = "slow", legacy: bool = True) -> None:
        if kind not in (*KINDS, BYTES):
            raise CheckpointError(f'{files.where}: tokenizer kind "{kind}"; expected one of {", ".join(KINDS)}')
        self.kind = kind
        self.legacy = legacy
        self.add_bos = bool(files.config.get("add_bos_token", True))
        self.model_max_length = files.model_max_length
        self.files = files
        self._read_vocabulary(files)
        self._base_ids = {piece: i for i, piece in enumerate(self._pieces)}
        self._roles = dict(files.roles)
        self._added: dict[str, AddedToken] = {}
        self._enter([*files.added, *self._role_tokens(files.added)])

    def _read_vocabulary(self, files: TokenizerFiles) -> None:
        try:
            pieces = spm.read_model(files.model)
        except ValueError as error:
            raise CheckpointError(
                f"{files.where}: not a sentencepiece model ({error}); copy the file of the base language model again"
            ) from error
        self._pieces = [piece.text for piece in pieces]
        self._byte_values = {i: int(p.text[3:5], 16) for i, p in enumerate(pieces) if p.kind == spm.BYTE}
        self._prefixing = self._processor(files.model)
        self._bare = self._processor(files.model + spm.WITHOUT_DUMMY_PREFIX)
        self._drops_space = self.kind != FAST_5 or self._prefixing.encode("x") != self._bare.encode("x")
        self._unk_pieces = len(self._bare.encode(files.roles["unk_token"] or ""))

    # ---- facts -----------------------------------------------------------------------------------------------

    @property
    def added_tokens(self) -> list[AddedToken]:
        """The tokens that are cut out of a text."""
        return sorted(self._added.values(), key=lambda token: token.id)

    @property
    def base_size(self) -> int:
        """Pieces in ``tokenizer.model``, without added tokens."""
        return len(self._pieces)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id that can come out of ``encode``."""
        return max(self.base_size, *(token.id + 1 for token in self._added.values()))

    @property
    def bos_id(self) -> int | None:
        """Id of the token a text begins with; None for a byte-level vocabulary without one."""
        return self._role_id("bos_token") if self._roles["bos_token"] else None

    @property
    def eos_id(self) -> int:
        """Id of the token an answer ends with."""
        return self._role_id("eos_token")

    @property
    def unk_id(self) -> int:
        """Id of the unknown token."""
        return self._role_id("unk_token")

    @property
    def pad_id(self) -> int:
        """Id for padding. Without a pad token it is the unknown token, as LLaVA sets it (train.py)."""
        return self._role_id("pad_token" if self._roles["pad_token"] else "unk_token")

    @property
    def padding_side(self) -> str:
        """Side that the files ask to pad on; "right" when they say nothing."""
        return self.files.config.get("padding_side", "right")

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that ``decode`` leaves out with ``skip_special``."""
        return self._special_ids

    def token_id(self, token: str) -> int | None:
        """Id of an added token or a vocabulary piece; None when there is none."""
        if token in self._added:
            return self._added[token].id
        return self._base_ids.get(token)

    def token(self, number: int) -> str:
        """The piece or added token behind an id. CheckpointError when the id is outside the vocabulary."""
        if number in self._contents:
            return self._contents[number]
        if not 0 <= number < self.base_size:
            raise CheckpointError(
                f"{self.files.where}: token id {number} is outside the vocabulary of {self.vocab_size}; "
                "model and tokenizer do not belong together"
            )
        return self._pieces[number]

    def is_byte(self, number: int) -> bool:
        """True for a byte piece (one byte of a character that is not in the vocabulary)."""
        return number in self._byte_values

    def piece_bytes(self, number: int) -> bytes:
        """The byte of a byte piece."""
        return bytes([self._byte_values[number]])

    def is_added(self, number: int) -> bool:
        """True for an added or special token."""
        return number in self._contents

    # ---- text to ids -----------------------------------------------------------------------------------------

    def encode(self, text: str, *, bos: bool = True, specials: bool = True) -> list[int]:
        """Ids of a text.

        ``bos`` puts the begin token in front if the tokenizer's files ask for one (``add_bos_token``).
        ``specials=False`` treats "</s>" and the like as plain characters: no special id comes out of the text.
        DataError for half of a surrogate pair, which is no character.
        """
        plain = () if specials else ((0, len(text)),)
        return [self.bos_id] * (bos and self.add_bos) + self._run(text, plain, offsets=False).ids

    def encode_with_images(self, text: str, *, bos: bool = True, specials: bool = True) -> list[int]:
        """Like ``encode``, with IMAGE_TOKEN_INDEX at each ``<image>``.

        Each piece of text between the places is encoded alone, with its own dummy space ("\\nx" -> "▁", "\\n", "x"),
        as the original does (tokenizer_image_token).
        """
        ids = [self.bos_id] * (bos and self.add_bos)
        for i, chunk in enumerate(text.split(IMAGE_TOKEN)):
            ids += [IMAGE_TOKEN_INDEX] * (i > 0) + self.encode(chunk, bos=False, specials=specials)
        return ids

    def __call__(self, text: str | Sequence[str], *, padding: bool = False, side: str = "left") -> dict[str, Any]:
        """``input_ids`` and ``attention_mask`` of one or several texts (``batching.encode_rows``)."""
        return encode_rows(self, text, padding=padding, side=side)

    def pieces(self, text: str, *, plain: Sequence[Span] = ()) -> Pieces:
        """Ids without bos, and the character each one starts at.

        Special tokens inside (or across the edge of) a ``plain`` span of characters are not parsed. The dummy space
        starts at the first character of its text; the byte pieces of one character all start at it.
        """
        return self._run(text, plain, offsets=True)

    def _run(self, text: str, plain: Sequence[Span], offsets: bool) -> Pieces:
        require_characters(text)
        ids: list[int] = []
        starts: list[int] = []
        at, last = 0, None
        for match in [*self._matches(text, plain), None]:
            begin, end = match.span() if match else (len(text), len(text))
            token = self._added[match.group()] if match else None
            here = text[at:begin]
            if last and last.rstrip:
                here = here.lstrip()
                at = begin - len(here)
            if token and token.lstrip:
                here = here.rstrip()
            found = self._segment(here, first=at == 0, then=token, offsets=offsets or bool(plain))
            if plain:
                found = self._without_specials(found, here, first=at == 0)
            ids += found.ids
            starts += [at + start for start in found.starts]
            if token:
                ids.append(token.id)
                starts.append(begin)
            at, last = end, token
        return Pieces(ids, starts)

    def _matches(self, text: str, plain: Sequence[Span]) -> list[re.Match[str]]:
        return [m for m in self._pattern.finditer(text) if not any(m.start() < b and a < m.end() for a, b in plain)]

    def _segment(self, text: str, *, first: bool, then: AddedToken | None, offsets: bool) -> Pieces:
        """Pieces of the text between two special tokens; ``first`` when nothing stands before it."""
        if self.kind == FAST_5:
            spaced = (self.legacy or first) and not text.startswith((SPACE, " "))
            return self._spm(self._prefixing if spaced else self._bare, text, 0, offsets) if text else Pieces([], [])
        if self.legacy or self.kind != SLOW:
            found = self._spm(self._prefixing, text, 0, offsets) if text else Pieces([], [])
            cut = self.kind == SLOW_4_31 and not self.legacy and not first and not text.startswith(" ")
            return self._without_space(found) if cut else found
        if first and not text and (then is None or then.special):
            return Pieces([], [])
        whole = SPACE + text if first else text
        if not whole.startswith((SPACE, " ")):
            return self._spm(self._bare, whole, 0, offsets)
        # The unknown token in front keeps sentencepiece from dropping the leading spaces of some vocabularies.
        unk = self._roles["unk_token"] or ""
        found = self._spm(self._bare, unk + whole, len(unk) + len(whole) - len(text), offsets)
        count = self._unk_pieces
        return Pieces(found.ids[count:], found.starts[count:])

    def _without_space(self, found: Pieces) -> Pieces:
        """The pieces with the dummy space taken from the first one; what is left of it may be unknown."""
        first = self._pieces[found.ids[0]] if found.ids else ""
        if not first.startswith(SPACE):
            return found
        if len(first) == 1:
            return Pieces(found.ids[1:], found.starts[1:])
        return Pieces([self._base_ids.get(first[1:], self.unk_id), *found.ids[1:]], found.starts)

    def _spm(self, processor: sentencepiece.SentencePieceProcessor, text: str, skip: int, offsets: bool) -> Pieces:
        """Encode; ``skip`` characters in front belong to us, so character ``skip`` of ``text`` is number 0."""
        if not offsets:
            return Pieces(processor.encode(text), [])
        encoded = spm.read_encoded(processor.encode(text, out_type="serialized_proto"))
        if text.isascii():
            return Pieces([number for number, _ in encoded], [max(0, begin - skip) for _, begin in encoded])
        chars = [i for i, char in enumerate(text) for _ in range(len(char.encode("utf-8", "replace")))] + [len(text)]
        return Pieces([number for number, _ in encoded], [max(0, chars[begin] - skip) for _, begin in encoded])

    def _without_specials(self, found: Pieces, text: str, first: bool) -> Pieces:
        """Break up special tokens that sentencepiece itself found in plain text (user-defined pieces of its model)."""
        hit = next((i for i, number in enumerate(found.ids) if number in self._contents), None)
        if hit is None:
            return found
        cut = found.starts[hit] + 1
        left = self._segment(text[:cut], first=first, then=None, offsets=True)
        right = self._spm(self._bare, text[cut:], 0, True)
        left = self._without_specials(left, text[:cut], first)
        right = self._without_specials(right, text[cut:], False)
        return Pieces(left.ids + right.ids, left.starts + [cut + start for start in right.starts])

    # ---- ids to text -----------------------------------------------------------------------------------------

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of ids. ``skip_special`` leaves out special tokens; otherwise they appear as they are written.

        Bytes that are no valid UTF-8 become U+FFFD: one each in the slow kind; the fast kind replaces every byte of a
        run of byte pieces as soon as one of them is invalid.
        """
        tokens = [int(number) for number in ids if not (skip_special and int(number) in self._special_ids)]
        return self._decode_fast(tokens) if self.kind in FAST_KINDS else self._decode_slow(tokens)

    def _decode_slow(self, ids: list[int]) -> str:
        parts: list[str] = []
        run: list[int] = []
        for number in ids:
            if number in self._contents and number not in self._role_ids:
                parts += [self._string(run)] if run else []
                parts.append(self._contents[number])
                run = []
            else:
                run.append(number)
        parts += [self._string(run)] if run else []
        return " ".join(part for part in parts if part)

    def _string(self, ids: list[int]) -> str:
        tokens = [self.token(number) for number in ids]
        if tokens[0].startswith(SPACE):
            tokens[0] = tokens[0][1:]
        spaced = self.legacy or self.kind == SLOW_4_31
        processor = self._prefixing if spaced else self._bare
        out, run, after_special = "", [], False
        for i, number in enumerate(ids):
            if number not in self._contents:
                run.append(tokens[i])
                after_special = False
                continue
            out += " " if spaced and i and not after_special else ""
            out += (processor.decode(run) if run else "") + tokens[i]
            run, after_special = [], True
        return out + (processor.decode(run) if run else "")

    def _decode_fast(self, ids: list[int]) -> str:
        out: list[str] = []
        run = bytearray()
        for number in ids:
            if number in self._byte_values:
                run.append(self._byte_values[number])
                continue
            out += [_run_of_bytes(run), self.token(number).replace(SPACE, " ")]
            run.clear()
        text = "".join([*out, _run_of_bytes(run)])
        return text[1:] if text.startswith(" ") and self._drops_space else text

    # ---- changes and files -----------------------------------------------------------------------------------

    def add_special(self, tokens: Sequence[str]) -> int:
        """Make each token special, in order; returns how many got a new id (at the end of the vocabulary)."""
        size = self.vocab_size
        for content in tokens:
            require_characters(content)
            known = self.token_id(content)
            token = self._added.get(content) or AddedToken(content, self.vocab_size if known is None else known)
            self._enter([replace(token, special=True)])
        return self.vocab_size - size

    def drop(self, content: str) -> None:
        """Forget an added token: what is written like it is plain text from now on."""
        del self._added[content]
        self._roles = {role: None if name == content else name for role, name in self._roles.items()}
        self._enter([])

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.model`` and the JSON files; ``load_tokenizer`` gives the same tokenizer back."""
        own = {"legacy": self.legacy, "tokenizer_kind": self.kind, "add_bos_token": self.add_bos}
        config = {"add_eos_token": False, "clean_up_tokenization_spaces": False} | self.files.config | own
        write_files(folder, replace(self.files, config=config), self.added_tokens, self._roles)

    def _enter(self, tokens: Sequence[AddedToken]) -> None:
        for token in tokens:
            self._added[token.content] = token
        self._contents = {token.id: token.content for token in self._added.values()}
        self._special_ids = frozenset(token.id for token in self._added.values() if token.special)
        self._role_ids = {self._added[name].id for name in self._roles.values() if name in self._added}
        longest_first = sorted(self._added, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)))

    def _role_tokens(self, known: list[AddedToken]) -> list[AddedToken]:
        """Bos, eos, unk and pad as added tokens, unless the files list them already."""
        listed = {token.content for token in known}
        size = max([self.base_size, *(token.id + 1 for token in known)])
        found: list[AddedToken] = []
        for role in ROLES:
            content = self._roles[role]
            if content is None or content in listed:
                continue
            number = self._base_ids.get(content)
            if number is None and role != "pad_token":
                raise CheckpointError(
                    f'{self.files.where}: its vocabulary has no {role} "{content}"; '
                    f"{Path(self.files.where).name} and tokenizer_config.json do not belong together"
                )
            listed.add(content)
            found.append(AddedToken(content, size if number is None else number))
        return found

    def _role_id(self, role: str) -> int:
        return self._added[self._roles[role] or ""].id

    def _processor(self, model: bytes) -> sentencepiece.SentencePieceProcessor:
        try:
            return sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise CheckpointError(
                f"{self.files.where}: sentencepiece cannot read it ({error}); copy the file of the base model again"
            ) from error


def _run_of_bytes(run: bytearray) -> str:
    try:
        return run.decode("utf-8")
    except UnicodeDecodeError:
        return "\ufffd" * len(run)
