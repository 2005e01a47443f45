# SPDX-License-Identifier: Apache-2.0
"""The public names, and the merge command run from another folder."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from paddlemix.auto import AutoConfigMIX, AutoModelMIX, AutoProcessorMIX, AutoTokenizerMIX
from paddlemix.checkpoint.load import load_model
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
