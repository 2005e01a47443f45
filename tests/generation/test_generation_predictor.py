# SPDX-License-Identifier: Apache-2.0
"""The predictor: a batch answers as a stream does, answers end alike for everybody, images are encoded once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from paddlemix.checkpoint.folders import ending_ids
from paddlemix.checkpoint.save import save_model
from paddlemix.datasets.preprocess import SampleEncoder
from paddlemix.datasets.records import Place
from paddlemix.datasets.rows import read_messages, read_row
from paddlemix.datasets.sample import Sample
from paddlemix.generation.features import FeatureCache, size_of
from paddlemix.generation.predictor import Predictor
from paddlemix.generation.prefix import PrefixCache
from paddlemix.generation.sampling import Decoding
from paddlemix.imaging.processor import ImageProcessor
from paddlemix.text import templates
from paddlemix.text.messages import Message
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.utils.errors import CheckpointError, DataError
from tests.tiny import tiny_image, tiny_model, tiny_tokenizer_folder

TOKENS = Decoding(max_new_tokens=8)


@pytest.fixture(scope="module")
def made() -> Callable[..., Predictor]:
    model = tiny_model(seed=2)
    tokenizer = load_tokenizer(tiny_tokenizer_folder())
    processor = ImageProcessor(model.config.image, model.config.vision)

    def make(template: str = "vicuna_v1", **changes: Any) -> Predictor:
        return Predictor(model, tokenizer, processor, templates.get(template), **changes)

    return make


def asked(predictor: Predictor, text: str, *kinds: int) -> Any:
    pictures = [predictor.picture(tiny_image(kind)) for kind in kinds]
    return predictor.prompt(predictor.question(text, len(kinds)), pictures)


QUESTIONS: list[tuple[str, tuple[int, ...]]] = [
    ("why?", ()),
    ("what is shown in this picture?", (0,)),
    ("are these the same, or is one of them larger?", (1, 2)),
]


@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_a_batch_answers_as_each_stream_alone(made, batch_size) -> None:
    predictor = made()
    prompts = [asked(predictor, text, *kinds) for text, kinds in QUESTIONS]
    alone = [predictor.stream(prompt, TOKENS).read() for prompt in prompts]
    assert predictor.answer(prompts, TOKENS, batch_size=batch_size) == alone
    assert len({answer.ids for answer in alone}) == 3


def row_in_every_form(folder: Path) -> dict[str, Any]:
    """One conversation of two rounds about two images, as each of the known forms writes it."""
    one, two = (str(folder / f"{name}.png") for name in "ab")
    texts = ["<image>\nwhat is this?", "a cat", "<image>\nand here?", "a dog"]
    speakers = [("human", "user"), ("gpt", "assistant")]

    def part(kind: str, value: Any, text: str) -> list[dict[str, Any]]:
        return [{"type": kind, kind: value}, {"type": "text", "text": text}]

    def chat(first: Any, second: Any) -> dict[str, Any]:
        contents = [first, texts[1], second, texts[3]]
        return {"messages": [{"role": speakers[i % 2][1], "content": content} for i, content in enumerate(contents)]}

    def turns(which: int) -> dict[str, Any]:
        return {"conversations": [{"from": speakers[i % 2][which], "value": text} for i, text in enumerate(texts)]}

    beside = {"images": [one, two]}
    bare = [[{"type": "image"}, {"type": "text", "text": text}] for text in ("what is this?", "and here?")]
    return {
        "llava": {**turns(0), **beside},
        "sharegpt": {**turns(1), **beside},
        "pairs": {"conversations": [texts[:2], texts[2:]], **beside},
        "openai texts": {**chat(texts[0], texts[2]), **beside},
        "openai image_url": chat(
            part("image_url", {"url": one}, "what is this?"), part("image_url", {"url": f"file://{two}"}, "and here?")
        ),
        "openai image": chat(part("image", one, "what is this?"), part("image", two, "and here?")),
        "openai bare parts": {**chat(*bare), **beside},
    }


@pytest.mark.parametrize("template", ["vicuna_v1", "v1_mmtag", "mistral_instruct"])
def test_a_row_of_any_form_is_asked_with_the_ids_that_it_trains_with(made, tmp_path, template) -> None:
    for kind, name in enumerate("ab"):
        tiny_image(kind).save(tmp_path / f"{name}.png")
    predictor = made(template=template)
    layout = templates.get(template, training=True)
    encoder = SampleEncoder(predictor.tokenizer, predictor.processor, layout, max_length=512)
    prompts = set()
    for form, row in row_in_every_form(tmp_path).items():
        talk = read_row(row, Place("f.json", "/0"))
        turns = row.get("messages") or row["conversations"]
        if isinstance(turns[0], dict):
            assert read_messages(turns, row.get("images", ())) == talk, form
        trained = encoder.render(Sample(talk.messages, talk.images, "", "f.json: /0")).ids
        for number, images in ((0, 1), (1, 2)):
            prompt = predictor.prompt(talk.before_answer(number))
            assert list(prompt.ids) == list(trained[: len(prompt.ids)]), form
            keys = [predictor.picture(tmp_path / f"{name}.png").key for name in "ab"[:images]]
            assert [picture.key for picture in prompt.pictures] == keys
        prompts.add(prompt.ids)
    assert len(prompts) == 1


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ([], r"asked: empty; expected a list of messages that is not empty"),
        (["why?"], r'asked: /0: expected \{"role": ..., "content": ...\}'),
        ([{"role": "tool", "content": "x"}], r"asked: /0/role: 'tool'; expected one of system, user, assistant"),
        ([{"role": "user", "content": [{"type": "audio"}]}], r'asked: /0/content/0: expected a part of type "text"'),
        ([{"role": "user", "content": [{"type": "image"}]}], r"asked: /0/content/0: the image is missing"),
        ([{"from": "human", "value": "x"}, {"from": "robot", "value": "x"}], r"asked: /1/from: 'robot'; expected one"),
    ],
)
def test_what_is_wrong_with_a_conversation_that_is_asked_is_named(turns, words) -> None:
    with pytest.raises(DataError, match=words):
        read_messages(turns, where="asked")


def test_random_answers_do_not_depend_on_who_shares_the_batch(made) -> None:
    predictor = made()
    prompts = [asked(predictor, text, *kinds) for text, kinds in QUESTIONS]
    decoding = Decoding(max_new_tokens=8, temperature=1.0, seed=3)
    draws = [(0, 4), (0, 5), (0, 6)]
    together = predictor.answer(prompts, decoding, draws=draws)
    assert together[2:] == predictor.answer(prompts[2:], decoding, draws=draws[2:])
    assert together != predictor.answer(prompts, decoding, draws=[(0, 7), (0, 8), (0, 9)])


def test_an_ending_id_of_the_folder_ends_streams_and_batches_alike(made) -> None:
    predictor = made()
    free = predictor.stream(asked(predictor, "why?"), TOKENS).read()
    assert free.finish == "length"
    ending = made(ends=(free.ids[3],))
    for answer in (
        ending.stream(asked(ending, "why?"), TOKENS).read(),
        *ending.answer([asked(ending, "why?")], TOKENS),
    ):
        assert answer.ids == free.ids[:4]
        assert answer.finish == "stop"


def test_a_stop_string_of_the_template_ends_streams_and_batches_alike(made) -> None:
    class Stopping:
        """The template, with a stop string that the free answer holds."""

        def __init__(self, inner: Any, stop: str) -> None:
            self.inner, self.stops = inner, (stop,)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

    predictor = made()
    free = predictor.stream(asked(predictor, "why?"), TOKENS).read()
    stop = free.text[2:4]
    predictor.template = Stopping(predictor.template, stop)
    stream = predictor.stream(asked(predictor, "why?"), TOKENS).read()
    (batch,) = predictor.answer([asked(predictor, "why?")], TOKENS)
    assert stream == batch
    assert stream.finish == "stop"
    assert stream.text == free.text[: free.text.index(stop)].strip()


def test_cancelling_ends_the_answer_after_the_token_and_keeps_the_cache_usable(made) -> None:
    predictor, cache = made(), PrefixCache()
    prompt = asked(predictor, "why?")
    stream = predictor.stream(prompt, TOKENS, cache=cache, cancel=lambda: len(stream.ids) == 3)
    assert stream.read().finish == "cancelled"
    assert len(stream.ids) == 3
    again = predictor.stream(prompt, TOKENS, cache=cache)
    assert again.read() == predictor.stream(prompt, TOKENS).read()
    assert again.reused == prompt.length - 1


def test_marks_without_their_pictures_are_an_error(made) -> None:
    predictor = made()
    with pytest.raises(DataError, match='holds 2 "<image>" and comes with 1 images'):
        predictor.prompt([Message("user", "<image> or <image>?")], [predictor.picture(tiny_image(0))])


def test_a_picture_is_encoded_once_for_everybody_who_asks(made) -> None:
    predictor = made()
    for _ in range(3):
        asked(predictor, "what?", 0, 1, 0)
    assert (predictor.features.encoded, predictor.features.reused) == (2, 7)


def test_the_size_of_a_picture_is_part_of_its_key(made) -> None:
    predictor = made()
    wide, high = (Image.new("RGB", size, "red") for size in ((30, 20), (20, 30)))
    assert wide.tobytes() == high.tobytes()
    assert predictor.picture(wide).key != predictor.picture(high).key


def test_the_features_kept_never_exceed_the_limit_in_bytes(made) -> None:
    probe = made()
    one = size_of(probe.picture(tiny_image(0)))
    predictor = made(features=FeatureCache(max_bytes=2 * one + 1))
    held = [predictor.picture(tiny_image(kind)) for kind in range(4)]
    assert predictor.features.bytes == 2 * one == sum(map(size_of, held[2:]))
    predictor.picture(tiny_image(2))  # used last now
    predictor.picture(tiny_image(5))
    assert predictor.features.encoded == 5
    predictor.picture(tiny_image(2))
    assert predictor.features.encoded == 5
    tight = made(features=FeatureCache(max_bytes=one - 1))
    tight.picture(tiny_image(0))
    assert (len(tight.features), tight.features.bytes) == (0, 0)


def test_scores_are_those_of_the_first_token(made) -> None:
    predictor = made()
    prompts = [asked(predictor, text, *kinds) for text, kinds in QUESTIONS]
    first = [answer.ids[0] for answer in predictor.answer(prompts, Decoding(max_new_tokens=1))]
    scores = predictor.scores(prompts)
    known = predictor.tokenizer.vocab_size
    assert scores[:, :known].argmax(axis=1).tolist() == first
    alone = np.concatenate([predictor.scores([prompt]) for prompt in prompts])
    np.testing.assert_allclose(scores, alone, atol=1e-4)


@pytest.mark.parametrize(("written", "expected"), [(7, (7,)), ([7, 9], (7, 9)), (None, ()), ("absent", ())])
def test_ending_ids_come_from_the_generation_config(tmp_path: Path, written: Any, expected: tuple[int, ...]) -> None:
    data = {} if written == "absent" else {"eos_token_id": written}
    (tmp_path / "generation_config.json").write_text(json.dumps(data), encoding="utf-8")
    assert ending_ids(tmp_path / "none", tmp_path) == expected


def test_the_ending_ids_of_an_adapter_go_before_those_of_its_base(tmp_path: Path) -> None:
    for number, name in enumerate(("adapter", "base")):
        (tmp_path / name).mkdir()
        text = json.dumps({"eos_token_id": 7 + number})
        (tmp_path / name / "generation_config.json").write_text(text, encoding="utf-8")
    assert ending_ids(tmp_path / "adapter", tmp_path / "base") == (7,)


@pytest.mark.parametrize("written", [True, -1, "2", [2, None], 1.5])
def test_an_ending_id_that_is_none_is_an_error(tmp_path: Path, written: Any) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": written}), encoding="utf-8")
    with pytest.raises(CheckpointError, match='"eos_token_id" is .*; expected a token id'):
        ending_ids(tmp_path)


def test_a_folder_is_opened_with_its_endings(tmp_path: Path) -> None:
    model = tiny_model(seed=2)
    folder = save_model(tmp_path / "model", model, model.config, load_tokenizer(tiny_tokenizer_folder()))
    data = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    (folder / "generation_config.json").write_text(json.dumps({**data, "eos_token_id": [2, 77]}), encoding="utf-8")
    predictor = Predictor.load(folder, device="cpu")
    assert predictor.ends == (2, 77)
    assert predictor.decoding().eos_ids == (2, 77)
