# SPDX-License-Identifier: Apache-2.0
"""Small tokenizers and strategies that the text tests share."""

import functools
import io
import json
import tempfile
from pathlib import Path

from hypothesis import strategies as st

from paddlemix.text import spm
from paddlemix.text.tokenizer import Tokenizer, load_tokenizer

SPECIALS = ("<s>", "</s>", "<unk>", "<im_start>", "<im_end>", "[INST]", "###", "ASSISTANT:", "USER:", "<|im_end|>")
KINDS = ({"legacy": False}, {"legacy": True}, {"kind": "fast"}, {"kind": "fast_5", "legacy": False}, {"kind": "fast_5"})

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


def fast_json(model: bytes, scheme: str = "prepend", *, bos: bool = True, extra: tuple[str, ...] = ()) -> dict:
    """The tokenizer.json that transformers makes of a model file, by the algorithm of its convert_slow_tokenizer.

    ``scheme``: "prepend" as version 4 writes it ("replace": without a dummy space), or the ``prepend_scheme`` of
    version 5; ``extra``: tokens added behind the vocabulary.
    """
    import sentencepiece

    sp = sentencepiece.SentencePieceProcessor(model_proto=model)
    vocab = {sp.id_to_piece(number): number for number in range(len(sp))}
    merges = []
    for piece, number in vocab.items():
        splits = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        known = [pair for pair in splits if pair[0] in vocab and pair[1] in vocab]
        merges += [(sp.get_score(number), pair) for pair in sorted(known, key=lambda x: (vocab[x[0]], vocab[x[1]]))]
    merges = [pair for _, pair in sorted(merges, key=lambda item: item[0], reverse=True)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    kinds = {piece.text: piece.kind for piece in spm.read_model(model)}
    added = [{"id": vocab[t], "content": t, **flags, "special": k != 4} for t, k in kinds.items() if k in (2, 3, 4)]
    added += [{"id": len(vocab) + i, "content": t, **flags, "special": True} for i, t in enumerate(extra)]
    step = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    steps = [{"type": "Prepend", "prepend": "\u2581"}, step][scheme == "replace" :]
    old = scheme in ("prepend", "replace")
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": False}
    decoders = [{**step, "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    template = [{"SpecialToken": {"id": "<s>", "type_id": 0}}] * bos + [{"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": steps} if old else None,
        "pre_tokenizer": None if old else metaspace,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": template,
            "pair": template,
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": decoders + [strip] * (scheme not in ("never", "replace"))},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": [" ".join(pair) if old else list(pair) for pair in merges],
        },
    }


def json_folder(data: dict, **config: object) -> Path:
    """A new tokenizer folder without ``tokenizer.model``."""
    path = Path(tempfile.mkdtemp(prefix="text-"))
    (path / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path
