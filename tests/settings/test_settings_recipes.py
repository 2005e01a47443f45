# SPDX-License-Identifier: Apache-2.0
"""Every recipe that is shipped passes the loader; InternVL-Chat's hold the numbers of the original's scripts."""

from pathlib import Path

import pytest

from paddlemix.settings.loader import load_settings
from paddlemix.text import templates

CONFIG = Path(__file__).resolve().parents[2] / "paddlemix" / "config"
RECIPES = sorted(str(path.relative_to(CONFIG)) for path in CONFIG.rglob("*.json"))
INTERNVL = [
    f"internvl_chat/{stage}_{size}_vicuna{width}.json"
    for stage in ("pretrain", "sft", "lora_sft")
    for size in ("224to336", "448")
    for width in ("7b", "13b")
]


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_passes_the_loader(name):
    settings = load_settings([str(CONFIG / name)])
    assert settings.training.do_train
    assert settings.model.template is None or settings.model.template in templates.TEMPLATES


def test_all_recipes_of_internvl_chat_are_there():
    assert set(INTERNVL) <= set(RECIPES)


@pytest.mark.parametrize("name", INTERNVL)
def test_internvl_chat_trains_as_its_scripts_do(name):
    settings = load_settings([str(CONFIG / name)])
    model, data, training = settings.model, settings.data, settings.training
    assert (training.warmup_ratio, training.lr_scheduler_type, training.weight_decay) == (0.03, "cosine", 0.0)
    assert (training.num_train_epochs, training.max_grad_norm, data.max_length) == (1, 1.0, 2048)
    assert (training.bf16, training.recompute, training.save_steps, training.save_total_limit) == (True, True, 1000, 3)
    first = "/pretrain" in name
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps * 8
    assert batch == (256 if first else 128)
    assert (model.template, data.image_aspect_ratio) == (("plain", "square") if first else ("v1", "pad"))
    assert training.group_by_modality_length != first
    assert training.learning_rate == {True: 1e-3, False: 2e-4 if model.lora else 2e-5}[first]
    if first:
        assert model.vision_tower == "OpenGVLab/InternViT-6B-" + ("448px" if "_448_" in name else "224px")
        assert (model.mm_vision_select_layer, model.mm_projector_type) == (-4, "mlp2x_gelu")
        assert model.tune_mm_mlp_adapter


def test_a_second_stage_goes_on_from_the_result_of_the_first():
    for name in INTERNVL:
        if "/sft" in name:
            first = load_settings([str(CONFIG / name.replace("/sft", "/pretrain"))])
            assert load_settings([str(CONFIG / name)]).model.model_name_or_path == first.training.output_dir
