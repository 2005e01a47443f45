# SPDX-License-Identifier: Apache-2.0
"""Adapters of every method: trained, gone on with, talked with, folded in, and in peft's form and back."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file

from paddlemix.checkpoint.convert.layouts import convert
from paddlemix.checkpoint.load import Loaded, load_model
from paddlemix.checkpoint.lora.adapter import load_adapter, save_adapter
from paddlemix.checkpoint.lora.merge import merge_adapter
from paddlemix.checkpoint.lora.read import read_adapter
from paddlemix.checkpoint.vocab import grow_vocabulary
from paddlemix.generation.predictor import Predictor
from paddlemix.ops.linear import adapters_off, add_lora
from paddlemix.utils.errors import CheckpointError, ConfigError
from tests.models.parallel_worker import arguments
from tests.tiny import tiny_config
from tests.trainer.run_kit import go

TARGETS = '["q_proj", ".*vision_tower.*v_proj", "mm_projector.0"]'
METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"rslora": "true"},
    "lora+": {"lora_plus_scale": 16},
    "dora": {"use_dora": "true", "lora_dropout": 0.1},
    "pissa": {"pissa": "true"},
    "pissa, searched, with all the others": {"pissa": "true", "pissa_iter": 4, "use_dora": "true", "rslora": "true"},
    "whole modules": {"modules_to_save": '["embed_tokens", "lm_head", "multi_modal_projector"]'},
    "tower and projector": {"lora_target_modules": TARGETS, "use_dora": "true"},
    "projector beside its adapter": {"lora_target_modules": TARGETS, "modules_to_save": '["mm_projector.2"]'},
}
every_method = pytest.mark.parametrize("method", METHODS)
KEYS = {
    "lora": "true", "lora_rank": 3, "lora_alpha": 7, "lora_dropout": 0.0, "max_steps": 4, "save_strategy": "steps",
    "save_steps": 2, "learning_rate": 0.02,
}  # fmt: skip


@pytest.fixture(scope="module")
def results(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of the finished run of a method, made once."""
    root, made = tmp_path_factory.mktemp("methods"), {}

    def result(method: str) -> Path:
        if method not in made:
            made[method] = go(place, root / str(len(made)), **{**KEYS, **METHODS[method]}).folder
        return made[method]

    return result


def scores(loaded: Loaded | Predictor) -> np.ndarray:
    inputs = {name: value for name, value in arguments(tiny_config()).items() if name != "labels"}
    with paddle.no_grad():
        return loaded.model(**inputs).numpy()


def require_same_effect(one: Path, two: Path) -> None:
    """Both adapters make the same of every weight, and bring the same beside that."""
    first, second = read_adapter(one), read_adapter(two)
    assert first.pairs.keys() == second.pairs.keys()
    assert first.other_names == second.other_names
    infos = first.source.infos()
    for weight, pair in first.pairs.items():
        ends = [infos[half.name].shape[:: -1 if half.transpose else 1] for half in (pair.a, pair.b)]
        made = np.random.default_rng(1).standard_normal((ends[0][0], ends[1][1])).astype(np.float32)
        again = made.copy()
        first.fold(weight, made)
        second.fold(weight, again)
        np.testing.assert_allclose(made, again, atol=1e-5, err_msg=weight)


@every_method
def test_an_adapter_of_every_method_opens_beside_and_folded_in(
    method: str, results: Any, place: Path, tmp_path: Path
) -> None:
    result = results(method)
    kept = load_model(result, lora="keep")
    expected, base = scores(kept), scores(load_model(place / "model"))
    assert np.abs(expected - base).max() > 1e-3
    np.testing.assert_allclose(scores(load_model(result)), expected, atol=5e-5)
    np.testing.assert_allclose(scores(load_model(result, base=place / "model")), expected, atol=5e-5)
    predictor = Predictor.load(result, base=place / "model", device="cpu")
    np.testing.assert_allclose(scores(predictor), expected, atol=5e-5)
    merge_adapter(result, tmp_path / "merged")
    np.testing.assert_allclose(scores(load_model(tmp_path / "merged")), expected, atol=5e-5)
    bare = load_model(place / "model")
    load_adapter(bare.model, result)
    np.testing.assert_array_equal(scores(bare), expected)
    others = {name: value for name, value in load_model(place / "model").model.named_parameters()}
    brought = {name: others[name] for name in read_adapter(result).other_names}
    with adapters_off(kept.model, brought):
        np.testing.assert_array_equal(scores(kept), base)


@every_method
def test_a_run_of_every_method_goes_on_bit_for_bit(method: str, results: Any, place: Path, tmp_path: Path) -> None:
    result = results(method)
    again = go(place, tmp_path / "again", resume_from_checkpoint=result / "checkpoint-2", **{**KEYS, **METHODS[method]})
    first, second = (load_file(folder / "lora_model_state.safetensors") for folder in (result, again.folder))
    middle = load_file(result / "checkpoint-2" / "lora_model_state.safetensors")
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)
    moved = {name.rpartition(".")[2] for name in first if (first[name] != middle[name]).any()}
    assert {"lora_A", "lora_B"} <= moved
    assert ("lora_magnitude_vector" in moved) == ("use_dora" in METHODS[method])
    assert not moved & {"lora_start_A", "lora_start_B"}


@every_method
def test_an_adapter_of_every_method_goes_to_pefts_form_and_back(
    method: str, results: Any, place: Path, tmp_path: Path
) -> None:
    result = results(method)
    expected = scores(load_model(result))
    require_same_effect(convert(result, tmp_path / "original", "original").folder, result)
    made = convert(result, tmp_path / "peft", "llava-hf").folder
    data = json.loads((made / "adapter_config.json").read_text())
    assert data.get("use_rslora", False) == ("rslora" in METHODS[method])
    assert data.get("use_dora", False) == ("use_dora" in METHODS[method])
    assert data["r"] == (6 if "pissa" in METHODS[method] else 3)
    np.testing.assert_allclose(scores(load_model(made, base=place / "model")), expected, atol=5e-5)
    back = convert(made, tmp_path / "own", "own", base=place / "model").folder
    np.testing.assert_allclose(scores(load_model(back)), expected, atol=5e-5)
    assert read_adapter(back).rslora == ("rslora" in METHODS[method])


@every_method
def test_a_finished_adapter_of_every_method_trains_on(method: str, results: Any, place: Path, tmp_path: Path) -> None:
    result = results(method)
    keys = {
        "lora": "true", "learning_rate": 1e-30, "model_name_or_path": result, "freeze_mm_mlp_adapter": "true",
        "max_steps": 1,
    }  # fmt: skip
    more = go(place, tmp_path / "more", **keys)
    first, second = (load_file(folder / "lora_model_state.safetensors") for folder in (result, more.folder))
    assert first.keys() == second.keys()
    for name, values in first.items():
        np.testing.assert_array_equal(second[name], values, err_msg=name)
    np.testing.assert_allclose(scores(load_model(more.folder)), scores(load_model(result)), atol=1e-6)


def test_paddlemixs_form_has_pissa_as_plain_lora_and_no_dora(results: Any, tmp_path: Path) -> None:
    made = convert(results("pissa"), tmp_path / "paddle", "paddlemix").folder
    require_same_effect(made, results("pissa"))
    assert json.loads((made / "lora_config.json").read_text())["r"] == 6
    with pytest.raises(CheckpointError, match="it is a DoRA adapter, which PaddleMIX's form has no place for; merge"):
        convert(results("dora"), tmp_path / "refused", "paddlemix")


def test_pefts_form_refuses_a_token_table_of_another_size_and_a_parameter_of_no_layer(
    place: Path, tmp_path: Path
) -> None:
    loaded = load_model(place / "model")
    config = grow_vocabulary(loaded.model, 460)
    add_lora(loaded.model, [".*layers.0.*q_proj"], 2, 2)
    grown = save_adapter(tmp_path / "grown", loaded.model, config, None, base=place / "model")
    with pytest.raises(CheckpointError, match="rows and the base 448, so peft cannot put it into that. Merge"):
        convert(grown, tmp_path / "peft", "llava-hf")
    exclude = '["*vision_tower*class_embedding"]'
    odd = go(place, tmp_path / "odd", lora="true", max_steps=1, freeze_exclude=exclude).folder
    with pytest.raises(CheckpointError, match="class_embedding.* has no place for it. Merge the adapter first"):
        convert(odd, tmp_path / "peft", "llava-hf")


@pytest.mark.parametrize(
    ("method", "keys", "told"),
    [
        ("lora", {"lora_rank": 4}, '"lora_rank" is 4 and the adapter has 3'),
        ("lora", {"lora_alpha": 8}, '"lora_alpha" is 8 and the adapter has 7'),
        ("lora", {"lora_dropout": 0.5}, '"lora_dropout" is 0.5 and the adapter has 0'),
        ("lora", {"use_dora": "true"}, '"use_dora" is true and the adapter has false'),
        ("lora", {"pissa": "true"}, '"pissa" is true and the adapter has false'),
        ("dora", {"use_dora": "false"}, '"use_dora" is false and the adapter has true'),
        ("rslora", {"rslora": "false"}, '"rslora" is false and the adapter has true'),
        ("lora", {"lora_target_modules": '["q_proj"]'}, '"lora_target_modules" means 2 layers and the adapter has 14'),
    ],
)
def test_a_key_that_asks_for_another_adapter_than_the_one_that_goes_on_is_refused(
    method: str, keys: dict[str, Any], told: str, results: Any, place: Path, tmp_path: Path
) -> None:
    given = {"lora": "true", "max_steps": 1, "model_name_or_path": results(method), **keys}
    with pytest.raises(ConfigError, match=told) as caught:
        go(place, tmp_path / "out", **given)
    assert re.search(r"merge this one first \(\S*paddlemix merge --lora_path", str(caught.value))
    assert not (tmp_path / "out").exists()
    assert go(place, tmp_path / "out", **{**given, **dict.fromkeys(keys)}).steps == 1


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"modules_to_save": '["embed_tokns"]'}, r'"embed_tokns" is no module .* mean "embed_tokens"\? \(outside of'),
        ({"modules_to_save": '["weight"]'}, '"weight" is no module of the model'),
        ({"modules_to_save": '["q_proj"]'}, r"lies over llama.layers.0.self_attn.q_proj, which has an adapter"),
        (
            {"modules_to_save": '["lm_head"]', "freeze_include": '["lm_head*"]'},
            'lm_head.weight, which "freeze_include"',
        ),
        ({"modules_to_save": '["mm_projector"]', "freeze_mm_mlp_adapter": "true"}, '"freeze_mm_mlp_adapter" is true'),
        ({"modules_to_save": '["lm_head"]', "lora": "false"}, '"modules_to_save".*"lora" = false do not go together'),
        ({"pissa": "true", "lora_rank": 33}, '"lora_rank" is 33, but the weight of .*_proj has 32 singular values'),
        (
            {"load_in_4bit": "true"},
            "is not a key of ours: paddle has no operators that train on weights of 4 or 8 bits",
        ),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_written(
    keys: dict[str, Any], told: str, place: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=told):
        go(place, tmp_path / "out", **{"lora": "true", "max_steps": 1, **keys})
    assert not (tmp_path / "out").exists()
