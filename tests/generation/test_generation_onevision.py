# SPDX-License-Identifier: Apache-2.0
"""OneVision in chat and training: a lone picture is cut into tiles, several are one padded tile each."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paddlemix.auto import AutoProcessorMIX
from paddlemix.datasets.preprocess import SampleEncoder
from paddlemix.datasets.sample import Sample
from paddlemix.generation.load import load_chat
from paddlemix.generation.sampling import Decoding
from paddlemix.imaging.preprocess import expand_to_square
from paddlemix.imaging.processor import Frames
from paddlemix.text import templates
from paddlemix.text.messages import Message
from paddlemix.utils.constants import IMAGE_TOKEN_INDEX
from paddlemix.utils.errors import ConfigError, DataError

FOLDER = Path(__file__).parents[1] / "data" / "onevision" / "onevision"


@pytest.fixture(scope="module")
def chat():
    return load_chat(FOLDER, device="cpu", decoding=Decoding(max_new_tokens=6))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(2)
    files = []
    for number, (height, width) in enumerate([(50, 80), (90, 40)]):
        file = folder / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file)
        files.append(str(file))
    return files


def lengths(prompt):
    return [picture.length for picture in prompt.pictures]


def test_a_lone_picture_has_tiles_and_several_have_one_each(chat, pictures):
    predictor = chat.predictor
    alone, both = ([predictor.picture(file) for file in files] for files in (pictures[:1], pictures))
    assert predictor.template.name == "qwen_1_5"
    assert lengths(predictor.prompt(predictor.question("Hi", 1), alone)) == [31]
    assert lengths(predictor.prompt(predictor.question("Hi", 2), both)) == [17, 17]


def test_a_second_picture_in_a_conversation_makes_one_tile_of_the_first(chat, pictures):
    chat.reset()
    chat.answer("What?", pictures[0])
    second = chat.answer("And this?", pictures[1])
    turns = chat.turns
    chat.reset()
    chat.turns = [replace(turns[0])]
    assert second == chat.answer("And this?", pictures[1])  # nothing of the first round's keys is used again


def test_pixels_of_several_are_padded_squares_in_the_colour_of_the_mean(chat, pictures):
    processor = chat.predictor.processor.among(2)
    picture = Image.open(pictures[0])
    pixels = processor(picture).pixels
    square = expand_to_square(picture, (127, 127, 127)).resize((30, 30), Image.Resampling.BICUBIC)
    assert pixels.shape == (1, 3, 30, 30)
    expected = (np.asarray(square, np.float32).transpose(2, 0, 1) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(pixels[0], expected, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2])
def test_a_sample_begins_with_the_ids_and_pixels_of_its_prompt(chat, pictures, count):
    predictor = chat.predictor
    encoder = SampleEncoder(
        predictor.tokenizer, predictor.processor, templates.get("qwen_1_5", training=True), max_length=512
    )
    text = "<image>\n" * count + "What is shown?"
    talk = [Message("user", text), Message("assistant", "A red square.")]
    sample = Sample(tuple(talk), tuple(pictures[:count]), "1", "row 1")
    encoded = encoder(sample)
    prompt = predictor.prompt(talk[:1], [predictor.picture(file) for file in pictures[:count]])
    assert encoded.ids[: len(prompt.ids)].tolist() == list(prompt.ids)
    assert [layout.length for layout in encoded.layouts] == lengths(prompt)
    assert encoded.pixels.shape[0] == (7 if count == 1 else 2)
    sizes = [encoder.size_of(sample, image) for image in sample.images]
    assert encoder.measure(sample, sizes).length == encoded.length == encoder.length(sample)


def test_the_processor_of_python_gives_the_same_rows(pictures):
    processor, _ = AutoProcessorMIX.from_pretrained(FOLDER)
    found = processor(images=pictures, text="What is shown?")
    assert found["pixel_values"].shape[0] == 2
    assert [layout.length for layout in found["layouts"][0]] == [17, 17]
    assert (found["input_ids"] == IMAGE_TOKEN_INDEX).sum() == 2


def test_frames_of_a_video_take_one_place_beside_pictures(chat, pictures):
    chat.reset()
    said = chat.answer("What happens?", [Frames(pictures * 2)])
    assert [picture.length for picture in chat.turns[0].pictures] == [4 * 4 + 1]
    assert said == chat.answer("What happens?", [Frames(pictures * 2)]) or chat.stats.reused_rows > 0
    assert chat.predictor.features.reused > 0
    both = [chat.predictor.picture(source) for source in (pictures[0], Frames(pictures))]
    prompt = chat.predictor.prompt(chat.predictor.question("Hi", 2), both)
    assert lengths(prompt) == [17, 2 * 4 + 1]


def test_a_video_is_asked_about_from_the_terminal(pictures, capfd):
    from paddlemix.examples.llava.run_predict_multiround import main

    given = ["--model-path", str(FOLDER), "--query", "What happens?", "--temperature", "0", "--max-new-tokens", "3"]
    assert main([*given, "--device", "cpu", "--video-frames", *pictures]) == 0
    answer = capfd.readouterr().out
    assert answer.strip()


def test_a_model_without_a_layout_for_videos_says_what_to_do(pictures):
    interleave = load_chat(FOLDER.parent / "interleave", device="cpu")
    with pytest.raises(ConfigError, match="give its frames as several images"):
        interleave.answer("What happens?", [Frames(pictures)])
    with pytest.raises(DataError, match="a video without frames"):
        load_chat(FOLDER, device="cpu").answer("What happens?", [Frames([])])
