# SPDX-License-Identifier: Apache-2.0
"""Rows with a video: frames in a list or a folder stand at one place, in training, prediction and chat alike."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paddlemix.datasets.frames import frames_of
from paddlemix.datasets.lazy import digest
from paddlemix.datasets.preprocess import SampleEncoder
from paddlemix.datasets.sources import DatasetEntry, read
from paddlemix.generation.predictor import Predictor
from paddlemix.imaging.processor import Frames
from paddlemix.text import templates
from paddlemix.text.messages import Conversation, Message
from paddlemix.tools import batch_predict
from paddlemix.utils.constants import IMAGE_TOKEN_INDEX
from paddlemix.utils.errors import DataError
from tests.trainer.run_kit import go

FOLDER = Path(__file__).parents[1] / "data" / "onevision" / "onevision"
FILES = ["clip/2.png", "clip/10.png", "clip/11.png"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Three frames whose names sort otherwise as texts, and a file of rows about them."""
    root = tmp_path_factory.mktemp("film")
    (root / "clip").mkdir()
    rng = np.random.default_rng(4)
    for file in FILES:
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(root / file)
    (root / "clip" / "notes.txt").write_text("no frame")
    turns = [("<video>\nWhat happens?", "clip"), ("<image>\nWhat happens?", FILES)]
    rows = [
        {"id": str(number), "video": video, "conversations": talk(text)} for number, (text, video) in enumerate(turns)
    ]
    rows.append({"id": "2", "conversations": talk("Hi")})
    (root / "train.json").write_text(json.dumps(rows))
    return root


def talk(text):
    return [{"from": "human", "value": text}, {"from": "gpt", "value": "It turns red."}]


@pytest.fixture(scope="module")
def predictor():
    return Predictor.load(FOLDER, device="cpu")


@pytest.fixture(scope="module")
def encoder(predictor):
    template = templates.get("qwen_1_5", training=True)
    return SampleEncoder(predictor.tokenizer, predictor.processor, template, max_length=512)


def test_a_folder_and_a_list_are_the_same_video_and_begin_as_their_prompt(place, predictor, encoder):
    samples = read(DatasetEntry((str(place / "train.json"),), str(place)))
    by_folder, by_list = (encoder(sample) for sample in samples[:2])
    assert by_folder.ids.tolist() == by_list.ids.tolist()
    np.testing.assert_array_equal(by_folder.pixels, by_list.pixels)
    assert by_folder.pixels.shape == (3, 3, 30, 30)
    assert [layout.length for layout in by_folder.layouts] == [3 * 4 + 1]
    frames = [str(place / file) for file in FILES]
    asked = Conversation((Message("user", "<image>\nWhat happens?"),), tuple(frames), video=True)
    prompt = predictor.prompt(asked)
    assert by_list.ids[: len(prompt.ids)].tolist() == list(prompt.ids)
    np.testing.assert_array_equal(by_list.layouts[0].order, predictor.picture(Frames(frames)).layout.order)
    sizes = [encoder.size_of(samples[1], image) for image in samples[1].images]
    assert encoder.measure(samples[1], sizes).length == by_list.length == encoder.length(samples[1])


def test_a_video_is_other_data_than_its_frames_as_images(place):
    row = {"conversations": talk("<image>\nWhat happens?")}
    (place / "one.json").write_text(json.dumps([row | {"video": FILES[:1]}, row | {"image": FILES[:1]}]))
    film, image = read(DatasetEntry((str(place / "one.json"),), str(place)))
    assert digest(film) != digest(image)


def test_a_video_without_a_layout_is_refused_by_its_row(place, encoder):
    interleave = Predictor.load(FOLDER.parent / "interleave", device="cpu")
    (sample, *_) = read(DatasetEntry((str(place / "train.json"),), str(place)))
    other = SampleEncoder(interleave.tokenizer, interleave.processor, encoder.template, max_length=512)
    with pytest.raises(DataError, match=r'train.json: /0 \(id "0"\): this model has no layout for a video'):
        other.check(sample)


def test_an_empty_folder_and_a_film_are_refused_with_what_to_do(place, tmp_path):
    with pytest.raises(DataError, match="no frame in it; expected images"):
        frames_of([str(tmp_path)], "")
    with pytest.raises(DataError, match="mkdir -p films/a && ffmpeg -i films/a.mp4 -vf fps=1 films/a/%05d.jpg"):
        frames_of(["a.mp4"], "films")


def test_rows_with_videos_train_and_are_predicted(place, tmp_path):
    given = {"model_name_or_path": FOLDER, "max_steps": 2, "num_train_epochs": None, "lora": "true", "max_length": 256}
    result = go(place, tmp_path / "out", **given)
    assert result.steps == 2
    rows = json.loads((place / "train.json").read_text())
    rows.append({"question": "What happens?", "video": "clip"})
    (place / "ask.json").write_text(json.dumps(rows))
    flags = ["--model-path", str(tmp_path / "out"), "--data", str(place / "ask.json"), "--max-new-tokens", "3"]
    assert batch_predict.main([*flags, "--output", str(tmp_path / "said.jsonl"), "--device", "cpu"]) == 0
    said = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert [row.get("error") for row in said] == [None] * 4
    assert said[0]["response"] == said[1]["response"] == said[3]["response"]


def test_a_film_takes_part_in_the_ids_once(place, encoder):
    (sample, *_) = read(DatasetEntry((str(place / "train.json"),), str(place)))
    assert (encoder(sample).ids == IMAGE_TOKEN_INDEX).sum() == 1
