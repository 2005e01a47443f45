# SPDX-License-Identifier: Apache-2.0
"""The demo's images and questions: decided by the seed, truly unseen, and rightly answered."""

import itertools
import json
import random

import numpy as np
import pytest
from PIL import Image

from paddlemix.demo import data, shapes
from paddlemix.demo.model import tiny_config
from paddlemix.imaging.load import load_image
from paddlemix.imaging.processor import ImageProcessor
from paddlemix.utils.errors import DataError


def _scenes(seed: int, name: str, count: int, most: int = 1, *, unseen: bool) -> list[shapes.Scene]:
    return list(itertools.islice(shapes.draw_scenes(seed, name, most, unseen=unseen), count))


def _files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_seed_draws_the_same_files(tmp_path):
    for folder in (tmp_path / "a", tmp_path / "b"):
        data.write_training(folder, "train", [(data.LOOK, 3)], 5, 6)
        data.write_test(folder, "test", data.LOOK, 5, 4)
    assert _files(tmp_path / "a") == _files(tmp_path / "b")


def test_another_seed_draws_other_pictures():
    assert _scenes(0, "train", 20, unseen=False) != _scenes(1, "train", 20, unseen=False)


def test_no_picture_of_the_training_shows_a_thing_in_its_held_out_place():
    for most in (1, 4):
        for scene in _scenes(0, "train", 500, most, unseen=False):
            assert all(s.place != shapes.held_out_place(s.colour, s.kind) for s in scene.shapes)


def test_every_picture_of_the_test_shows_a_thing_in_its_held_out_place():
    for most in (1, 4):
        for scene in _scenes(0, "test", 200, most, unseen=True):
            assert any(s.place == shapes.held_out_place(s.colour, s.kind) for s in scene.shapes)


def test_the_training_shows_every_thing_in_its_other_three_places():
    shown: dict[tuple[str, str], set[str]] = {}
    for (shape,) in (scene.shapes for scene in _scenes(0, "train", 3000, unseen=False)):
        shown.setdefault((shape.colour, shape.kind), set()).add(shape.place)
    assert len(shown) == len(shapes.COLOURS) * len(shapes.KINDS)
    assert all(len(places) == 3 for places in shown.values())


@pytest.mark.parametrize("unseen", [False, True])
def test_every_number_of_shapes_is_as_likely_on_both_sides_of_the_split(unseen):
    counts = [len(scene.shapes) for scene in _scenes(0, "count", 2000, 4, unseen=unseen)]
    assert all(400 < counts.count(number) < 600 for number in (1, 2, 3, 4))


def test_kinds_colours_and_places_do_not_repeat_in_a_scene():
    for scene in _scenes(3, "any", 200, 4, unseen=False):
        for values in zip(*((s.kind, s.colour, s.place) for s in scene.shapes), strict=True):
            assert len(set(values)) == len(values)


def test_a_picture_shows_its_shapes_where_the_scene_says():
    scene = shapes.Scene((10, 10, 20), (shapes.Shape("circle", "red", "bottom left", 0.8, (0, 0), 0, (0, 0, 0)),))
    picture = shapes.paint(scene)
    quarter = shapes.SIDE // 4
    assert picture.getpixel((quarter, 3 * quarter)) == shapes.COLOURS["red"]
    assert picture.getpixel((3 * quarter, quarter)) == (10, 10, 20)


@pytest.mark.parametrize("kind", shapes.KINDS)
def test_every_kind_of_shape_looks_different_and_stays_in_its_quarter(kind):
    def drawn(name: str) -> Image.Image:
        shape = shapes.Shape(name, "white", "top left", 0.9, (1, 1), 12, (0, 0, 0))
        return shapes.paint(shapes.Scene((0, 0, 0), (shape,)))

    picture = drawn(kind)
    assert all(picture.tobytes() != drawn(other).tobytes() for other in shapes.KINDS if other != kind)
    right, bottom = picture.getbbox()[2:]
    assert max(right, bottom) <= shapes.SIDE // 2 + 4


def test_answers_follow_from_the_scene():
    star = shapes.Shape("star", "red", "top left", 0.8, (0, 0), 0, (0, 0, 0))
    cross = shapes.Shape("cross", "blue", "bottom right", 0.8, (0, 0), 0, (0, 0, 0))
    one, two = shapes.Scene((0, 0, 0), (star,)), shapes.Scene((0, 0, 0), (star, cross))
    assert {q.text: q.answer for kind in (*data.LOOK, *data.COUNT) for q in kind(one)} == {
        "What is in the picture?": "a red star",
        "What shape is it?": "star",
        "What shape is the red one?": "star",
        "What colour is the shape?": "red",
        "What colour is the star?": "red",
        "Where is the shape?": "top left",
        "Where is the star?": "top left",
        "How many shapes are there?": "one",
    }
    # With two shapes the questions about "the shape" have no single answer, so they are not asked.
    assert {q.text: q.answer for kind in (*data.LOOK, *data.COUNT) for q in kind(two)} == {
        "How many shapes are there?": "two"
    }


def test_a_conversation_asks_nothing_twice():
    for number, scene in enumerate(_scenes(0, "train", 50, unseen=False)):
        texts = [question.text for question in data.ask(scene, data.LOOK, random.Random(number), 7)]
        assert len(set(texts)) == len(texts) == 7


def test_training_rows_are_llava_rows_with_one_image_place(tmp_path):
    path = data.write_training(tmp_path, "count", [(data.COUNT, 1), (data.LOOK, 1)], 0, 12, 4)
    rounds = set()
    for row in json.loads(path.read_text()):
        turns = row["conversations"]
        rounds.add(len(turns) // 2)
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
        assert [turn["value"].count("<image>") for turn in turns] == [1] + [0] * (len(turns) - 1)
        assert (tmp_path / row["image"]).is_file()
        assert any("How many shapes are there?" in turn["value"] for turn in turns)
    assert rounds == {1, 2}


def test_a_picture_of_the_training_among_those_of_the_test_is_an_error(tmp_path):
    data.write_training(tmp_path, "train", [(data.LOOK, 1)], 0, 4)
    data.write_test(tmp_path, "test", data.LOOK, 0, 4)
    assert data.require_unseen(tmp_path, ["train"], ["test"]) == 4
    (tmp_path / "test" / "00002.png").write_bytes((tmp_path / "train" / "00001.png").read_bytes())
    with pytest.raises(DataError, match=r"00002\.png is the same image as .*00001\.png"):
        data.require_unseen(tmp_path, ["train"], ["test"])


def test_the_best_guess_is_the_most_frequent_answer_to_the_same_question(tmp_path):
    turns = [("<image>\nHow many?", "two"), ("How many?", "one"), ("How many?", "two"), ("Where?", "left")]
    row = {"conversations": [{"value": value} for turn in turns for value in turn]}
    (tmp_path / "train.json").write_text(json.dumps([row]))
    asked = [("How many?", "two"), ("How many?", "two"), ("How many?", "one"), ("Who?", "left")]
    questions = [data.Question("kind", text, answer) for text, answer in asked]
    assert data.best_guess(tmp_path / "train.json", questions) == 0.5
    assert data.best_guess(tmp_path / "train.json", questions[:2]) == 1.0


def test_accuracy_is_counted_letter_for_letter_and_by_kind():
    said = [("a", "red", "red"), ("a", "red", "Red"), ("b", "two", "two")]
    answers = [data.Answer(data.Question(kind, "?", right), words) for kind, right, words in said]
    assert data.accuracy(answers) == pytest.approx(2 / 3)
    assert data.by_kind(answers) == {"a": (1, 2), "b": (1, 1)}


def test_a_training_asks_what_takes_longest_twice_as_often_and_a_test_everything_alike():
    scenes = _scenes(0, "train", 3000, unseen=False)

    def shares(often):
        rng = random.Random(1)
        first = [data.ask(scene, data.LOOK, rng, 1, often)[0].kind for scene in scenes]
        return {kind: first.count(kind) / len(first) for kind in ("thing", "shape", "colour", "place")}

    assert shares(None) == pytest.approx(dict.fromkeys(("thing", "shape", "colour", "place"), 1 / 4), abs=0.03)
    often = {"thing": 1 / 3, "shape": 1 / 3, "colour": 1 / 6, "place": 1 / 6}
    assert shares(data.OFTEN) == pytest.approx(often, abs=0.03)


def test_the_tower_gets_numbers_about_zero_of_the_demos_pictures(tmp_path):
    """With the mean of photographs a run needs more steps, and chance decides how many."""
    data.write_training(tmp_path, "train", [(data.LOOK, 1)], 0, 150)
    config = tiny_config(64)
    processor = ImageProcessor(config.image, config.vision)
    pixels = np.concatenate([processor(load_image(path)).pixels for path in sorted(tmp_path.rglob("*.png"))])
    assert np.abs(pixels.mean(axis=(0, 2, 3))).max() < 0.3
