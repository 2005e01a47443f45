# SPDX-License-Identifier: Apache-2.0
"""Keys that no reader knows: published files load without a word, doubtful keys are told, harmful ones stop."""

import json
import logging

import pytest

from paddlemix.settings.published import unknown_keys
from paddlemix.settings.published.config import load_config
from paddlemix.settings.published.tower import read_tower
from paddlemix.utils.errors import CheckpointError
from paddlemix.utils.options import FLAGS, speaking, strict_config
from tests.settings.published_configs import L7, PUBLISHED, _original

PLAIN = _original(L7)


@pytest.fixture
def warnings(monkeypatch):
    """The warnings of the library while a test runs."""
    monkeypatch.setattr(unknown_keys, "_TOLD", set())
    found: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())
    logger = logging.getLogger("paddlemix")
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


def read(folder, data):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(data))
    return load_config(folder)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_load_without_a_word(name, tmp_path, warnings, monkeypatch):
    monkeypatch.setenv("PPMIX_HOME", str(tmp_path / "cache"))
    data, facts = PUBLISHED[name]
    with strict_config():
        config = read(tmp_path / "model", data)
    image = config.image
    aspect = image.aspect + (f"_max_{image.max_tiles}" if image.max_tiles else "")
    found = (config.text.model_type, config.projector_type, aspect, image.merge, config.template, image.crop_size,
             config.vision.select_layer)  # fmt: skip
    assert " ".join(map(str, found)) == facts
    assert not warnings


def test_at_least_25_published_files_are_in_the_table():
    assert len(PUBLISHED) >= 25


DOUBTFUL = {"blur": 0, "mm_patch_merge_typ": "flat", "rope_twist": 1.5, "blur_token_id": "x"}


def test_doubtful_keys_are_one_warning_with_what_they_might_change(tmp_path, warnings):
    folder = tmp_path / "model"
    assert read(folder, PLAIN | DOUBTFUL) == read(folder, PLAIN)
    read(folder, PLAIN | DOUBTFUL)  # read again, as on the way to a model
    assert len(warnings) == 1
    assert str(folder / "config.json") in warnings[0]
    for words in (
        '"blur" (0) might change what the model computes',
        '"rope_twist" (1.5',
        'did you mean "mm_patch_merge_type"?) might change how pictures',
        '"blur_token_id" ("x"',
    ):
        assert words in warnings[0]


def test_keys_of_the_objects_inside_a_file_are_told_with_it(tmp_path, warnings):
    data = PUBLISHED["llava-hf/llava-1.5-7b-hf"][0]
    inside = {part: data[part] | {f"{part}_blur": 1} for part in ("text_config", "vision_config")}
    read(tmp_path / "model", data | inside | {"blur": 2})
    assert len(warnings) == 1
    for key in ('"blur" (2)', '"text_config/text_config_blur" (1)', '"vision_config/vision_config_blur" (1)'):
        assert key in warnings[0]
    tower = tmp_path / "tower"
    tower.mkdir()
    (tower / "config.json").write_text(json.dumps({"model_type": "clip", "a_blur": 1, "vision_config": {"b_blur": 2}}))
    read_tower(tower)
    assert '"a_blur" (1)' in warnings[1]
    assert '"vision_config/b_blur" (2)' in warnings[1]
    assert len(warnings) == 2


def test_a_strict_command_makes_them_an_error_that_names_its_flag(tmp_path, warnings):
    with speaking(FLAGS), strict_config(), pytest.raises(CheckpointError) as caught:
        read(tmp_path / "model", PLAIN | DOUBTFUL)
    assert 'unknown keys: "blur" (0)' in str(caught.value)
    assert "take them out of the file, or load without --strict-config" in str(caught.value)
    assert not warnings


HARMLESS = {
    "unk_token_id": 0, "stop_token_ids": [1, 2], "image_token_index": 7, "_note": "x", "use_x": False, "gone": None,
    "wandb_run": "a", "mm_connector_lr": 1e-5, "transformers_weights_version": "4", "generation_seed": 3,
    "layer_types": ["full_attention"] * 3, "use_flash_attention_2": True, "gradient_checkpointing": True,
    "encoder_repetition_penalty": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("key", HARMLESS)
def test_keys_that_cannot_matter_pass_even_a_strict_reading(key, tmp_path, warnings):
    with strict_config():
        assert read(tmp_path / "model", PLAIN | {key: HARMLESS[key]}).text.model_type == "llama"
    assert not warnings


HARMFUL = {
    "quantization_config": ({"bits": 4}, "few bits"),
    "num_local_experts": (8, "experts"),
    "partial_rotary_factor": (0.5, "whole heads"),
    "logits_scaling": (8.0, "factor"),
    "attn_logit_softcapping": (50.0, "capped"),
    "use_sliding_window": (True, "window"),
    "layer_types": (["full_attention", "sliding_attention"], "sliding_attention"),
    "mm_resampler_type": ("perceiver", "resamplers"),
    "s2": (True, "multi-scale"),
    "mlp_bias": (True, "without bias"),
}


@pytest.mark.parametrize("key", HARMFUL)
def test_keys_that_change_numbers_stop_the_loading(key, tmp_path):
    value, words = HARMFUL[key]
    with pytest.raises(CheckpointError, match=words) as caught:
        read(tmp_path / "model", PLAIN | {key: value})
    assert f'"{key}"' in str(caught.value)


@pytest.mark.parametrize("key", ["partial_rotary_factor", "logits_scaling"])
def test_such_a_key_that_changes_nothing_passes(key, tmp_path):
    with strict_config():
        read(tmp_path / "model", PLAIN | {key: 1.0})


def test_towers_and_preprocessors_are_read_by_the_same_rules(tmp_path, warnings):
    data = {"model_type": "clip_vision_model", "hidden_size": 24, "num_attention_heads": 2, "image_size": 336,
            "patch_size": 14, "qk_normalisation": 1, "use_x": False, "num_experts": 4}  # fmt: skip
    tower = tmp_path / "hub" / "openai" / "clip-vit-large-patch14-336"
    tower.mkdir(parents=True)
    (tower / "config.json").write_text(json.dumps(data))
    folder = tmp_path / "hub" / "author" / "model"
    folder.parent.mkdir()
    with pytest.raises(CheckpointError, match="experts"):
        read(folder, PLAIN | {"mm_hidden_size": 24})
    (tower / "config.json").write_text(json.dumps(data | {"num_experts": None}))
    (tower / "preprocessor_config.json").write_text('{"blur": 3, "crop_size": 336}')
    with pytest.raises(CheckpointError, match="few bits"):
        read(folder, PLAIN | {"mm_hidden_size": 24, "quantization_config": {"bits": 8}})
    assert [str(tower) in text for text in warnings] == [True] * len(warnings)
    read(folder, PLAIN | {"mm_hidden_size": 24})
    assert [key in " ".join(warnings) for key in ('"qk_normalisation" (1)', '"blur" (3)', "use_x")] == [1, 1, 0]
