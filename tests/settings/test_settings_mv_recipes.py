# SPDX-License-Identifier: Apache-2.0
"""MV-LLaVA's recipes hold the numbers of the original's two scripts (16 devices)."""

from pathlib import Path

import pytest

from paddlemix.settings.run.loader import load_settings

CONFIG = Path(__file__).resolve().parents[2] / "paddlemix" / "config" / "mv_llava"
DEVICES = 16


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda name: load_settings([str(CONFIG / f"{name}.json")])


@pytest.mark.parametrize(
    ("name", "batch", "rate", "template", "aspect", "grouped"),
    [
        ("pretrain", 256, 2e-5, "plain", "square", False),
        ("sft", 128, 2e-5, "v1", "pad", True),
        ("lora_sft", 128, 2e-4, "v1", "pad", True),
    ],
)
def test_a_stage_trains_as_its_script_does(recipe, name, batch, rate, template, aspect, grouped):
    settings = recipe(name)
    model, data, training = settings.model, settings.data, settings.training
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps * DEVICES == batch
    assert (training.learning_rate, training.lr_scheduler_type, training.warmup_ratio) == (rate, "cosine", 0.03)
    assert (training.weight_decay, training.num_train_epochs, training.bf16, training.recompute) == (0, 1, True, True)
    assert (model.template, data.image_aspect_ratio) == (template, aspect)
    assert training.group_by_modality_length == grouped
    # 2048 ids in which the 1024 image tokens count as one: the original cuts before it merges.
    assert data.max_length == 2048 - 1 + 4 * 256
    assert {entry["name"] for entry in data.dataset["train"]} == {"mv_dataset"}
    assert data.single_view_repeat == 4


def test_the_first_stage_trains_the_upper_tower_and_the_second_goes_on_from_its_result(recipe):
    first, second = recipe("pretrain"), recipe("sft")
    assert (first.model.tune_entire_model, first.model.tune_vit_from_layer) == (True, 20)
    assert first.model.vision_tower == "openai/clip-vit-large-patch14"
    assert second.model.model_name_or_path == first.training.output_dir
    assert not second.model.tune_entire_model


def test_the_objects_of_the_demo_file_are_seen_ten_times(recipe):
    files = [entry["data_files"] for entry in recipe("pretrain").data.dataset["train"]]
    assert files[1] == ["data/demo_obj_pretrain.json"] * 10


def test_a_repetition_without_a_multi_view_data_set_is_told(recipe, tmp_path):
    flags = ["--model_name_or_path", "m", "--output_dir", str(tmp_path / "out"), "--data_path", "rows.json"]
    settings = load_settings([*flags, "--do_train", "true", "--single_view_repeat", "2"])
    assert 'single_view_repeat has no effect: no data set has the name "mv_dataset"' in settings.notes
    assert recipe("sft").notes == ()
