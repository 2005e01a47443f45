# SPDX-License-Identifier: Apache-2.0
"""A llava-hf folder is asked by transformers with the text that the model was trained with, in every version."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from paddlemix.checkpoint.convert.layouts import convert
from paddlemix.checkpoint.save import save_model
from paddlemix.generation.folder import processor_for
from paddlemix.settings.published.config import load_config
from paddlemix.text.messages import Message, first_turn_with_images
from paddlemix.text.model_template import template_for
from paddlemix.text.render import render
from paddlemix.text.tokenizer import load_tokenizer
from tests.text.text_tools import folder as tokenizer_folder
from tests.tiny import tiny_image, tiny_model, tiny_tokenizer_folder

WORKER = Path(__file__).with_name("hf_prompt_worker.py")
PADDLENLP = {
    "system": "An assistant. ",
    "conversation": ["Q: {{user}}\n\nA:", " {{bot}}</s>"],
    "query": "Q: {{query}}\n\nA:",
}
TEXTS = ["USER: <image>\nthe cat ASSISTANT:", "a red</s>mat <image>\n<image> two", "<image>", " what? </s> is\n\n"]
SETTINGS = {
    "model_name_or_path": "liuhaotian/llava-v1.5-7b",
    "dataset": {"train": [{"data_files": "/secret/place/rows.json"}, {"data_files": ["b.json"]}]},
    "learning_rate": 2e-5,
    "wandb_api_key": "hidden",
    "output_dir": "/secret/place/out",
}


def made(root: Path, *, data: dict | None = None, tokenizer: Path | None = None, **config) -> Path:
    """A folder of ours with a small model and a Llama-like tokenizer of fewer pieces than it has rows."""
    model = tiny_model(config=None, **config)
    files = {"chat_template.json": data} if data else {}
    where = load_tokenizer(tokenizer or tokenizer_folder(legacy=False))
    return save_model(root, model, model.config, where, extra=files, training_settings=SETTINGS)


def conversations() -> list[list[Message]]:
    picture = first_turn_with_images("What?", 1)
    return [picture, [*picture, Message("assistant", "a red mat"), Message("user", "the cat?")]]


def as_parts(messages: list[Message]) -> list[dict]:
    rows = []
    for message in messages:
        images = message.text.count("<image>\n")
        text = {"type": "text", "text": message.text.replace("<image>\n", "")}
        rows.append({"role": message.role, "content": [text, *[{"type": "image"}] * images]})
    return rows


def asked(folder: Path, tmp_path: Path) -> dict:
    """The answer of the interpreter with transformers."""
    python = os.environ.get("PADDLEMIX_TORCH_PYTHON")
    if not python:
        pytest.skip("PADDLEMIX_TORCH_PYTHON names no interpreter with transformers")
    tiny_image(3, (90, 60)).save(tmp_path / "picture.png")
    messages = [as_parts(row) for row in conversations()]
    given = {"texts": TEXTS, "messages": messages, "image": str(tmp_path / "picture.png")}
    run = subprocess.run([python, str(WORKER), str(folder), json.dumps(given)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


def check(source: Path, folder: Path, tmp_path: Path) -> None:
    """transformers' ids, prompts and pixels of ``folder`` are ours of ``source``."""
    found = asked(folder, tmp_path)
    ours, image = load_tokenizer(source), load_tokenizer(folder).token_id("<image>")
    expected = [[image if number < 0 else number for number in ours.encode_with_images(text)] for text in TEXTS]
    assert found["ids"] == expected
    config = load_config(source)
    rendered = [
        render(template_for(source, config.template), row, ours, answer_open=True, specials=True)
        for row in conversations()
    ]
    assert found["chats"] == [row.text for row in rendered]
    assert found["chat_ids"] == [[image if number < 0 else number for number in row.ids] for row in rendered]
    if "shown" in found:
        assert found["shown"] == found["chats"]
        assert found["processed"] == expected[0]
        done = processor_for(config)(tiny_image(3, (90, 60)))
        assert found["features"] == len(done.layout.order)
        np.testing.assert_allclose(found["pixels"], done.pixels.reshape(-1), atol=2e-6)


@pytest.mark.reference
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"template": "llava_v1"},
        {"data": PADDLENLP},
        {"template": "mistral_instruct"},
        {"template": "chatml_direct"},
    ],
    ids=["vicuna_v1", "llava_v1", "chat_template.json", "mistral_instruct", "chatml_direct"],
)
def test_prompts_in_transformers_are_ours(change, tmp_path):
    source = made(tmp_path / "own", **change)
    check(source, convert(source, tmp_path / "hf", "llava-hf").folder, tmp_path)


@pytest.mark.reference
@pytest.mark.golden
@pytest.mark.timeout(300)
def test_prompts_of_the_golden_models_in_transformers_are_ours(golden_llava, tmp_path):
    names = [path.parent for path in sorted(golden_llava.glob("hub/*/*/tokenizer.model"))]
    found = [path for path in names if path.parent.name == "liuhaotian" and any(path.glob("*model*0*"))]
    assert found
    for source in found:
        folder = convert(source, tmp_path / "hf" / source.name, "llava-hf").folder
        answered = asked(folder, tmp_path)
        ours, image = load_tokenizer(source), load_tokenizer(folder).token_id("<image>")
        assert answered["ids"] == [
            [image if number < 0 else number for number in ours.encode_with_images(text)] for text in TEXTS
        ]


def test_the_folder_has_every_file_that_transformers_looks_for(tmp_path):
    done = convert(made(tmp_path / "own"), tmp_path / "hf", "llava-hf")
    names = {path.name for path in done.folder.iterdir()}
    assert {
        "tokenizer.json",
        "chat_template.jinja",
        "chat_template.json",
        "processor_config.json",
        "README.md",
    } <= names
    assert done.notes == ()
    program = (done.folder / "chat_template.jinja").read_text(encoding="utf-8")
    settings = json.loads((done.folder / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == program
    rows = {row["content"]: row["normalized"] for row in settings["added_tokens_decoder"].values()}
    added = json.loads((done.folder / "tokenizer.json").read_text())["added_tokens"]
    assert {row["content"]: row["normalized"] for row in added} == rows
    assert not any(name.endswith(".index.json") for name in names)


def test_our_own_chat_asks_the_new_folder_as_the_old_one(tmp_path):
    source = made(tmp_path / "own", data=PADDLENLP)
    folder = convert(source, tmp_path / "hf", "llava-hf").folder
    again = convert(folder, tmp_path / "again", "own").folder
    for place in (folder, again):
        template = template_for(place, load_config(place).template)
        row = conversations()[1]
        ours = render(template_for(source, load_config(source).template), row, load_tokenizer(source), answer_open=True)
        assert render(template, row, load_tokenizer(place), answer_open=True).ids == ours.ids
    assert "chat_template" not in json.loads((again / "chat_template.json").read_text())


def test_the_card_tells_base_data_and_settings_and_no_place_of_the_machine(tmp_path):
    card = (convert(made(tmp_path / "own"), tmp_path / "hf", "llava-hf").folder / "README.md").read_text()
    assert "base_model: liuhaotian/llava-v1.5-7b\n" in card
    assert "Data: rows.json, b.json." in card
    assert "| `learning_rate` | `2e-05` |" in card
    assert not any(word in card for word in ("secret", "hidden", str(tmp_path)))


def test_a_tokenizer_that_changes_the_text_is_told(tmp_path):
    source = made(tmp_path / "own", tokenizer=tiny_tokenizer_folder())
    done = convert(source, tmp_path / "hf", "llava-hf")
    assert [note for note in done.notes if "there is no tokenizer.json for it" in note]
    assert not (done.folder / "tokenizer.json").exists()


def test_a_single_file_wins_over_an_index_of_other_shards(tmp_path):
    """As in transformers: an index that an earlier result left says nothing about the file beside it."""
    from paddlemix.checkpoint.formats.source import open_folder

    old, new = tiny_model(seed=1), tiny_model(seed=2)
    folder = save_model(tmp_path / "one", old, old.config, None, max_shard_bytes=60_000)
    assert (folder / "model.safetensors.index.json").is_file()
    other = save_model(tmp_path / "two", new, new.config, None)
    shutil.copy(other / "model.safetensors", folder)
    values = open_folder(folder).read("lm_head.weight")
    np.testing.assert_array_equal(values, open_folder(other).read("lm_head.weight"))
