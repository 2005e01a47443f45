# SPDX-License-Identifier: Apache-2.0
"""Pictures of a folder and rows of a file in, JSON lines out."""

import json
from pathlib import Path

import pytest

from paddlemix.eval import predicting
from paddlemix.eval.__main__ import main as eval_main
from paddlemix.eval.models import Model
from paddlemix.tools.batch_predict import main
from tests.eval.model_kit import EchoAsker, StopError, write_model, write_shapes

ROWS = [
    {"id": 1, "image": "000000.png", "question": "what is it?", "answer": "star"},
    {"id": 2, "images": ["000000.png", "000001.png"], "prompt": "and?", "answers": ["a", "b"]},
    {
        "id": 3,
        "image": "000002.png",
        "conversations": [
            {"from": who, "value": text}
            for who, text in (("human", "<image>\nwhat?"), ("gpt", "red"), ("human", "why?"), ("gpt", "because"))
        ],
    },
    {"id": "四", "messages": [{"role": "user", "content": "hi"}], "note": {"kept": True}},
    {"id": 5, "query": "shape?", "images": ["000001.png"], "response": "square"},
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict")
    write_model(folder)
    write_shapes(folder / "shapes", 4)
    return folder


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def predict(home: Path, data: Path, output: Path, *flags: str) -> int:
    return main(["--model-path", str(home / "model"), "--data", str(data), "--output", str(output), "--device", "cpu",
                 "--max_new_tokens", "4", *flags])  # fmt: skip


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_picture_of_a_folder_gets_a_line(home: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    (pictures / "more").mkdir(parents=True)
    for number, name in enumerate(("b.png", "a.PNG", "more/c.png")):
        (pictures / name).write_bytes((home / "shapes" / "custom" / f"00000{number}.png").read_bytes())
    (pictures / "notes.txt").write_text("no picture")
    assert predict(home, pictures, tmp_path / "out.jsonl", "--prompt", "what?") == 0
    rows = read(tmp_path / "out.jsonl")
    assert [row["image"] for row in rows] == ["a.PNG", "b.png", "more/c.png"]
    assert all(row["response"] and row["prompt"] == "what?" and row["finish"] in ("stop", "length") for row in rows)


def test_rows_keep_their_keys_and_their_answer_becomes_the_label(home: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", ROWS)
    folder = str(home / "shapes" / "custom")
    assert predict(home, data, tmp_path / "out.jsonl", "--image-folder", folder) == 0
    rows = read(tmp_path / "out.jsonl")
    assert [row["id"] for row in rows] == [1, 2, 3, "四", 5]
    assert [row.get("label") for row in rows] == ["star", ["a", "b"], "because", None, "square"]
    assert rows[3]["note"] == {"kept": True}
    assert all(row["response"] for row in rows)
    job, _ = predicting.planned(predicting.Asking(data, tmp_path / "x.jsonl", Model(str(home / "model")), None,
                                                  home / "shapes" / "custom"))  # fmt: skip
    prompt = Model(str(home / "model")).first_prompt(job.items[2])
    assert prompt.endswith("USER: <image>\nwhat? ASSISTANT: red</s>USER: why? ASSISTANT:")


def test_the_options_of_a_row_are_asked_with_their_letters(home: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", [{"question": "Which?", "options": ["red", "blue"]}, {"options": ["no"]}])
    asking = predicting.Asking(data, tmp_path / "out.jsonl", Model(str(home / "model")), prompt="Is it?")
    items = predicting.planned(asking)[0].items
    assert [item.turns[0].text for item in items] == ["Which?\nA. red\nB. blue", "Is it?\nA. no"]


def test_a_killed_and_a_divided_run_write_the_bytes_of_a_straight_one(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write(tmp_path / "rows.jsonl", [{"question": f"{'?' * (n % 5)} {n}", "n": n} for n in range(40)])
    askers = iter([EchoAsker(), EchoAsker(2), EchoAsker(1), EchoAsker(), EchoAsker(), EchoAsker(), EchoAsker()])
    monkeypatch.setattr(Model, "open", lambda model, limit: next(askers))
    assert predict(home, data, tmp_path / "straight.jsonl", "--batch-size", "3") == 0
    for _ in range(2):
        with pytest.raises(StopError):
            predict(home, data, tmp_path / "killed.jsonl", "--batch-size", "3")
    assert not (tmp_path / "killed.jsonl").exists()
    assert predict(home, data, tmp_path / "killed.jsonl", "--batch-size", "3") == 0
    for index in (1, 2, 0):
        flags = ("--num-chunks", "3", "--chunk-idx", str(index), "--batch-size", "3")
        assert predict(home, data, tmp_path / "parts.jsonl", *flags) == 0
    wanted = (tmp_path / "straight.jsonl").read_bytes()
    assert [row["n"] for row in read(tmp_path / "straight.jsonl")] == list(range(40))
    assert (tmp_path / "killed.jsonl").read_bytes() == wanted
    assert (tmp_path / "parts.jsonl").read_bytes() == wanted


def test_a_row_that_cannot_be_asked_is_a_line_with_its_reason(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [ROWS[0], {"image": "nowhere.png", "question": "?"}, {"image": "http://127.0.0.1/x.png", "question": "?"}]
    data = write(tmp_path / "rows.jsonl", rows)
    folder = str(home / "shapes" / "custom")
    assert predict(home, data, tmp_path / "out.jsonl", "--image-folder", folder) == 1
    first, second, third = read(tmp_path / "out.jsonl")
    assert "error" not in first
    assert "no such image file" in str(second["error"])
    assert "addresses are not read" in str(third["error"])
    assert second["response"] == third["response"] == ""
    said = capsys.readouterr()
    assert "3 rows, 2 failed" in said.out
    assert "line 2: " in said.out
    assert "1 missing image" in said.err


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ('{"image": "a.png"}\n', [], "rows.jsonl:1: /question: missing; a row has a question"),
        ("not json\n", [], "rows.jsonl:1"),
        ("[1]\n", [], "expected an object"),
        ("", [], "no rows in it"),
        ('{"question": 5}\n', [], 'rows.jsonl:1: /question: expected a text, got 5; write it in quotes: "5"'),
        ('{"messages": [{"role": "assistant", "content": "x"}]}\n', [], "the last turn is none of the user's"),
        ('{"question": "?"}\n', ["--output", "x.json"], "x.json: expected a .jsonl file"),
        ('{"question": "?"}\n', ["--batch-size", "0"], "--batch-size 0: expected a number from 1"),
        ('{"question": "?"}\n', ["--num-chunks", "2", "--chunk-idx", "2"], "part 2 of 2"),
        ('{"question": "?", "image": ""}\n', [], "/image: an empty name; leave the key out, or write null"),
        ('{"question": "?", "image": "a.png"}\n', [], "none of the 1 images is there"),
    ],
)
def test_what_is_wrong_is_said_before_the_model_is_loaded(
    text: str, flags: list[str], message: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(Model, "open", None)
    (tmp_path / "rows.jsonl").write_text(text)
    assert predict(home, tmp_path / "rows.jsonl", tmp_path / "out.jsonl", *flags) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


def test_one_picture_as_data_is_told_where_to_go(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one.PNG").write_bytes(b"\x89PNG\r\n")
    assert predict(home, tmp_path / "one.PNG", tmp_path / "out.jsonl") == 2
    error = capsys.readouterr().err
    assert "is one picture; give its folder, or talk about it in paddlemix chat" in error


def test_an_output_that_cannot_be_is_told_before_the_model_is_loaded(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Model, "open", lambda *_: pytest.fail("the model was loaded"))
    data = write(tmp_path / "rows.jsonl", [{"question": "what?"}])
    assert predict(home, data, data / "out.jsonl") == 2
    assert "rows.jsonl" in capsys.readouterr().err
    words = ["custom", str(home / "model"), "--data", str(data), "--no-score", "--device", "cpu"]
    assert eval_main([*words, "--output", str(data / "out")]) == 2
    assert "rows.jsonl" in capsys.readouterr().err


def test_another_run_is_not_taken_for_this_one(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "rows.jsonl", [{"question": "what?"}])
    assert predict(home, data, tmp_path / "out.jsonl") == 0
    first = (tmp_path / "out.jsonl").read_bytes()
    write(data, [{"question": "why?"}])
    assert predict(home, data, tmp_path / "out.jsonl") == 2
    assert "answers are of a run with data" in capsys.readouterr().err
    assert predict(home, data, tmp_path / "out.jsonl", "--restart") == 0
    assert (tmp_path / "out.jsonl").read_bytes() != first
