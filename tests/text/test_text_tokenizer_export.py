"""tokenizer.json that we write gives our ids in the library that transformers reads it with."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddlemix.text.spm_export import tokenizer_json
from paddlemix.text.tokenizer import Tokenizer, load_tokenizer
from paddlemix.utils.constants import IMAGE_TOKEN
from paddlemix.utils.errors import CheckpointError
from tests.text.text_tools import KINDS, folder, model_bytes, nasty, texts

tokenizers = pytest.importorskip("tokenizers", reason="the package tokenizers comes with paddlenlp")

RULES = [*KINDS, {"kind": "slow_4_31", "legacy": True}]
USERS = ("?", "\u4f60\u597d", "<|x|>")


def pair(symbols: tuple[str, ...] = (), **rules: object):
    ours = load_tokenizer(folder(model_bytes(symbols=symbols)), **rules)
    ours.add_special(["<im_start>", "<im_end>", IMAGE_TOKEN, "<pad>"])
    return ours, library(ours)


def library(ours: Tokenizer):
    return tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(ours)[0], ensure_ascii=False))


def with_image_tokens(ours: Tokenizer, text: str, **options: bool) -> list[int]:
    image = ours.token_id(IMAGE_TOKEN)
    return [image if number < 0 else number for number in ours.encode_with_images(text, **options)]


PAIRS = [pair(**rules) for rules in RULES]


@given(st.lists(st.one_of(nasty, st.just(IMAGE_TOKEN), st.just("</s>"), st.just(" ")), max_size=6).map("".join))
@settings(max_examples=150, deadline=None)
def test_ids_equal_ours_under_every_rule(text):
    for ours, theirs in PAIRS:
        assert theirs.encode(text).ids == with_image_tokens(ours, text), (ours.kind, ours.legacy)


@pytest.mark.parametrize("number", range(len(RULES)))
def test_a_conversation_of_two_rounds_with_a_picture_has_our_ids(number):
    ours, theirs = PAIRS[number]
    text = "A chat. USER: <image>\nthe cat ASSISTANT: a red mat</s>USER:  two?\n\n ASSISTANT:"
    ids = with_image_tokens(ours, text)
    assert theirs.encode(text).ids == ids
    assert ids[0] == ours.bos_id
    assert theirs.encode(text, add_special_tokens=False).ids == ids[1:]
    after = ids[ids.index(ours.token_id(IMAGE_TOKEN)) + 1]
    assert ours.token(after) == "\u2581"  # the space that a rule of the text as a whole would lose


@given(texts)
@settings(max_examples=50, deadline=None)
def test_decoding_gives_our_text(text):
    for ours, theirs in PAIRS:
        if ours.kind.startswith("fast"):
            ids = ours.encode(text)
            assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids)


def test_pieces_that_a_person_defined_stay_whole():
    for rules in RULES:
        ours, theirs = pair(USERS, **rules)
        for text in ("what is the cat?", "the cat \u4f60\u597d!", "a <|x|> red?\u4f60", "? the"):
            assert theirs.encode(text).ids == ours.encode(text), (rules, text)


def test_without_a_begin_token_and_without_a_dummy_space():
    from paddlemix.text import spm

    bare = model_bytes() + spm.WITHOUT_DUMMY_PREFIX
    for rules in RULES:
        ours = load_tokenizer(folder(bare, add_bos_token=False), **rules)
        ours.add_special([IMAGE_TOKEN])
        for text in ("the cat", " a</s>red", "the<image> mat"):
            assert library(ours).encode(text).ids == with_image_tokens(ours, text), (rules, text)


def test_what_the_file_cannot_express_is_told():
    ours, _ = pair(kind="slow_4_31", legacy=False)
    assert "other ids there" in tokenizer_json(ours)[2]
    assert [tokenizer_json(other)[2] for other, _ in PAIRS] == [None] * len(PAIRS)


def test_a_vocabulary_that_changes_the_text_is_refused():
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: it changes the text before it splits it"):
        tokenizer_json(load_tokenizer(folder(model_bytes(normal=True))))


def test_the_file_alone_loads_as_the_same_vocabulary(tmp_path):
    """Without tokenizer.model our reader takes the usual pipeline back; the other one has no sentencepiece rule."""
    ours, _ = pair(legacy=True)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_json(ours)[0]))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"legacy": True}))
    again = load_tokenizer(tmp_path)
    for text in ("the cat", " a</s>red", "what is 0123"):
        assert again.encode(text) == ours.encode(text)
