# SPDX-License-Identifier: Apache-2.0
"""InternVL-Chat and share4v folders: which tower is loaded, whose table of positions counts, what is refused."""

import json
import shutil

import numpy as np
import paddle
import pytest

from paddlemix.checkpoint.load import load_model
from paddlemix.checkpoint.save import save_model
from paddlemix.settings.published.config import load_config
from paddlemix.settings.published.tower import find_tower, known_tower, read_tower
from paddlemix.utils.errors import CheckpointError
from tests.checkpoint.checkpoint_kit import (
    clip_config,
    llama_config,
    llava_config,
    weights_in,
    write_bin,
    write_config,
    write_weights,
)
from tests.tiny import tiny_intern_config, tiny_model, tiny_tokenizer_folder

LANGUAGE = ("model.embed_tokens", "model.layers", "model.norm", "lm_head")
TABLE = "model.vision_tower.vision_tower.embeddings.position_embedding"


def intern_config(model, **changes):
    """InternViT's config.json; the tower of ``tiny_intern_config`` has 28 pixels of its own."""
    vision = model.config.vision
    keys = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size"]
    return {
        "model_type": "intern_vit_6b",
        "image_size": 28,
        **{key: getattr(vision, key) for key in keys},
        "qkv_bias": False,
        "qk_normalization": True,
        "use_flash_attn": True,
        "drop_path_rate": 0.0,
        "initializer_factor": 0.1,
        "auto_map": {"AutoModel": "modeling_intern_vit.InternVisionModel"},
        **changes,
    }


@pytest.fixture(scope="module")
def model():
    return tiny_model(config=tiny_intern_config())


@pytest.fixture
def hub(tmp_path, model):
    """``OpenGVLab/InternViT`` and ``OpenGVLab/chat``, whose config.json says ``pretrained/InternViT``."""
    tower = write_config(tmp_path / "OpenGVLab" / "InternViT", intern_config(model))
    write_weights(tower, "bin", weights_in("intern_vit", model))
    chat = write_config(tmp_path / "OpenGVLab" / "chat", llava_config(model, "pretrained/InternViT"))
    weights = weights_in("llava", model)
    write_weights(chat, "bin", {name: value for name, value in weights.items() if "vision_tower" not in name})
    tiny_tokenizer_folder(chat)
    return tmp_path / "OpenGVLab"


def inside(hub, model, **replaced):
    """The chat folder with the tower inside, some of its tensors replaced."""
    weights = weights_in("llava", model)
    weights.update({name: ("float32", value) for name, value in replaced.items()})
    write_weights(hub / "chat", "bin", weights)
    return hub / "chat"


def table_of(loaded):
    return loaded.model.llama.vision_tower.vision_tower.embeddings.position_embedding.numpy()


def test_a_chat_model_takes_the_tower_beside_it_although_the_owner_is_another(hub, model):
    loaded = load_model(hub / "chat")
    assert loaded.vision_tower == hub / "InternViT"
    assert loaded.config.vision.image_size == 28
    assert loaded.config.vision.position_grid == 2
    for name, value in model.named_parameters():
        assert np.array_equal(dict(loaded.model.named_parameters())[name].numpy(), value.numpy()), name


def test_the_tower_beside_wins_over_another_one_inside_as_in_the_original(hub, model):
    wide = np.full((1, 10, 32), 7.0, np.float32)
    loaded = load_model(inside(hub, model, **{TABLE: wide}))
    assert table_of(loaded).shape == (1, 5, 32)
    assert table_of(loaded).max() < 7
    assert "as in the original" in loaded.report.ignored[TABLE]


@pytest.mark.parametrize("rows", [5, 10, 17])
def test_without_weights_beside_the_table_inside_counts_with_the_side_that_it_has(hub, model, rows):
    (hub / "InternViT" / "pytorch_model.bin").unlink()
    table = np.random.default_rng(0).standard_normal((1, rows, 32)).astype(np.float32)
    loaded = load_model(inside(hub, model, **{TABLE: table}), overrides={"mm_image_size": 42})
    assert np.array_equal(table_of(loaded), table)
    assert loaded.config.vision.position_grid == round((rows - 1) ** 0.5)
    assert loaded.config.vision.tokens_per_tile == 9
    with paddle.no_grad():
        assert loaded.model.encode_images(paddle.zeros([1, 3, 42, 42])).shape == [1, 9, 32]


def test_a_table_that_is_no_square_is_an_error(hub, model):
    (hub / "InternViT" / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match="position_embedding"):
        load_model(inside(hub, model, **{TABLE: np.zeros((1, 8, 32), np.float32)}))


def test_an_old_projector_file_brings_its_positions_along(hub, model):
    table = np.random.default_rng(1).standard_normal((1, 10, 32)).astype(np.float32)
    weights = weights_in("llava", model)
    tensors = {name: value for name, value in weights.items() if "mm_projector" in name}
    write_bin(hub / "mm_projector.bin", {**tensors, TABLE: ("float32", table)})
    loaded = load_model(hub / "chat", projector=hub / "mm_projector.bin")
    assert np.array_equal(table_of(loaded), table)


def test_our_folder_keeps_the_tower_with_its_table(hub, model, tmp_path):
    loaded = load_model(hub / "chat", overrides={"mm_image_size": 42})
    save_model(tmp_path / "own", loaded.model, loaded.config, None)
    again = load_model(tmp_path / "own")
    assert again.config == loaded.config
    pixels = paddle.to_tensor(np.random.default_rng(2).standard_normal((1, 3, 42, 42)).astype(np.float32))
    with paddle.no_grad():
        ours, theirs = again.model.encode_images(pixels).numpy(), loaded.model.encode_images(pixels).numpy()
    assert np.array_equal(ours, theirs)


def test_a_new_projector_with_a_norm_begins_with_ones_and_zeros(hub, model):
    vicuna = write_config(hub / "vicuna", {"model_type": "llama", **llama_config(model)})
    weights = {name: value for name, value in weights_in("llava", model).items() if name.startswith(LANGUAGE)}
    write_weights(vicuna, "bin", weights)
    kind = {"mm_projector_type": "mlp2x_gelu_ln"}
    loaded = load_model(vicuna, vision_tower=hub / "InternViT", projector="init", overrides=kind)
    norm, first, *_ = loaded.model.llama.mm_projector
    assert (norm.weight.numpy() == 1).all()
    assert (norm.bias.numpy() == 0).all()
    assert first.weight.numpy().std() > 0


def test_a_projector_with_a_norm_is_read_and_written_under_the_same_names(tmp_path):
    model = tiny_model(config=tiny_intern_config(projector_type="mlp2x_gelu_ln"))
    tower = write_config(tmp_path / "InternViT", intern_config(model))
    write_weights(tower, "bin", weights_in("intern_vit", model))
    chat = write_config(tmp_path / "chat", llava_config(model, "InternViT"))
    weights = weights_in("llava", model)
    assert weights["model.mm_projector.0.weight"][1].shape == (32,)
    write_weights(chat, "bin", weights)
    loaded = load_model(chat)
    for name, value in model.llama.mm_projector.named_parameters():
        assert np.array_equal(dict(loaded.model.llama.mm_projector.named_parameters())[name].numpy(), value.numpy())


# ---- share4v ------------------------------------------------------------------------------------------------------


@pytest.fixture
def share(tmp_path):
    """``Zery/MV``: share4v's layout, with its tower in a sub-folder; ``Zery/other`` is another tower."""
    clip = tiny_model()
    folder = write_config(
        tmp_path / "Zery" / "MV", {**llava_config(clip, "Zery/other"), "model_type": "share4v", "vision_tower_lr": None}
    )
    weights = weights_in("llava", clip)
    write_weights(folder, "bin", {name: value for name, value in weights.items() if "vision_tower" not in name})
    for place in (folder / "vision_tower", tmp_path / "Zery" / "other"):
        write_config(place, clip_config(clip))
    write_weights(folder / "vision_tower", "bin", weights_in("clip", clip))
    write_weights(tmp_path / "Zery" / "other", "bin", weights_in("clip", tiny_model(seed=9)))
    return folder


def first_row(loaded):
    return loaded.model.llama.vision_tower.vision_tower.vision_model.class_embedding.numpy()


def test_share4v_finds_the_tower_that_its_training_has_tuned(share):
    loaded = load_model(share)
    assert loaded.vision_tower == share / "vision_tower"
    assert np.array_equal(first_row(loaded), first_row_of(tiny_model()))


def first_row_of(model):
    return model.llama.vision_tower.vision_tower.vision_model.class_embedding.numpy()


def test_without_a_tuned_tower_share4v_takes_the_one_that_it_names(share):
    shutil.rmtree(share / "vision_tower")
    assert np.array_equal(first_row(load_model(share)), first_row_of(tiny_model(seed=9)))


def test_share4v_with_its_tower_inside_needs_no_weights_beside(share):
    shutil.rmtree(share / "vision_tower")
    (share.parent / "other" / "pytorch_model.bin").unlink()
    write_weights(share, "bin", weights_in("llava", tiny_model()))
    loaded = load_model(share)
    assert loaded.vision_tower is None
    assert np.array_equal(first_row(loaded), first_row_of(tiny_model()))


# ---- configuration ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("native", "side", "tokens"), [(224, 336, 576), (448, 448, 1024)])
def test_published_sizes_give_the_tokens_that_the_chat_models_are_made_for(hub, model, native, side, tokens):
    write_config(hub / "InternViT", intern_config(model, image_size=native))
    config = load_config(hub / "chat", tower_folder=hub / "InternViT")
    assert (config.image.crop_size, config.image.resize_size) == (side, side)
    assert config.vision.tokens_per_tile == tokens
    assert config.vision.position_grid == native // 14
    assert config.image.mean == (0.485, 0.456, 0.406)


def test_the_towers_own_preprocessor_file_is_not_asked(hub):
    (hub / "InternViT" / "preprocessor_config.json").write_text(json.dumps({"crop_size": 14, "size": 14}))
    assert load_config(hub / "chat", tower_folder=hub / "InternViT").image.crop_size == 28


@pytest.mark.parametrize(
    ("name", "layers", "side"),
    [
        ("OpenGVLab/InternViT-6B-224px", 48, 336),
        ("pretrained/InternViT-6B-224px", 48, 336),
        ("OpenGVLab/InternViT-6B-448px-V1-0", 48, 448),
        ("OpenGVLab/InternViT-6B-448px-V1-2", 45, 448),
        ("OpenGVLab/InternViT-6B-448px-V1-5", 45, 448),
    ],
)
def test_published_towers_are_known_by_name(name, layers, side):
    vision = known_tower(name)
    assert (vision.num_hidden_layers, vision.image_size, vision.hidden_size) == (layers, side, 3200)
    assert vision.num_attention_heads == 25


def test_a_tower_of_another_name_is_not_guessed():
    assert known_tower("OpenGVLab/InternViT-6B-224px-mine") is None
    assert find_tower("/nonexistent", "OpenGVLab/InternViT-6B-224px-mine") is None


def test_eva_clip_is_told_by_its_keys(tmp_path):
    config = {"model_type": "clip_vision_model", "hidden_size": 24, "num_attention_heads": 2, "image_size": 28}
    config |= {"patch_size": 14, "hidden_act": "gelu", "architectures": ["EvaCLIPVisionModel"]}
    plain = read_tower(write_config(tmp_path / "clip", config))
    eva = read_tower(
        write_config(tmp_path / "eva", {**config, "q_bias": True, "k_bias": False, "post_layernorm": True})
    )
    assert plain.model_type == "clip_vision_model"
    assert eva.model_type == "eva_clip_vision_model"
    assert eva.extra == {"q_bias": True, "k_bias": False, "v_bias": True, "post_layernorm": True}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"norm_type": "layer_norm"}, "only RMS norms"),
        ({"num_channels": 1}, "3 channels"),
        ({"hidden_act": "silu"}, "gelu"),
        ({"num_attention_heads": 5}, "no multiple"),
    ],
)
def test_a_fault_in_internvits_file_is_named(hub, model, changes, words):
    write_config(hub / "InternViT", intern_config(model, **changes))
    with pytest.raises(CheckpointError, match=words) as caught:
        read_tower(hub / "InternViT")
    assert str(hub / "InternViT" / "config.json") in str(caught.value)


def test_code_in_a_folder_of_another_kind_is_still_refused(tmp_path):
    config = {"model_type": "clip_vision_model", "auto_map": {"AutoModel": "x.Y"}}
    with pytest.raises(CheckpointError, match="never run"):
        read_tower(write_config(tmp_path / "clip", config))


def test_internvl_14b_is_refused_by_the_tower_and_by_the_chat_model(hub, model):
    write_config(hub / "InternVL", {"model_type": "internvl", "vision_config": {}, "qllama_config": {}})
    with pytest.raises(CheckpointError, match="InternVL-14B .* is not supported"):
        read_tower(hub / "InternVL")
    config = {**llava_config(model, "OpenGVLab/InternVL-14B-224px"), "mm_projector_type": "two_mlp"}
    with pytest.raises(CheckpointError, match="InternVL-14B .* is not supported"):
        load_config(write_config(hub / "two", config))
    named = llava_config(model, "OpenGVLab/InternVL-14B-224px")
    shutil.copytree(hub / "chat", hub / "14b")
    with pytest.raises(CheckpointError, match="InternVL-14B .* is not supported"):
        load_model(write_config(hub / "14b", named))


def test_the_side_of_a_tile_is_a_choice_for_internvit_only(hub, model):
    config = load_config(hub / "chat", tower_folder=hub / "InternViT", overrides={"mm_image_size": 56})
    assert (config.vision.tokens_per_tile, config.image.crop_size, config.vision.position_grid) == (16, 56, 2)
    clip = tiny_model()
    folder = write_config(hub / "clip", clip_config(clip))
    llava = write_config(hub / "llava", llava_config(clip, str(folder)))
    with pytest.raises(CheckpointError, match="takes 28 pixels only"):
        load_config(llava, overrides={"mm_image_size": 56})
    assert llama_config(clip)["vocab_size"] == load_config(llava, overrides={"mm_image_size": 28}).text.vocab_size
