# SPDX-License-Identifier: Apache-2.0
"""What a byte-level ``tokenizer.json`` is known by, and one made of Qwen's ``vocab.json`` and ``merges.txt``."""

from typing import Any

from paddlemix.utils.foreign import JsonValue


def pipeline_of_vocabulary(vocab: dict[str, int], merges: list[str]) -> dict[str, Any]:
    """The content of a ``tokenizer.json`` for Qwen's ``vocab.json`` and ``merges.txt`` (lines without the heading).

    The pattern that splits a text is that of transformers' Qwen2 tokenizers, the only family here that is published
    with these two files alone.
    """
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
        r"\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, step]},
        "post_processor": step,
        "decoder": step,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": vocab, "merges": merges,
        },
    }  # fmt: skip


def steps_of(value: JsonValue, part: str) -> list[Any]:
    """The steps of a part of the pipeline: of a Sequence its members, one by one."""
    if isinstance(value, dict) and value.get("type") == "Sequence":
        inner = next((value[name] for name in (f"{part}s", "pretokenizers") if name in value), None)
        return [step for item in inner for step in steps_of(item, part)] if isinstance(inner, list) else [value]
    return [] if value is None else [value]


def is_byte_level(data: dict[str, Any]) -> bool:
    """Whether the content of a ``tokenizer.json`` turns bytes into characters before it looks for pieces."""
    found = [step for part in ("pre_tokenizer", "normalizer") for step in steps_of(data.get(part), part)]
    return any(isinstance(step, dict) and step.get("type") == "ByteLevel" for step in found)
