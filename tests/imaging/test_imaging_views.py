# SPDX-License-Identifier: Apache-2.0
"""Sheets are cut in view order, and several views at one place are what several places would be."""

import numpy as np
import pytest
from PIL import Image

from paddlemix.imaging.layout import NEWLINE, Layout
from paddlemix.imaging.views import Views, joined, repeated, sheet_boxes, sheet_order, split_sheet
from paddlemix.settings.model import ImageConfig, VisionConfig
from paddlemix.splice.plan import PlanRow, build_plan
from paddlemix.utils.constants import IMAGE_TOKEN_INDEX
from paddlemix.utils.errors import ConfigError, DataError

P = 4
VISION = VisionConfig(8, 8, 1, 1, image_size=28, patch_size=14)
IMAGE = ImageConfig(28, 28, "pad")
ONE = Layout(1, np.arange(P))


def test_a_training_sheet_goes_down_the_left_side_and_up_the_right():
    assert sheet_boxes((1152, 1152)) == [
        (0, 0, 576, 576),
        (0, 576, 576, 1152),
        (576, 576, 1152, 1152),
        (576, 0, 1152, 576),
    ]


def test_the_demo_apps_sheets_are_read_row_by_row():
    assert sheet_order(2, "reading") == ((0, 0), (0, 1), (1, 0), (1, 1))


def test_sheets_of_other_sizes_are_read_row_by_row():
    assert sheet_order(3)[:4] == ((0, 0), (0, 1), (0, 2), (1, 0))
    with pytest.raises(ConfigError, match="that of 2 x 2 sheets, not 3 x 3"):
        sheet_order(3, "training")


def test_an_odd_sheet_loses_no_pixel():
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in sheet_boxes((5, 5))]
    assert sorted(areas) == [4, 6, 6, 9]


def test_every_view_holds_its_own_quarter():
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    views = split_sheet(Image.fromarray(np.stack([pixels] * 3, axis=-1)))
    assert [np.asarray(view)[0, 0, 0] for view in views] == [0, 8, 10, 2]


@pytest.mark.parametrize("size", [(640, 320), (1, 1)])
def test_a_sheet_that_cannot_be_cut_is_an_error_with_its_size(size):
    with pytest.raises(DataError, match=f"this one has {size[1]} x {size[0]}"):
        sheet_boxes(size)


def plan_of(ids, layouts):
    return build_plan([PlanRow(ids, layouts)], tokens_per_tile=P)


def test_four_views_at_one_place_equal_four_places():
    together = plan_of([1, IMAGE_TOKEN_INDEX, 7, 8], [joined([ONE] * 4, P)])
    apart = plan_of([1, *[IMAGE_TOKEN_INDEX] * 4, 7, 8], [ONE] * 4)
    for name in ("token_ids", "source", "labels", "positions", "segments", "lengths"):
        assert np.array_equal(getattr(together, name), getattr(apart, name)), name
    assert together.n_tiles == apart.n_tiles == 4


def test_joined_layouts_keep_their_newlines_and_their_order():
    wide = Layout(2, np.array([5, 0, NEWLINE]))
    assert joined([ONE, wide, ONE], P).order.tolist() == [0, 1, 2, 3, 9, 4, NEWLINE, 12, 13, 14, 15]


def test_a_repeated_picture_is_encoded_once():
    layout = repeated(ONE, 4)
    assert layout.tiles == 1
    assert layout.order.tolist() == [0, 1, 2, 3] * 4


@pytest.mark.parametrize(
    ("views", "sizes", "tiles", "tokens"),
    [
        (Views(), [(9, 9)] * 4, 4, 4 * P),
        (Views(grid=2), [(20, 20)], 4, 4 * P),
        (Views(repeat=4), [(9, 30)], 1, 4 * P),
        (Views(grid=3), [(20, 20)], 9, 9 * P),
    ],
)
def test_tiles_and_tokens_of_an_object(views, sizes, tiles, tokens):
    layout = views.layout(sizes, IMAGE, VISION)
    assert (layout.tiles, len(layout.order)) == (tiles, tokens)
    assert views.count(len(sizes)) * P == tokens
    assert len(views.cut([Image.new("RGB", (width, height)) for height, width in sizes])) == tiles


def test_sizes_of_views_are_those_of_the_cut_pictures():
    sheet = Image.new("RGB", (7, 7))
    cut = Views(grid=2).cut([sheet])
    assert Views(grid=2).sizes([(7, 7)]) == [(view.height, view.width) for view in cut]
