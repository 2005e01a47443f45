# SPDX-License-Identifier: Apache-2.0
"""The image sheet and the loss curve are whole PNG files that show what they should."""

import pytest
from PIL import Image, ImageColor

from paddlemix.demo import data, shapes, sheets


@pytest.fixture
def pictures(tmp_path):
    data.write_test(tmp_path, "test", data.LOOK, 0, 20)
    return tmp_path


def _answers(rights: list[bool]) -> list[data.Answer]:
    return [
        data.Answer(data.Question("place", "Where is the star?", "top left", f"test/{number:05d}.png"), said)
        for number, said in enumerate("top left" if right else "nowhere at all, I am afraid" for right in rights)
    ]


def _has_colour(path, colour: str) -> bool:
    wanted = ImageColor.getrgb(colour)
    with Image.open(path) as image:
        return any(max(abs(a - b) for a, b in zip(pixel, wanted, strict=True)) < 8
                   for _, pixel in image.convert("RGB").getcolors(1 << 24))  # fmt: skip


@pytest.mark.parametrize("lines", [1, 3])
@pytest.mark.parametrize("rights", [[True] * 7, [False] * 7])
def test_answers_are_green_when_right_and_red_when_wrong(pictures, rights, lines):
    path = pictures / "sheet.png"
    sheets.draw_answers(path, pictures, _answers(rights), "Title", "note", lines=lines)
    assert _has_colour(path, sheets.RIGHT) == rights[0]
    assert _has_colour(path, sheets.WRONG) != rights[0]


def test_a_sentence_takes_so_many_lines_and_dots_when_it_is_longer():
    text = "The picture shows a yellow triangle in the bottom right corner."
    assert " ".join(sheets._cut(text, 3)) == text
    assert sheets._cut(text, 2) == ["The picture shows a", "yellow triangle in the ..."]


def test_a_sheet_grows_with_its_answers(pictures):
    heights = []
    for count in (6, 7):
        sheets.draw_answers(pictures / "sheet.png", pictures, _answers([True] * count), "Title", "note")
        with Image.open(pictures / "sheet.png") as image:
            image.load()
            heights.append(image.height)
    assert heights[1] > heights[0]


def test_wrong_answers_take_the_places_of_the_last_right_ones():
    answers = _answers([True] * 18 + [False, True])
    shown = sheets.choose_for_sheet(answers, count=18, wrong=3)
    assert shown == [*answers[:17], answers[18]]


def test_a_sheet_with_wrong_answers_enough_is_the_beginning_of_the_test():
    answers = _answers([False, True, False, False, True, False])
    assert sheets.choose_for_sheet(answers, count=5, wrong=3) == answers[:5]


@pytest.mark.parametrize("losses", [(2.0, 0.5, 0.01), (1.0,), (0.0, 0.0), (3.0, 3.0)])
def test_a_loss_curve_is_drawn_for_any_losses(tmp_path, losses):
    curve = sheets.Curve("Loss", tuple((10 * step, loss) for step, loss in enumerate(losses)))
    sheets.draw_curves(tmp_path / "loss.png", [curve, curve])
    with Image.open(tmp_path / "loss.png") as image:
        image.load()
        assert image.format == "PNG"
    if len(losses) > 1:
        assert _has_colour(tmp_path / "loss.png", sheets.CURVE)


def test_a_falling_loss_falls_on_the_paper(tmp_path):
    blue = ImageColor.getrgb(sheets.CURVE)
    sheets.draw_curves(tmp_path / "loss.png", [sheets.Curve("Loss", ((0, 4.0), (50, 1.0), (100, 0.1)))])
    with Image.open(tmp_path / "loss.png") as image:
        image = image.convert("RGB")
        found = [(x, y) for x in range(image.width) for y in range(image.height) if image.getpixel((x, y)) == blue]
    assert min(found)[1] < max(found)[1]


def test_pictures_are_small_files(tmp_path):
    data.write_test(tmp_path, "test", data.LOOK, 0, 1)
    path = tmp_path / "test" / "00000.png"
    assert path.stat().st_size < 8000
    with Image.open(path) as image:
        assert image.size == (shapes.SIDE, shapes.SIDE)
