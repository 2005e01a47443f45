# SPDX-License-Identifier: Apache-2.0
"""``paddlemix validate``: what it finds is what a training would stop at, and what it counts is what is trained on."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from paddlemix.datasets.pictures import PictureRules
from paddlemix.settings.run.loader import load_settings
from paddlemix.tools import validate_data
from paddlemix.utils.errors import DataError
from paddlemix.validate import survey as module
from paddlemix.validate.report import cost, draw_lengths
from paddlemix.validate.survey import FACTS, Survey, survey
from tests.tiny import tiny_model, tiny_tokenizer_folder, write_rows


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from paddlemix.checkpoint.save import save_model
    from paddlemix.text.tokenizer import load_tokenizer

    root = tmp_path_factory.mktemp("place")
    model = tiny_model()
    save_model(root / "model", model, model.config, load_tokenizer(tiny_tokenizer_folder()))
    write_rows(root)
    return root


def row(image: str | None, answer: str = "a red circle", **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {} if image is None else {"image": image}
    human = "what is shown?" if image is None else "<image>\nwhat is shown?"
    turns = [{"from": "human", "value": human}, {"from": "gpt", "value": answer}]
    return {**found, "conversations": turns, **more}


def keys(place: Path, rows: list[Any] | Path, *more: str) -> list[str]:
    data = rows if isinstance(rows, Path) else place / "mixed.json"
    if not isinstance(rows, Path):
        data.write_text(json.dumps(rows))
    return ["--model_name_or_path", str(place / "model"), "--data_path", str(data), "--image_folder", str(place),
            "--output_dir", str(place.with_name("out")), "--do_train", "true", "--device", "cpu", *more]  # fmt: skip


def flags(place: Path, rows: list[Any] | Path, *more: str, folder: Path) -> list[str]:
    return [*keys(place, rows), "--report", str(folder), "--jobs", "1", *more]


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


BAD = {
    "missing image": row("nowhere.png"),
    "no image file": row("torn.png"),
    "a mark without an image": row(None) | {"conversations": row("0.png")["conversations"]},
    "no answer": row("0.png", ""),
    "no conversation": {"image": "0.png"},
    "turns in disorder": {"conversations": row("0.png")["conversations"][::-1]},
}


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_it_finds_what_training_stops_at_in_the_same_words_and_writes_the_rest(
    place: Path, tmp_path: Path, jobs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PORTION", 4)
    (place / "torn.png").write_bytes((place / "0.png").read_bytes()[:20])
    good = [row(f"{n}.png", img="x") for n in range(3)] + [row(None)]
    rows = [good[0], *BAD.values(), *good[1:]]
    clean = tmp_path / "clean.json"
    argv = flags(place, rows, "--write-clean", str(clean), "--jobs", jobs, folder=tmp_path)
    assert validate_data.main(argv) == 3
    assert json.loads(clean.read_text()) == good
    found = {line["record"]: line for line in read_lines(tmp_path / "bad_rows.jsonl")}
    assert sorted(found) == [f"/{n}" for n in range(1, 1 + len(BAD))]
    assert {line["file"] for line in found.values()} == {str(place / "mixed.json")}
    assert found["/1"]["image"].endswith("nowhere.png")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["rows"], summary["bad_rows"], summary["images"], summary["turns"]) == (10, 6, 3, 4)
    for number, bad in enumerate(BAD.values(), start=1):
        alone = [rows[0]] * number + [bad]
        reason = found[f"/{number}"]["reason"]
        assert what_training_says(keys(place, alone)).endswith(reason)
        assert reason
        assert "mixed.json" not in reason, "file and record have keys of their own"
    assert validate_data.main(flags(place, clean, folder=tmp_path / "again")) == 0
    assert not place.with_name("out").exists()


def what_training_says(argv: list[str]) -> str:
    from paddlemix.datasets.build import build_datasets
    from paddlemix.trainer.inputs import read_rows
    from paddlemix.trainer.preparation import open_start

    settings = load_settings(argv)
    opened = open_start(settings)
    template = opened.template(settings)

    def last_row() -> None:
        data = build_datasets(settings, opened.config, opened.tokenizer, rows=read_rows(settings), template=template)
        data.train[len(data.train) - 1]

    with pytest.raises(DataError) as caught:
        last_row()
    return str(caught.value).partition('\n"on_bad_sample"')[0]


def test_counts_are_those_of_the_encoded_rows(place: Path, tmp_path: Path) -> None:
    from paddlemix.datasets.build import build_datasets
    from paddlemix.trainer.preparation import open_start
    from paddlemix.utils.constants import IGNORE_INDEX

    rows = [row(f"{n}.png", "a red circle left of a green square " * n) for n in range(1, 6)] + [row(None)]
    assert validate_data.main(flags(place, rows, "--max_length", "100", folder=tmp_path)) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    settings = load_settings(keys(place, rows, "--max_length", "100"))
    opened = open_start(settings)
    data = build_datasets(settings, opened.config, opened.tokenizer, template=opened.template(settings))
    encoded = [data.train[index] for index in range(len(rows))]
    assert summary["tokens"] == sum(item.length for item in encoded)
    assert summary["tokens_cut"] == sum(item.truncated for item in encoded) > 0
    assert summary["rows_cut"] == sum(item.truncated > 0 for item in encoded)
    assert summary["learnt_tokens"] == sum(int((item.labels[1:] != IGNORE_INDEX).sum()) for item in encoded)
    assert summary["visual_tokens"] == 5 * opened.config.vision.tokens_per_tile
    assert summary["length"]["max"] == max(item.length for item in encoded)


def test_lines_that_are_no_json_and_decoded_images(place: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    (place / "half.png").write_bytes(_cut_behind_the_header(place / "0.png"))
    lines = [json.dumps(row("0.png")), "{no json", json.dumps(row("half.png")), json.dumps(row(None))]
    data.write_text("\n".join(lines) + "\n")
    clean = tmp_path / "clean.jsonl"
    assert validate_data.main(flags(place, data, "--write-clean", str(clean), folder=tmp_path)) == 3
    assert [line["record"] for line in read_lines(tmp_path / "bad_rows.jsonl")] == ["2"], "a header says nothing of it"
    assert len(read_lines(clean)) == 3
    assert validate_data.main(flags(place, data, "--decode", folder=tmp_path)) == 3
    assert [line["record"] for line in read_lines(tmp_path / "bad_rows.jsonl")] == ["2", "3"]


def _cut_behind_the_header(path: Path) -> bytes:
    data = path.read_bytes()
    return data[: data.index(b"IDAT") + 8]


def test_a_look_that_was_killed_goes_on_and_changed_data_are_looked_at_anew(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PORTION", 2)
    seen: list[str] = []
    samples = [f"row {n}" for n in range(5)]

    def look(sample: str) -> dict[str, Any]:
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(sample)
        return {"facts": [1] * len(FACTS)} if sample != "row 1" else {"reason": "bad", "image": ""}

    journal = tmp_path / "progress.jsonl"
    with pytest.raises(KeyboardInterrupt):
        survey(samples, look, journal, "a", jobs=1)
    seen.clear()
    found = survey(samples, look, journal, "a", jobs=1)
    assert seen == ["row 2", "row 3", "row 4"]
    assert found.reused == 2
    assert found.faults == {1: ("bad", "")}
    assert found.column("text").tolist() == [1] * 4
    seen.clear()
    monkeypatch.setattr(module, "PORTION", 5)
    with pytest.raises(KeyboardInterrupt):  # all five rows anew: the third is where this look ends
        survey(samples, look, journal, "another key", jobs=1)


KILLED = """
import os, signal, sys
from paddlemix.tools import validate_data
from paddlemix.validate import report, survey

survey.PORTION, main, where = 2, os.getpid(), sys.argv[1]
look, seen = survey.Look.__call__, []


def looked(self, sample):
    seen.append(sample)
    if len(seen) == 6 and where == "look" or where == "worker" and os.getpid() != main and len(seen) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return look(self, sample)


survey.Look.__call__ = looked
if where == "costs":
    report.summary = lambda *_: os.kill(main, signal.SIGKILL)
sys.exit(validate_data.main(sys.argv[2:]))
"""


@pytest.mark.parametrize(("where", "jobs", "code"), [("look", "1", -9), ("worker", "2", 2), ("costs", "2", -9)])
def test_after_a_kill_the_same_command_ends_with_the_files_of_a_straight_look(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, jobs: str, code: int
) -> None:
    monkeypatch.setattr(module, "PORTION", 2)
    rows = [row(f"{n % 5}.png", "red " * (n + 1)) for n in range(11)] + [row("nowhere.png")]
    straight, again = (flags(place, rows, folder=tmp_path / name) for name in ("straight", "killed"))
    assert validate_data.main(straight) == 3
    killed = [*again, "--jobs", jobs]
    ran = subprocess.run([sys.executable, "-c", KILLED, where, *killed], capture_output=True, text=True, check=False)
    assert ran.returncode == code, ran.stderr
    assert ("lower --jobs" in ran.stderr) == (where == "worker")
    kept = (tmp_path / "killed" / "progress.jsonl").read_bytes().count(b"\n") - 1
    assert {"look": kept == 2, "worker": kept <= 4, "costs": kept == 6}[where]
    looked: list[Any] = []
    look = module.Look.__call__
    monkeypatch.setattr(module.Look, "__call__", lambda self, sample: looked.append(sample) or look(self, sample))
    assert validate_data.main(again) == 3
    assert len(looked) == 2 * (6 - kept)
    for name in ("summary.json", "bad_rows.jsonl", "lengths.png"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_costs_count_steps_and_what_padding_takes(place: Path) -> None:
    argv = keys(place, [row(None)], "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "3",
                "--num_train_epochs", "2", "--max_length", "100")  # fmt: skip
    settings = load_settings(argv)
    facts = np.zeros((40, len(FACTS)), dtype=np.int64)
    facts[:, FACTS.index("length")] = [90, 10] * 20
    found = cost(Survey(facts), settings, processes=2, drawn=np.arange(40))
    assert (found["rows_a_step"], found["steps_an_epoch"], found["steps"]) == (12, 4, 8)  # 10 batches, 3 of them a step
    assert found["tokens_a_step"] == 500
    assert found["packs"] == 20
    assert found["useful_share"]["mixtoken"] == 1
    # Only batches at the border of a window hold rows of both lengths; by chance half of the batches do: 100 of 180.
    assert found["useful_share"]["random"] < 0.85 < 0.9 < found["useful_share"]["group_by_length"]


def test_the_steps_are_those_that_a_training_of_a_part_of_an_epoch_takes(place: Path) -> None:
    argv = keys(place, [row(None)], "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "3",
                "--num_train_epochs", "1.3", "--max_length", "100")  # fmt: skip
    facts = np.zeros((42, len(FACTS)), dtype=np.int64)
    facts[:, FACTS.index("length")] = 50
    found = cost(Survey(facts), load_settings(argv), processes=2, drawn=np.arange(42))
    assert (found["steps_an_epoch"], found["steps"]) == (4, 5)  # the trainer rounds 5.2 down


def test_the_steps_of_a_mixture_are_those_of_its_training(place: Path, tmp_path: Path, capsys: Any) -> None:
    for name, count in (("much", 7), ("little", 4)):
        (place / f"{name}.json").write_text(json.dumps([row(None)] * count + [row(None, "")]))
    parts = [
        {"data_files": str(place / "much.json"), "repeat": 5},
        {"data_files": str(place / "little.json"), "repeat": 0.5},
    ]
    told = {"train": parts, "eval": [{"data_files": str(place / "little.json")}]}
    argv = flags(place, place / "much.json", "--do_eval", "true", "--num_train_epochs", "2", folder=tmp_path)
    at = argv.index("--data_path")
    argv[at : at + 2] = ["--dataset", json.dumps(told)]
    assert validate_data.main([*argv, "--write-clean", str(tmp_path / "clean.json")]) == 3
    assert "the rows that repeat leave for training, each of them once" in " ".join(capsys.readouterr().out.split())
    cost = json.loads((tmp_path / "summary.json").read_text())["cost"]
    assert (cost["rows_an_epoch"], cost["rows_a_step"], cost["steps"]) == (37, 8, 10)
    assert "cost" not in json.loads((tmp_path / "summary_eval.json").read_text())
    argv[argv.index("--do_train") + 1] = "false"
    assert validate_data.main([*argv, "--write-clean", str(tmp_path / "clean.json")]) == 2
    assert 'leave it out without "do_train"' in capsys.readouterr().err


def test_the_header_of_an_image_is_read_once(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    size = PictureRules.size
    monkeypatch.setattr(
        PictureRules, "size", lambda self, sample, image: opened.append(image) or size(self, sample, image)
    )
    assert validate_data.main(flags(place, [row("0.png"), row("1.png"), row(None)], folder=tmp_path)) == 0
    assert [Path(image).name for image in opened] == ["0.png", "1.png"]


def test_the_chart_shows_the_line_of_max_length(tmp_path: Path) -> None:
    facts = np.zeros((300, len(FACTS)), dtype=np.int64)
    facts[:, 0] = np.arange(300)
    draw_lengths(tmp_path / "lengths.png", Survey(facts), 100)
    image = np.asarray(Image.open(tmp_path / "lengths.png").convert("RGB")).astype(int)
    red = (image[..., 0] > 180) & (image[..., 1] < 80) & (image[..., 2] < 80)
    blue = (image[..., 2] > 180) & (image[..., 0] < 90)
    height, width = red.shape
    assert red[:, 2 * width // 3 :].sum(axis=0).max() > height / 2, "a line in the last panel"
    assert not red[:, : 2 * width // 3].any()
    assert blue[:, : width // 3].any()
    assert not blue[:, width // 3 : 2 * width // 3].sum() > blue[:, : width // 3].sum(), "no visual tokens: one bar"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--write-clean", "x.csv"], "ends with .json or .jsonl"),
        (["--write-clean", "DATA"], "is a file of the data set"),
        (["--write-clean", "no/such/x.json"], "there is no folder no/such; make it first"),
        (["--template", "nothing"], "nothing"),
        (["--data_path", "nowhere.json"], "nowhere.json: no such data file"),
        (["--no_such_key", "1"], "no_such_key"),
    ],
)
def test_what_is_no_matter_of_rows_ends_with_2_and_writes_nothing(
    place: Path, tmp_path: Path, more: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = flags(place, [row(None)], folder=tmp_path / "report")
    if "--data_path" in more:
        del argv[argv.index("--data_path") : argv.index("--data_path") + 2]
    more = [str(place / "mixed.json") if word == "DATA" else word for word in more]
    assert validate_data.main([*argv, *more]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_paddle_is_not_imported(place: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom paddlemix.tools.validate_data import main\n"
        "code = main(sys.argv[1:])\nprint('paddle' in sys.modules, code)\n"
    )
    argv = flags(place, [row("0.png"), row(None)], "--jobs", "2", folder=tmp_path)
    ran = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "False 0"


def test_two_looks_at_once_do_not_write_into_one_journal(place: Path, tmp_path: Path, capsys: Any) -> None:
    import fcntl

    argv = flags(place, [row(None)], folder=tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # the first look has not come to its end
        assert validate_data.main(argv) == 0
    with open(tmp_path / "progress.jsonl", "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert validate_data.main(argv) == 2
    assert "choose another --report" in capsys.readouterr().err


def test_the_summary_counts_rows_without_label_and_unread_keys_and_bad_rows_stand_in_order(place, tmp_path):
    rows = [row("0.png", "", imgs=3), row("nowhere.png"), row("1.png", imgs=1), {"conversations": []}, row("2.png", "")]
    assert validate_data.main(flags(place, rows, folder=tmp_path)) == 3
    data = json.loads((tmp_path / "summary.json").read_text())
    assert (data["rows"], data["bad_rows"], data["rows_without_label"]) == (5, 4, 2)
    assert data["unread_keys"] == {"imgs": 2}
    assert [one["record"] for one in read_lines(tmp_path / "bad_rows.jsonl")] == ["/0", "/1", "/3", "/4"]


def test_pairs_of_answers_are_said_to_be_counted_by_the_longer_one(place, tmp_path, capsys):
    pair = {"image": "0.png", "question": "what?", "chosen": "a red circle", "rejected": "a red circle and a square"}
    found = flags(place, [pair], "--loss_type", "sigmoid", "--per_device_train_batch_size", "1", folder=tmp_path)
    assert validate_data.main(found) == 0
    assert "of the two answers of a row the longer one is counted" in capsys.readouterr().out.replace("\n  ", " ")
    data = json.loads((tmp_path / "summary.json").read_text())
    assert data["cost"]["tokens_a_step"] == 2 * data["tokens"]
    assert list(data["cost"]["useful_share"]) == ["random", "group_by_length", "group_by_modality_length"], "no packs"


def test_an_image_that_was_repaired_after_a_look_is_looked_at_again(place, tmp_path):
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([row("0.png"), row("late.png")]))
    assert validate_data.main(flags(place, rows, folder=tmp_path / "report")) == 3
    Image.new("RGB", (20, 20)).save(place / "late.png")
    assert validate_data.main(flags(place, rows, folder=tmp_path / "report")) == 0


def test_a_file_of_which_no_row_can_be_used_is_told_with_the_reason_of_the_first(place, tmp_path, capsys):
    assert validate_data.main(flags(place, [{"text": "a"}, {"text": "b"}], folder=tmp_path)) == 2
    told = capsys.readouterr().err.replace("\n", " ")
    assert "no row can be used; the first one: " in told
    assert '/0: neither "conversations" nor "messages" is there' in told


def test_an_unknown_key_of_the_model_is_told_in_the_words_of_the_settings(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = shutil.copytree(Path(__file__).parents[1] / "data" / "onevision" / "onevision", tmp_path / "odd")
    config = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps(config | {"rope_twist": 1.5}))
    argv = flags(place, [row("0.png")], "--strict_config", "true", folder=tmp_path / "report")
    argv[argv.index("--model_name_or_path") + 1] = str(odd)
    assert validate_data.main(argv) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert '"rope_twist" (1.5) might change' in said
    assert 'load without "strict_config": true' in said
