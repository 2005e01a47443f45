# SPDX-License-Identifier: Apache-2.0
"""``paddlemix eval``: every benchmark from its own files, what is irregular, comparison, report, errors."""

import json
from pathlib import Path
from typing import Any

import pytest

from paddlemix.__main__ import main
from tests.eval import eval_kit as kit


def run(*words: object) -> int:
    return main(["eval", *map(str, words)])


def scored(
    folder: Path, benchmark: str, answers: list[dict[str, Any]], data: Path, *more: object
) -> tuple[int, dict[str, Any]]:
    """Exit code and score file."""
    file, output = kit.write_lines(folder / "answers.jsonl", answers), folder / "score.json"
    code = run("score", benchmark, "--answers", file, "--data", data, "--output", output, "--resamples", 20, *more)
    return code, json.loads(output.read_text()) if output.exists() else {}


@pytest.mark.parametrize("benchmark", kit.FOLDERS)
def test_every_benchmark_is_scored_from_its_files_as_published(
    benchmark: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, wanted = kit.FOLDERS[benchmark]
    data, answers = make(tmp_path / "data")
    code, found = scored(tmp_path, benchmark, answers, data)
    said = capsys.readouterr().out
    assert code == 0, said
    assert {name: found["metrics"][name]["value"] for name in wanted} == pytest.approx(wanted)
    assert found["main"] in wanted
    assert all(
        value["low"] <= value["value"] <= value["high"]
        for name, value in found["metrics"].items()
        if name == found["main"]
    )
    assert "every question has one answer" in said
    assert len(found["results"]) == len(answers)


def test_what_is_irregular_is_counted_named_and_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against answers that are all right: each irregular one costs its question, and nothing moves up."""
    data, _ = kit.pope(tmp_path / "data")
    right = [kit.answer(n, "Yes" if n % 2 else "No") for n in range(12)]
    code, found = scored(tmp_path, "pope", right, data)
    assert (code, found["metrics"]["accuracy"]["value"]) == (0, 1.0)
    answers = [
        *right[1:5],  # 0 is missing
        kit.answer(5, "[LMMS_EVAL_REQUEST_FAILED after 5 retries] yes"),
        kit.answer(6, "", metadata={"error": "out of memory"}),
        kit.answer(7, "No"),
        kit.answer(7, "Yes"),  # the last one counts
        kit.answer(8, ""),  # a yes by the rule
        *right[9:],
        kit.answer(99, "Yes"),
    ]
    code, found = scored(tmp_path, "pope", answers, data)
    assert code == 1
    assert found["metrics"]["accuracy"]["value"] == 8 / 12
    assert found["metrics"]["recall"]["value"] == 5 / 6, "a failed answer has not found the object"
    kinds = [f"{problem['kind']} {problem['key']}" for problem in found["problems"]]
    assert kinds == ["missing 0", "failed 5", "failed 6", "duplicate 7", "unknown 99", "empty 8"]
    said = capsys.readouterr().out
    assert "out of memory" in said
    assert f"{tmp_path / 'answers.jsonl'}:7: answered again later" in said
    status = {result["key"]: result["status"] for result in found["results"]}
    assert [key for key, value in status.items() if value != "answered"] == ["0", "5", "6"]


IRREGULAR = {
    "missing": lambda rows: rows[1:],
    "failed": lambda rows: [{**rows[0], "text": "[LMMS_EVAL_BUDGET_EXCEEDED]"}, *rows[1:]],
    "duplicate": lambda rows: [{**rows[0], "text": "no yes A"}, *rows],
    "unknown": lambda rows: [*rows, {**rows[0], "question_id": "extra/77.png", "prompt": "Extra?\nSay."}],
    "empty": lambda rows: [{**rows[0], "text": " "}, *rows[1:]],
}


@pytest.mark.parametrize("benchmark", kit.FOLDERS)
@pytest.mark.parametrize("kind", IRREGULAR)
def test_every_scorer_counts_and_names_what_is_irregular(benchmark: str, kind: str, tmp_path: Path) -> None:
    data, answers = kit.FOLDERS[benchmark][0](tmp_path / "data")
    _, whole = scored(tmp_path, benchmark, answers, data)
    code, found = scored(tmp_path, benchmark, IRREGULAR[kind](answers), data)
    assert code == (kind != "empty")
    assert [problem["kind"] for problem in found["problems"]] == [kind]
    assert len(found["results"]) == len(whole["results"]), "every question has a result"
    key = found["problems"][0]["key"]
    if kind in ("missing", "failed"):
        lost = next(result for result in found["results"] if result["key"] == key)
        assert (lost["status"], lost["value"], lost["parsed"]) == (kind, 0.0, "")
    changed = [a for a, b in zip(found["results"], whole["results"], strict=True) if a != b]
    assert len(changed) == (kind in ("missing", "failed", "empty")), "nothing else moves"


def test_a_duplicate_leaves_the_last_answer_and_order_does_not_matter(tmp_path: Path) -> None:
    data, answers = kit.pope(tmp_path / "data")
    _, straight = scored(tmp_path, "pope", answers, data)
    _, mixed = scored(tmp_path, "pope", answers[::-1], data)
    assert mixed["results"] == straight["results"]
    assert mixed["metrics"] == straight["metrics"]


def test_answer_files_in_parts_are_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, answers = kit.pope(tmp_path / "data")
    parts = [kit.write_lines(tmp_path / f"2_{n}.jsonl", answers[n * 6 : n * 6 + 6]) for n in range(2)]
    assert run("score", "pope", "--answers", *parts, "--data", data, "--json", "--resamples", 5) == 0
    assert json.loads(capsys.readouterr().out)["questions"] == 12


@pytest.mark.parametrize(
    ("benchmark", "convention", "metric", "value"),
    [
        ("pope", "lmms-eval", "accuracy", 1 / 4),  # "Yes, there is." is not the word alone
        ("pope", "vlmevalkit", "accuracy", 3 / 4),
        ("seed", "lmms-eval", "accuracy", 3 / 4),  # "B." counts
        ("seed", "letter", "accuracy", 3 / 4),
        ("scienceqa", "lmms-eval", "accuracy", 3 / 4),
        ("mmbench", "exact", "accuracy", 1 / 2),
        ("exact", "relaxed", "accuracy", 1 / 2),
        ("refcoco", "internvl", "accuracy@0.5", 1 / 2),
        ("refcoco", "thousand", "accuracy@0.5", 0.0),
    ],
)
def test_other_conventions_are_chosen_by_name(
    benchmark: str, convention: str, metric: str, value: float, tmp_path: Path
) -> None:
    make, _ = kit.FOLDERS[benchmark]
    data, answers = make(tmp_path / "data")
    code, found = scored(tmp_path, benchmark, answers, data, "--convention", convention)
    assert code == 0
    assert found["convention"] == convention
    assert found["metrics"][metric]["value"] == pytest.approx(value)


def test_two_runs_are_compared_with_intervals_and_p_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, answers = kit.pope(tmp_path / "data")
    better = [kit.answer(n, "Yes" if n % 2 else "No") for n in range(12)]
    for name, given in (("a", answers), ("b", better)):
        (tmp_path / name).mkdir()
        scored(tmp_path / name, "pope", given, data)
    a, b = tmp_path / "a" / "score.json", tmp_path / "b" / "score.json"
    capsys.readouterr()
    assert run("compare", a, b, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    row = found["metrics"]["accuracy"]
    assert (row["a"], row["b"], row["difference"]) == (0.75, 1.0, 0.25)
    assert row["low"] <= 0.25 <= row["high"]
    assert found["mcnemar"] == {"only_a": 0, "only_b": 3, "p_value": 0.25}
    wrong = {pair["question"] for pair in found["differing"] if pair["a"]["value"] < pair["b"]["value"]}
    assert wrong == {"0", "4", "8"}
    assert len(found["differing"]) == 9, "also those that say the same in other words"
    assert run("compare", a, b, "--json") == 0
    assert json.loads(capsys.readouterr().out) == found, "the seed decides the samples"
    assert run("compare", a, b, "--output", tmp_path / "c.md") == 0
    text = (tmp_path / "c.md").read_text()
    assert "| **mean_f1** | 80.00 | 100.00 | 20.00 |" in text
    assert capsys.readouterr().out == text


def test_a_run_compared_with_itself_does_not_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, answers = kit.textvqa(tmp_path / "data")
    scored(tmp_path, "textvqa", answers, data)
    capsys.readouterr()
    assert run("compare", tmp_path / "score.json", tmp_path / "score.json", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["differing"] == []
    assert found["metrics"]["accuracy"]["p_value"] == 1.0
    assert found["mcnemar"] is None or found["mcnemar"]["p_value"] == 1.0


def test_a_report_is_one_table_over_models_and_benchmarks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for benchmark in ("pope", "mme"):
        make, _ = kit.FOLDERS[benchmark]
        (tmp_path / "scores" / benchmark).mkdir(parents=True)
        data, answers = make(tmp_path / "data" / benchmark)
        scored(tmp_path / "scores" / benchmark, benchmark, answers[1:] if benchmark == "pope" else answers, data)
    kit.write_json(tmp_path / "scores" / "other.json", {"a": 1})
    kit.write_json(tmp_path / "scores" / "upload.json", [{"question_id": 1}])
    (tmp_path / "scores" / "empty.json").touch()
    capsys.readouterr()
    assert run("report", tmp_path / "scores", "--published", "--output", tmp_path / "r.md") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "| model | POPE, % | MME, points |"
    assert said[2].startswith("| tiny | 8")
    assert "| LLaVA-1.5-7B (published) | 85.90 | 1510.70 |" in said
    again = tmp_path / "scores" / "again.json"
    again.write_bytes((tmp_path / "scores" / "mme" / "score.json").read_bytes())
    assert run("report", tmp_path / "scores") == 0
    assert "| tiny (mme/score.json) |  | 125.00" in capsys.readouterr().out, "a second run has a row of its own"
    again.unlink()
    assert any("pope/score.json: 1 answers are missing" in line for line in said)
    assert (tmp_path / "r.md").read_text().splitlines() == said
    assert run("report", tmp_path / "scores", "--json") == 0
    assert set(json.loads(capsys.readouterr().out)) == {"mme/score.json", "pope/score.json"}


def test_the_list_names_all_benchmarks_and_conventions(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", "--json") == 0
    rows = {row["benchmark"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["pope"]["conventions, the default first"] == "llava, lmms-eval, vlmevalkit"
    assert rows["llava-bench"]["scored by"] == "a judge reviews it beside a reference: eval review, then eval summarize"
    assert rows["pope"]["scored by"] == "eval score"


LABELS = "coco/coco_pope_random.json"


def _put(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


FAULTS = {
    "no text": (lambda a, d: _put(a, '{"question_id": 0}\n'), ":1: /text: missing"),
    "null": (lambda a, d: _put(a, '\n{"question_id": 0, "text": null}\n'), ":2: /text: expected a text, got null"),
    "id": (lambda a, d: _put(a, '{"question_id": 0.5, "text": ""}\n'), "/question_id: expected a text or a whole"),
    "cut off": (lambda a, d: _put(a, '{"question_id": 0, "te'), ":1: not valid JSON"),
    "list": (lambda a, d: _put(a, '[{"question_id": 0}]'), ":1: a list; expected one object"),
    "empty": (lambda a, d: _put(a, "\n"), "no answers; expected one JSON object a line"),
    "others": (lambda a, d: kit.write_lines(a, [kit.answer("x", "yes")]), 'question_id "x" and all others are unknown'),
    "label": (
        lambda a, d: _put(d / LABELS, '{"label": "maybe"}\n' * 4),
        '/label: expected yes or no, got "maybe"',
    ),
    "fewer": (lambda a, d: _put(d / LABELS, '{"label": "no"}\n'), "1 labels for 4 questions"),
    "order": (
        lambda a, d: _put(d / LABELS, '{"label": "no", "text": "Is there a cat?"}\n' * 4),
        'asks "Is there a cat?" about',
    ),
    "no labels": (lambda a, d: (d / "coco/coco_pope_popular.json").unlink(), "no coco/coco_pope_popular.json"),
    "no answers": (lambda a, d: a.unlink(), "no such file"),
}  # fmt: skip


def test_odd_keys_of_a_file_are_escaped_in_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, answers = kit.scienceqa(tmp_path / "data")
    kit.write_json(data / "pid_splits.json", {"test": ["0\n\x1b[2J"]})
    file = kit.write_lines(tmp_path / "answers.jsonl", answers)
    assert run("score", "scienceqa", "--answers", file, "--data", data) == 2
    said = capsys.readouterr().err
    assert "problems.json: /0\\n\\x1b[2J: missing" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_file_is_one_line_with_its_place(fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, answers = kit.pope(tmp_path / "data")
    file = kit.write_lines(tmp_path / "answers.jsonl", answers)
    change, message = FAULTS[fault]
    change(file, data)
    assert run("score", "pope", "--answers", file, "--data", data) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["score", "popee", "--answers", "a", "--data", "d"], 'did you mean "pope"?'),
        (["score", "llava-bench", "--answers", "a", "--data", "d"], "eval review, then eval summarize"),
        (
            ["score", "pope", "--answers", "a", "--data", "d", "--resamples", "0"],
            "--resamples 0: expected a number",
        ),
        (["score", "pope", "--answers", "a", "--data", "d", "--output", "x.md"], "expected a .json file"),
        (["report", "nowhere"], "nowhere: no such folder"),
        (["report", "nowhere", "--output", "x.html"], "expected a file that ends with .md, .json, .png"),
        (["compare", "nowhere.json", "b.json"], "nowhere.json: no such file"),
    ],
)
def test_a_wrong_flag_is_exit_code_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == 2
    assert message in capsys.readouterr().err


def test_several_files_that_fit_are_named_and_one_can_be_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, answers = kit.mmbench(tmp_path / "data")
    first = data / "mmbench_dev_20230712.tsv"
    for name in ("mmbench_dev_cn_20231003.tsv", "mmbench_dev_en_20231003.tsv"):
        (data / name).write_bytes(first.read_bytes().replace(b"a dog", name.encode()))
    code, _ = scored(tmp_path, "mmbench", answers, data)
    assert code == 2
    message = "2 files fit mmbench_dev*.tsv (mmbench_dev_20230712.tsv, mmbench_dev_en_20231003.tsv); keep the right one"
    assert message in (said := capsys.readouterr().err)
    assert "or give the path of the file" in said
    assert scored(tmp_path, "mmbench", answers, first)[0] == 0
    assert scored(tmp_path, "mmbench-cn", answers, data)[0] == 0
    assert scored(tmp_path, "pope", answers, first)[0] == 2
    assert "is a file; give the folder of the benchmark" in capsys.readouterr().err


def test_scores_that_cannot_be_compared_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, answers = kit.pope(tmp_path / "data")
    for name, more in (("a", []), ("b", ["--convention", "lmms-eval"])):
        (tmp_path / name).mkdir()
        scored(tmp_path / name, "pope", answers, data, *more)
    a, b = tmp_path / "a" / "score.json", tmp_path / "b" / "score.json"
    assert run("compare", a, b) == 2
    assert f"{a} has the convention llava, {b} has lmms-eval" in capsys.readouterr().err
    assert run("compare", tmp_path / "a" / "answers.jsonl", b) == 2
    kit.write_json(tmp_path / "x.json", {"results": []})
    assert run("compare", tmp_path / "x.json", b) == 2
    assert "not a score file; eval score writes one" in capsys.readouterr().err
    for key, value in (("main", "speed"), ("metrics", {}), ("benchmark", "pop")):
        kit.write_json(tmp_path / "x.json", {**json.loads(b.read_text()), key: value})
        assert run("compare", tmp_path / "x.json", b) == 2
        assert "score the answers again" in capsys.readouterr().err


def test_an_unknown_convention_names_the_known_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, answers = kit.pope(tmp_path / "data")
    code, _ = scored(tmp_path, "pope", answers, data, "--convention", "lmms_eval")
    assert code == 2
    assert 'did you mean "lmms-eval"? (known: llava, lmms-eval, vlmevalkit)' in capsys.readouterr().err


def test_a_prompt_from_which_no_question_follows_stops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, answers = kit.textvqa(tmp_path / "data")
    answers[2]["prompt"] = "What 2?"
    code, _ = scored(tmp_path, "textvqa", answers, data)
    assert code == 2
    assert 'answers.jsonl:3: /prompt: "What 2?" is none of TextVQA\'s forms' in capsys.readouterr().err


def test_a_column_of_right_answers_in_other_letters_is_no_split_without_answers(tmp_path: Path, capsys: Any) -> None:
    data, answers = kit.mmbench(tmp_path / "data")
    table = data / "mmbench_dev_20230712.tsv"
    table.write_text(table.read_text(encoding="utf-8").replace("answer", "ANSWER", 1), encoding="utf-8")
    assert scored(tmp_path, "mmbench", answers, data)[0] == 2
    assert 'the column "ANSWER" has to be called "answer"; rename it' in capsys.readouterr().err


def test_the_folders_of_two_runs_are_compared_by_their_score_files(tmp_path: Path, capsys: Any) -> None:
    data, answers = kit.mmbench(tmp_path / "data")
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        folder.mkdir()
        scored(folder, "mmbench", answers, data)
    capsys.readouterr()
    assert run("compare", *folders) == 0
    assert "accuracy" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_a_score_file_that_names_no_file_of_answers_is_reported_without_its_record(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, answers = kit.pope(tmp_path / "data")
    _, value = scored(tmp_path, "pope", answers, data)
    value["answers"][0]["file"] = name
    (tmp_path / "score.json").write_text(json.dumps(value))
    assert run("report", tmp_path) == 0, capsys.readouterr().err
    assert "POPE" in capsys.readouterr().out
