# SPDX-License-Identifier: Apache-2.0
"""The public names, and the merge command run from another folder."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from paddlemix.auto import AutoChatMIX, AutoConfigMIX, AutoModelMIX, AutoProcessorMIX, AutoTokenizerMIX
from paddlemix.checkpoint.load import load_model
from paddlemix.generation.sampling import Decoding
from paddlemix.text.messages import Message
from paddlemix.utils.errors import CheckpointError, ConfigError, DataError
from tests.checkpoint import checkpoint_kit as kit
from tests.tiny import tiny_image, tiny_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def hub(tmp_path) -> dict[str, Path]:
    return kit.hub(tmp_path, tiny_model())


@pytest.mark.parametrize("module", ["paddlemix", "paddlemix.auto"])
def test_importing_the_package_imports_nothing_heavy(module):
    code = f"import sys, {module}; print(sorted(set(sys.modules) & {{'paddle', 'paddlenlp', 'numpy', 'PIL', 'rich'}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_configuration_processor_and_tokenizer_do_not_need_paddle(hub):
    code = (
        "import sys; from paddlemix.auto import *; p = sys.argv[1]; AutoConfigMIX.from_pretrained(p); "
        "AutoProcessorMIX.from_pretrained(p); print('paddle' in sys.modules)"
    )
    run = [sys.executable, "-c", code.replace("*", "AutoConfigMIX, AutoProcessorMIX"), str(hub["llava"])]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_known_name_is_a_folder_of_the_cache(hub, tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    for owner in ("liuhaotian", "openai"):
        (tmp_path / owner).rename(tmp_path / "models" / owner)
    monkeypatch.setenv("PPMIX_HOME", str(tmp_path))
    assert AutoConfigMIX.from_pretrained("liuhaotian/tiny").text.vocab_size == 448
    assert AutoModelMIX.from_pretrained("liuhaotian/tiny").config.vision.hidden_size == 32


def test_a_name_that_is_nowhere_says_where_it_was_looked_for():
    with pytest.raises(CheckpointError, match=r"(?s)is not on this machine; looked for.*Put the folder into one of"):
        AutoModelMIX.from_pretrained("liuhaotian/llava-v9")


@pytest.mark.parametrize(
    ("given", "expected"),
    [("fp16", "float16"), ("bf16", "bfloat16"), ("paddle.float16", "float16"), ("torch.bfloat16", "bfloat16")],
)
def test_a_dtype_may_have_its_short_name(given, expected, hub):
    model = AutoModelMIX.from_pretrained(hub["llava"], dtype=given)
    assert {str(value.dtype) for value in model.parameters()} == {f"paddle.{expected}"}
    assert model.config.dtype == expected


def test_a_dtype_of_paddle_is_taken_and_any_that_is_no_float_of_a_model_is_refused(hub):
    import paddle

    assert AutoModelMIX.from_pretrained(hub["llava"], dtype=paddle.float16).config.dtype == "float16"
    for wrong in ("int8", "uint8", "4", "float64", "auto", "", None, paddle.int32, 8):
        with pytest.raises(ConfigError, match=r"dtype .*: expected one of float32, float16, bfloat16"):
            AutoModelMIX.from_pretrained(hub["llava"], dtype=wrong)


def test_the_processor_makes_pixels_and_prompts(hub):
    processor, tokenizer = AutoProcessorMIX.from_pretrained(hub["llava"], train="train", eval="eval", version="v1")
    assert processor(tiny_image()).pixels.shape == (1, 3, 28, 28)
    ids = processor.prompt([Message("user", "what is this?")]).ids
    assert tokenizer.decode(ids).endswith("ASSISTANT:")


def test_the_processor_refuses_a_conversation_that_is_too_long(hub):
    processor, _ = AutoProcessorMIX.from_pretrained(hub["llava"], max_length=5)
    with pytest.raises(DataError, match="the limit is 5"):
        processor.prompt([Message("user", "what is this?")])


def test_an_unknown_version_is_an_error(hub):
    with pytest.raises(ConfigError, match="vicuna_v2"):
        AutoProcessorMIX.from_pretrained(hub["llava"], version="vicuna_v2")


def test_what_is_saved_is_loaded_again(hub, tmp_path):
    model = AutoModelMIX.from_pretrained(hub["llava"])
    tokenizer = AutoTokenizerMIX.from_pretrained(hub["llava"])
    AutoModelMIX.save_pretrained(model, tmp_path / "saved", tokenizer)
    again = AutoModelMIX.from_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(again.lm_head.weight.numpy(), model.lm_head.weight.numpy())
    assert AutoConfigMIX.from_pretrained(tmp_path / "saved") == model.config
    AutoConfigMIX.save_pretrained(model.config, tmp_path / "config")
    assert AutoConfigMIX.from_pretrained(tmp_path / "config") == model.config
    processor, _ = AutoProcessorMIX.from_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "processor")
    assert {"tokenizer.model", "preprocessor_config.json"} <= {p.name for p in (tmp_path / "processor").iterdir()}


def test_a_given_configuration_replaces_the_folders(hub):
    config = AutoConfigMIX.from_pretrained(hub["llava"], mm_vision_select_layer=-1)
    assert AutoModelMIX.from_pretrained(hub["llava"], config=config).config.vision.select_layer == -1


def merge(*flags: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "paddlemix" / "tools" / "merge_lora_params.py"), *flags]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=100)


def test_the_merge_command_works_from_another_folder_and_with_abbreviations(hub, tmp_path):
    kit.peft_adapter(tmp_path / "lora", tiny_model(), "nowhere")
    done = merge("--lora", "lora", "--model_name", "lmsys/tiny", "--merge", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the merged model lies in out" in done.stdout
    expected = load_model(tmp_path / "lora", base=hub["vicuna"]).model.lm_head.weight.numpy()
    np.testing.assert_array_equal(load_model(tmp_path / "out").model.lm_head.weight.numpy(), expected)
    assert json.loads((tmp_path / "out" / "lora_merged.json").read_text())["adapters"]


def test_the_merge_command_tells_an_error_in_one_line(tmp_path):
    done = merge("--lora_path", "nothing", cwd=tmp_path)
    assert done.returncode == 2
    assert "error: the adapter" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_chat_of_the_public_names_answers_streams_and_asks_in_batches(hub):
    chat = AutoChatMIX.from_pretrained(hub["llava"], device="cpu", decoding=Decoding(max_new_tokens=6))
    picture = tiny_image(1)
    first = chat.answer("what is this?", picture)
    chat.reset()
    pieces = list(chat.ask("what is this?", [picture]))
    assert len(pieces) > 1
    assert "".join(pieces).strip() == first
    alone = [first]
    for text, images in (("why?", ()), ("how many?", (tiny_image(2), tiny_image(3)))):
        chat.reset()
        alone.append(chat.answer(text, images))
    chat.reset()
    texts = ["what is this?", "why?", "how many?"]
    images = [picture, None, [tiny_image(2), tiny_image(3)]]
    assert chat.batch(texts, images) == alone
    assert chat.batch(texts, images, batch_size=1, max_new_tokens=1) != alone
    assert chat.turns == [], "a batch is no part of the conversation"
    with pytest.raises(DataError, match="3 questions and 1 entries of images"):
        chat.batch(texts, [picture])
    with pytest.raises(DataError, match=r"question 1 needs \d+ of the 512 positions"):
        chat.batch(["why?", "why " * 600])


def test_the_processor_takes_text_and_images_and_the_model_continues_them(hub):
    processor, tokenizer = AutoProcessorMIX.from_pretrained(hub["llava"])
    chat = AutoChatMIX.from_pretrained(hub["llava"], device="cpu", decoding=Decoding(max_new_tokens=6))
    model = AutoModelMIX.from_pretrained(hub["llava"])
    texts = ["what is this?", "why?", "is <image> above <image>?"]
    images = [tiny_image(1), None, [tiny_image(2), tiny_image(3)]]
    inputs = processor(text=texts, images=images)
    assert inputs["pixel_values"].shape == (3, 3, 28, 28)
    assert inputs["attention_mask"].sum(1).tolist() == [len(ids) for ids in processor_rows(processor, texts)]
    expected = chat.batch(texts, images)
    ids = AutoModelMIX.generate(model, **inputs, tokenizer=tokenizer, max_new_tokens=6)
    assert [tokenizer.decode(row).strip() for row in ids] == expected
    alone = processor(text=texts[2], images=images[2])
    assert alone["input_ids"].shape[0] == 1
    assert AutoModelMIX.generate(model, **alone, tokenizer=tokenizer, max_new_tokens=6) == ids[2:]
    conversation = [{"role": "user", "content": "<image>\nwhat?"}, {"role": "assistant", "content": "a"}]
    conversation += [{"role": "user", "content": "why?"}]
    whole = processor(text=conversation, images=tiny_image(1))["input_ids"]
    assert tokenizer.decode([token for token in whole[0] if token >= 0]).endswith("why? ASSISTANT:")
    parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}, *conversation[1:]]
    assert processor(text=parts, images=tiny_image(1))["input_ids"].tolist() == whole.tolist()


def processor_rows(processor, texts):
    """Ids of each question by the prompt alone."""
    places = [f"<image>\n{texts[0]}", texts[1], texts[2]]
    return [processor.prompt([Message("user", text)]).ids for text in places]


def test_inputs_that_do_not_fit_together_are_named(hub):
    processor, _ = AutoProcessorMIX.from_pretrained(hub["llava"])
    with pytest.raises(DataError, match="2 texts and one image as images"):
        processor(text=["a", "b"], images=tiny_image())
    for images in ([tiny_image()], [None, None, None]):
        with pytest.raises(DataError, match=f"2 texts and {len(images)} as images: give a list with an entry for each"):
            processor(text=["a", "b"], images=images)
    with pytest.raises(DataError, match='a text has 2 "<image>" and 1 images'):
        processor(text=[Message("user", "<image> and <image>?")], images=tiny_image())


def test_the_tokenizer_can_be_called(hub):
    tokenizer = AutoTokenizerMIX.from_pretrained(hub["llava"])
    one = tokenizer("what is this?")
    assert one == {"input_ids": tokenizer.encode("what is this?"), "attention_mask": [1] * len(one["input_ids"])}
    two = tokenizer(["why?", "<image>\nwhat is this?"], padding=True)
    assert two["input_ids"].shape == two["attention_mask"].shape == (2, max(two["attention_mask"].sum(1)))
    assert two["input_ids"][0][two["attention_mask"][0] == 1].tolist() == tokenizer.encode("why?")
    assert two["attention_mask"][0][0] == 0
    assert tokenizer(["why?", "what is this?"], padding=True, side="right")["attention_mask"][0][0] == 1
    assert -200 in two["input_ids"][1]
    with pytest.raises(ConfigError, match='padding side "middle"'):
        tokenizer(["why?"], padding=True, side="middle")


def test_the_python_of_the_chat_page_runs_as_it_stands(hub, tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "chat.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    assert len(blocks) == 2
    for number, name in enumerate(("picture.jpg", "a.png", "b.png", "c.png")):
        tiny_image(number).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        # This model never ends an answer by itself: a small context does.
        short = block.replace(
            'AutoChatMIX.from_pretrained("FOLDER"', 'AutoChatMIX.from_pretrained("FOLDER", context=250'
        )
        exec(short.replace('"FOLDER"', repr(str(hub["llava"]))).replace("tokens=16", "tokens=3"), {})
    assert capsys.readouterr().out.strip()
