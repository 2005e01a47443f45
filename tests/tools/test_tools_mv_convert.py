# SPDX-License-Identifier: Apache-2.0
"""Annotations become the rows of MV-LLaVA's demo files, in whatever layout they come, and train as such."""

import json

import pytest

from paddlemix.annotate.caption_rows import DESCRIBE
from paddlemix.datasets.multiview import CAP3D_VIEWS
from paddlemix.datasets.sources import DatasetEntry, read
from tests.tiny import tiny_image
from tools.mv_llava_convert_captions import main

RECORD = {"desciption": "A red chair.", "caption": "chair", "score": 3, "level": "multi_object", "style": "CAD"}
ROUNDS = [
    (
        "What do you think about the overall quality of this 3D model? Choosing from 'poor', 'relatively poor', "
        "'boardline', 'relatively good', 'good', 'perfect'.",
        "boardline",
    ),
    (
        "What do you think about the scale of the 3D model represents? Choosing from 'single_object', 'multi-object', "
        "'small_scene', 'large_scene'.",
        "multi-object",
    ),
    ("What do you think about the overall style of the 3D model? Choosing from 'CAD', 'Cartoon', 'Photo_realistic'.",
     "CAD"),
]  # fmt: skip
WORDS = {"Description": "A red chair.", "overall quality": "Borderline", "Scale": "multi object", "style": "cad."}
LAYOUTS = {
    "a list": [{"id": "chair", **RECORD}],
    "by name": {"chair": RECORD},
    "by path": {"views/chair.jpg": WORDS},
    "text of an answer": {"chair": f"Here it is:\n```json\n{json.dumps(WORDS)}\n```"},
    "answers of the interface": {"chair": {"choices": [{"message": {"content": json.dumps(WORDS)}}]}},
    "numbers as text": [{"uid": "cap3d_chair", **RECORD, "score": "3"}],
}


def convert(folder, found, *flags):
    (folder / "in.json").write_text(json.dumps(found), encoding="utf-8")
    code = main([str(folder / "in.json"), "--output", str(folder / "out" / "rows.json"), *flags])
    return code, json.loads((folder / "out" / "rows.json").read_text(encoding="utf-8")) if code == 0 else None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_row_has_the_form_of_the_demo_file(tmp_path, layout):
    code, (row,) = convert(tmp_path, LAYOUTS[layout])
    assert (code, row["id"], row["image"]) == (0, "cap3d_chair", "chair")
    asked, said = row["conversations"][::2], row["conversations"][1::2]
    assert [turn["from"] for turn in row["conversations"]] == ["human", "gpt"] * 4
    assert asked[0]["value"] in [f"<image><image><image><image>\n{text}" for text in DESCRIBE]
    assert said[0]["value"] == "A red chair."
    rounds = [(ask["value"], answer["value"]) for ask, answer in zip(asked[1:], said[1:], strict=True)]
    assert rounds == ROUNDS


def test_a_description_with_a_mark_of_an_image_is_left_out_and_counted(tmp_path, capsys):
    """Training would count five images where the object has four."""
    code, rows = convert(tmp_path, {"chair": "A red chair.", "odd": "A chair <image> from above."})
    assert (code, [row["image"] for row in rows]) == (0, ["chair"])
    assert "1 objects have <image> in their description, for example odd" in capsys.readouterr().out


def test_both_questions_are_drawn_and_the_first_stage_has_one_round(tmp_path):
    code, rows = convert(tmp_path, {f"o{number}": "A thing." for number in range(40)}, "--stage", "pretrain")
    assert code == 0
    assert {len(row["conversations"]) for row in rows} == {2}
    assert len({row["conversations"][0]["value"] for row in rows}) == 2


def test_the_rows_train(tmp_path):
    for view in CAP3D_VIEWS:
        (tmp_path / f"Cap3D_imgs_view{view}").mkdir()
        tiny_image(view).save(tmp_path / f"Cap3D_imgs_view{view}" / "chair.png")
    found = {"chair": RECORD, "table": RECORD}
    _, (row,) = convert(tmp_path, found, "--image-root", str(tmp_path))
    (sample,) = read(DatasetEntry((str(tmp_path / "out" / "rows.json"),), str(tmp_path), multiview=4))
    assert [path.rpartition("/")[2] for path in sample.images] == ["chair.png"] * 4
    assert row["image"] == "chair"


def test_what_is_left_out_is_counted_and_named(tmp_path, capsys):
    found = {"a": RECORD, "b": RECORD | {"desciption": " ", "caption": ""}, "c": RECORD | {"score": 9, "style": None}}
    code, rows = convert(tmp_path, found)
    assert [len(row["conversations"]) for row in rows] == [8, 4]
    said = capsys.readouterr().out
    assert "2 rows from 3 objects" in said
    assert "1 objects have no description, for example b" in said
    assert "1 objects are not asked for score, which is none of the answers or missing, for example c (9)" in said
    assert "asked for style" in said
    assert code == 0


@pytest.mark.parametrize(
    ("found", "flags", "words"),
    [
        ([{"id": "a", "words": "x"}], (), r"no row comes out (1 objects have no description); the keys of its first"),
        ([{"words": "x"}], (), 'record 0: no "id" (keys: words); say which key with --key id=NAME'),
        ("text", (), "expected a list of annotations"),
        ([{"id": "a", "words": "x"}], ("--key", "words=description"), "--key words: expected WHAT=NAME"),
    ],
)
def test_a_file_that_gives_no_rows_is_an_error_with_a_remedy(tmp_path, capsys, found, flags, words):
    assert convert(tmp_path, found, *flags)[0] == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_remedy_works_and_nothing_is_overwritten_unasked(tmp_path, capsys):
    found = [{"n": "a", "words": "x"}]
    keys = ("--key", "id=n", "--key", "description=words")
    assert convert(tmp_path, found, *keys)[0] == 0
    assert convert(tmp_path, found, *keys)[0] == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert convert(tmp_path, found, *keys, "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("in.json", b"[" * 100_000, "in.json"),
        ("in.json", b"[" + b"9" * 5000 + b"]", "digits"),
        ("in.json", b"[1, \xff]", "byte 4: not UTF-8"),
        ("in.jsonl", b'{"id": "a"}\n{broken', "in.jsonl:2"),
        ("in.json", b"version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer"),
    ],
)
def test_a_broken_annotation_file_is_named_and_nothing_is_written(tmp_path, capsys, name, data, words):
    (tmp_path / name).write_bytes(data)
    assert main([str(tmp_path / name), "--output", str(tmp_path / "out.json")]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out.json").exists()


def test_lines_end_at_line_feeds_alone_and_an_odd_answer_is_no_description(tmp_path):
    record = {"id": "chair", "description": "a\u2028b"}
    (tmp_path / "in.jsonl").write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
    assert main([str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.json"), "--stage", "pretrain"]) == 0
    (row,) = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert row["conversations"][1]["value"] == "a\u2028b"
    answers = {"chair": "A chair.", "table": {"choices": [{"message": "text"}]}, "bed": {"choices": ["text"]}}
    code, rows = convert(tmp_path, answers, "--stage", "pretrain")
    assert (code, [row["image"] for row in rows]) == (0, ["chair"])
