# SPDX-License-Identifier: Apache-2.0
"""Loading accounts for every tensor; our own folder gives back what was saved, without copies."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import paddle
import pytest

from paddlemix.checkpoint import load
from paddlemix.checkpoint.formats.source import TensorSource, open_folder
from paddlemix.checkpoint.load import load_model
from paddlemix.checkpoint.report import LoadReport
from paddlemix.checkpoint.save import save_model
from paddlemix.checkpoint.vocab import grow_vocabulary
from paddlemix.models.llava import build_empty
from paddlemix.ops.linear import add_lora
from paddlemix.settings.model import ImageConfig
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.utils.errors import CheckpointError
from paddlemix.utils.files import verify_folder
from tests.checkpoint import checkpoint_kit as kit
from tests.tiny import tiny_config, tiny_model, tiny_tokenizer_folder


def values(model) -> dict[str, np.ndarray]:
    return {name: parameter.numpy() for name, parameter in model.named_parameters()}


def assert_same(ours, expected) -> None:
    ours, expected = values(ours), values(expected)
    assert list(ours) == list(expected)
    for name, value in expected.items():
        assert ours[name].tobytes() == value.tobytes(), name


@pytest.fixture(scope="module")
def model():
    """Weights that float16 and bfloat16 hold exactly, so that every dtype of a file means the same model."""
    found = tiny_model()
    with paddle.no_grad():
        for parameter in found.parameters():
            parameter.set_value(parameter.astype("bfloat16").astype("float16").astype("float32"))
    return found


def copy_of(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


ANYRES = ImageConfig(28, 28, "anyres", "spatial_unpad", ((56, 28), (28, 56), (56, 56)))


def edit_weights(folder: Path, change) -> Path:
    """Rewrite ``model.safetensors`` after ``change(tensors)``."""
    source = open_folder(folder)
    tensors = {name: (info.dtype, source.read(name)) for name, info in source.infos().items()}
    change(tensors)
    kit.write_weights(folder, "safetensors", tensors)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_original_layout_loads_bit_for_bit(kind, dtype, model, tmp_path):
    loaded = load_model(kit.hub(tmp_path, model, kind, dtype)["llava"])
    assert_same(loaded.model, model)
    assert not loaded.model.training
    assert loaded.vision_tower == tmp_path / "openai" / "tiny-clip"


@pytest.mark.parametrize("form", ["llava_hf", "llava_hf_new", "llava_hf_5"])
def test_llava_hf_layouts_load_bit_for_bit(form, model, tmp_path):
    folder = kit.write_config(tmp_path / "hf", kit.hf_config(model))
    kit.write_weights(folder, "safetensors", kit.weights_in(form, model))
    assert_same(load_model(folder).model, model)


def test_bfloat16_in_memory_is_the_rounded_model(model, tmp_path):
    loaded = load_model(kit.hub(tmp_path, model)["llava"], dtype="bfloat16")
    weight = loaded.model.lm_head.weight
    assert weight.dtype == paddle.bfloat16
    np.testing.assert_array_equal(weight.astype("float32").numpy(), model.lm_head.weight.numpy())


def test_a_tower_inside_the_checkpoint_wins(model, tmp_path):
    hub = kit.hub(tmp_path, model)
    edit_weights(hub["clip"], lambda tensors: tensors.update({n: (d, a + 1) for n, (d, a) in tensors.items()}))
    inside = {name: value for name, value in kit.weights_in("llava", model).items() if "vision_tower" in name}
    edit_weights(hub["llava"], lambda tensors: tensors.update(inside))
    loaded = load_model(hub["llava"])
    assert_same(loaded.model, model)
    assert loaded.vision_tower is None


def test_a_missing_tower_lists_the_places(model, tmp_path, monkeypatch):
    monkeypatch.setenv("PPMIX_HOME", str(tmp_path / "cache"))
    hub = kit.hub(tmp_path / "hub", model)
    shutil.rmtree(hub["clip"])
    with pytest.raises(CheckpointError, match="looked for") as caught:
        load_model(hub["llava"])
    assert str(tmp_path / "hub" / "openai" / "tiny-clip") in str(caught.value)
    assert str(tmp_path / "cache" / "models" / "openai" / "tiny-clip") in str(caught.value)


def test_a_tower_that_another_machine_named_is_taken_from_beside_the_model_and_told(model, tmp_path):
    hub = kit.hub(tmp_path, model)
    kit.write_config(hub["llava"], kit.llava_config(model, "/mnt/other/vision/tiny-clip"))
    shutil.move(hub["clip"], hub["llava"].parent / "tiny-clip")
    loaded = load_model(hub["llava"])
    assert_same(loaded.model, model)
    note = f"the vision tower /mnt/other/vision/tiny-clip is not on this machine; {loaded.vision_tower} is taken"
    assert note in loaded.report.notes


def test_such_a_tower_is_also_looked_for_beside_the_base_of_an_adapter(model, tmp_path):
    hub = kit.hub(tmp_path / "base", model)
    folder = kit.peft_adapter(tmp_path / "adapter", model, str(hub["vicuna"]))
    kit.write_config(folder, kit.llava_config(model, "/mnt/other/vision/tiny-clip"))
    tower = shutil.move(hub["clip"], hub["vicuna"].parent / "tiny-clip")
    assert load_model(folder).vision_tower == tower


def test_a_tower_inside_needs_no_folder_when_its_shapes_are_a_published_ones(model, tmp_path, monkeypatch):
    from paddlemix.settings.towers import clip

    facts = {key: getattr(model.config.vision, key) for key in clip.CLIP_LARGE_336}
    monkeypatch.setitem(clip.TOWER.published, "somebody/published", facts)
    hub = kit.hub(tmp_path, model)
    shutil.rmtree(hub["clip"])
    inside = {name: value for name, value in kit.weights_in("llava", model).items() if "vision_tower" in name}
    edit_weights(hub["llava"], lambda tensors: tensors.update(inside))
    kit.write_config(hub["llava"], kit.llava_config(model, "/mnt/other/my-tuned-tower"))
    assert_same(load_model(hub["llava"]).model, model)
    monkeypatch.delitem(clip.TOWER.published, "somebody/published")
    with pytest.raises(CheckpointError, match=r'"mm_vision_tower" is "/mnt/other.*name it with vision_tower=FOLDER'):
        load_model(hub["llava"])


def test_an_extra_tensor_is_an_error(model, tmp_path):
    folder = kit.hub(tmp_path, model)["llava"]
    edit_weights(folder, lambda tensors: tensors.update({"model.extra.weight": ("float32", np.zeros(3, np.float32))}))
    with pytest.raises(CheckpointError, match='left over "model.extra.weight" in model.safetensors'):
        load_model(folder)


def test_a_layer_too_many_is_an_error(model, tmp_path):
    folder = kit.hub(tmp_path, model)["llava"]
    extra = {"model.layers.2.input_layernorm.weight": ("float32", np.zeros(32, np.float32))}
    edit_weights(folder, lambda tensors: tensors.update(extra))
    with pytest.raises(CheckpointError, match=r'left over "model.layers.2.input_layernorm.weight"'):
        load_model(folder)


def test_a_missing_tensor_is_an_error(model, tmp_path):
    folder = kit.hub(tmp_path, model)["llava"]
    edit_weights(folder, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(CheckpointError, match='missing "llama.norm.weight"'):
        load_model(folder)


def test_a_missing_head_says_how_a_tied_one_is_written(model, tmp_path):
    folder = kit.hub(tmp_path, model)["llava"]
    edit_weights(folder, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(CheckpointError, match='its language model: "tie_word_embeddings": true'):
        load_model(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    assert load_model(folder).report.problems() == []


def test_a_wrong_shape_names_both(model, tmp_path):
    folder = kit.hub(tmp_path, model)["llava"]
    edit_weights(folder, lambda tensors: tensors.update({"model.norm.weight": ("float32", np.zeros(5, np.float32))}))
    with pytest.raises(CheckpointError, match=r'"llama.norm.weight": model.safetensors has \[5\], the model \[32\]'):
        load_model(folder)


def test_at_most_twenty_problems_are_listed():
    report = LoadReport("x", missing={f"p{i}": "" for i in range(30)})
    with pytest.raises(CheckpointError, match="30 tensors do not fit") as caught:
        report.require_clean()
    assert str(caught.value).count('missing "p') == 20
    assert "and 10 more" in str(caught.value)


def test_a_missing_projector_says_what_to_do(model, tmp_path):
    hub = kit.hub(tmp_path, model)
    with pytest.raises(CheckpointError, match='begin a new one with projector="init"'):
        load_model(hub["vicuna"], vision_tower=hub["clip"], overrides={"mm_projector_type": "mlp2x_gelu"})


def test_a_missing_newline_says_what_to_do(tmp_path):
    made = tiny_model(5, image=ANYRES, has_image_newline=True)
    folder = save_model(tmp_path / "x", made, made.config, None)
    assert load_model(folder).report.summary()
    edit_weights(folder, lambda tensors: tensors.pop("llama.image_newline"))
    with pytest.raises(CheckpointError, match=r'(?s)missing "llama.image_newline".*write "flat" there'):
        load_model(folder)


def test_a_new_projector_is_drawn_by_the_seed_and_reported(model, tmp_path):
    hub = kit.hub(tmp_path, model)
    options = {"vision_tower": hub["clip"], "projector": "init"}
    first, second, other = (load_model(hub["vicuna"], **options, seed=seed) for seed in (1, 1, 2))
    names = [name for name in values(first.model) if "mm_projector" in name]
    assert list(first.report.initialised) == names
    weight = first.model.llama.mm_projector[0].weight.numpy()
    assert 0.1 < weight.std() * np.sqrt(3 * weight.shape[0]) < 2.0
    assert_same(first.model, second.model)
    assert (weight != other.model.llama.mm_projector[0].weight.numpy()).any()


@pytest.mark.parametrize("name", ["llama.mm_projector.0.weight", "llama.mm_projector.0.bias"])
def test_a_new_projector_is_uniform_by_its_fan_in(name):
    wide = tiny_config()
    wide = wide.with_changes(vision=dataclasses.replace(wide.vision, hidden_size=128))
    empty = build_empty(wide)
    fan_in, fan_out = empty.llama.mm_projector[0].weight.shape
    assert fan_in == 4 * fan_out
    shape = tuple(dict(empty.named_parameters())[name].shape)
    drawn = load._draw(empty, name, shape, np.random.default_rng(1)) * fan_in**0.5
    assert 0.8 < abs(drawn).max() <= 1 + 1e-6


def test_only_the_projector_is_drawn_anew(model, tmp_path):
    hub = kit.hub(tmp_path, model)
    edit_weights(hub["vicuna"], lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(CheckpointError, match='1 tensors do not fit the model:\n  missing "llama.norm.weight"'):
        load_model(hub["vicuna"], vision_tower=hub["clip"], projector="init")


def test_a_projector_file_replaces_the_projector(model, tmp_path):
    hub = kit.hub(tmp_path, model)
    names = {name: value for name, value in kit.weights_in("llava", model).items() if "mm_projector" in name}
    doubled = {name: (dtype, array * np.float32(2)) for name, (dtype, array) in names.items()}
    kit.write_bin(tmp_path / "mm_projector.bin", doubled)
    loaded = load_model(hub["llava"], projector=tmp_path / "mm_projector.bin")
    for name, value in values(loaded.model).items():
        np.testing.assert_array_equal(value, values(model)[name] * (2 if "mm_projector" in name else 1))


def renamed_projector(model, rename, factor: float = 2.0) -> dict:
    found = {name: value for name, value in kit.weights_in("llava", model).items() if "mm_projector" in name}
    return {rename(name): (dtype, array * np.float32(factor)) for name, (dtype, array) in found.items()}


@pytest.mark.parametrize("before", ["", "model.", "module.model.", "base_model.model.model."])
def test_a_projector_is_read_under_every_prefix_that_llava_takes(before, model, tmp_path):
    file = kit.write_bin(tmp_path / "any.bin", renamed_projector(model, lambda name: before + name[len("model.") :]))
    loaded = load_model(kit.hub(tmp_path, model)["llava"], projector=file)
    for name, value in values(loaded.model).items():
        np.testing.assert_array_equal(value, values(model)[name] * (2 if "mm_projector" in name else 1))


@pytest.mark.parametrize("form", ["llava", "llava_hf", "llava_hf_new", "paddlemix"])
def test_only_the_projector_is_taken_from_a_whole_model(form, model, tmp_path):
    others = tiny_model(seed=5)
    kit.write_weights(tmp_path, "safetensors", kit.weights_in(form, others))
    loaded = load_model(kit.hub(tmp_path / "hub", model)["llava"], projector=tmp_path / "model.safetensors")
    for name, value in values(loaded.model).items():
        np.testing.assert_array_equal(value, values(others if "mm_projector" in name else model)[name])
    assert "only the projector is taken from this file" in loaded.report.ignored.values()


@pytest.mark.parametrize("form", ["llava", "llava_hf", "llava_hf_new", "paddlemix"])
def test_the_newline_row_of_a_projector_file_is_taken_where_the_model_has_one(form, model, tmp_path):
    others = tiny_model(seed=5, has_image_newline=True)
    kit.write_weights(tmp_path, "safetensors", kit.weights_in(form, others))
    hub = kit.hub(tmp_path / "hub", model)
    for overrides in (None, {"mm_patch_merge_type": "spatial_unpad", "image_aspect_ratio": "anyres"}):
        grid = {"image_grid_pinpoints": [[28, 56]]} if overrides else {}
        given = {**overrides, **grid} if overrides else None
        loaded = load_model(hub["llava"], projector=tmp_path / "model.safetensors", overrides=given)
        assert loaded.config.has_image_newline is bool(overrides)
        assert ("this model has no newline row" in loaded.report.ignored.values()) is not bool(overrides)
        for name, value in values(loaded.model).items():
            taken = "mm_projector" in name or "newline" in name
            np.testing.assert_array_equal(value, values(others if taken else model)[name])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda found: {"model.norm.weight": found["model.mm_projector.0.bias"]},
            "it holds no projector that is known",
        ),
        (
            lambda found: {"model.image_newline": found["model.mm_projector.0.bias"]},
            "it holds no projector that is known",
        ),
        (
            lambda found: {**found, "mm_projector.0.bias": found["model.mm_projector.0.bias"]},
            "holds several projectors",
        ),
        (
            lambda found: {**found, "mm_projector.7.x": found["model.mm_projector.0.bias"]},
            'left over "mm_projector.7.x"',
        ),
    ],
)
def test_a_file_that_does_not_say_which_projector_is_meant_is_an_error(change, text, model, tmp_path):
    file = kit.write_bin(tmp_path / "any.bin", change(renamed_projector(model, str)))
    with pytest.raises(CheckpointError, match=text):
        load_model(kit.hub(tmp_path, model)["llava"], projector=file)


def test_a_projector_folder_finds_its_base(model, tmp_path):
    hub = kit.hub(tmp_path, model)
    config = {**kit.llava_config(model, "openai/tiny-clip"), "_name_or_path": "lmsys/tiny"}
    folder = kit.write_config(tmp_path / "liuhaotian" / "projector", config)
    names = {name: value for name, value in kit.weights_in("llava", model).items() if "mm_projector" in name}
    kit.write_bin(folder / "mm_projector.bin", names)
    loaded = load_model(folder)
    assert_same(loaded.model, model)
    assert loaded.tokenizer_folder == hub["vicuna"]


def test_a_base_for_a_whole_model_is_an_error(model, tmp_path):
    hub = kit.hub(tmp_path, model)
    with pytest.raises(CheckpointError, match="leave it out"):
        load_model(hub["llava"], base=hub["vicuna"])


def test_a_tower_alone_is_no_model(model, tmp_path):
    with pytest.raises(CheckpointError, match="a vision tower alone"):
        load_model(kit.hub(tmp_path, model)["clip"])


def test_nan_is_a_warning_and_with_strict_finite_an_error(model, tmp_path):
    folder = kit.hub(tmp_path, model)["llava"]
    edit_weights(folder, lambda tensors: tensors["model.norm.weight"][1].__setitem__(3, np.nan))
    assert load_model(folder).report.not_finite == ["llama.norm.weight"]
    with pytest.raises(CheckpointError, match=r"NaN or infinity: llama.norm.weight"):
        load_model(folder, strict_finite=True)


def test_nan_in_a_mapped_folder_of_ours_is_told_too(model, tmp_path):
    folder = save_model(tmp_path / "own", model, model.config, None)
    edit_weights(folder, lambda tensors: tensors["llama.norm.weight"][1].__setitem__(3, np.nan))
    assert load_model(folder).report.not_finite == ["llama.norm.weight"]


def test_quantised_weights_are_refused(model, tmp_path):
    folder = kit.hub(tmp_path, model)["llava"]
    edit_weights(folder, lambda tensors: tensors.update({"model.norm.weight": ("uint8", np.zeros(32, np.uint8))}))
    with pytest.raises(CheckpointError, match=r'"model.norm.weight" is uint8; weights must be'):
        load_model(folder)


def test_nothing_is_taken_from_a_name(model, tmp_path):
    """A folder called after an adapter, a projector and another family loads as what its files are."""
    hub = kit.hub(tmp_path, model)
    odd = copy_of(hub["llava"], tmp_path / "liuhaotian" / "mistral-lora-mpt-clip-pretrain")
    assert_same(load_model(odd).model, model)


# ---- our own folder -----------------------------------------------------------------------------------------------


@pytest.fixture
def own(model, tmp_path) -> Path:
    tokenizer = load_tokenizer(tiny_tokenizer_folder())
    return save_model(tmp_path / "own", model, model.config, tokenizer, training_settings={"seed": 1})


def test_our_folder_gives_the_model_back(own, model):
    loaded = load_model(own)
    assert_same(loaded.model, model)
    assert loaded.config == model.config
    assert load_tokenizer(loaded.tokenizer_folder).vocab_size == load_tokenizer(tiny_tokenizer_folder()).vocab_size


def test_our_folder_is_complete_and_listed_in_its_manifest(own):
    names = {path.name for path in own.iterdir()}
    needed = {"model.safetensors", "config.json", "tokenizer.model", "preprocessor_config.json"}
    assert needed | {"generation_config.json", "training_settings.json", "manifest.json"} <= names
    assert verify_folder(own) == []
    assert json.loads((own / "config.json").read_text())["template"]


def test_our_folder_is_self_contained_wherever_it_lies(own, model, tmp_path, monkeypatch):
    (tmp_path / "far" / "away").mkdir(parents=True)
    own.rename(tmp_path / "far" / "away" / "x")
    monkeypatch.chdir(tmp_path / "far")
    assert_same(load_model("away/x").model, model)


def test_our_folder_is_mapped_and_not_copied(own, model, monkeypatch):
    def no_copy(*_args, **_kwargs):
        raise AssertionError("a tensor was copied")

    odd = [name for name, parameter in model.named_parameters() if parameter.numpy().nbytes % 64]
    assert odd == []  # only tensors whose neighbours have odd sizes are copied, for alignment
    monkeypatch.setattr(TensorSource, "fill", no_copy)
    assert_same(load_model(own).model, model)


def test_training_on_a_mapped_folder_leaves_its_files_alone(own):
    loaded = load_model(own)
    with paddle.no_grad():
        for parameter in loaded.model.parameters():
            parameter.scale_(3.0) if hasattr(parameter, "scale_") else parameter.set_value(parameter * 3.0)
    assert verify_folder(own) == []


def test_shards_load_like_one_file(model, tmp_path):
    folder = save_model(tmp_path / "shards", model, model.config, None, max_shard_bytes=50_000)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    assert max(path.stat().st_size for path in folder.glob("model-*.safetensors")) < 60_000 + 448 * 32 * 4
    assert_same(load_model(folder).model, model)


def test_a_used_folder_is_not_overwritten(own, model):
    with pytest.raises(CheckpointError, match="exists already"):
        save_model(own, model, model.config, None)


def test_a_bfloat16_model_is_saved_and_loaded_in_bfloat16(own, tmp_path):
    loaded = load_model(own, dtype="bfloat16")
    folder = save_model(tmp_path / "bf16", loaded.model, loaded.config, None)
    assert {info.dtype for info in open_folder(folder).infos().values()} == {"bfloat16"}
    assert_same(load_model(folder, dtype="bfloat16").model, loaded.model)


def test_a_model_with_adapters_is_not_saved_as_a_whole_one(tmp_path):
    model = tiny_model()
    add_lora(model, [".*q_proj"], 2, 4.0)
    with pytest.raises(CheckpointError, match="merge the adapter first"):
        save_model(tmp_path / "x", model, model.config, None)


def test_there_and_back_gives_the_same_bytes(model, tmp_path):
    """Original layout -> our folder -> names and layout of the original: the tensors are those of the first file."""
    hub = kit.hub(tmp_path, model)
    loaded = load_model(hub["llava"])
    again = load_model(save_model(tmp_path / "own", loaded.model, loaded.config, None)).model
    back = {n: v for n, v in kit.weights_in("llava", again).items() if "vision_tower" not in n}
    source = open_folder(hub["llava"])
    assert set(back) == set(source.infos())
    for name, (_, array) in back.items():
        assert array.tobytes() == source.read(name).tobytes(), name


# ---- vocabulary ---------------------------------------------------------------------------------------------------


def test_new_rows_are_the_mean_of_the_old_ones():
    model = tiny_model()
    before = values(model)
    config = grow_vocabulary(model, 450)
    embed, head = model.llama.embed_tokens.weight.numpy(), model.lm_head.weight.numpy()
    assert config.text.vocab_size == 450
    np.testing.assert_array_equal(embed[:448], before["llama.embed_tokens.weight"])
    np.testing.assert_allclose(embed[448:], np.tile(before["llama.embed_tokens.weight"].mean(0), (2, 1)), atol=1e-6)
    np.testing.assert_allclose(head[:, 449], before["lm_head.weight"].mean(1), atol=1e-6)
    token = paddle.to_tensor([[449]])
    assert model(token, paddle.to_tensor([[0]]), paddle.to_tensor([[0]])).shape == [1, 1, 450]


def test_a_tied_head_grows_with_the_embeddings():
    model = tiny_model(config=tiny_config(text=dataclasses.replace(tiny_config().text, tie_word_embeddings=True)))
    before = values(model)["llama.embed_tokens.weight"]
    grow_vocabulary(model, 450)
    token = paddle.to_tensor([[5]])
    scores = model(token, paddle.to_tensor([[0]]), paddle.to_tensor([[0]])).numpy()[0, 0]
    assert scores.shape == (450,)
    np.testing.assert_allclose(scores[448:], scores[:448].mean(), atol=1e-4)
    np.testing.assert_array_equal(model.llama.embed_tokens.weight.numpy()[:448], before)


def test_half_precision_loads_where_stride_kernels_are_off(tmp_path):
    """As on Ascend: a view of the bits has no kernel there."""
    hub = kit.hub(tmp_path, tiny_model(2))
    paddle.set_flags({"FLAGS_use_stride_kernel": False})
    try:
        loaded = load_model(hub["vicuna"], vision_tower=hub["clip"], projector="init", dtype="bfloat16")
    finally:
        paddle.set_flags({"FLAGS_use_stride_kernel": True})
    assert {str(value.dtype) for value in loaded.model.parameters()} == {"paddle.bfloat16"}


def test_a_head_beside_tied_embeddings_is_left_out_and_named(tmp_path):
    """transformers 4 ties the two whatever the file holds; 5 takes a head of other values, which is told."""
    text = dataclasses.replace(tiny_config().text, tie_word_embeddings=True)
    tied = tiny_model(config=tiny_config(text=text))
    save_model(tmp_path / "model", tied, tied.config, load_tokenizer(tiny_tokenizer_folder()))
    other = np.ones([text.hidden_size, text.vocab_size], np.float32)
    edit_weights(tmp_path / "model", lambda tensors: tensors.update({"lm_head.weight": ("float32", other)}))
    loaded = load_model(tmp_path / "model")
    assert loaded.report.ignored["lm_head.weight"] == "the head is tied to the embeddings"
    assert_same(loaded.model, tied)
    assert '"lm_head.weight" is not what the embeddings are' in loaded.report.warnings[0]
    same = np.ascontiguousarray(values(tied)["llama.embed_tokens.weight"].T)
    edit_weights(tmp_path / "model", lambda tensors: tensors.update({"lm_head.weight": ("float32", same)}))
    assert not load_model(tmp_path / "model").report.warnings
