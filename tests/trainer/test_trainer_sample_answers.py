# SPDX-License-Identifier: Apache-2.0
"""eval_generate: what a model answers while it trains, and that the training does not notice."""

import json

import numpy as np
from PIL import Image

from paddlemix.datasets.preprocess import Encoded
from paddlemix.generation.load import load_chat
from paddlemix.imaging.layout import Layout
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.trainer.answer_sheet import as_picture, draw_sheet
from paddlemix.trainer.sample_answers import SampleAnswer, as_markdown, asked_of, chosen
from paddlemix.utils.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from tests.tiny import tiny_config, tiny_tokenizer_folder
from tests.trainer.run_kit import go, with_eval


def told(folder):
    return [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]


def test_the_training_is_the_same_with_and_without_answers(place, tmp_path):
    more = {"lora": "true", "lora_dropout": 0.3, "recompute": "true", "neftune": "true"}
    keys = dict(with_eval(place), do_eval="true", evaluation_strategy="steps", eval_steps=2, max_steps=4, **more)
    keys["num_train_epochs"] = None
    go(place, tmp_path / "without", **keys)
    go(place, tmp_path / "with", eval_generate=2, eval_generate_tokens=6, **keys)
    with_answers, without = told(tmp_path / "with"), told(tmp_path / "without")
    for name in ("loss", "grad_norm", "eval_loss"):
        assert [event.get(name) for event in with_answers] == [event.get(name) for event in without]
    evaluated = [event for event in with_answers if event["event"].endswith("eval")]
    assert all(0 <= event["eval_rouge_l"] <= 1 and event["eval_generated"] == 2 for event in evaluated)
    assert "eval_rouge_l" not in without[-1]


def test_the_answers_are_those_of_the_chat_with_the_same_weights(place, tmp_path):
    keys = dict(with_eval(place), do_eval="true", eval_generate=3, eval_generate_tokens=8, max_steps=3)
    go(place, tmp_path, **{**keys, "num_train_epochs": None})
    lines = (tmp_path / "eval_answers" / "step-000003.jsonl").read_text().splitlines()
    answers = [json.loads(line) for line in lines]
    assert [answer["where"].rpartition("/")[2] for answer in answers] == ["0", "1", "2"]
    assert answers[0]["reference"] == "blue circle"
    assert answers[0]["question"].endswith("what colour 0?")
    for index, answer in enumerate(answers):
        chat = load_chat(str(tmp_path), device="cpu")
        said = chat.answer(f"what colour {index}?", str(place / f"{index}.png"), max_new_tokens=8, temperature=0.0)
        assert answer["answer"] == said.strip()
    assert len({answer["answer"] for answer in answers}) > 1
    text = (tmp_path / "eval_answers" / "step-000003.md").read_text()
    assert "what colour 2?" in text
    assert Image.open(tmp_path / "eval_answers" / "step-000003.png").size == (1720, 2 * (58 + 3 * 154 + 24))


def row(ids, labels, **more):
    return Encoded(np.array(ids), np.array(labels), more.pop("pixels", None), more.pop("layouts", ()), len(ids), **more)


def test_the_question_ends_where_the_first_answer_begins():
    tokenizer = load_tokenizer(tiny_tokenizer_folder())
    no = IGNORE_INDEX
    layouts = (Layout(2, np.arange(4)), Layout(1, np.arange(4)))
    pixels = np.zeros((3, 3, 8, 8), np.float32)
    ids = [1, IMAGE_TOKEN_INDEX, 20, 30, 31, 2, 21, IMAGE_TOKEN_INDEX, 40, 2]
    labels = [no, no, no, 30, 31, 2, no, no, 40, 2]
    asked = asked_of(7, row(ids, labels, pixels=pixels, layouts=layouts), tokenizer)
    assert asked.ids.tolist() == [1, IMAGE_TOKEN_INDEX, 20]
    assert (len(asked.layouts), len(asked.pixels), asked.end, asked.index) == (1, 2, 2, 7)
    assert asked.reference == tokenizer.decode([30, 31]).strip()
    cut = asked_of(0, row([1, 20, 30, 31], [no, no, 30, 31], truncated=3), tokenizer)
    assert cut.end is None  # the cut is no end of an answer
    packed = row([1, 20, 30, 1, 21, 31], [no, no, 30, 1, no, 31], segments=np.array([1, 1, 1, 2, 2, 2]))
    assert asked_of(0, packed, tokenizer).reference == tokenizer.decode([30]).strip()
    assert asked_of(0, row([1, 2], [no, no]), tokenizer) is None


def test_the_rows_are_spread_and_never_more_than_there_are():
    assert chosen(100, 4) == [0, 25, 50, 75]
    assert chosen(3, 10) == [0, 1, 2]


def test_the_sheet_and_the_text_take_any_answer():
    nasty = SampleAnswer(0, "eval.json: /0", "q" * 500, "颜色是红色的。\x1b[31m" + "w" * 900, "", 0.0, 0.0)
    page = draw_sheet("step 1", [nasty] * 50, [None] * 50, tiny_config())
    assert page.startswith(b"\x89PNG")
    text = as_markdown(1, [nasty])
    assert "\x1b" not in text
    assert "(nothing)" in text


def test_a_tile_is_shown_as_the_image_that_it_was_made_from():
    image = tiny_config().image
    values = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    tile = ((values / 255 - np.array(image.mean)) / np.array(image.std)).transpose(2, 0, 1).astype(np.float32)
    assert np.array_equal(np.asarray(as_picture(tile, image)), values)
