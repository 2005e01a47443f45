# SPDX-License-Identifier: Apache-2.0
"""Pixels equal the reference; every size works; the processor refuses what cannot fit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paddlemix.imaging.preprocess import background_colour, centre_crop, preprocess
from paddlemix.imaging.processor import ImageProcessor
from paddlemix.settings.model import ImageConfig, VisionConfig
from paddlemix.utils.errors import ConfigError, DataError

VISION = VisionConfig(64, 64, 1, 1, image_size=28, patch_size=14)
IMAGE = ImageConfig(28, 28, "anyres", "spatial_unpad", ((28, 56), (56, 28), (56, 56)))


def picture(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.mark.golden
def test_pixels_and_tables_equal_the_original(golden_llava: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2]))
    from tools.golden.preprocess import run

    cases = list(run(golden_llava))
    assert cases
    assert [case for case in cases if case.status not in ("ok", "deviates")] == []


@pytest.mark.parametrize("aspect", ["square", "pad", "anyres"])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (3, 50), (50, 3), (27, 29), (28, 28), (2, 400)])
def test_every_size_gives_finite_tiles_that_fit_the_layout(aspect, size):
    processed = ImageProcessor(replace(IMAGE, aspect=aspect), VISION)(picture(*size))
    assert processed.pixels.shape == (processed.layout.tiles, 3, 28, 28)
    assert processed.pixels.dtype == np.float32
    assert np.isfinite(processed.pixels).all()
    assert processed.size == (size[1], size[0])


def test_the_float_table_equals_the_arithmetic_of_the_original():
    values = np.arange(28 * 28 * 3, dtype=np.int64).astype(np.uint8).reshape(28, 28, 3)
    image = replace(IMAGE, aspect="square")
    scaled = (values * (1 / 255)).astype(np.float32)
    expected = (scaled - np.asarray(image.mean, np.float32)) / np.asarray(image.std, np.float32)
    assert np.array_equal(preprocess(Image.fromarray(values), image)[0], expected.transpose(2, 0, 1))


def test_the_canvas_of_pad_mode_cuts_the_mean_colour_to_integers():
    assert background_colour(IMAGE) == (122, 116, 104)
    tile = preprocess(picture(1, 40), replace(IMAGE, aspect="pad"))[0]
    expected = (np.array([122, 116, 104]) / 255 - np.array(IMAGE.mean)) / np.array(IMAGE.std)
    assert np.allclose(tile[:, 14, 0], expected, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(3, 9), (9, 3), (3, 3), (5, 4), (4, 5)])
def test_a_crop_larger_than_the_picture_adds_black_around_it(height, width):
    pixels = np.full((height, width, 3), 200, dtype=np.uint8)
    cropped = centre_crop(pixels, 6)
    assert cropped.shape == (6, 6, 3)
    assert (cropped == 200).sum() == min(height, 6) * min(width, 6) * 3


def test_the_processor_refuses_a_tile_side_that_the_tower_was_not_built_for():
    with pytest.raises(ConfigError, match="crop_size is 28 but the vision tower's image_size is 56"):
        ImageProcessor(IMAGE, replace(VISION, image_size=56))


def test_the_processor_refuses_a_picture_that_is_not_rgb():
    with pytest.raises(DataError, match="mode RGBA"):
        ImageProcessor(IMAGE, VISION)(Image.new("RGBA", (9, 9)))
