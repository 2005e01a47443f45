# SPDX-License-Identifier: Apache-2.0
"""Model folders with tokenizer.json and no tokenizer.model: chat, convert, doctor, adapters, downloads."""

import inspect
import json
import re
from pathlib import Path

import pytest

from paddlemix.auto import AutoProcessorMIX, AutoTokenizerMIX
from paddlemix.checkpoint.convert.layouts import convert
from paddlemix.checkpoint.describe import describe
from paddlemix.checkpoint.hub import fetch_model
from paddlemix.checkpoint.load import load_model
from paddlemix.checkpoint.lora.merge import merge_adapter
from paddlemix.generation.load import load_chat
from paddlemix.generation.sampling import Decoding
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.utils.errors import CheckpointError
from tests.checkpoint import checkpoint_kit as kit
from tests.checkpoint import hub_server as faults
from tests.text.text_tools import fast_json, model_bytes
from tests.tiny import tiny_image, tiny_model

TEXT = "USER: what is\n the cat </s>a \u4f60"
GREEDY = Decoding(max_new_tokens=6, temperature=0.0, eos_ids=())


def without_model_file(folder: Path, **changes: object) -> Path:
    """The folder with a tokenizer of Llama's kind as tokenizer.json alone."""
    (folder / "tokenizer.model").unlink(missing_ok=True)
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(fast_json(model_bytes()) | changes), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    return folder


@pytest.fixture
def hub(tmp_path):
    return kit.hub(tmp_path, tiny_model(2))


def test_a_chat_answers_as_with_the_model_file(hub):
    folder = without_model_file(hub["llava"])
    answer = load_chat(folder, device="cpu", decoding=GREEDY).answer("what is this?", [tiny_image()])
    assert answer
    (folder / "tokenizer.model").write_bytes(model_bytes())
    assert load_chat(folder, device="cpu", decoding=GREEDY).answer("what is this?", [tiny_image()]) == answer


@pytest.mark.parametrize("to", ["own", "llava-hf", "paddlemix", "original"])
def test_conversion_writes_a_model_file(to, hub, tmp_path):
    folder = without_model_file(hub["llava"])
    made = convert(folder, tmp_path / "x" / to, to)
    assert (made.folder / "tokenizer.model").is_file()
    assert load_tokenizer(made.folder).encode(TEXT) == load_tokenizer(folder).encode(TEXT)
    assert not [note for note in made.notes if "tokenizer" in note]


def test_a_tokenizer_of_another_kind_is_left_out_and_noted(hub, tmp_path):
    folder = without_model_file(hub["llava"], model={"type": "Unigram"})
    made = convert(folder, tmp_path / "x" / "own", "own")
    assert not (made.folder / "tokenizer.model").exists()
    assert any("its model is Unigram" in note for note in made.notes)
    with pytest.raises(CheckpointError, match=r"its model is Unigram.*llava-hf needs one"):
        convert(folder, tmp_path / "x" / "hf", "llava-hf")
    found = describe(folder)
    assert found.exit_code == 1
    assert any("its model is Unigram" in text for text in found.problems)


def test_doctor_tells_of_it(hub):
    found = describe(without_model_file(hub["llava"]))
    assert found.problems == []
    assert found.facts["tokenizer"] == f"{load_tokenizer(hub['llava']).vocab_size} tokens, slow, legacy true"


def test_an_adapter_uses_its_own_or_that_of_its_base(hub, tmp_path):
    without_model_file(hub["vicuna"])
    adapter = kit.peft_adapter(tmp_path / "liuhaotian" / "lora", tiny_model(2), "lmsys/tiny")
    wanted = load_tokenizer(hub["vicuna"]).encode(TEXT)
    for name in ("tokenizer.model", "tokenizer.json"):
        (adapter / name).unlink(missing_ok=True)
    assert AutoTokenizerMIX.from_pretrained(adapter).encode(TEXT) == wanted
    assert load_model(adapter).tokenizer_folder == hub["vicuna"]
    merged = merge_adapter(adapter, tmp_path / "x" / "merged").folder
    assert load_tokenizer(merged).encode(TEXT) == wanted
    without_model_file(adapter, post_processor=fast_json(model_bytes(), bos=False)["post_processor"])
    assert load_model(adapter).tokenizer_folder == adapter
    assert AutoTokenizerMIX.from_pretrained(adapter).encode(TEXT) == wanted[1:]
    converted = convert(adapter, tmp_path / "x" / "adapter", "paddlemix").folder
    assert load_tokenizer(converted).encode(TEXT) == wanted[1:]


@pytest.mark.parametrize("opens", [AutoTokenizerMIX, AutoProcessorMIX])
def test_what_an_adapter_without_tokenizer_and_base_asks_for_is_an_argument_of_that_call(opens, hub, tmp_path):
    adapter = kit.peft_adapter(tmp_path / "liuhaotian" / "lora", tiny_model(2), "lmsys/gone")
    for name in ("tokenizer.model", "tokenizer.json"):
        (adapter / name).unlink(missing_ok=True)
    given = {"vision_tower": hub["clip"]} if opens is AutoProcessorMIX else {}
    with pytest.raises(CheckpointError, match=r"name it with (\w+)=FOLDER") as caught:
        opens.from_pretrained(adapter, **given)
    (argument,) = re.findall(r"name it with (\w+)=FOLDER", str(caught.value))
    assert argument in inspect.signature(opens.from_pretrained).parameters
    found = opens.from_pretrained(adapter, **given, **{argument: hub["vicuna"]})
    tokenizer = found[1] if opens is AutoProcessorMIX else found
    assert tokenizer.encode(TEXT) == load_tokenizer(hub["vicuna"]).encode(TEXT)


def test_it_is_downloaded(hub, tmp_path, monkeypatch):
    without_model_file(hub["llava"])
    monkeypatch.setenv("PPMIX_HOME", str(tmp_path / "home"))
    server = faults.Hub(tmp_path)
    monkeypatch.setenv("PADDLEMIX_HUB", server.address)
    try:
        folder = fetch_model("liuhaotian/tiny", weights=False)
    finally:
        server.close()
    assert load_tokenizer(folder).encode(TEXT) == load_tokenizer(hub["llava"]).encode(TEXT)
