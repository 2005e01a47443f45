# SPDX-License-Identifier: Apache-2.0
"""Dense Connector: features of several layers of the tower, by formulas written out here in numpy."""

import dataclasses

import numpy as np
import paddle
import pytest

from paddlemix.checkpoint.convert.config import hf_data
from paddlemix.checkpoint.convert.layouts import convert
from paddlemix.checkpoint.describe import describe
from paddlemix.checkpoint.gguf.tower import require_known
from paddlemix.checkpoint.load import load_model
from paddlemix.checkpoint.save import save_model
from paddlemix.imaging.processor import ImageProcessor
from paddlemix.settings.model import ImageConfig, LlavaConfig
from paddlemix.settings.published.config import apply_overrides
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.utils.errors import CheckpointError
from tests.tiny import tiny_config, tiny_image, tiny_model, tiny_tokenizer_folder

WIDTH = 16


def config_of(kind: str, model_type: str = "clip_vision_model", depth: int = 17, **changes) -> LlavaConfig:
    """A tower of 17 layers (an odd number, as SigLIP's 27) and 25 patches, no multiple of 8."""
    config = tiny_config()
    vision = dataclasses.replace(
        config.vision, model_type=model_type, dense_connector=kind, num_hidden_layers=depth, hidden_size=WIDTH,
        intermediate_size=24, num_attention_heads=2, image_size=35, patch_size=7, select_layer=-2, **changes,
    )  # fmt: skip
    return config.with_changes(vision=vision, image=ImageConfig(crop_size=35, resize_size=35))


def wanted(kind: str, states: list[np.ndarray], depth: int) -> np.ndarray:
    """What the authors' code makes of hidden states [N, P, C] without the class token; 0 is the first layer's input."""
    own = states[depth - 1]
    if kind == "dci":
        half = depth // 2
        low, high = np.mean(states[:half], 0), np.mean(states[half : 2 * half], 0)
        return np.concatenate([own, low, high], 2)
    if kind == "sci":
        return np.concatenate([own, states[7], states[15]], 2)
    pooled = [np.stack([state[:, at : at + 8].mean(1) for at in (0, 8, 16)], 1) for state in (states[7], states[15])]
    return np.concatenate([own, *pooled], 1)


@pytest.mark.parametrize("model_type", ["clip_vision_model", "siglip_vision_model"])
@pytest.mark.parametrize(("kind", "shape"), [("sti", (2, 31, WIDTH)), ("sci", (2, 25, 48)), ("dci", (2, 25, 48))])
def test_the_features_are_those_of_the_written_formula(kind, shape, model_type):
    model = tiny_model(config=config_of(kind, model_type))
    pixels = paddle.randn([2, 3, 35, 35])
    tower = model.llama.vision_tower
    first = int(model_type == "clip_vision_model")
    states = [tower.vision_tower.hidden_state(pixels, layer).numpy()[:, first:] for layer in range(18)]
    found = tower(pixels).numpy()
    assert found.shape == shape
    np.testing.assert_allclose(found, wanted(kind, states, 17), atol=1e-5 * np.abs(found).max())
    assert model.encode_images(pixels).shape == [2, model.config.tokens_per_tile, 32]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folders of ours, one a kind."""
    root, tokenizer = tmp_path_factory.mktemp("dense"), load_tokenizer(tiny_tokenizer_folder())
    for kind in ("sti", "dci"):
        model = tiny_model(config=config_of(kind))
        save_model(root / kind, model, model.config, tokenizer)
    return root


@pytest.mark.parametrize("kind", ["sti", "dci"])
def test_the_published_layout_holds_it_and_comes_back(folder, tmp_path, kind):
    convert(folder / kind, tmp_path / "llava", "original")
    import json

    told = json.loads((tmp_path / "llava" / "config.json").read_text())
    assert (told["mm_dense_connector_type"], told["mm_hidden_size"]) == (kind, WIDTH if kind == "sti" else 3 * WIDTH)
    ours, back = load_model(folder / kind), load_model(tmp_path / "llava")
    assert back.config.vision.dense_connector == kind
    pixels = paddle.randn([1, 3, 35, 35])
    np.testing.assert_array_equal(ours.model.encode_images(pixels).numpy(), back.model.encode_images(pixels).numpy())


def test_a_picture_has_as_many_places_as_it_has_rows(folder):
    from paddlemix.generation.predictor import Predictor
    from paddlemix.generation.sampling import Decoding

    predictor = Predictor.load(folder / "sti", device="cpu")
    asked = predictor.prompt(predictor.question("What is it?", 1), [predictor.picture(tiny_image())])
    assert predictor.answer([asked], Decoding(max_new_tokens=2))[0].ids
    vision, image = config_of("sti").vision, config_of("sti").image
    assert len(ImageProcessor(image, vision).layout((40, 30)).order) == 31


def test_the_doctor_names_it(folder):
    assert describe(folder / "dci").facts["family"].endswith(", dense connector dci)")


def test_what_trains_changes_the_layers_that_are_joined():
    model = tiny_model(config=config_of("dci"))
    model.llama.vision_tower(paddle.randn([1, 3, 35, 35]))[:, :, WIDTH : 2 * WIDTH].square().mean().backward()
    layers = model.llama.vision_tower.vision_tower.vision_model.transformer.layers
    assert float(layers[6].linear1.weight.grad.abs().sum()) > 0  # state 7 is the last of the lower half
    assert layers[8].linear1.weight.grad is None or float(layers[8].linear1.weight.grad.abs().sum()) == 0


@pytest.mark.parametrize(
    ("changes", "image", "text"),
    [
        ({"model_type": "eva_clip_vision_model"}, {}, "is made for CLIP and SigLIP towers, and this one is a eva_clip"),
        ({"select_feature": "cls_patch"}, {}, '"mm_vision_select_feature" has to be patch, and it is cls_patch'),
        ({"depth": 12}, {}, "takes features up to layer 15, but the tower runs to layer 11 of 12"),
        ({}, {"merge": "spatial"}, '"mm_patch_merge_type" has to be flat, and it is spatial'),
    ],
)
def test_what_cannot_be_joined_is_refused_by_name(changes, image, text):
    config = config_of(NONE, **changes)
    config = config.with_changes(image=dataclasses.replace(config.image, **image))
    with pytest.raises(CheckpointError, match=f'"mm_dense_connector_type" is sti, which .*{text}'):
        apply_overrides(config, {"mm_dense_connector_type": "sti"})
    with pytest.raises(CheckpointError, match='"mm_dense_connector_type".*expected one of none, sti, sci, dci'):
        apply_overrides(config, {"mm_dense_connector_type": "dense"})


NONE = "none"


def test_layouts_without_a_form_for_it_say_so():
    config = config_of("dci")
    with pytest.raises(CheckpointError, match='llava-hf has no form for mm_dense_connector_type "dci"'):
        hf_data(config, vocabulary=448, image_id=447, pad_id=None, dtype="float32")
    with pytest.raises(CheckpointError, match='no form for mm_dense_connector_type "dci"'):
        require_known(config)


def test_files_without_it_are_as_they_were():
    assert "dense_connector" not in tiny_config().to_dict()["vision"]
    assert LlavaConfig.from_dict(config_of("sci").to_dict()) == config_of("sci")
