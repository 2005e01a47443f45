# SPDX-License-Identifier: Apache-2.0
"""Upload files: the bytes that LLaVA's conversion scripts write, and what stops instead of leaving questions out."""

import json
from pathlib import Path

import pytest

from paddlemix.__main__ import main
from paddlemix.eval.answer_files import answer_line, read_answers, write_answers
from tests.eval import eval_kit as kit


def upload(benchmark: str, answers: list[dict], data: Path | None, output: Path) -> int:
    file = kit.write_lines(output.parent / "answers.jsonl", answers)
    more = ["--data", str(data)] if data else []
    return main(["eval", "upload", benchmark, "--answers", str(file), "--output", str(output), *more])


def test_vqav2_has_every_question_in_its_order_and_empty_ones_for_those_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kit.write_lines(tmp_path / "d" / "llava_vqav2_mscoco_test2015.jsonl", [{"question_id": n} for n in (3, 1, 2)])
    answers = [kit.answer(1, "The Two dogs."), kit.answer(3, "No"), kit.answer(3, "yes")]
    assert upload("vqav2", answers, tmp_path / "d", tmp_path / "u.json") == 1
    assert "1 question without an answer, empty in it; the first: 2" in capsys.readouterr().out
    wanted = [("yes", 3), ("2 dogs", 1), ("", 2)]
    text = ", ".join(f'{{"question_id": {key}, "answer": "{text}"}}' for text, key in wanted)
    assert (tmp_path / "u.json").read_text() == f"[{text}]"


def test_vizwiz_names_images_and_needs_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question_id": n, "image": f"{n}.jpg"} for n in range(2)]
    kit.write_lines(tmp_path / "d" / "llava_test.jsonl", rows)
    answers = [kit.answer(0, "Unanswerable"), kit.answer(1, "a Dog")]
    assert upload("vizwiz", answers, tmp_path / "d", tmp_path / "u.json") == 0
    wanted = b'[{"image": "0.jpg", "answer": "unanswerable"}, {"image": "1.jpg", "answer": "dog"}]'
    assert (tmp_path / "u.json").read_bytes() == wanted
    assert upload("vizwiz", answers[:1], tmp_path / "d", tmp_path / "v.json") == 2
    assert '1 of 2 questions have no answer, the first is "1"' in capsys.readouterr().err
    assert not (tmp_path / "v.json").exists()


def test_textvqa_follows_its_test_file(tmp_path: Path) -> None:
    kit.write_json(tmp_path / "d" / "TextVQA_0.5.1_test.json", {"data": [{"question_id": 9}, {"question_id": 8}]})
    assert upload("textvqa", [kit.answer(8, "A b"), kit.answer(9, "c.")], tmp_path / "d", tmp_path / "u.json") == 0
    wanted = [{"question_id": 9, "answer": "c"}, {"question_id": 8, "answer": "b"}]
    assert json.loads((tmp_path / "u.json").read_text()) == wanted


def test_gqa_has_all_answers_in_the_order_of_the_answer_file(tmp_path: Path) -> None:
    answers = [kit.answer("7", "Yes.."), kit.answer("5", "A red.car")]
    assert upload("gqa", answers, None, tmp_path / "u.json") == 0
    wanted = b'[{"questionId": "7", "prediction": "yes"}, {"questionId": "5", "prediction": "a red.car"}]'
    assert (tmp_path / "u.json").read_bytes() == wanted


def test_seed_keeps_the_ids_of_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, answers = kit.seed(tmp_path / "d")
    assert upload("seed", answers[::-1], data, tmp_path / "u.jsonl") == 0
    lines = (tmp_path / "u.jsonl").read_text().splitlines()
    assert lines[1] == '{"question_id": "1", "prediction": "B."}'
    assert len(lines) == 4
    assert upload("seed", answers, data, tmp_path / "u.json") == 2
    assert "the upload file of seed is a .jsonl file" in capsys.readouterr().err


def test_mm_vet_is_an_object_by_question(tmp_path: Path) -> None:
    assert upload("mm-vet", [kit.answer(0, "x é"), kit.answer("1", "y")], None, tmp_path / "u.json") == 0
    assert (tmp_path / "u.json").read_bytes() == b'{\n  "v1_0": "x \\u00e9",\n  "v1_1": "y"\n}'


def test_mmbench_is_a_table_with_predictions_as_its_seventh_column(tmp_path: Path) -> None:
    """Texts that look like formulas stay texts; cells that say nan are empty; a missing answer is an empty cell."""
    from openpyxl import load_workbook

    data, _ = kit.mmbench(tmp_path / "d")
    assert upload("mmbench", [kit.answer(7, "=A1\x07\ud800")], data, tmp_path / "u.xlsx") == 1
    sheet = load_workbook(tmp_path / "u.xlsx").active
    assert list(sheet.iter_rows(values_only=True)) == [
        ("index", "question", "A", "B", "C", "D", "prediction", "answer", "split"),
        (7, "What is it?", "a dog", "=1+1", None, None, "=A1", "A", "dev"),
        (9, "How many?", "1", "2", "3", "4", None, "B", "dev"),
    ]
    assert sheet["D2"].data_type == "s"


def test_mme_is_a_folder_of_files_as_its_calculation_reads_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four columns, each image's two questions together, whatever the order and the letters of the answers."""
    data, answers = kit.mme(tmp_path / "d")
    answers[0]["text"] = "Yes,\tit\nis"
    assert upload("mme", answers[::-1], data, tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["code_reasoning.txt", "existence.txt"]
    rows = [line.split("\t") for line in (tmp_path / "out" / "existence.txt").read_text().splitlines()]
    assert rows[0] == ["0000.txt", "Is it x? Please answer yes or no.", "Yes", "Yes, it is"]
    assert [row[0] for row in rows] == ["0000.txt", "0000.txt", "0001.txt", "0001.txt"]
    assert [row[2] for row in rows] == ["Yes", "No", "Yes", "No"]
    assert upload("mme", answers[1:], data, tmp_path / "out2") == 2
    assert "1 of 8 questions have no answer" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert upload("mme", answers, data, tmp_path / "file") == 2
    assert "is a file; mme is written as a folder" in capsys.readouterr().err


def test_without_openpyxl_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    data, answers = kit.mmbench(tmp_path / "d")
    assert upload("mmbench", answers, data, tmp_path / "u.xlsx") == 2
    assert "an xlsx file needs the package openpyxl: " in (said := capsys.readouterr().err)
    assert "[eval]" in said


@pytest.mark.parametrize("benchmark", ["vizwiz", "seed", "mm-vet", "gqa", "vqav2"])
def test_failed_answers_are_not_uploaded(benchmark: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = [kit.answer(0, "x"), kit.answer(1, "", metadata={"error": "out of memory"})]
    answers.append(kit.answer(2, "[LMMS_EVAL_REQUEST_FAILED"))
    name = "u.jsonl" if benchmark == "seed" else "u.json"
    kit.seed(tmp_path / "d")
    assert upload(benchmark, answers, tmp_path / "d", tmp_path / name) == 2
    assert "answers.jsonl:2: 2 failed answers (out of memory)" in capsys.readouterr().err


@pytest.mark.parametrize("benchmark", ["vqav2", "mmbench"])
def test_answers_of_another_benchmark_are_not_uploaded_as_an_empty_file(
    benchmark: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kit.mmbench(tmp_path / "d")
    kit.write_lines(tmp_path / "d" / "llava_vqav2_mscoco_test2015.jsonl", [{"question_id": 1}])
    output = tmp_path / ("u.json" if benchmark == "vqav2" else "u.xlsx")
    assert upload(benchmark, [kit.answer("other", "yes")], tmp_path / "d", output) == 2
    assert "no answer belongs to a question of it" in capsys.readouterr().err
    assert not output.exists()


def test_a_benchmark_without_upload_file_and_a_missing_folder_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert upload("pope", [kit.answer(0, "x")], None, tmp_path / "u.json") == 2
    assert "pope has no upload file (those that have one: vqav2," in capsys.readouterr().err
    assert upload("vqav2", [kit.answer(0, "x")], None, tmp_path / "u.json") == 2
    assert "give the folder with --data" in capsys.readouterr().err


def test_answer_files_come_back_as_they_were_written(tmp_path: Path) -> None:
    lines = [
        answer_line(1, "What?\n", "a\u2028b é", "m"),
        answer_line("x/1.png", "", "", "m", {"error": "no image"}, round_id=0),
    ]
    write_answers(tmp_path / "new" / "a.jsonl", lines)
    found = read_answers([tmp_path / "new" / "a.jsonl"])
    assert [(one.question_id, one.text, one.prompt, one.failure) for one in found] == [
        (1, "a\u2028b é", "What?\n", ""),
        ("x/1.png", "", "", "no image"),
    ]
    record = json.loads(lines[1])
    assert list(record) == ["question_id", "prompt", "text", "round_id", "answer_id", "model_id", "metadata"]
    assert answer_line(1, "What?\n", "a\u2028b é", "m") == lines[0], "the same answer has the same bytes"
    assert json.loads(lines[0])["answer_id"] != record["answer_id"]
