# SPDX-License-Identifier: Apache-2.0
"""A tokenizer folder in, its tokenizer out: sentencepiece or byte-level, by the files that are there.

The segments of one text under the rules of ``spm_tokenizer``, by a vocabulary with the pieces "▁", "x" and "▁x":

    >>> for kind, legacy in (("slow", True), ("slow", False), ("slow_4_31", False), ("fast", True), ("fast_5", False)):
    ...     tokenizer = load_tokenizer(folder, kind=kind, legacy=legacy)
    ...     print(kind, legacy, *map(tokenizer.token, tokenizer.encode("x</s>x</s> x", bos=False)))
    slow True ▁x </s> ▁x </s> ▁ ▁x
    slow False ▁x </s> x </s> ▁x
    slow_4_31 False ▁x </s> x </s> ▁ ▁x
    fast True ▁x </s> ▁x </s> ▁ ▁x
    fast_5 False ▁x </s> x </s> ▁x

``pieces`` gives the character that each id starts at, which is how labels find their tokens (``text/render.py``). In a
``plain`` span of characters a special token is text like any other, here in byte pieces:

    >>> tokenizer = load_tokenizer(folder, kind="slow", legacy=False)
    >>> found = tokenizer.pieces("x</s>x")
    >>> [(tokenizer.token(number), start) for number, start in zip(found.ids, found.starts)]
    [('▁x', 0), ('</s>', 1), ('x', 5)]
    >>> print(*map(tokenizer.token, tokenizer.pieces("x</s>x", plain=[(1, 5)]).ids))
    ▁x <0x3C> <0x2F> <0x73> <0x3E> x
"""

from pathlib import Path

from paddlemix.text.byte_bpe import ByteTokenizer
from paddlemix.text.spm_tokenizer import BYTES as BYTES
from paddlemix.text.spm_tokenizer import FAST_5 as FAST_5
from paddlemix.text.spm_tokenizer import FAST_KINDS as FAST_KINDS
from paddlemix.text.spm_tokenizer import KINDS as KINDS
from paddlemix.text.spm_tokenizer import SLOW as SLOW
from paddlemix.text.spm_tokenizer import SLOW_4_31 as SLOW_4_31
from paddlemix.text.spm_tokenizer import Pieces as Pieces
from paddlemix.text.spm_tokenizer import Span as Span
from paddlemix.text.spm_tokenizer import Tokenizer as Tokenizer
from paddlemix.text.tokenizer_files import read_files
from paddlemix.utils.errors import CheckpointError


def load_tokenizer(folder: str | Path, *, kind: str | None = None, legacy: bool | None = None) -> Tokenizer:
    """Tokenizer of a model folder (original LLaVA, llava-hf or our own).

    Needs ``tokenizer.model``, a ``tokenizer.json`` that came from one (``spm_rebuild``), or a byte-level
    ``tokenizer.json`` (``byte_bpe``; Qwen's ``vocab.json`` and ``merges.txt`` will do); reads
    ``tokenizer_config.json``, ``special_tokens_map.json``, ``added_tokens.json`` and the added tokens of
    ``tokenizer.json`` when they are there. ``kind`` (one of ``KINDS``) and ``legacy`` override what the files say.
    CheckpointError names a file that is missing or damaged.
    """
    files = read_files(folder)
    if files.pipeline:
        if kind not in (None, BYTES):
            raise CheckpointError(f'{files.where}: its kind is "{BYTES}" and cannot be "{kind}"')
        return ByteTokenizer(files)
    kind = kind or files.kind
    # transformers takes a missing or null "legacy" as True
    legacy = files.config.get("legacy") is not False if legacy is None else legacy
    return Tokenizer(files, kind=kind, legacy=legacy)
