# SPDX-License-Identifier: Apache-2.0
"""A run on objects of four views: every kind of row in one batch, and a tuned tower that is found again."""

import json

import numpy as np
import pytest

from paddlemix.checkpoint.load import load_model
from paddlemix.checkpoint.save import save_model
from paddlemix.datasets.multiview import _is_folder
from paddlemix.settings.run.training import TrainingSettings
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.trainer.run import finetune, pretrain
from tests.tiny import tiny_image, tiny_model, tiny_tokenizer_folder

ASK = "<image><image><image><image>\nWhat is it?"
LAYER = "llama.vision_tower.vision_tower.vision_model.transformer.layers.{}.linear1.weight"


@pytest.fixture
def home(tmp_path):
    """A model folder and a file with an object, a sheet, a lone image and a row of text."""
    _is_folder.cache_clear()
    model = tiny_model()
    save_model(tmp_path / "model", model, model.config, load_tokenizer(tiny_tokenizer_folder()))
    for view in (0, 1, 4, 5):
        (tmp_path / f"Cap3D_imgs_view{view}").mkdir()
        tiny_image(view, (40, 40)).save(tmp_path / f"Cap3D_imgs_view{view}" / "chair.jpg")
    tiny_image(9, (64, 64)).save(tmp_path / "sheet.png")
    tiny_image(10, (50, 30)).save(tmp_path / "photo.png")
    rows = [
        {"id": name, "conversations": [{"from": "human", "value": ask}, {"from": "gpt", "value": "red"}]}
        | ({"image": image} if image else {})
        for name, image, ask in (
            ("cap3d_1", "chair", ASK),
            ("sv3d_1", "sheet.png", ASK),
            ("1", "photo.png", "<image>\nWhat?"),
            ("text_1", None, "Why?"),
        )
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    return tmp_path


def train(home, start=finetune, **changes):
    entry = {"name": "mv_dataset", "data_files": str(home / "rows.json"), "image_folder": str(home)}
    values = {
        "model_name_or_path": str(home / "model"),
        "dataset": {"train": [entry]},
        "output_dir": str(home / "out"),
        "template": "v1",
        "max_length": 256,
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "device": "cpu",
        "do_train": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
    }
    start(TrainingSettings().with_changes(**(values | changes)))
    return weights(home / "out")


def weights(folder):
    return {name: value.numpy() for name, value in load_model(folder).model.named_parameters()}


def test_a_tuned_tower_is_saved_and_found_again(home):
    before = weights(home / "model")
    after = train(home, tune_entire_model=True, tune_vit_from_layer=0)
    assert np.abs(after[LAYER.format(0)] - before[LAYER.format(0)]).max() > 1e-4
    outside = "llama.vision_tower.vision_tower.vision_model.conv1.weight"
    assert np.array_equal(after[outside], before[outside])


def test_the_first_stage_of_mv_llava_trains_the_language_model_too(home):
    before = weights(home / "model")
    after = train(home, pretrain, tune_entire_model=True, tune_vit_from_layer=0, template="plain")
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert {"llama.mm_projector.0.weight", "lm_head.weight", LAYER.format(0)} <= changed


def test_a_frozen_tower_stays_as_it_was(home):
    before, after = weights(home / "model"), train(home)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert not any(name.startswith("llama.vision_tower.") for name in changed)
    assert {"llama.mm_projector.0.weight", "lm_head.weight"} <= changed


def test_a_tower_tuned_beside_adapters_lies_in_the_adapter_folder(home):
    before = weights(home / "model")
    after = train(home, lora=True, lora_rank=2, tune_entire_model=True)
    assert np.abs(after[LAYER.format(0)] - before[LAYER.format(0)]).max() > 1e-4
    assert (home / "out" / "lora_config.json").is_file()


def test_sample_answers_of_objects_are_those_of_a_prediction_and_the_sheet_has_every_view(home, monkeypatch):
    from paddlemix.trainer import sample_answers

    shown, draw = [], sample_answers.draw_sheet
    monkeypatch.setattr(
        sample_answers,
        "draw_sheet",
        lambda *given: shown.append([p if p is None else len(p) for p in given[2]]) or draw(*given),
    )
    entry = {"name": "mv_dataset", "data_files": str(home / "rows.json"), "image_folder": str(home)}
    parts = {part: [entry] for part in ("train", "eval", "test")}
    asked = {"eval_generate": 4, "eval_generate_tokens": 6, "max_new_tokens": 6, "do_eval": True, "do_predict": True}
    train(home, dataset=parts, lora=True, lora_rank=2, **asked)
    texts = [
        (home / "out" / name).read_text() for name in ("eval_answers/step-000002.jsonl", "generated_predictions.jsonl")
    ]
    said, predicted = ([json.loads(line) for line in text.splitlines()] for text in texts)
    assert [one["answer"] for one in said] == [one["predict"].strip() for one in predicted]
    assert len({one["answer"] for one in said}) > 2
    assert shown[0] == [4, 4, 1, None]
