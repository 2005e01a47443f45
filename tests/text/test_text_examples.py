# SPDX-License-Identifier: Apache-2.0
"""The worked examples in the docstrings of the hard algorithms give what stands below them."""

import doctest
import json

import pytest

from paddlemix.text import render, spm, spm_rebuild, templates, tokenizer
from paddlemix.text.messages import Message

SPECIAL = ["<unk>", "<s>", "</s>"]
PIECES = [*SPECIAL, *(f"<0x{value:02X}>" for value in range(256)), "▁", "h", "i", "x", "▁h", "hi", "▁hi", "▁x"]
MERGES = ["▁ h", "h i", "▁ hi", "▁h i", "▁ x"]
SPACES = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
FILE = {
    "model": {
        "type": "BPE",
        "byte_fallback": True,
        "unk_token": "<unk>",
        "vocab": {piece: number for number, piece in enumerate(PIECES)},
        "merges": MERGES,
    },
    "added_tokens": [{"id": number, "content": text, "special": True} for number, text in enumerate(SPECIAL)],
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    },
    "decoder": {
        "type": "Sequence",
        "decoders": [
            SPACES,
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    },
}
CONFIG = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """What the examples speak of: ``folder`` with a tokenizer of a few pieces, and ``tokenizer``."""
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "tokenizer.json").write_text(json.dumps(FILE), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    names = {"folder": folder, "tokenizer": tokenizer.load_tokenizer(folder), "Message": Message, "spm": spm}
    return {**names, "Template": templates.Template, "Answer": templates.Answer}


@pytest.mark.parametrize(
    ("documented", "name"), [(tokenizer, "tokenizer"), (render.render, "render"), (spm_rebuild.rebuild, "rebuild")]
)
def test_the_examples_give_what_stands_below_them(documented, name, given, capsys):
    tests = doctest.DocTestFinder(recurse=False).find(documented, name, extraglobs=given)
    assert sum(len(test.examples) for test in tests) >= 5
    for test in tests:
        failed = doctest.DocTestRunner(verbose=False).run(test).failed
        assert failed == 0, capsys.readouterr().out
