# SPDX-License-Identifier: Apache-2.0
"""What is asked: rows of each benchmark's file, as published, against the texts that the original scripts send."""

import base64
from pathlib import Path
from typing import Any

import pytest

from paddlemix.eval.asked import (
    CLOSINGS,
    INTERNVL,
    QUESTIONS,
    Asked,
    max_new_tokens,
    part_of,
    question_text,
    questions_of,
)
from paddlemix.eval.benchmarks import BENCHMARKS
from paddlemix.utils.errors import ConfigError, DataError
from tests.eval import eval_kit as kit

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "vqav2": ("llava_vqav2_mscoco_test-dev2015.jsonl", {"text": f"What is it?\n{SHORT}", "image": "COCO_1.jpg"}),
    "gqa": ("llava_gqa_testdev_balanced.jsonl", {"text": f"Is it red?\n{SHORT}", "image": "n161313.jpg"}),
    "vizwiz": (
        "llava_test.jsonl",
        {
            "text": "What is this?\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n"
            f"{SHORT}",
            "image": "VizWiz_test_00000000.jpg",
        },
    ),
    "textvqa": (
        "llava_textvqa_val_v051_ocr.jsonl",
        {"text": f"what brand is it?\nReference OCR token: DAKOTA, DIGITAL\n{SHORT}", "image": "003a8ae2ef43b901.jpg"},
    ),
    "pope": ("llava_pope_test.jsonl", {"text": f"Is there a dog in the image?\n{SHORT}", "image": "COCO_2.jpg"}),
    "mme": ("llava_mme.jsonl", {"text": f"Is a c++ code shown?\n{SHORT}", "image": "code_reasoning/0020.png"}),
    "seed": ("llava-seed-bench.jsonl", {"text": f"How many?\nA. 1\nB. 2\n{LETTER}", "image": "SEED-Bench-image/1"}),
    "llava-bench": ("questions.jsonl", {"text": "Describe this photo.", "image": "001.jpg"}),
    "mm-vet": ("llava-mm-vet.jsonl", {"text": "What is x?", "image": "v1_0.png"}),
}


@pytest.mark.parametrize("benchmark", ROWS)
def test_rows_of_llavas_files_are_asked_as_they_are(benchmark: str, tmp_path: Path) -> None:
    name, row = ROWS[benchmark]
    kit.write_lines(tmp_path / name, [{"question_id": 5, "category": "default", **row}])
    assert questions_of(benchmark, tmp_path) == [Asked(5, row["text"], row["text"], row["image"])]
    assert max_new_tokens(benchmark) == (1024 if benchmark in ("llava-bench", "mm-vet") else 128)


def test_scienceqa_asks_the_first_turn_for_a_letter(tmp_path: Path) -> None:
    text = "Context: N/A\nWhich?\nA. a\nB. b"
    turns = [{"from": "human", "value": f"<image>\n{text}"}, {"from": "gpt", "value": "A"}]
    rows = [
        {"id": "4", "image": "4/image.png", "conversations": turns},
        {"id": "5", "conversations": [{"from": "human", "value": text}]},
    ]
    kit.write_json(tmp_path / "llava_test_CQM-A.json", rows)
    assert questions_of("scienceqa", tmp_path) == [
        Asked("4", f"{text}\n{LETTER}", f"<image>\n{text}\n{LETTER}", "4/image.png"),
        Asked("5", f"{text}\n{LETTER}", f"{text}\n{LETTER}", None),
    ]


def test_mmbench_asks_with_hint_and_options_and_turns_them_in_all_rounds(tmp_path: Path) -> None:
    kit.mmbench(tmp_path)
    first, second = questions_of("mmbench", tmp_path)
    assert first == Asked(
        7,
        f"What is it?\nA. a dog\nB. =1+1\n{LETTER}",
        "What is it?\nA. a dog\nB. =1+1",
        b"ABC",
        {"round_id": 0, "options": ["a dog", "=1+1"], "option_char": ["A", "B"]},
    )
    assert second.prompt == "Look\nHow many?\nA. 1\nB. 2\nC. 3\nD. 4"
    rounds = questions_of("mmbench", tmp_path, all_rounds=True)
    assert [one.question_id for one in rounds] == [7, 7, 9, 9, 9, 9]
    assert rounds[1].prompt == "What is it?\nA. =1+1\nB. a dog"
    assert rounds[4].more == {"round_id": 2, "options": ["3", "4", "1", "2"], "option_char": ["C", "D", "A", "B"]}


def test_mmbench_in_chinese_asks_in_chinese(tmp_path: Path) -> None:
    kit.mmbench(tmp_path)
    (tmp_path / "mmbench_dev_20230712.tsv").rename(tmp_path / "mmbench_dev_cn_20231003.tsv")
    assert questions_of("mmbench-cn", tmp_path)[0].text == "What is it?\nA. a dog\nB. =1+1\n请直接回答选项字母。"
    with pytest.raises(DataError, match=r"no mmbench_dev\*.tsv or \*.tsv in it"):
        questions_of("mmbench", tmp_path)


@pytest.mark.parametrize("missing", ["", "nan", "NA", "None", "none", "N/A", "null"])
def test_options_end_where_pandas_sees_a_missing_cell(missing: str, tmp_path: Path) -> None:
    header = ["index", "question", "hint", "A", "B", "C", "D", "image"]
    row = ["x1", "?", missing, "yes", "no", missing, "late", base64.b64encode(b"i").decode()]
    (tmp_path / "mmbench_dev.tsv").write_text("\t".join(header) + "\n" + "\t".join(row) + "\n")
    assert questions_of("mmbench", tmp_path)[0].prompt == "?\nA. yes\nB. no"


def test_internvls_prompts_take_the_place_of_llavas_lines(tmp_path: Path) -> None:
    wanted = {
        "vqav2": f"What is it? {SHORT}",
        "gqa": f"Is it red? {SHORT}",
        "textvqa": f"what brand is it?\nReference OCR token: DAKOTA, DIGITAL {SHORT}",
        "vizwiz": "What is this? When the provided information is insufficient, respond with 'Unanswerable'. " + SHORT,
    }
    assert set(wanted) == set(INTERNVL) - {"refcoco"}
    for benchmark, text in wanted.items():
        name, row = ROWS[benchmark]
        kit.write_lines(tmp_path / benchmark / name, [{"question_id": 1, **row}])
        asked = questions_of(benchmark, tmp_path / benchmark, form="internvl")[0]
        assert asked.text == text
        assert asked.prompt == row["text"], "the record holds LLaVA's prompt, which scorers find the question by"
        assert max_new_tokens(benchmark, "internvl") == 10
    with pytest.raises(ConfigError, match="the form internvl is for vqav2, .* not for mme"):
        questions_of("mme", tmp_path, form="internvl")
    with pytest.raises(ConfigError, match='did you mean "internvl"'):
        questions_of("gqa", tmp_path, form="internvl2")


def test_a_question_is_composed_as_the_files_write_it() -> None:
    assert question_text("vqav2", "What is it?") == ROWS["vqav2"][1]["text"]
    assert question_text("vizwiz", "What is this?") == ROWS["vizwiz"][1]["text"]
    assert question_text("textvqa", "what brand is it?", ocr=["DAKOTA", "DIGITAL"]) == ROWS["textvqa"][1]["text"]
    assert question_text("seed", "How many?", options=["1", "2"]) == ROWS["seed"][1]["text"]
    assert question_text("mmbench-cn", "？", options=["是"], hint="看") == "看\n？\nA. 是\n请直接回答选项字母。"


def test_every_benchmark_of_the_list_that_llava_asks_has_its_questions() -> None:
    assert set(QUESTIONS) == set(BENCHMARKS)
    assert set(CLOSINGS) == set(QUESTIONS) - {"llava-bench", "qa90", "mm-vet", "refcoco", "mv-llava"}


@pytest.mark.parametrize(("count", "parts"), [(10, 3), (9, 3), (1, 4), (5, 4), (7, 1)])
def test_parts_are_those_of_llavas_chunks(count: int, parts: int) -> None:
    """Of 10 in 3 the parts are 4, 4, 2; together they are the whole in order."""
    found = [part_of(range(count), parts, index) for index in range(parts)]
    assert [number for part in found for number in part] == list(range(count))
    if (count, parts) == (10, 3):
        assert [len(part) for part in found] == [4, 4, 2]
    with pytest.raises(ConfigError, match=f"part {parts} of {parts}: expected a number from 0 to {parts - 1}"):
        part_of(range(count), parts, parts)


@pytest.mark.parametrize(
    ("benchmark", "name", "text", "message"),
    [
        ("gqa", "llava_gqa_testdev_balanced.jsonl", '{"question_id": 1, "text": "?"}', ":1: /image: missing"),
        ("gqa", "llava_gqa_testdev_balanced.jsonl", "", "no questions"),
        ("scienceqa", "llava_test_CQM-A.json", '[{"id": "1", "conversations": []}]', "/0/conversations: an empty list"),
        (
            "mmbench",
            "mmbench_dev.tsv",
            "index\tquestion\thint\tA\tB\timage\n1\t?\t\ta\tb\t*\n",
            "not an image in base64",
        ),
        ("mmbench", "mmbench_dev.tsv", "index,question\n", "no column index, question"),
    ],
)
def test_a_bad_row_is_named(benchmark: str, name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as raised:
        questions_of(benchmark, tmp_path)
    assert message in str(raised.value)
    assert name in str(raised.value)
