# SPDX-License-Identifier: Apache-2.0
"""Tokenizer: files, special tokens, offsets, decoding."""

import contextlib
import json

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from paddlemix.text import spm
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.utils.constants import IMAGE_TOKEN_INDEX
from paddlemix.utils.errors import CheckpointError, DataError
from tests.text.text_tools import KINDS, folder, model_bytes, nasty, texts, tokenizer
from tests.tiny import tokenizer_model

kinds = st.integers(0, len(KINDS) - 1)


@given(nasty, kinds, st.booleans())
@settings(max_examples=150, deadline=None)
@example("</s>\u2581x \ufb01", 0, True)
def test_offsets_belong_to_the_same_ids_as_plain_encoding(text, kind, normal):
    found = tokenizer(kind, normal).pieces(text)
    assert found.ids == tokenizer(kind, normal).encode(text, bos=False)
    assert found.starts == sorted(found.starts)
    assert all(0 <= start <= len(text) for start in found.starts)


@given(texts, kinds)
@settings(max_examples=150, deadline=None)
def test_characters_between_offsets_are_the_text_of_the_token(text, kind):
    ours = tokenizer(kind)
    found = ours.pieces(text, plain=((0, len(text)),))
    for start in set(found.starts):
        end = min((other for other in found.starts if other > start), default=len(text))
        here = [number for number, other in zip(found.ids, found.starts, strict=True) if other == start]
        if not any(ours.is_byte(number) for number in here):
            written = "".join(ours.token(number) for number in here).replace("\u2581", " ")
            # The dummy space in front of a text has no character of its own.
            assert written in (text[start:end].replace("\u2581", " "), " " * (start == 0) + text[start:end])


@given(texts, kinds)
@settings(max_examples=150, deadline=None)
@example("\u2581", 2)
def test_decoding_gives_the_text_back(text, kind):
    ours = tokenizer(kind)
    text = text.replace("\u2581", " ")
    decoded = ours.decode(ours.encode(text, specials=False))
    # The first token loses its space; with legacy rules sentencepiece takes one more.
    assert decoded.replace("\u2581", " ").lstrip(" ") == text.lstrip(" ")


@given(nasty, kinds, st.booleans())
@settings(max_examples=150, deadline=None)
def test_plain_text_never_becomes_a_special_id(text, kind, normal):
    ours = tokenizer(kind, normal)
    ids = ours.encode(text, bos=False, specials=False)
    assert not (set(ids) & ours.special_ids) - {ours.unk_id}


@given(st.text(), st.integers(0xD800, 0xDFFF), st.text(), kinds)
@settings(max_examples=50, deadline=None)
def test_half_of_a_surrogate_pair_is_named(left, half, right, kind):
    text = left + chr(half) + right
    ours = tokenizer(kind)
    for call in (ours.encode, ours.encode_with_images, ours.pieces, ours, lambda text: ours.add_special([text])):
        with pytest.raises(DataError, match=rf"half of a surrogate pair, .*\\u{half:x}"):
            call(text)


def test_plain_text_breaks_up_a_symbol_that_sentencepiece_itself_would_find():
    path = folder(model_bytes(symbols=("<|im_end|>",)))
    ours = load_tokenizer(path)
    ours.add_special(["<|im_end|>"])
    number = ours.token_id("<|im_end|>")
    assert number < ours.base_size
    assert number in ours.encode("a<|im_end|>b")
    ids = ours.encode("a<|im_end|>b", specials=False)
    assert number not in ids
    assert ours.decode(ids) == "a<|im_end|>b"


@given(nasty, nasty, kinds)
@settings(max_examples=100, deadline=None)
def test_text_around_an_image_place_is_encoded_alone(left, right, kind):
    ours = tokenizer(kind)
    both = [*ours.encode(left), IMAGE_TOKEN_INDEX, *ours.encode(right, bos=False)]
    assert ours.encode_with_images(f"{left}<image>{right}") == both


def test_special_tokens_are_cut_out_and_legacy_puts_a_space_behind_them():
    assert tokenizer(0).encode("a</s>cat") == [*tokenizer(0).encode("a"), 2, *tokenizer(0).pieces("acat").ids[1:]]
    assert tokenizer(1).encode("a</s>cat") == [*tokenizer(1).encode("a"), 2, *tokenizer(1).encode("cat", bos=False)]


def test_begin_token_follows_the_files():
    assert load_tokenizer(folder()).encode("a")[0] == 1
    assert load_tokenizer(folder(add_bos_token=False)).encode("a")[0] != 1
    assert load_tokenizer(folder()).encode("") == [1]


def test_added_tokens_strip_their_neighbours_when_the_files_say_so():
    row = {"content": "<x>", "special": True, "lstrip": True, "rstrip": True, "normalized": False, "single_word": False}
    ours = load_tokenizer(folder(added_tokens_decoder={"400": row}))
    assert ours.encode("a  <x>  cat") == ours.encode("a<x>cat")
    assert ours.vocab_size == 401


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_a_saved_tokenizer_loads_the_same(kind, tmp_path):
    path = folder(pad_token="<pad>", model_max_length=1234)
    ours = load_tokenizer(path, **KINDS[kind])
    ours.add_special(["<im_patch>", "<im_start>"])
    ours.save(tmp_path)
    again = load_tokenizer(tmp_path)
    facts = ("bos_id", "eos_id", "unk_id", "pad_id", "vocab_size", "legacy", "kind", "model_max_length", "special_ids")
    assert [getattr(again, fact) for fact in facts] == [getattr(ours, fact) for fact in facts]
    text = "USER: <im_start><image><im_end>\nwhat</s>a <im_patch> \u4f60"
    assert again.encode_with_images(text) == ours.encode_with_images(text)
    again.save(tmp_path / "second")
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_padding_is_the_unknown_token_when_the_files_have_none():
    assert load_tokenizer(folder()).pad_id == load_tokenizer(folder()).unk_id == 0


def test_a_mistral_folder_gets_the_fast_kind():
    path = folder()
    (path / "config.json").write_text(json.dumps({"model_type": "llava_mistral"}))
    assert load_tokenizer(path).kind == "fast"
    assert load_tokenizer(folder()).kind == "slow"


@pytest.mark.parametrize(("listed", "pad"), [(None, "</s>"), ({}, "<unk>")])
def test_the_special_tokens_map_wins_only_where_transformers_reads_it(listed, pad):
    path = folder(pad_token="<unk>", **({} if listed is None else {"added_tokens_decoder": listed}))
    (path / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "</s>"}}))
    ours = load_tokenizer(path)
    assert ours.pad_id == ours.token_id(pad)


def test_a_model_file_cut_inside_a_field_names_the_place():
    with pytest.raises(ValueError, match=r"field \d+ wants \d+ bytes at byte \d+, only \d+ are left"):
        spm.read_model(model_bytes()[:-1])


def test_no_limit_of_length_is_none():
    assert load_tokenizer(folder(model_max_length=1000000000000000019884624838656)).model_max_length is None


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: b"", "the file is empty"),
        (lambda data: b"\x00" * 64, "not a sentencepiece model"),
        (lambda data: data[: len(data) // 2], "not a sentencepiece model"),
        (lambda data: b"\x0a\x05hello", "not a sentencepiece model"),
        (lambda data: spm.WITHOUT_DUMMY_PREFIX, "no vocabulary"),
    ],
)
def test_a_damaged_model_file_is_an_error_with_file_and_remedy(damage, said):
    path = folder(damage(model_bytes()))
    with pytest.raises(CheckpointError, match=said) as caught:
        load_tokenizer(path)
    assert str(path / "tokenizer.model") in str(caught.value)
    assert "copy the file of the base" in str(caught.value)


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_random_bytes_are_an_error_and_not_a_crash(data):
    with pytest.raises(CheckpointError):
        load_tokenizer(folder(data))


@given(st.integers(0, 10_000), st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_a_flipped_byte_is_an_error_or_a_tokenizer(place, value):
    data = bytearray(model_bytes())
    data[place % len(data)] = value
    # A folder that does not load says so with our error; any other exception or a crash fails the test.
    with contextlib.suppress(CheckpointError):
        load_tokenizer(folder(bytes(data))).encode("the cat")


def test_a_missing_model_file_names_the_remedy(tmp_path):
    with pytest.raises(CheckpointError, match="copy tokenizer.model or tokenizer.json from the base language model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="its model is of no known form.*; copy tokenizer.model from the base"):
        load_tokenizer(tmp_path)


def test_a_vocabulary_without_the_begin_token_does_not_belong_to_the_files():
    with pytest.raises(CheckpointError, match='no bos_token "<begin>"'):
        load_tokenizer(folder(bos_token="<begin>"))


def test_an_id_outside_the_vocabulary_is_an_error():
    with pytest.raises(CheckpointError, match="token id 99999 is outside the vocabulary"):
        tokenizer(0).decode([5, 99999])


def test_damaged_json_names_the_file():
    path = folder()
    (path / "added_tokens.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"added_tokens\.json: not valid JSON"):
        load_tokenizer(path)


@pytest.mark.parametrize("text", ["", "a red circle", "é漢😀 \n the", "word " * 400, "x" * 300 + " 漢字" * 50])
def test_encodings_are_read_the_same_by_the_fast_and_by_the_general_reader(text):
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer_model())
    data = processor.encode(text, out_type="serialized_proto")
    fast = spm._read_pieces(data)
    assert fast is not None
    assert fast == spm._read_any_pieces(data)
    assert [number for number, _ in fast] == processor.encode(text)


def test_an_encoding_with_other_fields_or_cut_off_goes_to_the_general_reader():
    # a piece with id 5, a fixed32 that nobody knows, and begin 7
    assert spm.read_encoded(b"\x12\x09\x10\x05\x4d\x00\x00\x00\x00\x20\x07") == [(5, 7)]
    with pytest.raises(ValueError, match="wants 9 bytes"):
        spm.read_encoded(b"\x12\x09\x10\x05")
