# SPDX-License-Identifier: Apache-2.0
"""Byte-level tokenizers (Llama-3, Qwen): ids, text and streams are those of transformers, and the laws hold.

``tests/data/byte_bpe`` has two small ones with what transformers 5.24 makes of texts (``tests/peers/byte_bpe.py``).
"""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddlemix.text import templates
from paddlemix.text.messages import Message
from paddlemix.text.render import render
from paddlemix.text.stream import TextStream
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.utils.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from paddlemix.utils.errors import CheckpointError

DATA = Path(__file__).parents[1] / "data" / "byte_bpe"
FAMILIES = {"qwen2": ("qwen_2", "<|im_end|>"), "llama3": ("llava_llama_3", "<|eot_id|>")}
TOKENIZERS = {family: load_tokenizer(DATA / family) for family in FAMILIES}
CASES = [
    pytest.param(family, row, id=f"{family}-{number}")
    for family in FAMILIES
    for number, row in enumerate(json.loads((DATA / family / "expected.json").read_text()))
]
texts = st.lists(
    st.one_of(
        st.text(max_size=6),
        st.sampled_from(["the ", "What's", "<|im_end|>", "<|eot_id|>", "\n\n", "它是", "\U0001f468\u200d", "e\u0301"]),
    ),
    max_size=5,
).map("".join)  # fmt: skip


@pytest.mark.parametrize(("family", "row"), CASES)
def test_ids_places_and_text_are_those_of_transformers(family, row):
    tokenizer = TOKENIZERS[family]
    found = tokenizer.pieces(row["text"])
    assert (found.ids, found.starts) == (row["ids"], row["starts"])
    assert tokenizer.encode(row["text"], bos=False) == row["ids"]
    assert tokenizer.encode(row["text"]) == row["with_bos"]
    assert tokenizer.decode(row["ids"], skip_special=False) == row["decoded"]
    assert tokenizer.decode(row["ids"]) == row["skipped"]
    assert tokenizer.decode(row["ids"][1:-1], skip_special=False) == row["cut"]


@given(st.sampled_from(sorted(FAMILIES)), texts)
@settings(max_examples=150, deadline=None)
def test_special_tokens_that_people_write_stay_text(family, text):
    tokenizer = TOKENIZERS[family]
    ids = tokenizer.encode(text, bos=False, specials=False)
    assert not set(ids) & tokenizer.special_ids
    back = tokenizer.decode(ids)
    assert back == tokenizer.decode(tokenizer.encode(back, bos=False, specials=False))


@given(st.sampled_from(sorted(FAMILIES)), texts, texts, texts)
@settings(max_examples=150, deadline=None)
def test_the_ids_of_a_prompt_begin_those_of_its_sample(family, system, question, answer):
    tokenizer, template = TOKENIZERS[family], templates.get(FAMILIES[family][0])
    talk = [Message("system", system), Message("user", f"<image>\n{question}"), Message("assistant", answer or "x")]
    prompt = render(template, talk[:2], tokenizer, answer_open=True)
    sample = render(template, talk, tokenizer, answer_open=False)
    assert sample.ids[: len(prompt.ids)] == prompt.ids
    assert set(sample.labels[: len(prompt.ids)]) == {IGNORE_INDEX}
    learnt = [number for number in sample.labels if number != IGNORE_INDEX]
    assert learnt[-1] == tokenizer.token_id(FAMILIES[family][1])
    assert tokenizer.decode(learnt) == tokenizer.decode(tokenizer.encode(answer or "x", bos=False, specials=False))
    assert prompt.ids.count(IMAGE_TOKEN_INDEX) == 1 + (system + question).count("<image>")


def test_a_llama_3_prompt_is_that_of_the_original_with_one_begin_token():
    tokenizer = TOKENIZERS["llama3"]
    talk = [Message("user", "Hi")]
    found = render(templates.get("llama_3"), talk, tokenizer, answer_open=True)
    text = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    assert found.text == text + "<|start_header_id|>assistant<|end_header_id|>\n\n"
    assert found.ids == tokenizer.encode(found.text, bos=False)
    assert found.ids.count(tokenizer.bos_id) == 1


@given(st.sampled_from(sorted(FAMILIES)), st.lists(st.integers(0, 466), max_size=12), st.booleans())
@settings(max_examples=200, deadline=None)
def test_streamed_text_is_the_text_of_all_ids(family, numbers, specials):
    tokenizer = TOKENIZERS[family]
    numbers = numbers + [tokenizer.eos_id, 3] * specials
    stream = TextStream(tokenizer)
    assert "".join([*map(stream.put, numbers), stream.end()]) == tokenizer.decode(numbers)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stream_waits_for_the_last_byte_of_a_character_and_ends_at_the_stop(family):
    tokenizer = TOKENIZERS[family]
    stop = FAMILIES[family][1]
    stream = TextStream(tokenizer, [stop])
    numbers = tokenizer.encode("\U0001f600 ok", bos=False)
    assert len(numbers) > 3
    parts = [stream.put(number) for number in [*numbers, tokenizer.token_id(stop), 5]]
    assert "".join(parts) == "\U0001f600 ok"
    assert "\ufffd" not in "".join(parts)
    assert stream.stopped


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_folder_is_the_same_tokenizer(family, tmp_path):
    tokenizer = load_tokenizer(DATA / family)
    before = tokenizer.vocab_size
    assert tokenizer.add_special(["<image>", "<pad>"]) == 2
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.vocab_size == before + 2
    for row in json.loads((DATA / family / "expected.json").read_text()):
        text = row["text"].replace("<image>", "")
        assert again.encode(text) == TOKENIZERS[family].encode(text)
    assert again.token_id("<image>") == before
    assert (again.eos_id, again.bos_id, again.add_bos) == (tokenizer.eos_id, tokenizer.bos_id, tokenizer.add_bos)
    again.drop("<image>")
    assert before not in again.encode("<image>")


def test_vocab_json_and_merges_txt_are_read_as_qwen_s(tmp_path):
    data = json.loads((DATA / "qwen2" / "tokenizer.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(data["model"]["vocab"]))
    lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in data["model"]["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n")
    rows = {str(row["id"]): {**row, "id": None} for row in data["added_tokens"]}
    config = {"added_tokens_decoder": rows, "eos_token": "<|im_end|>", "bos_token": None, "add_bos_token": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = load_tokenizer(tmp_path)
    for row in json.loads((DATA / "qwen2" / "expected.json").read_text()):
        assert found.encode(row["text"]) == row["ids"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda data: data["model"].update(byte_fallback=True), '"model.byte_fallback" is True'),
        (lambda data: data["model"].update(type="Unigram"), '"model.type" is'),
        (lambda data: data["model"]["vocab"].update(a=99999), "not 0 to n - 1"),
        (lambda data: data["model"]["vocab"].update(a="x"), "no whole number"),
        (lambda data: data.update(normalizer={"type": "Lowercase"}), "normalizer has the step 'Lowercase'"),
        (lambda data: data.update(decoder={"type": "WordPiece"}), "decoder has the step 'WordPiece'"),
        (lambda data: data.update(pre_tokenizer=None, normalizer=None), "no step in front turns a text into bytes"),
        (lambda data: data["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"), "takes characters out"),
        (lambda data: data["added_tokens"].clear(), "tokenizer.json and tokenizer_config.json do not belong together"),
        (lambda data: data["model"].update(merges=[["zz", "yy"]]), "tokenizers cannot read it"),
    ],
)  # fmt: skip
def test_a_pipeline_that_we_do_not_know_is_refused_by_name(change, text, tmp_path):
    shutil.copytree(DATA / "qwen2", tmp_path / "model")
    path = tmp_path / "model" / "tokenizer.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(tmp_path / "model")
    assert str(path) in str(caught.value)
    assert text in str(caught.value)


def test_a_folder_that_names_no_end_of_an_answer_is_refused(tmp_path):
    shutil.copy(DATA / "qwen2" / "tokenizer.json", tmp_path)
    with pytest.raises(CheckpointError, match=r'tokenizer.json: no file .* "eos_token" .* copy tokenizer_config.json'):
        load_tokenizer(tmp_path)


def test_a_kind_of_sentencepiece_cannot_be_asked_for():
    with pytest.raises(CheckpointError, match='its kind is "byte_bpe" and cannot be "fast"'):
        load_tokenizer(DATA / "qwen2", kind="fast")
