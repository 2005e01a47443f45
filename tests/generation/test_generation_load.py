# SPDX-License-Identifier: Apache-2.0
"""From a folder to a conversation, for every kind of folder."""

import json
from pathlib import Path

import pytest

from paddlemix.checkpoint.save import save_model
from paddlemix.generation.folder import picture_tokens, template_for
from paddlemix.generation.load import load_chat
from paddlemix.generation.sampling import Decoding
from paddlemix.settings.model import ImageConfig
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.utils.errors import BackendError, ConfigError
from tests.tiny import tiny_config, tiny_image, tiny_model, tiny_tokenizer_folder

GREEDY = Decoding(max_new_tokens=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("load")
    model = tiny_model(seed=5, template="mistral_instruct")
    save_model(home / "model", model, model.config, load_tokenizer(tiny_tokenizer_folder(home / "tokenizer")))
    return home / "model"


def test_a_saved_model_chats_with_its_own_template_and_says_what_runs(folder: Path) -> None:
    session = load_chat(str(folder), device="cpu", decoding=GREEDY)
    session.answer("why?", [tiny_image()])
    assert session.stats.prompt == "[INST] <image>\nwhy? [/INST]"
    assert session.about == (
        f"{folder}: device cpu: as asked; float32: the dtype of a CPU; template mistral_instruct; "
        "4 tokens an image (pad)"
    )


def test_sampling_values_of_the_folder_are_not_applied(folder: Path) -> None:
    expected = load_chat(str(folder), device="cpu", decoding=GREEDY).answer("why?")
    path = folder / "generation_config.json"
    before = path.read_bytes() if path.is_file() else None
    path.write_text(json.dumps({"do_sample": True, "temperature": 5.0, "top_p": 1.0, "max_new_tokens": 1}))
    try:
        assert load_chat(str(folder), device="cpu", decoding=GREEDY).answer("why?") == expected
    finally:
        path.unlink() if before is None else path.write_bytes(before)


def test_a_template_can_be_asked_for_by_its_exact_name(folder: Path) -> None:
    session = load_chat(str(folder), device="cpu", conv_mode="vicuna_v1", decoding=GREEDY)
    session.answer("why?")
    assert session.stats.prompt.endswith(" USER: why? ASSISTANT:")
    with pytest.raises(ConfigError, match='unknown template "vicuna"'):
        load_chat(str(folder), device="cpu", conv_mode="vicuna")


def test_a_device_that_is_not_there_is_an_error(folder: Path) -> None:
    with pytest.raises(BackendError, match="device npu: no npu device"):
        load_chat(str(folder), device="npu")


def test_a_chat_template_file_of_the_folder_counts_unless_a_name_is_given(tmp_path: Path) -> None:
    data = {"system": "S", "conversation": ["\nQ: {{user}}", "\nA: {{bot}}"], "query": "\nQ: {{query}}\nA:"}
    (tmp_path / "chat_template.json").write_text(json.dumps(data), encoding="utf-8")
    assert template_for(tmp_path, tiny_config()).name.endswith("chat_template.json")
    assert template_for(tmp_path, tiny_config(), "llava_v1").name == "llava_v1"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "{{ bos_token }}"}), encoding="utf-8")
    assert template_for(tmp_path, tiny_config()).name == "vicuna_v1"


def test_the_number_of_tokens_of_a_picture_is_told_as_a_range_where_it_depends_on_it() -> None:
    image = ImageConfig(28, 28, aspect="anyres", merge="spatial_unpad", grid_pinpoints=((28, 56), (56, 56)))
    assert picture_tokens(tiny_config()) == "4 tokens an image (pad)"
    assert picture_tokens(tiny_config(image=image, has_image_newline=True)) == "4 to 24 tokens an image (anyres)"
    assert picture_tokens(tiny_config(vision=None, image=None)) == "no vision tower"


@pytest.mark.golden
def test_every_published_layout_opens_and_chats_without_further_flags(golden_llava: Path) -> None:
    folders = sorted(path.parent for path in (golden_llava / "hub").glob("*/*/config.json"))
    models = [path for path in folders if path.parent.name != "openai"]
    assert len(models) > 1
    picture = golden_llava / "images" / "landscape.png"
    for path in models:
        session = load_chat(str(path), device="cpu", decoding=GREEDY)
        session.answer("What is shown?", [picture] if session.predictor.processor else [])
        assert len(session.stats.answer_ids) == 6, path
