# SPDX-License-Identifier: Apache-2.0
"""Adapters: merged equals unmerged, the folder is complete, and only the right base is accepted, once."""

import json
import shutil
from pathlib import Path

import numpy as np
import paddle
import pytest

from paddlemix.checkpoint.convert.layouts import convert
from paddlemix.checkpoint.formats.source import open_file
from paddlemix.checkpoint.load import load_model
from paddlemix.checkpoint.lora.adapter import load_adapter, save_adapter
from paddlemix.checkpoint.lora.merge import merge_adapter
from paddlemix.checkpoint.lora.read import read_adapter
from paddlemix.checkpoint.save import save_model
from paddlemix.ops.linear import add_lora, lora_layers
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.utils.errors import CheckpointError
from tests.checkpoint import checkpoint_kit as kit
from tests.tiny import tiny_model, tiny_tokenizer_folder

PATTERNS = [r"llama.layers.*self_attn.(q|v)_proj", r"llama.layers.*mlp.down_proj"]


def logits(model) -> np.ndarray:
    model.eval()
    ids = paddle.to_tensor([[1, 5, 6, 7, 300]])
    places = paddle.arange(5).unsqueeze(0)
    with paddle.no_grad():
        return model(ids, places, places).numpy()


def trained(model, seed: int = 0):
    """The model with an adapter and a projector as after a training."""
    add_lora(model, PATTERNS, 3, 6.0, 0.1)
    rng = np.random.default_rng(seed)
    for name, parameter in model.named_parameters():
        parameter.stop_gradient = not (".lora_" in name or "mm_projector" in name)
        if not parameter.stop_gradient:
            parameter.set_value(paddle.to_tensor(rng.normal(0, 0.3, parameter.shape).astype(np.float32)))
    return model


@pytest.fixture
def base(tmp_path) -> Path:
    model = tiny_model()
    return save_model(tmp_path / "base", model, model.config, load_tokenizer(tiny_tokenizer_folder()))


@pytest.fixture
def adapter(base, tmp_path) -> Path:
    loaded = load_model(base)
    tokenizer = load_tokenizer(base)
    return save_adapter(tmp_path / "runs" / "adapter", trained(loaded.model), loaded.config, tokenizer, base=base)


def test_a_saved_adapter_opens_without_further_flags_and_equals_the_trained_model(base, adapter):
    expected = logits(trained(load_model(base).model))
    np.testing.assert_array_equal(logits(load_model(adapter, lora="keep").model), expected)
    np.testing.assert_allclose(logits(load_model(adapter).model), expected, atol=2e-5)


def test_merged_weights_carry_no_adapter(adapter):
    assert list(lora_layers(load_model(adapter).model)) == []
    assert len(list(lora_layers(load_model(adapter, lora="keep").model))) == 6


def test_an_adapter_folder_is_complete(adapter):
    names = {path.name for path in adapter.iterdir()}
    needed = {"lora_model_state.safetensors", "lora_config.json", "config.json", "tokenizer.model", "manifest.json"}
    assert needed | {"preprocessor_config.json", "generation_config.json"} <= names
    held = open_file(adapter / "lora_model_state.safetensors").infos()
    kinds = {name.split(".lora_")[0].rpartition(".")[2] if ".lora_" in name else name for name in held}
    assert {"q_proj", "v_proj", "down_proj", "llama.mm_projector.0.weight"} <= kinds
    assert not any("vision_tower" in name or "embed" in name for name in held)


def test_an_adapter_moved_together_with_its_base_still_finds_it(adapter, tmp_path):
    expected = logits(load_model(adapter).model)
    (tmp_path / "elsewhere").mkdir()
    for name in ("base", "runs"):
        shutil.move(tmp_path / name, tmp_path / "elsewhere" / name)
    np.testing.assert_array_equal(logits(load_model(tmp_path / "elsewhere" / "runs" / "adapter").model), expected)


def test_a_missing_base_is_an_error_that_names_it(adapter, base):
    shutil.rmtree(base)
    with pytest.raises(CheckpointError, match=f'"{base}" is not on this machine'):
        load_model(adapter)


def test_another_base_of_the_same_shape_is_refused(adapter, tmp_path):
    other = tiny_model(seed=7)
    folder = save_model(tmp_path / "other", other, other.config, None)
    with pytest.raises(CheckpointError, match="trained on another base"):
        load_model(adapter, base=folder)


def test_the_same_base_in_half_precision_is_accepted(adapter, base, tmp_path):
    half = load_model(base, dtype="bfloat16")
    folder = save_model(tmp_path / "half", half.model, half.config, None)
    assert load_model(adapter, base=folder).base == folder


def test_a_base_of_another_shape_is_refused(adapter, tmp_path):
    import dataclasses

    config = tiny_model().config
    wide = dataclasses.replace(config.text, intermediate_size=96)
    from paddlemix.models.llava import build_empty, init_weights

    model = build_empty(config.with_changes(text=wide))
    init_weights(model)
    folder = save_model(tmp_path / "wide", model, model.config, None)
    with pytest.raises(CheckpointError):
        load_model(adapter, base=folder)


def test_a_rank_that_the_config_does_not_say_is_refused(adapter):
    config = json.loads((adapter / "lora_config.json").read_text())
    (adapter / "lora_config.json").write_text(json.dumps({**config, "r": 4}))
    with pytest.raises(CheckpointError, match="has rank 3 in A and 3 in B, its config says 4"):
        load_model(adapter)


def test_merging_makes_a_folder_that_stands_alone(adapter, base):
    expected = logits(load_model(adapter, lora="keep").model)
    result = merge_adapter(adapter)
    assert result.folder == adapter.with_name("adapter-merged")
    shutil.rmtree(base)
    shutil.rmtree(adapter)
    merged = load_model(result.folder)
    np.testing.assert_allclose(logits(merged.model), expected, atol=2e-5)
    assert load_tokenizer(merged.tokenizer_folder).eos_id == 2


def test_a_merged_folder_keeps_the_settings_of_the_adapters_training(adapter):
    (adapter / "training_settings.json").write_text('{"learning_rate": 0.1}')
    merged = merge_adapter(adapter)
    assert json.loads((merged.folder / "training_settings.json").read_text()) == {"learning_rate": 0.1}


def test_merging_twice_is_refused(adapter):
    merged = merge_adapter(adapter).folder
    with pytest.raises(CheckpointError, match="is merged into it already"):
        load_model(adapter, base=merged)
    with pytest.raises(CheckpointError, match="exists already"):
        merge_adapter(adapter)


def test_merging_never_writes_into_the_adapter(adapter):
    with pytest.raises(CheckpointError, match="exists already"):
        merge_adapter(adapter, adapter)


def test_a_whole_model_is_nothing_to_merge(base):
    with pytest.raises(CheckpointError, match="it is no LoRA adapter"):
        merge_adapter(base)


def test_an_adapter_can_be_loaded_into_a_model_in_memory(adapter, base):
    model = load_model(base).model
    names = load_adapter(model, adapter)
    assert len([name for name in names if ".lora_" in name]) == 12
    np.testing.assert_array_equal(logits(model), logits(load_model(adapter, lora="keep").model))


def test_tensors_that_the_base_lacks_are_saved_with_the_adapter(tmp_path):
    """A run on a plain language model and a tower of its own, with a projector and a larger vocabulary."""
    from paddlemix.checkpoint.vocab import grow_vocabulary

    hub = kit.hub(tmp_path, tiny_model())
    loaded = load_model(hub["vicuna"], vision_tower=hub["clip"], projector="init")
    config = grow_vocabulary(loaded.model, 450)
    model = trained(loaded.model)
    folder = save_adapter(tmp_path / "a", model, config, None, base=hub["vicuna"], vision_tower=hub["clip"])
    held = open_file(folder / "lora_model_state.safetensors").infos()
    assert {"llama.embed_tokens.weight", "lm_head.weight", "llama.mm_projector.0.weight"} <= set(held)
    assert not any("vision_tower" in name for name in held)
    again = load_model(folder, lora="keep")
    np.testing.assert_array_equal(logits(again.model), logits(model))
    without = save_adapter(tmp_path / "b", model, config, None, base=hub["vicuna"])
    assert any("vision_tower" in name for name in open_file(without / "lora_model_state.safetensors").infos())
    shutil.rmtree(hub["clip"])
    np.testing.assert_array_equal(logits(load_model(without, lora="keep").model), logits(model))


def test_the_tower_of_an_adapter_is_found_beside_the_base_that_is_given(tmp_path):
    """Adapter, base and tower come from another machine; base and tower lie together, the adapter elsewhere."""
    hub = kit.hub(tmp_path / "there", tiny_model())
    loaded = load_model(hub["vicuna"], vision_tower=hub["clip"], projector="init")
    model = trained(loaded.model)
    folder = save_adapter(tmp_path / "a", model, loaded.config, None, base=hub["vicuna"], vision_tower=hub["clip"])
    (tmp_path / "here").mkdir()
    moved = [shutil.move(hub[name], tmp_path / "here" / hub[name].name) for name in ("vicuna", "clip")]
    again = load_model(folder, lora="keep", base=moved[0])
    assert again.vision_tower is None or again.vision_tower == moved[1]
    np.testing.assert_array_equal(logits(again.model), logits(model))


def test_a_model_without_adapters_is_not_saved_as_one(base, tmp_path):
    loaded = load_model(base)
    with pytest.raises(CheckpointError, match="carries no adapter"):
        save_adapter(tmp_path / "x", loaded.model, loaded.config, None, base=base)


# ---- peft ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def peft(tmp_path) -> tuple[Path, dict[str, Path]]:
    model = tiny_model()
    hub = kit.hub(tmp_path, model)
    return kit.peft_adapter(tmp_path / "liuhaotian" / "lora", model, "lmsys/tiny"), hub


def test_peft_scales_by_alpha_over_r(peft):
    folder, hub = peft
    weight = "llama.layers.0.self_attn.q_proj.weight"
    plain = dict(load_model(hub["llava"]).model.named_parameters())[weight].numpy()
    merged = dict(load_model(folder).model.named_parameters())[weight].numpy()
    source = open_file(folder / "adapter_model.bin")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    delta = source.read(name.format("B")) @ source.read(name.format("A")) * (8 / 4)
    np.testing.assert_allclose(merged, plain + delta.T, atol=1e-5)


def test_peft_kept_equals_merged_and_brings_its_projector(peft):
    folder, hub = peft
    kept, merged = load_model(folder, lora="keep"), load_model(folder)
    scale = np.abs(logits(merged.model)).max()
    np.testing.assert_allclose(logits(kept.model), logits(merged.model), atol=2e-6 * scale)
    projector = "llama.mm_projector.0.weight"
    halved = dict(load_model(hub["llava"]).model.named_parameters())[projector].numpy() / 2
    np.testing.assert_array_equal(dict(merged.model.named_parameters())[projector].numpy(), halved)


def test_the_default_infix_of_newer_peft_means_the_same(peft, tmp_path):
    folder, _ = peft
    expected = logits(load_model(folder).model)
    source = open_file(folder / "adapter_model.bin")
    renamed = {
        name.replace(".weight", ".default.weight"): ("float32", source.read(name)) for name in list(source.infos())
    }
    kit.write_bin(folder / "adapter_model.bin", renamed)
    np.testing.assert_array_equal(logits(load_model(folder).model), expected)


def test_rank_stabilised_adapters_scale_by_the_root(peft):
    folder, hub = peft
    weight = "llama.layers.0.self_attn.q_proj.weight"
    plain = dict(load_model(hub["llava"]).model.named_parameters())[weight].numpy()
    usual = dict(load_model(folder).model.named_parameters())[weight].numpy()
    edit(folder, use_rslora=True)
    stable = dict(load_model(folder).model.named_parameters())[weight].numpy()
    np.testing.assert_allclose(stable - plain, (usual - plain) * 2, atol=1e-5)


def test_a_rank_of_its_own_scales_its_layer(peft):
    folder, hub = peft
    weight = "llama.layers.0.self_attn.q_proj.weight"
    plain = dict(load_model(hub["llava"]).model.named_parameters())[weight].numpy()
    source = open_file(folder / "adapter_model.bin")
    tensors = {name: ("float32", source.read(name)) for name in source.infos()}
    prefix = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    a, b = tensors[f"{prefix}A.weight"][1][:2].copy(), tensors[f"{prefix}B.weight"][1][:, :2].copy()
    tensors |= {f"{prefix}A.weight": ("float32", a), f"{prefix}B.weight": ("float32", b)}
    kit.write_bin(folder / "adapter_model.bin", tensors)
    with pytest.raises(CheckpointError, match="its config says 4"):
        load_model(folder)
    edit(folder, rank_pattern={"layers.0.self_attn.q_proj": 2})
    merged = dict(load_model(folder).model.named_parameters())[weight].numpy()
    np.testing.assert_allclose(merged, plain + (b @ a * (8 / 2)).T, atol=1e-5)
    kept = load_model(folder, lora="keep").model
    assert {layer.r for _, layer in lora_layers(kept)} == {2, 4}
    np.testing.assert_allclose(logits(kept), logits(load_model(folder).model), rtol=1e-4, atol=1e-4)


def edit(folder: Path, **changes) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


REFUSED = {
    "use_dora": (True, "has no lora_magnitude_vector in the weights"),
    "fan_in_fan_out": (True, "transposed"),
    "alpha_pattern": ({"q_proj": 2}, "per layer"),
    "modules_to_save": (["lm_head"], 'names "lm_head", but no tensor of it lies beside the adapter'),
    "init_lora_weights": ("pissa_niter_16", "changed weights"),
    "lora_bias": (True, "biases beside B"),
    "bias": ("all", "biases"),
    "peft_type": ("LOHA", "only LORA"),
    "r": (0, "at least 1"),
    "lora_alpha": ("8", "expected a number"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_a_switch_of_peft_that_is_not_built_is_refused(key, peft):
    value, message = REFUSED[key]
    edit(peft[0], **{key: value})
    with pytest.raises(CheckpointError, match=message):
        load_model(peft[0])


def test_a_half_of_an_adapter_is_an_error(peft):
    source = open_file(peft[0] / "adapter_model.bin")
    names = [name for name in source.infos() if not name.endswith("layers.0.self_attn.q_proj.lora_B.weight")]
    kit.write_bin(peft[0] / "adapter_model.bin", {name: ("float32", source.read(name)) for name in names})
    with pytest.raises(CheckpointError, match="has only lora_A"):
        load_model(peft[0])


def test_an_adapter_of_an_unknown_weight_is_an_error(peft):
    source = open_file(peft[0] / "adapter_model.bin")
    tensors = {name: ("float32", source.read(name)) for name in source.infos()}
    tensors["base_model.model.model.odd.lora_A.weight"] = ("float32", np.zeros((4, 32), np.float32))
    kit.write_bin(peft[0] / "adapter_model.bin", tensors)
    with pytest.raises(CheckpointError, match="an adapter of no known weight"):
        load_model(peft[0])


def test_a_peft_adapter_without_weights_says_what_was_looked_for(peft):
    (peft[0] / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"looked for adapter_model.safetensors, adapter_model.bin"):
        load_model(peft[0])


# ---- what may not be what was meant -------------------------------------------------------------------------------


def without_projector(folder: Path) -> Path:
    """As LLaVA's training leaves a checkpoint-N: the projector and config.json come at the end of the run only."""
    (folder / "non_lora_trainables.bin").unlink()
    (folder / "config.json").unlink()
    return folder


def test_a_finished_adapter_on_its_own_base_warns_of_nothing(peft, adapter):
    assert load_model(peft[0]).report.warnings == []
    assert load_model(peft[0], base=peft[1]["vicuna"]).report.warnings == []  # the same name, as a path
    assert load_model(adapter).report.warnings == []


def test_an_adapter_without_its_projector_says_whose_is_used(peft, capsys):
    folder, hub = without_projector(peft[0]), peft[1]
    (warning,) = load_model(folder, base=hub["llava"]).report.warnings
    assert f"the adapter brings no projector; that of {hub['llava']} is used" in warning
    assert "projector=FILE" in warning
    assert f"warning: {warning}" in " ".join(capsys.readouterr().err.split())


def test_an_adapter_without_its_projector_on_a_language_model_says_that_there_are_no_pictures(peft):
    folder, hub = without_projector(peft[0]), peft[1]
    loaded = load_model(folder)
    assert loaded.config.vision is None
    (warning,) = loaded.report.warnings
    assert f"{hub['vicuna']} has no vision tower, so this is a model without images" in warning


def test_a_projector_that_is_named_leaves_nothing_to_warn_of(peft, tmp_path):
    folder, hub = peft
    projector = shutil.copy(folder / "non_lora_trainables.bin", tmp_path / "mm_projector.bin")
    without_projector(folder)
    loaded = load_model(folder, base=hub["llava"], projector=projector)
    assert loaded.report.warnings == []
    halved = load_model(hub["llava"]).model.llama.mm_projector[0].weight.numpy() / 2
    np.testing.assert_array_equal(loaded.model.llama.mm_projector[0].weight.numpy(), halved)


def test_a_base_of_another_name_is_told_when_nothing_proves_that_it_is_the_right_one(peft, tmp_path):
    folder, hub = peft
    other = Path(shutil.copytree(hub["vicuna"], tmp_path / "other" / "llama"))
    (warning,) = load_model(folder, base=other).report.warnings
    assert f"was trained on lmsys/tiny, and {other} is used because it was given" in warning


def test_a_moved_base_that_the_fingerprint_proves_is_not_told(adapter, base, tmp_path):
    moved = Path(shutil.copytree(base, tmp_path / "other" / "llama"))
    assert load_model(adapter, base=moved).report.warnings == []


def test_converting_such_an_adapter_tells_it_too(peft, tmp_path):
    from paddlemix.checkpoint.convert.layouts import convert

    folder, hub = without_projector(peft[0]), peft[1]
    notes = convert(folder, tmp_path / "own", "own", base=hub["llava"]).notes
    assert [note for note in notes if "brings no projector" in note]


def test_an_adapter_written_in_pefts_form_still_knows_its_base(adapter, base, tmp_path):
    for layout in ("original", "llava-hf"):
        convert(adapter, tmp_path / layout, layout)
        assert read_adapter(tmp_path / layout).fingerprint == read_adapter(adapter).fingerprint != {}
    assert load_model(tmp_path / "llava-hf", base=base).adapter is not None
    other = tiny_model(seed=7)
    folder = save_model(tmp_path / "other", other, other.config, None)
    with pytest.raises(CheckpointError, match="trained on another base"):
        load_model(tmp_path / "llava-hf", base=folder)
