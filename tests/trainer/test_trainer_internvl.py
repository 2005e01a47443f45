# SPDX-License-Identifier: Apache-2.0
"""InternVL-Chat's recipes run on tiny checkpoints in the published layout; the vision tower trains where asked to."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from paddlemix.settings.run.loader import load_settings
from tests.checkpoint.checkpoint_kit import llama_config, weights_in, write_config, write_weights
from tests.tiny import tiny_image, tiny_intern_config, tiny_model, tiny_tokenizer_folder

RECIPES = Path(__file__).resolve().parents[2] / "paddlemix" / "config" / "internvl_chat"
TOWER = "llama.vision_tower.vision_tower."
TABLE = f"{TOWER}embeddings.position_embedding"
ON_A_CPU = {
    "device": "cpu",
    "bf16": "false",
    "fp16_opt_level": "O1",
    "amp_master_grad": "false",
    "per_device_train_batch_size": "2",
    "max_steps": "2",
    "save_strategy": "no",
    "warmup_ratio": "0",
    "max_length": "256",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """lmsys/vicuna-7b-v1.5, OpenGVLab/InternViT-6B-224px (tiny, of 28 pixels), images and the recipes' two files."""
    root = tmp_path_factory.mktemp("internvl")
    model = tiny_model(config=tiny_intern_config())
    vision = model.config.vision
    keys = ["hidden_size", "intermediate_size", "num_attention_heads", "patch_size"]
    tower = {"model_type": "intern_vit_6b", "image_size": 28, "num_hidden_layers": 4, "qk_normalization": True}
    folder = write_config(
        root / "OpenGVLab" / "InternViT-6B-224px", tower | {key: getattr(vision, key) for key in keys}
    )
    write_weights(folder, "bin", weights_in("intern_vit", model))
    vicuna = write_config(root / "lmsys" / "vicuna-7b-v1.5", {"model_type": "llama", **llama_config(model)})
    plain = {k: v for k, v in weights_in("llava", model).items() if "vision_tower" not in k and "mm_projector" not in k}
    write_weights(vicuna, "bin", plain)
    tiny_tokenizer_folder(vicuna)
    (root / "images").mkdir()
    rows = []
    for index in range(4):
        tiny_image(index).save(root / "images" / f"{index}.png")
        turns = [("human", "<image>\nwhat is shown?"), ("gpt", "red square" if index % 2 else "blue circle")]
        rows.append({"image": f"{index}.png", "conversations": [{"from": who, "value": text} for who, text in turns]})
    (root / "blip_laion_cc_sbu_558k.json").write_text(json.dumps(rows))
    mixed = [*rows, {"conversations": [{"from": "human", "value": "how many?"}, {"from": "gpt", "value": "two"}]}]
    (root / "llava_v1_5_mix665k.json").write_text(json.dumps(mixed))
    return root


def go(recipe, monkeypatch, place, **changes):
    from paddlemix.trainer.run import finetune, pretrain

    monkeypatch.chdir(place)
    keys = {**ON_A_CPU, **changes}
    parts = [part for name, value in keys.items() for part in (f"--{name}", str(value))]
    settings = load_settings([str(RECIPES / f"{recipe}_224to336_vicuna7b.json"), *parts])
    return (pretrain if recipe == "pretrain" else finetune)(settings).folder


@pytest.fixture(scope="module")
def stage1(place):
    with pytest.MonkeyPatch.context() as monkeypatch:
        return place / go("pretrain", monkeypatch, place)


def changed(before, after, part):
    one, other = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    assert one.keys() == other.keys()
    return sorted(name for name in one if part in name and not np.array_equal(one[name], other[name]))


def test_the_first_stage_trains_the_projector_and_leaves_a_whole_model_with_its_tower(place, stage1):
    stored = load_file(stage1 / "model.safetensors")
    assert stored[TABLE].shape == (1, 5, 32)
    config = json.loads((stage1 / "config.json").read_text())
    assert config["vision"]["model_type"] == "intern_vit_6b"
    assert config["vision"]["select_layer"] == -4
    assert config["image"]["mean"] == [0.485, 0.456, 0.406]
    original = tiny_model(config=tiny_intern_config())
    for name, value in original.named_parameters():
        if "mm_projector" not in name:
            assert np.array_equal(stored[name], value.numpy()), name
    assert (stage1 / "mm_projector.safetensors").is_file()


def test_the_second_stage_trains_everything_but_the_tower_and_the_result_talks(place, stage1, tmp_path, monkeypatch):
    from paddlemix.generation.load import load_chat
    from paddlemix.generation.sampling import Decoding

    result = go("sft", monkeypatch, place, output_dir=tmp_path / "sft")
    assert changed(stage1, result, "vision_tower") == []
    assert len(changed(stage1, result, "llama.layers")) > 10
    assert len(changed(stage1, result, "mm_projector")) == 4
    chat = load_chat(str(result), device="cpu", decoding=Decoding(max_new_tokens=3))
    assert isinstance("".join(chat.ask("what is shown?", [tiny_image(0)])), str)


def test_the_position_table_trains_where_it_is_asked_to(place, stage1, tmp_path, monkeypatch):
    lists = {"freeze_exclude": json.dumps([TABLE]), "learning_rate": "0.01", "mm_image_size": "42"}
    result = go("sft", monkeypatch, place, output_dir=tmp_path / "table", mm_vision_select_layer="-2", **lists)
    assert changed(stage1, result, "vision_tower") == [TABLE]


def test_the_whole_tower_trains_with_recompute_and_layers_above_the_chosen_one_stay(
    place, stage1, tmp_path, monkeypatch
):
    lists = {"freeze_exclude": json.dumps([f"{TOWER}*"]), "learning_rate": "0.01"}
    result = go("sft", monkeypatch, place, output_dir=tmp_path / "tower", mm_vision_select_layer="-3", **lists)
    layers = {name.split(".")[5] for name in changed(stage1, result, f"{TOWER}encoder.layers")}
    assert layers == {"0", "1"}
    assert changed(stage1, result, f"{TOWER}embeddings")


def test_the_lora_recipe_trains_adapters_and_projector(place, stage1, tmp_path, monkeypatch):
    from paddlemix.checkpoint.load import load_model

    result = go("lora_sft", monkeypatch, place, output_dir=tmp_path / "lora", model_name_or_path=stage1, lora_rank=4)
    loaded = load_model(result, lora="keep")
    trained = [name for name, value in loaded.model.named_parameters() if name.endswith("lora_B")]
    assert len(trained) == 2 * 7
    assert (result / "lora_config.json").is_file()
    stored = load_file(stage1 / "model.safetensors")
    values = dict(loaded.model.named_parameters())
    assert not np.array_equal(values["llama.mm_projector.0.weight"].numpy(), stored["llama.mm_projector.0.weight"])
    assert np.array_equal(values[TABLE].numpy(), stored[TABLE])
