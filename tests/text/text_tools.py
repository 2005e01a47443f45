# SPDX-License-Identifier: Apache-2.0
"""Small tokenizers and strategies that the text tests share."""

import functools
import io
import json
import tempfile
from pathlib import Path

from hypothesis import strategies as st

from paddlemix.text.tokenizer import Tokenizer, load_tokenizer

SPECIALS = ("<s>", "</s>", "<unk>", "<im_start>", "<im_end>", "[INST]", "###", "ASSISTANT:", "USER:", "<|im_end|>")
KINDS = ({"legacy": False}, {"legacy": True}, {"kind": "fast"})

words = st.sampled_from(
    ["the cat", "a red mat", "Hello", "  two", "end ", "\n", "- item 1\n", "0123", "\u4f60\u597d", "\U0001f600"]
)
texts = st.lists(st.one_of(words, st.text(max_size=6)), max_size=4).map("".join)
nasty = st.lists(st.one_of(words, st.sampled_from(SPECIALS), st.text(max_size=4)), max_size=5).map("".join)


@functools.cache
def model_bytes(normal: bool = False, symbols: tuple[str, ...] = ()) -> bytes:
    """A sentencepiece BPE model: as Llama's (no normalization), or with sentencepiece's own defaults (``normal``)."""
    import sentencepiece

    lines = ["USER: what is the cat doing? ASSISTANT: the cat is on a red mat."] * 5
    lines += [" ".join(sorted(set(lines[0].split()), key=lambda word: (len(word) * k) % 7)) for k in range(30)]
    model = io.BytesIO()
    own = {} if normal else {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=360, model_type="bpe", byte_fallback=True,
        split_digits=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, hard_vocab_limit=False, minloglevel=2,
        num_threads=1, allow_whitespace_only_pieces=not normal, user_defined_symbols=list(symbols), **own,
    )  # fmt: skip
    return model.getvalue()


def folder(model: bytes | None = None, **config: object) -> Path:
    """A new tokenizer folder."""
    path = Path(tempfile.mkdtemp(prefix="text-"))
    (path / "tokenizer.model").write_bytes(model_bytes() if model is None else model)
    (path / "tokenizer_config.json").write_text(json.dumps({"legacy": False, "model_max_length": 99} | config))
    return path


@functools.cache
def tokenizer(kind: int = 0, normal: bool = False) -> Tokenizer:
    """A tokenizer with the image tokens added; ``kind`` is an index of KINDS."""
    found = load_tokenizer(folder(model_bytes(normal)), **KINDS[kind])
    found.add_special(["<im_start>", "<im_end>"])
    return found
