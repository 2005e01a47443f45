# SPDX-License-Identifier: Apache-2.0
"""Laws of tiles and layouts."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddlemix.imaging.layout import (
    NEWLINE,
    choose_resolution,
    layout_for,
    layout_of,
    tile_grid,
    token_count,
    token_range,
)
from paddlemix.settings.model import ImageConfig, VisionConfig
from paddlemix.utils.errors import ConfigError

PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
VISION = VisionConfig(64, 64, 1, 1, image_size=336, patch_size=14)
IMAGE = ImageConfig(336, 336, "anyres", "spatial_unpad", PINPOINTS)
TINY_VISION = VisionConfig(64, 64, 1, 1, image_size=28, patch_size=14)
TINY = ImageConfig(28, 28, "anyres", "spatial_unpad", ((28, 56), (56, 28)))

sides = st.integers(1, 1400)


@settings(max_examples=300, deadline=None)
@given(
    sides, sides, st.sampled_from(["square", "pad", "anyres"]), st.sampled_from(["flat", "spatial", "spatial_unpad"])
)
def test_token_count_equals_the_rows_of_the_order(height, width, aspect, merge):
    image = replace(IMAGE, aspect=aspect, merge=merge)
    assert token_count((height, width), image, VISION) == len(layout_of((height, width), image, VISION).order)


@pytest.mark.parametrize("short", range(1, 1401, 93))
def test_token_count_equals_the_rows_on_a_grid_of_sizes(short):
    for long in range(1, 1401, 137):
        for size in ((short, long), (long, short)):
            assert token_count(size, IMAGE, VISION) == len(layout_of(size, IMAGE, VISION).order)


@settings(max_examples=100, deadline=None)
@given(sides, sides, st.sampled_from(["flat", "spatial", "spatial_unpad"]))
def test_a_layout_uses_each_feature_row_at_most_once_and_the_whole_image_first(height, width, merge):
    layout = layout_of((height, width), replace(IMAGE, merge=merge), VISION)
    rows = layout.order[layout.order != NEWLINE]
    assert len(np.unique(rows)) == len(rows)
    assert rows.max() < layout.tiles * VISION.tokens_per_tile
    assert layout.order[:576].tolist() == list(range(576))
    if merge != "spatial_unpad":
        assert sorted(layout.order) == list(range(layout.tiles * 576))


def test_spatial_walks_the_rows_of_the_whole_picture():
    # One row of two tiles with 2 x 2 patches each: tile 1 is rows 4 to 7, tile 2 is rows 8 to 11.
    layout = layout_for((28, 56), (1, 2), replace(TINY, merge="spatial"), TINY_VISION)
    assert layout.order.tolist() == [0, 1, 2, 3, 4, 5, 8, 9, 6, 7, 10, 11]


def test_unpad_puts_a_newline_after_every_row_and_none_after_the_whole_image():
    layout = layout_for((28, 56), (1, 2), TINY, TINY_VISION)
    assert layout.order.tolist() == [0, 1, 2, 3, 4, 5, 8, 9, NEWLINE, 6, 7, 10, 11, NEWLINE]


def test_flat_keeps_the_order_of_the_tiles():
    assert layout_for((28, 56), (1, 2), replace(TINY, merge="flat"), TINY_VISION).order.tolist() == list(range(12))


def test_a_lone_tile_gets_one_newline_only_in_the_anyres_merge_with_unpad():
    assert layout_for((9, 9), None, TINY, TINY_VISION).order.tolist() == [0, 1, 2, 3, NEWLINE]
    assert layout_for((9, 9), None, replace(TINY, merge="spatial"), TINY_VISION).order.tolist() == [0, 1, 2, 3]
    assert layout_for((9, 9), None, replace(TINY, aspect="pad"), TINY_VISION).order.tolist() == [0, 1, 2, 3]


def test_small_images_take_the_first_pinpoint_read_as_width_and_height():
    assert choose_resolution((10, 10), PINPOINTS) == (336, 672)
    assert tile_grid((10, 10), IMAGE) == (2, 1)


def test_unpad_cuts_the_float_product_and_does_not_round():
    # 748 * (24 / 352) = 50.99999999999999 in double; rounding would keep 51 rows and thus 52 of 72.
    layout = layout_for((748, 352), (3, 1), IMAGE, VISION)
    assert len(layout.order) == 576 + 50 * 25


def test_the_class_token_counts_as_a_feature_row_in_flat_merges():
    vision = replace(TINY_VISION, select_feature="cls_patch")
    image = replace(TINY, aspect="pad", merge="flat")
    assert len(layout_of((9, 9), image, vision).order) == 5


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"aspect": "highres"}, r'image aspect "highres" is not known \(known: square, pad, anyres\)'),
        ({"merge": "maxpool2x2"}, r'merge type "maxpool2x2" is not known'),
        ({"grid_pinpoints": ()}, r"image_grid_pinpoints is empty"),
        ({"grid_pinpoints": ((336, 700),)}, r"\[336, 700\] is no multiple of the tile side of 336 pixels"),
    ],
)
def test_settings_without_a_rule_are_refused(change, text):
    with pytest.raises(ConfigError, match=text):
        layout_of((500, 500), replace(IMAGE, **change), VISION)


def test_spatial_merges_refuse_the_class_token():
    with pytest.raises(ConfigError, match='needs mm_vision_select_feature "patch"'):
        layout_of((500, 500), IMAGE, replace(VISION, select_feature="cls_patch"))


@pytest.mark.parametrize("most", [None, 1])
def test_no_image_has_fewer_or_more_tokens_than_the_range_says(most):
    image = replace(IMAGE, max_tiles=most)
    sizes = [
        (short, long) for long in range(1, 1100, 13) for short in {1, *range(1, long + 1, 29)} if long <= 200 * short
    ]
    counts = [token_count(size, image, VISION) for size in [*sizes, *((width, height) for height, width in sizes)]]
    assert token_range(image, VISION) == (min(counts), max(counts))
