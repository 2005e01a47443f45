# SPDX-License-Identifier: Apache-2.0
"""The multi-view demo: solids hide what they have to hide, every step runs, and the two accuracies hold."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from PIL import Image

from paddlemix.demo.multiview_run import CHANCE, FULL, MARGIN, QUICK, Demo, rows, sheet_of
from paddlemix.demo.shapes import COLOURS
from paddlemix.demo.solids import SIDES, SOLIDS, draw_scenes, views
from paddlemix.demo.verdict import PROMISED
from paddlemix.imaging.views import split_sheet
from paddlemix.utils.errors import TrainingError


def scenes(count, unseen=False):
    return list(itertools.islice(draw_scenes(0, "test", unseen=unseen), count))


def repainted(scene, side, colour):
    colours = list(scene.colours)
    colours[SIDES.index(side)] = colour
    return dataclasses.replace(scene, colours=tuple(colours))


def test_the_front_view_tells_nothing_about_the_back():
    for scene in scenes(8):
        pictures = [np.asarray(views(repainted(scene, "back", colour))[0]) for colour in COLOURS]
        assert all(np.array_equal(picture, pictures[0]) for picture in pictures)


@pytest.mark.parametrize("number", range(4))
def test_each_view_shows_its_own_side_most(number):
    for scene in scenes(6):
        changed = [
            np.any(np.asarray(views(repainted(scene, side, "white"))[number]) !=
                   np.asarray(views(repainted(scene, side, "blue"))[number]), axis=-1).sum()
            for side in SIDES
        ]  # fmt: skip
        assert int(np.argmax(changed)) == number
        assert changed[number] > 40


def test_sides_take_their_colours_independently():
    found = scenes(3000)
    same = sum(scene.colour("front") == scene.colour("back") for scene in found) / len(found)
    assert abs(same - CHANCE) < 0.03
    assert {scene.solid.name for scene in found} == {solid.name for solid in SOLIDS}


def test_no_object_of_the_test_is_one_of_the_training():
    seen = {(scene.solid.name, scene.colours) for scene in scenes(1000)}
    assert not any((scene.solid.name, scene.colours) in seen for scene in scenes(300, unseen=True))


def test_a_sheet_is_cut_into_the_views_it_was_made_of():
    pictures = views(scenes(1)[0])
    again = split_sheet(sheet_of(pictures))
    assert all(np.array_equal(np.asarray(one), np.asarray(other)) for one, other in zip(pictures, again, strict=True))


def test_rows_are_of_every_kind_and_their_files_are_there(tmp_path):
    found = list(rows(tmp_path, 0, 40))
    kinds = {kind: [row for row in found if row["id"].startswith(kind)] for kind in ("cap3d_", "sv3d_", "text_")}
    assert [len(kinds[kind]) for kind in ("cap3d_", "sv3d_", "text_")] == [15, 15, 2]
    assert len(found) == 42
    for row in kinds["cap3d_"]:
        for view in (0, 1, 4, 5):
            assert Image.open(tmp_path / f"Cap3D_imgs_view{view}" / f"{row['image']}.jpg").size == (32, 32)
    assert Image.open(tmp_path / kinds["sv3d_"][0]["image"]).size == (64, 64)


def test_the_quick_demo_goes_through_every_step(tmp_path):
    results = Demo(tmp_path, 0, QUICK).go()
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8")) == results
    assert Image.open(tmp_path / "answers.png").width > 500
    assert {"four_views_back", "one_view_back", "one_view_front"} <= set(results)


@pytest.mark.parametrize(
    ("four", "words"), [(0.97, "of 97.0 % of the objects (97 % are promised)."), (0.9, "less than the 97 %")]
)
def test_the_last_line_tells_what_four_views_reached(tmp_path, four, words):
    run = Demo(tmp_path, 0, FULL)
    run.results.update(four_views_back=four, one_view_back=CHANCE + MARGIN)
    run._require()
    assert words in run.verdict()


def test_one_view_that_tells_the_back_is_an_error(tmp_path):
    run = Demo(tmp_path, 0, FULL)
    run.results.update(four_views_back=1.0, one_view_back=CHANCE + MARGIN + 0.01)
    with pytest.raises(TrainingError, match="one view told the colour of the back in 27.7 %"):
        run._require()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_four_views_tell_the_back_and_one_view_cannot(tmp_path):
    results = Demo(tmp_path, 1, FULL).go()
    assert results["four_views_back"] >= PROMISED
    assert results["one_view_back"] <= CHANCE + MARGIN
    assert results["one_view_front"] >= PROMISED
