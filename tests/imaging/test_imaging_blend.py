# SPDX-License-Identifier: Apache-2.0
"""anyres_max_N and the grid ranges of LLaVA-NeXT: rows that are sums of four, from the layout to the model."""

import dataclasses
import json
import math

import numpy as np
import paddle
import pytest

from paddlemix.datasets.collate import Collator
from paddlemix.datasets.preprocess import Encoded
from paddlemix.generation.engine import encode_images, generate_batch
from paddlemix.generation.sampling import Decoding
from paddlemix.imaging.layout import BLENDED, NEWLINE, layout_for, layout_of, shrunk, token_count, unpad_window
from paddlemix.imaging.processor import ImageProcessor
from paddlemix.imaging.views import joined
from paddlemix.settings.model import ImageConfig, VisionConfig
from paddlemix.settings.published.config import load_config
from paddlemix.splice.plan import PlanRow, build_plan
from paddlemix.utils.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from paddlemix.utils.errors import CheckpointError, ConfigError
from tests.checkpoint import checkpoint_kit as kit
from tests.tiny import tiny_image, tiny_model

VISION = VisionConfig(8, 8, 1, 1, image_size=28, patch_size=7)
GRID = tuple((28 * w, 28 * h) for w in range(1, 7) for h in range(1, 7))
IMAGE = ImageConfig(28, 28, "anyres", "spatial_unpad", GRID, max_tiles=2)


def interpolated(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Bilinear, written out place by place in double."""
    high, wide = values.shape[:2]
    out = np.empty((rows, columns, *values.shape[2:]))
    for i in range(rows):
        for j in range(columns):
            y, x = max(0.0, (i + 0.5) * high / rows - 0.5), max(0.0, (j + 0.5) * wide / columns - 0.5)
            top, left = int(y), int(x)
            down, right = min(top + 1, high - 1), min(left + 1, wide - 1)
            y, x = y - top, x - left
            out[i, j] = (values[top, left] * (1 - x) + values[top, right] * x) * (1 - y)
            out[i, j] += (values[down, left] * (1 - x) + values[down, right] * x) * y
    return out


@pytest.mark.parametrize("size", [(90, 150), (150, 60), (168, 168), (29, 200)])
def test_blended_rows_are_the_bilinear_picture(size):
    layout = layout_of(size, IMAGE, VISION)
    side, tiles = VISION.grid, layout.tiles
    features = np.random.default_rng(0).normal(size=(tiles * side * side, 5))
    rows = (features[layout.blend.index] * layout.blend.weight[..., None]).sum(1)
    # The image of all tiles, without the padded border.
    plain = layout_of(size, dataclasses.replace(IMAGE, max_tiles=None), VISION)
    kept = plain.order[side * side :].reshape(-1, np.flatnonzero(plain.order == NEWLINE)[0] - side * side + 1)[:, :-1]
    high, wide = kept.shape
    times = math.sqrt(high * wide / (2 * side**2))
    expected = interpolated(features[kept], int(high // times), int(wide // times))
    # Places and shares are float32, as torch's interpolate has them.
    np.testing.assert_allclose(rows, expected.reshape(-1, 5), atol=2e-5)
    ends = layout.order[side * side :].reshape(len(expected), -1)
    assert (ends[:, -1] == NEWLINE).all()
    np.testing.assert_array_equal(ends[:, :-1].reshape(-1), BLENDED - np.arange(len(rows)))


def test_the_count_is_the_length_and_small_pictures_are_left_alone():
    limited = 0
    for high in range(20, 200, 9):
        for wide in range(20, 200, 9):
            layout = layout_of((high, wide), IMAGE, VISION)
            assert token_count((high, wide), IMAGE, VISION) == len(layout.order)
            limited += layout.blend is not None
            if layout.blend is not None:
                assert len(layout.blend.index) <= 2 * VISION.grid**2
    assert 0 < limited < 21 * 21


def test_up_to_a_tenth_more_is_tolerated():
    # 4 x 4 patches a tile; 1 x 3 tiles of 48 rows against N = 2: sqrt(1.5) is above 1.1, against 3 it is 1.
    assert shrunk((28, 84), (1, 3), 3, 4) is None
    assert shrunk((28, 84), (1, 3), 2, 4) == (3, 9)
    # sqrt(7 / 6) is 1.08: more than N tiles, and left alone; sqrt(5 / 4) is 1.118: scaled down.
    assert shrunk((28, 196), (1, 7), 6, 4) is None
    assert shrunk((28, 140), (1, 5), 4, 4) == (3, 17)
    assert unpad_window((28, 84), (4, 12)) == (0, 4, 0, 12)


def test_rows_of_several_pictures_keep_apart_in_a_batch():
    plain = layout_of((28, 28), IMAGE, VISION)
    first, second = layout_of((90, 150), IMAGE, VISION), layout_of((150, 60), IMAGE, VISION)
    per_tile = VISION.tokens_per_tile
    rows = [
        PlanRow([1, IMAGE_TOKEN_INDEX, IMAGE_TOKEN_INDEX, 5], [plain, first]),
        PlanRow([IMAGE_TOKEN_INDEX], [second]),
    ]
    plan = build_plan(rows, tokens_per_tile=per_tile)
    tiles = (plain.tiles, first.tiles, second.tiles)
    rng = np.random.default_rng(1)
    features = rng.normal(size=(sum(tiles) * per_tile, 3))
    text = rng.normal(size=(plan.token_ids.size, 3))
    newline = rng.normal(size=(1, 3))
    blended = (features[plan.blend_index] * plan.blend_weight[..., None]).sum(1)
    merged = np.concatenate([text, features, np.zeros((1, 3)), newline, blended])[plan.source]
    starts = np.cumsum([0, *tiles]) * per_tile

    def alone(layout, start):
        own = features[start : start + layout.tiles * per_tile]
        mixed = None if layout.blend is None else (own[layout.blend.index] * layout.blend.weight[..., None]).sum(1)
        return np.stack(
            [newline[0] if i == NEWLINE else own[i] if i >= 0 else mixed[BLENDED - i] for i in layout.order]
        )

    here = np.concatenate([alone(plain, starts[0]), alone(first, starts[1])])
    np.testing.assert_allclose(merged[0, 1 : 1 + len(here)], here)
    np.testing.assert_allclose(merged[1, : len(second.order)], alone(second, starts[2]))


def model():
    pairs = tuple((28 * w, 28 * h) for w in range(1, 4) for h in range(1, 4))
    image = ImageConfig(28, 28, "anyres", "spatial_unpad", pairs, max_tiles=1)
    return tiny_model(3, image=image, has_image_newline=True)


def test_training_and_generation_see_the_same_rows():
    made = model()
    done = ImageProcessor(made.config.image, made.config.vision)(tiny_image(1, (150, 60)))
    assert done.layout.blend is not None
    ids = np.array([1, IMAGE_TOKEN_INDEX, 7, 8])
    labels = np.array([IGNORE_INDEX, IGNORE_INDEX, 7, 8])
    encoded = Encoded(ids, labels, done.pixels, (done.layout,), 3 + len(done.layout.order), "row 0", 0)
    per_tile = made.config.vision.tokens_per_tile
    batch = Collator(tokens_per_tile=per_tile, tile_side=28)([encoded])
    tensors = {name: paddle.to_tensor(value) for name, value in batch.items()}
    tensors.pop("labels")
    logits = made(**tensors)
    expected = int(logits[0, -1].argmax())
    plan = build_plan([PlanRow(ids, [done.layout])], tokens_per_tile=per_tile)
    assert generate_batch(made, plan, done.pixels, Decoding(max_new_tokens=1))[0] == [expected]
    # The same rows by hand.
    features = encode_images(made, done.pixels).reshape([-1, 32]).numpy()
    rows = (features[done.layout.blend.index] * done.layout.blend.weight[..., None]).sum(1)
    merged = made.embed(
        tensors["token_ids"], tensors["source"], made.encode_images(tensors["pixels"]),
        (tensors["blend_index"], tensors["blend_weight"]),
    )[0].numpy()  # fmt: skip
    places = 1 + np.flatnonzero(done.layout.order <= BLENDED)
    np.testing.assert_allclose(merged[places], rows, atol=1e-5)


def test_gradients_flow_through_blended_rows():
    made = model()
    done = ImageProcessor(made.config.image, made.config.vision)(tiny_image(1, (150, 60)))
    ids = np.array([1, IMAGE_TOKEN_INDEX, 7])
    encoded = Encoded(ids, np.array([-100, -100, 7]), done.pixels, (done.layout,), 9, "row 0", 0)
    batch = Collator(tokens_per_tile=made.config.vision.tokens_per_tile, tile_side=28)([encoded])
    made.train()
    made(**{name: paddle.to_tensor(value) for name, value in batch.items()}).backward()
    gradient = dict(made.named_parameters())["llama.mm_projector.2.weight"].grad
    assert float(gradient.abs().sum()) > 0


@pytest.mark.parametrize(
    ("aspect", "pinpoints", "tiles", "grid"),
    [
        ("anyres_max_9", "(1x1),...,(2x3)", 9, [(28, 28), (28, 56), (28, 84), (56, 28), (56, 56), (56, 84)]),
        ("anyres", "(1x1),...,(2x2)", None, [(28, 28), (28, 56), (56, 28), (56, 56)]),
        ("anyres", "[[28, 56], [56, 28]]", None, [(28, 56), (56, 28)]),
        ("anyres_max_4", [[28, 56]], 4, [(28, 56)]),
    ],
)
def test_every_spelling_of_the_grid_is_read(aspect, pinpoints, tiles, grid, tmp_path):
    made = tiny_model(2)
    hub = kit.hub(tmp_path, made)
    config = {**kit.llava_config(made, "openai/tiny-clip"), "mm_patch_merge_type": "spatial_unpad"}
    folder = kit.write_config(
        tmp_path / "x", {**config, "image_aspect_ratio": aspect, "image_grid_pinpoints": pinpoints}
    )
    image = load_config(folder, tower_folder=hub["clip"]).image
    assert (image.aspect, image.max_tiles, list(image.grid_pinpoints)) == ("anyres", tiles, grid)


@pytest.mark.parametrize(
    "changes",
    [
        {"image_aspect_ratio": "anyres_max_0"},
        {"image_aspect_ratio": "anyres_max"},
        {"image_aspect_ratio": "anyres_max_9 "},
        {"image_grid_pinpoints": "(0x1),...,(2x2)"},
        {"image_grid_pinpoints": "(3x3),...,(2x2)"},
        {"image_grid_pinpoints": "__import__('os')"},
        {"image_grid_pinpoints": "[[28]]"},
    ],
)
def test_other_spellings_are_errors_that_name_the_key(changes, tmp_path):
    made = tiny_model(2)
    hub = kit.hub(tmp_path, made)
    config = {**kit.llava_config(made, "openai/tiny-clip"), "mm_patch_merge_type": "spatial_unpad"}
    config |= {"image_aspect_ratio": "anyres", "image_grid_pinpoints": [[28, 56]], **changes}
    folder = kit.write_config(tmp_path / "x", config)
    with pytest.raises(CheckpointError, match=next(iter(changes))):
        load_config(folder, tower_folder=hub["clip"])
    assert json.loads((folder / "config.json").read_text())


def test_views_under_a_limit_are_refused():
    layout = layout_of((90, 150), IMAGE, VISION)
    with pytest.raises(ConfigError, match="anyres_max_N"):
        joined([layout, layout], VISION.tokens_per_tile)
    assert layout_for((90, 150), None, IMAGE, VISION).blend is None
