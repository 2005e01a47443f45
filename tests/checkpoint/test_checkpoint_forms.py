# SPDX-License-Identifier: Apache-2.0
"""Published forms from end to end: as downloaded, trained, chatted with, and out again into other layouts."""

import json
from pathlib import Path

import numpy as np
import pytest

from paddlemix.checkpoint.convert.layouts import convert
from paddlemix.checkpoint.load import load_model
from paddlemix.checkpoint.lora.read import read_adapter
from paddlemix.checkpoint.save import save_model
from paddlemix.settings.model import ImageConfig
from paddlemix.settings.run.loader import load_settings
from paddlemix.text.tokenizer import load_tokenizer
from tests.checkpoint import checkpoint_kit as kit
from tests.tiny import tiny_image, tiny_model, tiny_tokenizer_folder

STAGES = {
    "full": {},
    "lora": {"lora": "true", "lora_rank": 2},
    "projector": {"tune_mm_mlp_adapter": "true"},
}


def made_up(place: Path) -> Path:
    """A v1.6 in the original layout with a tower of its own inside, for golden folders without one."""
    image = ImageConfig(28, 28, "anyres", "spatial_unpad", ((56, 28), (28, 56), (56, 56)))
    model = tiny_model(5, image=image, has_image_newline=True)
    save_model(place / "own", model, model.config, load_tokenizer(tiny_tokenizer_folder(place / "t")))
    return convert(place / "own", place / "v16", "original").folder


def anyres_folders(golden: Path, place: Path) -> list[Path]:
    found = []
    for path in sorted(golden.glob("hub/*/*/config.json")):
        raw = json.loads(path.read_text())
        if raw.get("image_aspect_ratio") == "anyres" or raw.get("model_type") == "llava_next":
            found.append(path.parent)
    return found or [made_up(place)]


def rows(place: Path) -> Path:
    """Wide, tall and tiny images, and a row without one."""
    data = []
    for index, size in enumerate([(150, 60), (60, 140), (20, 20)]):
        tiny_image(index, size).save(place / f"{index}.png")
        turns = [("human", "<image>\nwhat is it?"), ("gpt", "a red square")]
        data.append({"image": f"{index}.png", "conversations": [{"from": a, "value": b} for a, b in turns]})
    data.append({"conversations": [{"from": "human", "value": "how many?"}, {"from": "gpt", "value": "two"}]})
    (place / "train.json").write_text(json.dumps(data))
    return place / "train.json"


def train(model: Path, place: Path, output: Path, **stage: object) -> Path:
    from paddlemix.trainer.run import finetune

    place = place / "data"
    place.mkdir(exist_ok=True)
    keys = {
        "model_name_or_path": model, "data_path": rows(place), "image_folder": place, "output_dir": output,
        "do_train": "true", "device": "cpu", "per_device_train_batch_size": 4, "num_train_epochs": 2,
        "learning_rate": 1e-3, "logging_steps": 1, "save_strategy": "no", **stage,
    }  # fmt: skip
    return finetune(load_settings([part for name, value in keys.items() for part in (f"--{name}", str(value))])).folder


def answer(folder: Path, base: Path | None = None) -> str:
    from paddlemix.generation.load import load_chat
    from paddlemix.generation.sampling import Decoding

    decoding = Decoding(max_new_tokens=6)
    chat = load_chat(str(folder), base=None if base is None else str(base), device="cpu", decoding=decoding)
    return "".join(chat.ask("what is it?", [tiny_image(0, (150, 60))])) + "|" + "".join(chat.ask("and why?"))


@pytest.mark.golden
@pytest.mark.parametrize("stage", STAGES)
def test_anyres_models_train_in_every_stage_and_the_result_chats(stage, golden_llava, tmp_path, capsys):
    for folder in anyres_folders(golden_llava, tmp_path / "made"):
        before = dict(load_model(folder).model.named_parameters())
        out = train(folder, tmp_path, tmp_path / f"{folder.name}-{stage}", **STAGES[stage])
        assert isinstance(answer(out), str)
        after = dict(load_model(out).model.named_parameters())
        moved = {name for name in after if not np.array_equal(before[name].numpy(), after[name].numpy())}
        assert any("mm_projector" in name for name in moved)
        assert any("llama.layers" in name for name in moved) == (stage != "projector")
        assert not any("vision_tower" in name for name in moved)
        log = [line for line in capsys.readouterr().out.splitlines() if "loss: " in line]
        assert log


@pytest.mark.golden
def test_a_trained_anyres_model_answers_the_same_in_every_layout(golden_llava, tmp_path):
    out = train(anyres_folders(golden_llava, tmp_path / "made")[0], tmp_path, tmp_path / "trained")
    expected = answer(out)
    for to in ("original", "llava-hf", "paddlemix", "own"):
        assert answer(convert(out, tmp_path / to, to).folder) == expected, to


@pytest.mark.parametrize("form", ["llava_hf", "llava_hf_new", "llava_hf_5"])
def test_all_spellings_of_llava_hf_are_the_same_model(form, tmp_path):
    model = tiny_model(2)
    folder = kit.write_config(tmp_path / "hf", kit.hf_config(model))
    kit.write_weights(folder, "safetensors", kit.weights_in(form, model))
    loaded = dict(load_model(folder).model.named_parameters())
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(loaded[name].numpy(), parameter.numpy(), err_msg=name)


def test_a_v1_model_with_image_marks_prompts_with_them_and_goes_out_with_them(tmp_path):
    """LLaVA v1: a linear projector, <im_start> and <im_end> around every image, their rows in the vocabulary."""
    model = tiny_model(2, projector_type="linear")
    hub = kit.hub(tmp_path, model)
    folder = kit.write_config(tmp_path / "liuhaotian" / "v1", {
        **kit.llava_config(model, "openai/tiny-clip"), "mm_use_im_start_end": True, "mm_projector_type": "linear",
    })  # fmt: skip
    weights = {name: item for name, item in kit.weights_in("llava", model).items() if "vision_tower" not in name}
    kit.write_weights(folder, "bin", weights)
    tokenizer = load_tokenizer(hub["vicuna"])
    tokenizer.add_special(["<im_patch>", "<im_start>", "<im_end>"])
    tokenizer.save(folder)
    made = convert(folder, tmp_path / "liuhaotian" / "v1-own", "own").folder
    back = convert(made, tmp_path / "liuhaotian" / "v1-back", "original").folder
    for one in (folder, made, back):
        assert load_model(one).config.use_im_start_end
        assert load_tokenizer(one).token_id("<im_end>") == load_tokenizer(folder).token_id("<im_end>")
    assert answer(made) == answer(folder) == answer(back)


def test_an_adapter_that_was_trained_here_works_in_pefts_form(tmp_path):
    hub = kit.hub(tmp_path, tiny_model(2))
    out = train(hub["llava"], tmp_path, tmp_path / "liuhaotian" / "adapter", lora="true", lora_rank=2)
    made = convert(out, tmp_path / "liuhaotian" / "peft", "original").folder
    assert read_adapter(made).pairs.keys() == read_adapter(out).pairs.keys()
    assert answer(made, hub["llava"]) == answer(out)
