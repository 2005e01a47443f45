# SPDX-License-Identifier: Apache-2.0
"""Runs that are killed, divided, finished already, or of somebody else: one answer file, byte for byte."""

import contextlib
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from paddlemix.eval import evaluate, running
from paddlemix.eval.__main__ import main
from paddlemix.eval.items import Item, Turn
from paddlemix.eval.running import Job, blocks_of
from paddlemix.utils.errors import ConfigError
from tests.eval.model_kit import EchoAsker, StopError, write_model, write_shapes


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model``, and ``shapes`` with a folder for each benchmark."""
    folder = tmp_path_factory.mktemp("eval run")
    write_model(folder)
    write_shapes(folder / "shapes")
    return folder


def run(home: Path, benchmark: str, output: Path, *flags: str) -> int:
    return main([benchmark, "--model-path", str(home / "model"), "--data", str(home / "shapes" / benchmark),
                 "--output", str(output), "--device", "cpu", "--max-new-tokens", "4", *flags])  # fmt: skip


def test_parts_and_kills_give_the_bytes_of_a_straight_run(home: Path, tmp_path: Path) -> None:
    """Killed after any batch, its journal cut anywhere, in 1 to 5 parts: one answer file."""
    items = [Item((Turn(number, f"{'?' * (number * 13 % 37)}"),)) for number in range(150)]
    draw = random.Random(5)

    def job(folder: Path, parts: int = 1, index: int = 0) -> Job:
        lines = evaluate.lines_of("tiny")
        return Job(items, folder / "answers.jsonl", {"seed": 1}, lines, 4, parts, index, {"metrics": []})

    straight = job(tmp_path / "straight")
    running.run(straight, EchoAsker(), name="x")
    wanted = straight.path.read_bytes()
    assert [json.loads(line)["question_id"] for line in wanted.splitlines()] == list(range(150))
    for parts in (1, 2, 3, 5):
        folder = tmp_path / str(parts)
        for index in draw.sample(range(parts), parts):
            part = job(folder, parts, index)
            while not part.own_path.exists():
                try:
                    running.run(part, EchoAsker(draw.randrange(1, 9)), name="x")
                except StopError:
                    data = part.journal.read_bytes()
                    part.journal.write_bytes(data[: len(data) - draw.choice((0, 1, 50, 700))])
            assert not part.journal.exists()
        assert running.merge(folder / "answers.jsonl", parts) or parts == 1
        assert (folder / "answers.jsonl").read_bytes() == wanted
        if parts > 1:
            own = [folder / f"{parts}_{index}.jsonl" for index in range(parts)]
            assert b"".join(path.read_bytes() for path in own) == wanted, "as LLaVA's scripts join parts"


def test_a_model_in_parts_writes_the_bytes_of_one_run_and_the_last_part_scores(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--batch-size", "2")
    assert run(home, "pope", tmp_path / "one", *flags) == 0
    for index in (2, 0, 1):
        assert run(home, "pope", tmp_path / "three", "--num-chunks", "3", "--chunk-idx", str(index), *flags) == 0
        said = capsys.readouterr()
        assert ("the other parts are not there yet" in said.err) == (index != 1)
    for name in ("answers.jsonl",):
        assert (tmp_path / "three" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    score = [json.loads((tmp_path / run_in / "score.json").read_text()) for run_in in ("one", "three")]
    assert score[0]["metrics"] == score[1]["metrics"]
    (tmp_path / "three" / "answers.jsonl").unlink()
    assert main(["merge", str(tmp_path / "three")]) == 0
    assert (tmp_path / "three" / "answers.jsonl").read_bytes() == (tmp_path / "one" / "answers.jsonl").read_bytes()
    (tmp_path / "three" / "answers.jsonl").unlink()
    (tmp_path / "three" / "3_1.jsonl").write_text("{}\n")
    capsys.readouterr()
    assert main(["merge", str(tmp_path / "three")]) == 2
    error = capsys.readouterr().err
    assert "3_1.jsonl: has been changed" in error
    assert "run this part again with --num-chunks 3 --chunk-idx 1 --restart" in error
    assert "--output" not in error, "merge has none"
    (tmp_path / "three" / "3_1.jsonl").unlink()
    assert main(["merge", str(tmp_path / "three")]) == 2
    assert "3_1.jsonl of 3 parts not there" in capsys.readouterr().err


def test_parts_without_questions_are_no_error(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """More devices than batches: six questions in batches of two, in five parts."""
    flags = ("--batch-size", "2")
    assert run(home, "mmbench", tmp_path / "one", *flags) == 0
    for index in (4, 3, 2, 1, 0):
        assert run(home, "mmbench", tmp_path / "five", "--num-chunks", "5", "--chunk-idx", str(index), *flags) == 0
        if index == 4:
            assert "0 answers, 0 failed" in capsys.readouterr().out
    name = "answers.jsonl"
    assert (tmp_path / "five" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_questions_of_like_length_share_a_batch_and_every_device_has_blocks(tmp_path: Path) -> None:
    items = [Item((Turn(number, "?" * (number * 37 % 50)),)) for number in range(800)]
    asker = EchoAsker()
    asker.length = lambda item: len(item.turns[0].text)  # type: ignore[method-assign]
    running.run(Job(items, tmp_path / "a.jsonl", {}, evaluate.lines_of("m"), 5), asker, name="x")
    spread = [max(lengths) - min(lengths) for batch in asker.batches
              if (lengths := [int(key) * 37 % 50 for key in batch])]  # fmt: skip
    assert sum(spread) / len(spread) < 10, "of 50 lengths, at random it is about 33"
    for count in (9, 100, 1000, 100_000):
        blocks = blocks_of(count, 8)
        assert [place for block in blocks for place in block] == list(range(count))
        assert len(blocks) >= min(16, -(-count // 8))


def test_a_finished_run_is_scored_again_without_a_model_and_another_one_is_refused(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(home, "gqa", tmp_path) == 0
    first = (tmp_path / "score.json").read_bytes()
    (tmp_path / "score.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(evaluate.Model, "open", None)
        assert run(home, "gqa", tmp_path) == 0
    assert (tmp_path / "score.json").read_bytes() == first
    capsys.readouterr()
    assert run(home, "gqa", tmp_path, "--conv-mode", "llava_v1") == 2
    assert "answers are of a run with no conv_mode, this one has conv_mode" in " ".join(capsys.readouterr().err.split())
    assert run(home, "gqa", tmp_path, "--conv-mode", "llava_v1", "--restart") == 0
    with open(tmp_path / "answers.jsonl", "a") as stream:
        stream.write("\n")
    assert run(home, "gqa", tmp_path, "--conv-mode", "llava_v1") == 2
    assert "has been changed since its run ended" in capsys.readouterr().err
    (tmp_path / "answers.jsonl.run.json").unlink()
    assert run(home, "gqa", tmp_path) == 2
    assert "no run of this command made it" in capsys.readouterr().err


def test_parts_that_cannot_be_joined_are_named(tmp_path: Path) -> None:
    for name in ("2_0.jsonl", "3_1.jsonl"):
        (tmp_path / name).write_text("")
    with pytest.raises(ConfigError, match="parts of runs in 2 and 3 parts"):
        running.parts_there(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_process_that_is_killed_at_any_time_goes_on_to_the_same_bytes(home: Path, tmp_path: Path) -> None:
    """SIGKILL after a random time, in one process and in two parts."""
    write_shapes(tmp_path / "shapes", 40, ("pope",))
    draw = random.Random(7)
    command = [sys.executable, "-m", "paddlemix.eval", "pope", "--model-path", str(home / "model"), "--data",
               str(tmp_path / "shapes" / "pope"), "--device", "cpu", "--max-new-tokens", "16",
               "--batch-size", "2"]  # fmt: skip

    def finished(*flags: str, kills: int) -> int:
        for _ in range(kills):
            process = subprocess.Popen([*command, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(3 + draw.random() * 4)
            process.kill()
            process.wait()
        return subprocess.run([*command, *flags], capture_output=True, check=False).returncode

    assert finished("--output", str(tmp_path / "straight"), kills=0) == 0
    assert finished("--output", str(tmp_path / "killed"), kills=4) == 0
    for index in ("1", "0"):
        parts = ("--output", str(tmp_path / "parts"), "--num-chunks", "2", "--chunk-idx", index)
        assert finished(*parts, kills=2) == 0
    wanted = (tmp_path / "straight" / "answers.jsonl").read_bytes()
    for name in ("killed", "parts"):
        assert (tmp_path / name / "answers.jsonl").read_bytes() == wanted


@pytest.mark.parametrize("spoilt", ["item", "said", "form"])
def test_records_of_a_journal_that_are_not_those_of_its_questions_are_made_again(spoilt: str, tmp_path: Path) -> None:
    items = [Item((Turn(number, "?" * (number % 5)),)) for number in range(20)]
    straight, killed = (
        Job(items, tmp_path / name / "answers.jsonl", {"seed": 1}, evaluate.lines_of("m"), 4) for name in ("a", "b")
    )
    running.run(straight, EchoAsker(), name="x")
    with pytest.raises(StopError):
        running.run(killed, EchoAsker(3), name="x")
    first, *batches = killed.journal.read_text().splitlines()
    spoiled = json.loads(batches[1])
    record = spoiled["records"][0]
    record |= {"item": {"item": 19}, "said": {"said": []}, "form": {"said": [["text", 5, ""]]}}[spoilt]
    killed.journal.write_text("\n".join([first, batches[0], json.dumps(spoiled), batches[2]]) + "\n")
    asker = EchoAsker()
    running.run(killed, asker, name="x")
    assert len(asker.batches) == 4, "the batches behind it, too"
    assert killed.path.read_bytes() == straight.path.read_bytes()
