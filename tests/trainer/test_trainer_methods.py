# SPDX-License-Identifier: Apache-2.0
"""Methods that a key switches on: rank-stabilised LoRA, LoRA+ and NEFTune."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file

from paddlemix.checkpoint.load import load_model
from paddlemix.checkpoint.lora.merge import merge_adapter
from paddlemix.checkpoint.lora.read import read_adapter
from paddlemix.ops.linear import lora_layers
from paddlemix.trainer.lora_targets import add_adapters
from paddlemix.trainer.stages import plan_stage
from tests.tiny import tiny_model
from tests.trainer import trainer_kit as kit
from tests.trainer.run_kit import go

LORA = {"lora": "true", "lora_rank": 4, "lora_alpha": 6, "lora_dropout": 0.0}


def test_a_stabilised_adapter_keeps_its_scale_in_the_result_the_merge_and_in_pefts_form(
    place: Path, tmp_path: Path
) -> None:
    result = go(place, tmp_path / "lora", max_steps=2, rslora="true", **LORA).folder
    assert json.loads((result / "lora_config.json").read_text())["rslora"] is True
    pairs = read_adapter(result).pairs
    assert {pair.scaling for pair in pairs.values()} == {6 / math.sqrt(4)}
    base = load_model(place / "model").model
    together = load_model(result, base=place / "model", lora="keep").model
    weight = next(iter(pairs))
    tensors = load_file(result / "lora_model_state.safetensors")
    name = weight.removesuffix(".weight")
    delta = tensors[f"{name}.lora_A"] @ tensors[f"{name}.lora_B"] * 3.0
    assert np.abs(delta).max() > 0
    merge_adapter(result, tmp_path / "merged")
    merged = load_model(tmp_path / "merged").model
    own = dict(base.named_parameters())[weight].numpy()
    np.testing.assert_allclose(dict(merged.named_parameters())[weight].numpy(), own + delta, atol=1e-6)
    layer = dict(lora_layers(together))[name]
    np.testing.assert_allclose(layer.delta().numpy(), delta, atol=1e-7)
    from paddlemix.checkpoint.convert.layouts import convert

    convert(result, tmp_path / "peft", "original")
    data = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    stabilised = data.get("use_rslora", False)
    assert data["lora_alpha"] / (math.sqrt(data["r"]) if stabilised else data["r"]) == pytest.approx(3.0)
    assert read_adapter(tmp_path / "peft").pairs[weight].scaling == pytest.approx(3.0)


def test_lora_plus_gives_b_its_own_rate(tmp_path: Path) -> None:
    run = kit.settings(tmp_path, lora=True, lora_plus_scale=16.0, learning_rate=1e-4, mm_projector_lr=2e-5)
    model = tiny_model()
    add_adapters(model, run)
    plan = plan_stage(model, run)
    rates = {name: rule.learning_rate for name, rule in plan.rules.items()}
    assert {rate for name, rate in rates.items() if name.endswith("lora_A")} == {1e-4}
    assert {rate for name, rate in rates.items() if name.endswith("lora_B")} == {16 * 1e-4}
    assert {rate for name, rate in rates.items() if "mm_projector" in name} == {2e-5}
    assert next(part for part in plan.parts if part.name == "LoRA adapters").learning_rate == 1e-4
    assert [row[-1] for row in plan.rows() if row[0] == "LoRA adapters"] == ["0.0001, B 0.0016"]


def test_the_first_update_of_b_is_sixteen_times_as_large(place: Path, tmp_path: Path) -> None:
    def b_of(scale: float) -> np.ndarray:
        folder = go(place, tmp_path / f"{scale}", max_steps=1, lora_plus_scale=scale, **LORA).folder
        tensors = load_file(folder / "lora_model_state.safetensors")
        return np.concatenate([value.ravel() for name, value in tensors.items() if name.endswith("lora_B")])

    plain, faster = b_of(1.0), b_of(16.0)
    assert np.abs(plain).max() > 0
    np.testing.assert_allclose(faster, 16 * plain, rtol=1e-4, atol=1e-7)


def _rows(model: Any) -> tuple[Any, Any]:
    ids = paddle.to_tensor(np.arange(3, 3 + 50, dtype=np.int64)[None])
    return ids, paddle.to_tensor(np.arange(50, dtype=np.int64)[None])


def test_the_noise_of_neftune_has_its_size_only_in_training_and_only_on_words() -> None:
    model = tiny_model()
    ids, source = _rows(model)
    model.eval()
    plain = model.embed(ids, source, None).numpy()
    model.enable_neftune(5.0)
    assert (model.embed(ids, source, None).numpy() == plain).all(), "an evaluation is not disturbed"
    model.train()
    paddle.seed(7)
    noise = model.embed(ids, source, None).numpy() - plain
    bound = 5.0 / math.sqrt(50 * plain.shape[2])
    assert np.abs(noise).max() <= bound * 1.001
    assert np.std(noise) == pytest.approx(bound / math.sqrt(3), rel=0.1)
    paddle.seed(7)
    np.testing.assert_array_equal(model.embed(ids, source, None).numpy() - plain, noise)
    width = plain.shape[2]
    features = paddle.ones([1, 4, width])
    shown = paddle.to_tensor((np.arange(4, dtype=np.int64) + 50)[None])  # four rows of an image
    assert (model.embed(ids, shown, features).numpy() == 1).all()


def test_a_run_with_neftune_differs_and_goes_on_bit_for_bit(place: Path, tmp_path: Path) -> None:
    keys = {"neftune": "true", "neftune_noise_alpha": 3.0, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    straight = go(place, tmp_path / "straight", **keys)
    plain = go(place, tmp_path / "plain", max_steps=4)
    first = load_file(tmp_path / "straight" / "model.safetensors")
    assert any((first[name] != value).any() for name, value in load_file(plain.folder / "model.safetensors").items())
    again = tmp_path / "straight" / "checkpoint-2"
    resumed = go(place, tmp_path / "again", resume_from_checkpoint=again, **keys)
    second = load_file(resumed.folder / "model.safetensors")
    assert straight.steps == resumed.steps == 4
    assert all((first[name] == value).all() for name, value in second.items())
