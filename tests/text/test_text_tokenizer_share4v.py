# SPDX-License-Identifier: Apache-2.0
"""The tokenizer rules of share4v checkpoints (transformers 4.31)."""

import json

import pytest

from paddlemix.text.messages import Message
from paddlemix.text.render import render
from paddlemix.text.templates import get
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.utils.constants import IGNORE_INDEX
from paddlemix.utils.errors import CheckpointError
from tests.tiny import tiny_tokenizer_folder


def folder(tmp_path, model_type="share4v", legacy=False):
    path = tiny_tokenizer_folder(tmp_path / model_type, legacy=legacy)
    (path / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
    return path


def test_the_model_type_of_a_checkpoint_decides(tmp_path):
    assert load_tokenizer(folder(tmp_path)).kind == "slow_4_31"
    assert load_tokenizer(folder(tmp_path, "llava_llama")).kind == "slow"


def test_behind_a_special_token_the_dummy_space_is_cut_from_the_first_token(tmp_path):
    early = load_tokenizer(folder(tmp_path))
    with_space = [
        early.token(number) for number in load_tokenizer(folder(tmp_path), legacy=True).encode("USER red", bos=False)
    ]
    behind = [early.token(number) for number in early.encode("a</s>USER red", bos=False)]
    at = behind.index("</s>") + 1
    assert with_space[0].startswith("\u2581")
    assert behind[at:] == [part for part in (with_space[0][1:], *with_space[1:]) if part]


def test_a_text_behind_a_special_token_that_begins_with_a_space_keeps_all_of_it(tmp_path):
    early, legacy = load_tokenizer(folder(tmp_path)), load_tokenizer(folder(tmp_path), legacy=True)
    assert early.encode("a</s> red") == legacy.encode("a</s> red")


def test_offsets_name_the_characters_of_the_text(tmp_path):
    found = load_tokenizer(folder(tmp_path)).pieces("a</s>USER red")
    assert len(found.ids) == len(found.starts)
    assert found.starts == sorted(found.starts)
    assert 5 in found.starts


@pytest.mark.parametrize("legacy", [False, True])
def test_training_ids_up_to_an_answer_are_those_of_its_prompt(tmp_path, legacy):
    tokenizer = load_tokenizer(folder(tmp_path), legacy=legacy)
    talk = [Message("user", "<image>\nWhat is it?"), Message("assistant", "red"), Message("user", "\u00e9 why"),
            Message("assistant", "blue one"), Message("user", " two"), Message("assistant", "three")]  # fmt: skip
    whole = render(get("v1"), talk, tokenizer, answer_open=False)
    for end in (1, 3, 5):
        prompt = render(get("v1"), talk[:end], tokenizer, answer_open=True).ids
        assert whole.ids[: len(prompt)] == prompt
        assert whole.labels[len(prompt)] != IGNORE_INDEX
        assert whole.labels[len(prompt) - 1] == IGNORE_INDEX


def test_saving_keeps_the_kind(tmp_path):
    load_tokenizer(folder(tmp_path)).save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").kind == "slow_4_31"


def test_a_kind_nobody_knows_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="expected one of slow, slow_4_31, fast"):
        load_tokenizer(folder(tmp_path), kind="quick")
