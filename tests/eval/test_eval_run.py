# SPDX-License-Identifier: Apache-2.0
"""Benchmarks from their files to answers and scores with a tiny model; killed, divided, and with bad files."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from paddlemix.demo.benchmarks import WRITERS
from paddlemix.eval import evaluate, running
from paddlemix.eval.__main__ import main
from paddlemix.eval.answer_files import read_answers
from paddlemix.eval.asked import CLOSINGS, questions_of
from paddlemix.eval.benchmarks import BENCHMARKS
from paddlemix.eval.evaluate import Request, planned
from paddlemix.eval.items import Item, Turn, items_of, part_with
from paddlemix.eval.models import model_id
from paddlemix.utils.errors import DataError
from tests.eval.model_kit import cpu, write_model, write_shapes

JUDGED = ("llava-bench", "mm-vet", "qa90")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model``, and ``shapes`` with a folder for each benchmark."""
    folder = tmp_path_factory.mktemp("eval run")
    write_model(folder)
    write_shapes(folder / "shapes")
    return folder


def right_answers(home: Path) -> dict[str, list[str]]:
    return json.loads((home / "shapes" / "right.json").read_text())


def run(home: Path, benchmark: str, output: Path, *flags: str) -> int:
    return main([benchmark, "--model-path", str(home / "model"), "--data", str(home / "shapes" / benchmark),
                 "--output", str(output), "--device", "cpu", "--max-new-tokens", "4", *flags])  # fmt: skip


@pytest.mark.parametrize("benchmark", WRITERS)
def test_every_benchmark_runs_from_its_files_to_its_score(
    benchmark: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(home, benchmark, tmp_path) == 0, capsys.readouterr().err
    answers = read_answers([tmp_path / "answers.jsonl"])
    said = capsys.readouterr()
    assert not [answer for answer in answers if answer.failure]
    assert f"{len(answers)} answers, 0 failed" in said.out
    assert " left" in said.err or f"{len(answers)} of {len(answers)}" in said.err or benchmark == "mv-llava"
    if benchmark in JUDGED:
        assert "not scored" in said.err
    else:
        assert len(answers) == len(right_answers(home)[benchmark])
        assert list(tmp_path.glob("score*.json"))
        assert "every question has one answer" in said.out


@pytest.mark.parametrize("benchmark", [name for name in WRITERS if name not in JUDGED])
def test_right_answers_score_full_and_the_next_ones_answers_less(benchmark: str, home: Path, tmp_path: Path) -> None:
    """The fixtures' right answers, put into the answer file that a run writes, have the score that they must have."""
    plan = planned(Request(benchmark, home / "shapes" / benchmark, cpu(home / "model"), tmp_path))
    turns = [turn for item in plan.job.items for turn in item.turns]
    right = right_answers(home)[benchmark]
    for number, answers in enumerate((right, [*right[1:], right[0]])):
        given = dict(zip([id(turn) for turn in turns], answers, strict=True))
        lines = [
            line
            for item in plan.job.items
            for line in plan.job.lines(item, [evaluate.Said(given[id(turn)]) for turn in item.turns])
        ]
        running.publish(plan.job.path, "".join(lines), plan.job.settings, plan.job.about)
        for found in evaluate.finish(plan.job.path, resamples=0).scored:
            full = 600.0 if benchmark == "mme" else 1.0
            value = found.score.metrics[found.score.main]
            assert (value == full) == (number == 0), found.score.metrics
            assert not found.score.problems


def test_an_image_that_cannot_be_used_is_a_failed_answer_that_is_named_and_scored_as_wrong(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "pope"
    write_shapes(tmp_path)
    (data / "val2014" / "000001.png").write_bytes(b"no image")
    (data / "val2014" / "000003.png").unlink()
    code = main(["pope", str(home / "model"), "--data", str(data), "--output", str(tmp_path / "out"),
                 "--device", "cpu", "--max-new-tokens", "3"])  # fmt: skip
    said = capsys.readouterr()
    assert code == 1
    assert "1 missing image, whose questions fail" in said.err
    assert "18 answers, 6 failed" in said.out
    assert "6 failed:" in said.out
    assert re.search(r"\n  1: .*000001\.png: ", said.out)
    score = json.loads((tmp_path / "out" / "score.json").read_text())
    assert [one["status"] for one in score["results"]].count("failed") == 6
    assert all(one["value"] == 0 for one in score["results"] if one["status"] == "failed")
    failed = [record for record in read_answers([tmp_path / "out" / "answers.jsonl"]) if record.failure]
    assert [record.text for record in failed] == [""] * 6


def test_a_question_longer_than_the_context_fails_and_the_others_are_answered(home: Path, tmp_path: Path) -> None:
    asker = cpu(home / "model").open(4)
    items = [Item((Turn(0, "what is it? " * 400),)), Item((Turn(1, "what is it?"),)), Item((Turn(2, "a <image> b"),))]
    long, good, marked = (said[0] for said in asker.ask(items))
    assert "of the 512 positions of the model's context" in long.failure
    assert good.text
    assert not good.failure
    assert "each mark needs one image" in marked.failure
    assert asker.ask([items[1]])[0][0].text == good.text
    asker.max_new_tokens = 600
    (full,) = asker.ask([Item((Turn(0, "what is it? " * 105),))])[0]
    assert not full.failure, "it is answered as long as there is room"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["popee", "--data", "x"], 'is no verb and no benchmark, did you mean "pope"'),
        (["pope", "--data", "x"], "which model? Give its folder or name with --model-path"),
        (["pope", "M", "--model-path", "M", "--data", "x"], "give the model once"),
        (["pope", "M", "--data", "nowhere"], "nowhere: no such folder"),
        (["pope", "M", "--data", "shapes/gqa"], "no llava_pope_test.jsonl"),
        (["pope", "M", "--data", "shapes/pope", "--num-chunks", "2", "--chunk-idx", "2"], "part 2 of 2"),
        (["pope", "M", "--data", "shapes/pope", "--limit", "0"], "--limit 0: expected a number from 1"),
        (["pope", "M", "--data", "shapes/pope", "--batch-size", "0"], "--batch-size 0"),
        (["pope", "M", "--data", "shapes/pope", "--max-new-tokens", "-3"], "--max-new-tokens -3"),
        (["pope", "M", "--data", "shapes/pope", "--image-folder", "shapes"], "none of the 6 images is there"),
        (["pope", "M", "--data", "shapes/pope", "--split", "other"], "no other.jsonl in it; there is llava_pope_test"),
        (["pope", "M", "--data", "shapes/pope", "--all-rounds"], "--all-rounds turns the options of MMBench"),
        (["pope", "M", "--data", "shapes/pope", "--prompts", "internvl"], "the form internvl is for"),
        (["pope", "M", "--data", "shapes/pope", "--convention", "lava"], 'unknown convention "lava"'),
        (["pope", "M", "--data", "shapes/pope", "--metric", "exact"], "--metric chooses how own data are scored"),
        (["custom", "M", "--data", "shapes/custom", "--metric", "bleu"], "--metric bleu: expected exact"),
        (["pope", "nowhere", "--data", "shapes/pope"], "nowhere"),
        (["pope", "M", "--data", "shapes/pope", "--conv-mode", "vicuna"], "vicuna"),
    ],
)
def test_what_is_wrong_is_said_before_a_weight_is_read(
    flags: list[str], message: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(home)
    monkeypatch.setenv("PADDLEMIX_HUB", "off")
    monkeypatch.setattr(evaluate.Model, "open", None)
    typed = ["model" if word == "M" else word for word in flags]
    assert main([*typed, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("error: ") == 1
    assert not (tmp_path / "out").exists()


def test_annotations_of_another_split_are_found_before_the_model_is_asked(home: Path, tmp_path: Path) -> None:
    write_shapes(tmp_path)
    (tmp_path / "gqa" / "testdev_balanced_questions.json").write_text('{"x": {"answer": "a", "isBalanced": true}}')
    plan = planned(Request("gqa", tmp_path / "gqa", cpu(home / "model")))
    assert any("only the upload file is written" in note for note in plan.notes)
    (tmp_path / "pope" / "coco" / "coco_pope_random.json").unlink()
    with pytest.raises(DataError, match=r"Without the right answers: --no-score"):
        planned(Request("pope", tmp_path / "pope", cpu(home / "model")))
    assert planned(Request("pope", tmp_path / "pope", cpu(home / "model"), scored=False)).job.about["metrics"] == []


def test_a_dry_run_shows_the_first_prompt_and_writes_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluate.Model, "open", None)
    assert run(home, "pope", tmp_path / "out", "--dry-run") == 0
    said = capsys.readouterr()
    first = questions_of("pope", home / "shapes" / "pope")[0].text
    assert f"USER: <image>\n{first} ASSISTANT:" in said.out
    assert "18 questions, images in" in said.err
    assert not (tmp_path / "out").exists()


def test_a_part_of_the_questions_is_spread_over_all_and_keeps_pairs_about_one_image(home: Path) -> None:
    asked = questions_of("mme", home / "shapes" / "mme")
    items = items_of(asked, home)
    assert part_with(items, None) == items
    some = part_with(items, 6)
    assert [item.images for item in some[::2]] == [item.images for item in some[1::2]]
    assert len({item.images for item in some}) == 3
    assert part_with([Item((Turn(n, "x"),)) for n in range(100)], 4)[-1].turns[0].key == 75


def test_refcocos_images_are_found_below_any_part_of_their_path(home: Path) -> None:
    plan = planned(Request("refcoco", home / "shapes" / "refcoco", cpu(home / "model")))
    assert not plan.missing
    assert plan.job.items[0].turns[0].text.startswith("Please provide the bounding box coordinate of the region")
    asked = questions_of("refcoco", home / "shapes" / "refcoco", form="internvl")[0]
    assert re.search(r"describes: <ref>\w+ \w+</ref>$", asked.text)


def test_mv_llavas_questions_are_one_conversation_with_the_views_in_front(home: Path) -> None:
    plan = planned(Request("mv-llava", home / "shapes" / "mv-llava", cpu(home / "model")))
    item = plan.job.items[0]
    assert [turn.key for turn in item.turns] == ["shape_0/quality", "shape_0/scale", "shape_0/style"]
    assert item.views is not None
    prompt = plan.model.first_prompt(item)
    assert "<image>" * 4 + "\nWhat do you think about the overall quality?" in prompt
    prompts: list[str] = []
    asker = plan.model.open(3)
    made = asker.predictor.prompt

    def noted(*given: Any) -> Any:
        found = made(*given)
        prompts.append(found.text)
        return found

    asker.predictor.prompt = noted  # type: ignore[method-assign]
    said = asker.ask([item])[0]
    assert prompts[0] == prompt
    assert prompts[2].count("<image>") == 4
    assert f"{said[0].text}</s>" in prompts[1], "its own answers are part of the next prompt"


def test_names_and_files_are_those_of_the_originals() -> None:
    assert model_id("liuhaotian/llava-v1.5-7b/") == "llava-v1.5-7b"
    assert model_id("out/mine/checkpoint-500") == "mine_checkpoint-500"
    assert set(WRITERS) - {"custom"} == set(BENCHMARKS) - {"exact", "choice", "vqa", "rouge-l"}
    assert "custom" not in CLOSINGS


def test_sharegpt4vs_files_are_taken_where_llavas_are_not_there(home: Path, tmp_path: Path) -> None:
    write_shapes(tmp_path)
    (tmp_path / "seed" / "llava-seed-bench.jsonl").rename(tmp_path / "seed" / "share4v-seed-bench.jsonl")
    (tmp_path / "scienceqa" / "llava_test_CQM-A.json").rename(tmp_path / "scienceqa" / "share4v_test_CQM-A.json")
    for name in ("seed", "scienceqa"):
        assert planned(Request(name, tmp_path / name, cpu(home / "model"))).question_file.name.startswith("share4v")


def test_own_rows_are_asked_with_options_and_several_images(home: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        '{"question": "Which?", "images": ["a.png", "b.png"], "options": ["x", "y"], "answer": "B"}\n'
        '{"question": "Why?", "options": ["x", "y"], "answer": "A"}\n'
    )
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes((home / "shapes" / "custom" / "000000.png").read_bytes())
    plan = planned(Request("custom", tmp_path / "rows.jsonl", cpu(home / "model")))
    assert plan.job.about["metrics"] == ["choice"]
    first, second = plan.job.items
    assert first.turns[0].text == f"Which?\nA. x\nB. y\n{CLOSINGS['choice'][0]}"
    assert [Path(str(image)).name for image in first.images] == ["a.png", "b.png"]
    assert second.images == ()
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "Why?", "image": "a.png", "images": ["b.png"], "answer": "A"}\n')
    with pytest.raises(DataError, match=r"bad.jsonl:1: /image: images stand here and in /images"):
        planned(Request("custom", bad, cpu(home / "model")))
    bad.write_text('{"question": "Why?"}\n')
    with pytest.raises(DataError, match=r"bad.jsonl:1: /answer: missing"):
        planned(Request("custom", bad, cpu(home / "model")))
    assert planned(Request("custom", bad, cpu(home / "model"), scored=False)).job.items
    for images in ('"image": ""', '"images": ["a.png", ""]'):
        bad.write_text(f'{{"question": "Why?", {images}, "answer": "A"}}\n')
        with pytest.raises(DataError, match=r"bad.jsonl:1: /images?: an empty name; leave the key out, or write null"):
            planned(Request("custom", bad, cpu(home / "model")))


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            {"question_id": "a", "answer": "A"},
            '/question_id: "a" is that of an earlier row, too; give each row its own',
        ),
        ({"answer": "green"}, '/answer: "green": expected the letter of an option, A to B; or score by exact'),
        ({"answer": "b"}, '/answer: "b": expected the letter of an option, A to B'),
        ({"answer": "C"}, '/answer: "C": expected the letter of an option, A to B'),
        ({"answers": ["A", "B"]}, "/answers: 2 answers; expected the letter of one option, A to B"),
    ],
)
def test_own_rows_whose_answers_would_be_scored_wrong_are_refused(
    second: dict[str, Any], message: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question_id": "a", "answer": "B"}, {"question_id": "b", **second}]
    text = "".join(json.dumps({"question": "?", "options": ["red", "green"], **row}) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(text)
    flags = ["custom", str(home / "model"), "--data", str(tmp_path / "rows.jsonl"), "--device", "cpu", "--dry-run"]
    assert main([*flags, "--output", str(tmp_path / "out")]) == 2
    assert f"rows.jsonl:2: {message}" in capsys.readouterr().err


def test_all_benchmarks_of_a_folder_run_with_one_load_and_end_in_one_table(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "playground"
    write_shapes(root, 4, ("pope", "mmbench-cn", "custom"))
    (root / "mmbench-cn").rename(root / "mmbench_cn")  # as LLaVA's folder is called
    (root / "notes").mkdir()
    loads: list[str] = []
    opens = evaluate.Model.open
    monkeypatch.setattr(evaluate.Model, "open", lambda model, limit: loads.append(model.path) or opens(model, limit))
    flags = ["--model-path", str(home / "model"), "--data", str(root), "--output", str(tmp_path / "out"),
             "--device", "cpu", "--max-new-tokens", "3"]  # fmt: skip
    assert main(["all", *flags]) == 0
    said = capsys.readouterr()
    assert len(loads) == 1
    assert "| model | POPE, % | MMBench-CN, % | own data: exact match, % | own data: ROUGE-L, % |" in said.out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["custom", "mmbench-cn", "pope"]
    assert main(["all", *flags]) == 0
    assert len(loads) == 1, "nothing is left to ask"
    assert main(["all", *flags, "--split", "x"]) == 2
    assert "--split is for one benchmark, not for all" in capsys.readouterr().err
    assert main(["all", "M", "--data", str(home / "model")]) == 2
    assert "no folder of a benchmark in it" in capsys.readouterr().err
    (root / "pope" / "llava_pope_test.jsonl").unlink()
    assert main(["all", *flags]) == 2, "one that cannot be asked is said before any is"
