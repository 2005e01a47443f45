# SPDX-License-Identifier: Apache-2.0
"""Every accepted form gives the same sample; every fault names file, record and place."""

import json
from pathlib import Path

import pytest

from paddlemix.datasets.sample import BadSamples
from paddlemix.datasets.sources import DatasetEntry, read
from paddlemix.text.messages import Message
from paddlemix.utils.errors import DataError

USER, ANSWER = "<image>\nwhat is this?", "a red square."
LLAVA = {"image": "a.png", "conversations": [{"from": "human", "value": USER}, {"from": "gpt", "value": ANSWER}]}
CHATML = {"image": "a.png", "conversations": [[USER, ANSWER]]}
PART = {"type": "image_url", "image_url": {"url": "a.png"}}
OPENAI = {
    "messages": [
        {"role": "user", "content": [PART, {"type": "text", "text": "what is this?"}]},
        {"role": "assistant", "content": ANSWER},
    ]
}


@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
def test_all_forms_give_the_same_sample(rows, pictures: Path, name: str):
    for sample in rows(LLAVA, CHATML, OPENAI, name=name):
        assert sample.messages == (Message("user", USER), Message("assistant", ANSWER))
        assert sample.images == (str(pictures / "a.png"),)


def test_places_of_several_pictures_follow_the_parts(rows):
    text = {"type": "text", "text": "and"}
    content = [PART, text, {"type": "image", "image": "b.png"}]
    (sample,) = rows({"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "x"}]})
    assert sample.messages[0].text == "<image>\nand\n<image>"
    assert [Path(image).name for image in sample.images] == ["a.png", "b.png"]


def test_a_list_of_images_and_a_missing_image_are_read(rows):
    several, none = rows({**LLAVA, "image": ["a.png", "b.png"]}, {"conversations": [["why?", ANSWER]]})
    assert len(several.images) == 2
    assert none.images == ()


def test_ids_of_any_kind_are_accepted_and_named(rows):
    samples = rows({**LLAVA, "id": 7}, {**LLAVA, "id": "7"}, {**LLAVA, "id": "x" * 500}, LLAVA)
    assert [sample.id[:2] for sample in samples] == ["7", "7", "xx", ""]
    assert samples[0].where.endswith('train.json: /0 (id "7")')
    assert len(samples[2].where) < 300


def turns(*found: object) -> dict[str, object]:
    return {"conversations": list(found)}


HUMAN = {"from": "human", "value": "hi"}


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (7, "/0: a number; expected an object with conversations or messages"),
        ({}, 'neither "conversations" nor "messages" is there'),
        ({"conversation": []}, '"conversation" is not read, did you mean "conversations"'),
        ({"message": []}, '"message" is not read, did you mean "messages"'),
        ({"conversations": []}, "/0/conversations: empty; expected a list of turns"),
        ({"conversations": None}, "/0/conversations: null"),
        (turns(HUMAN, {"from": "gpt"}), '/0/conversations/1: "value" is missing'),
        (turns({"value": "x"}), '/0/conversations/0: "from" is missing'),
        (turns({"from": "robot", "value": "x"}), "/0/conversations/0/from: 'robot'; expected one of human, gpt"),
        (turns({"from": ["a"], "value": "x"}), "/0/conversations/0/from: "),
        (turns(HUMAN, {"from": "gpt", "value": None}), "/0/conversations/1/value: null; expected a text"),
        (turns(HUMAN, {"from": "gpt", "value": 3}), "/0/conversations/1/value: a number; expected a text"),
        (turns(HUMAN, {"from": "gpt", "value": "a\0b"}), "/0/conversations/1/value: NUL character at 1"),
        (turns(HUMAN, {"from": "gpt", "value": "a\ud800"}), "/0/conversations/1/value: lone surrogate at character 1"),
        (turns(HUMAN, "x"), "/0/conversations/1: a text; expected"),
        (turns(["a"]), r"/0/conversations/0: expected a pair \[user text, assistant text\]"),
        (turns(["a", None]), "/0/conversations/0/1: null; expected a text"),
        ({"messages": []}, "/0/messages: empty"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "/0/messages/0/role: 'tool'; expected one of system"),
        ({"messages": [{"role": "user"}]}, '/0/messages/0: expected {"role"'),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "/0/messages/0/content/0: expected a part"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "/0/messages/0/content/0: the image is"),
        ({**LLAVA, "image": 3}, "/0/image: a number; expected the path of an image"),
        ({**LLAVA, "image": ["a.png", ""]}, "/0/image/1: empty; expected the path of an image"),
        ({**LLAVA, "image": "a\0.png"}, "/0/image: NUL character"),
        ({**LLAVA, "images": ["a.png"]}, 'both "image" and "images"'),
        ({**OPENAI, "image": "a.png"}, "images stand both in the messages and beside them"),
        (
            {**LLAVA, "image": None, "video": "a.mp4"},
            r"/0/video: a\.mp4: video files are not read; .* ffmpeg -i \S*a\.mp4 -vf fps=1",
        ),
        ({**LLAVA, "video": ["a.png"], "image": "a.png"}, "images and a video in one row"),
        ({**LLAVA, "video": ["a.png", 3]}, "/0/video/1: a number; expected a folder of frames, or a list of images"),
        ({**LLAVA, "videos": [["a.png"], ["b.png"]]}, "/0/videos: 2 videos; a row has one"),
        ({**LLAVA, "video": "a", "videos": "a"}, 'both "video" and "videos"'),
    ],
)
def test_a_wrong_row_is_named_by_its_json_pointer(rows, row, text):
    with pytest.raises(DataError, match=r"train\.json: .*" + text if text[0] != "/" else r"train\.json: " + text):
        rows(row)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", r":1:1: not JSON \(Expecting value\)"),
        (b'[{"conversations": [', r":1:\d+: not JSON"),
        (b'[\n{"a": 1},\n]', r":3:1: not JSON"),
        (b'{"a": 1}\n{"a": 2}', "is this JSON lines"),
        (b'{"a": 1}', "an object at the top; expected a list"),
        (b"[]", "no rows; expected a list of conversations"),
        (b"[1, \xff]", "byte 4: not UTF-8"),
        (b"\xff\xfe[\x00", "byte 0: this is UTF-16"),
        (b"[" * 200_000, "nested too deeply"),
    ],
)
def test_a_broken_file_is_named_with_its_place(tmp_path: Path, data: bytes, text: str):
    path = tmp_path / "train.json"
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"train.json.*{text}"):
        read(DatasetEntry((str(path),)))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("no.json", "no.json: no such data file"),
        (".", "is a folder"),
        ("https://example.org/a.json", "download the file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(path, text):
    with pytest.raises(DataError, match=text):
        read(DatasetEntry((path,)))


def test_a_byte_order_mark_is_accepted(tmp_path: Path):
    path = tmp_path / "train.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps([LLAVA]).encode())
    assert len(read(DatasetEntry((str(path),)))) == 1


def test_json_lines_name_the_line_and_keep_line_separators_in_texts(tmp_path: Path):
    path = tmp_path / "train.jsonl"
    odd = {"conversations": [["a\u2028b", "c"]]}
    path.write_text(json.dumps(odd, ensure_ascii=False) + "\n\n{broken\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"train\.jsonl:3:2: not JSON"):
        read(DatasetEntry((str(path),)))
    bad = BadSamples("skip")
    (sample,) = read(DatasetEntry((str(path),)), bad)
    assert sample.messages[0].text == "a\u2028b"
    assert bad.skipped == 1


def test_several_files_are_read_in_order(tmp_path: Path):
    for name in ("x", "y"):
        (tmp_path / f"{name}.json").write_text(json.dumps([{"id": name, **CHATML}]))
    samples = read(DatasetEntry((str(tmp_path / "y.json"), str(tmp_path / "x.json"))))
    assert [sample.id for sample in samples] == ["y", "x"]
