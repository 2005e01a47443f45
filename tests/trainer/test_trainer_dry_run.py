# SPDX-License-Identifier: Apache-2.0
"""``dry_run``: what is said before a run is what the run then does, and nothing is read or written for it."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddlemix.datasets.preprocess import Encoded
from paddlemix.imaging.layout import Layout
from paddlemix.settings.run.loader import load_settings
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.trainer import dry_run
from paddlemix.trainer.preparation import open_start
from paddlemix.trainer.run import TrainingRun, finetune
from paddlemix.utils.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from tests.tiny import tiny_tokenizer_folder
from tests.trainer.run_kit import arguments

STAGES: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora": "true", "lora_rank": 3},
    "some layers": {"lora": "true", "lora_target_modules": '["q_proj", ".*vision_tower.*fc1"]'},
    "dora": {"lora": "true", "lora_rank": 3, "use_dora": "true", "modules_to_save": '["embed_tokens"]'},
    "pissa": {"lora": "true", "pissa": "true", "lora_target_modules": '["all-linear", "mm_projector.0"]'},
    "projector": {"tune_mm_mlp_adapter": "true", "template": "plain"},
    "tower": {"tune_entire_model": "true", "vision_tower_lr": 1e-5},
    "frozen": {"freeze_include": '["llama.embed_tokens.*", "lm_head.*"]'},
}


@pytest.mark.parametrize("stage", STAGES)
def test_the_table_is_that_of_the_model_which_then_trains(place: Path, tmp_path: Path, stage: str) -> None:
    settings = load_settings(arguments(place, tmp_path / "out", max_steps=1, **STAGES[stage]))
    said = list(dry_run._parts(open_start(settings), settings))
    run = TrainingRun(settings, tmp_path / "out", None)
    (tmp_path / "out").mkdir()
    run.set_up()
    assert said == list(run.plan.parts)


def test_a_projector_that_is_drawn_anew_is_counted(place: Path, tmp_path: Path) -> None:
    known = load_settings(arguments(place, tmp_path / "out"))
    kinds = [part for part in dry_run._parts(open_start(known), known) if part.name == "projector"]
    drawn = known.with_changes(vision_tower=str(place / "model"))
    found = [part for part in dry_run._parts(open_start(drawn), drawn) if part.name == "projector"]
    assert [(part.total, part.trainable) for part in found] == [(part.total, part.trainable) for part in kinds]


def test_a_dry_run_imports_no_paddle_writes_nothing_and_says_steps_and_batches(place: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom paddlemix.tools.supervised_finetune import main\n"
        "code = main(sys.argv[1:])\nprint('paddle' in sys.modules, code)\n"
    )
    keys = {"gradient_accumulation_steps": 2, "num_train_epochs": 3, "on_bad_sample": "skip", "skip_limit": 0.5}
    rows = [*arguments(place, tmp_path / "out", dry_run="true", **keys)]
    ran = subprocess.run([sys.executable, "-c", code, *rows], capture_output=True, text=True, check=True)
    text = ran.stdout
    assert text.splitlines()[-1] == "False 0"
    assert "6 rows, 2 of them x 2 micro-batches x 1 process in a step: 6 steps, 2 an epoch" in text
    assert re.search(r"learnt \| .*</s>", text)
    assert re.search(r"masked \| <s>A chat", text)
    assert "visual | <image> x 4" in text
    said = " ".join(text.split())
    assert re.search(
        r"memory of a device, about: [\d.]+ MB \(weights [\d.]+ MB, [^)]*\), for the longest batch",
        said,
    )
    assert "on a CPU Python, paddle and the data take about 0.45 GB beside it" in said
    assert not list(tmp_path.iterdir())
    assert re.search(r"longest batch: (the first one|2 rows of \d+, \d+)", text)
    done = finetune(load_settings(arguments(place, tmp_path / "real", **keys)))
    assert done.steps == 6


def test_the_longest_batch_is_shown_when_it_is_not_the_first(place: Path, tmp_path: Path, capsys: Any) -> None:
    rows = json.loads((place / "train.json").read_text(encoding="utf-8"))
    for row in rows[1:]:
        row["conversations"][1]["value"] = "red"
    rows[0]["conversations"][1]["value"] = "red square blue circle " * 6
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    for seed in range(8):  # the long row in the first batch, and behind it
        keys = {"data_path": tmp_path / "rows.json", "dry_run": "true", "seed": seed}
        finetune(load_settings(arguments(place, tmp_path / "out", **keys)))
        head, tail = capsys.readouterr().out.split("longest batch: ")
        shown = "blue circle red square blue circle"
        assert (shown in head) == tail.startswith("the first one")
        assert (shown in tail) != (shown in head)


@pytest.mark.parametrize("command", ["tools/supervised_finetune.py", "examples/llava/pretrain.py"])
def test_a_person_sees_the_label_mask_in_colour_and_a_file_gets_plain_text(
    place: Path, tmp_path: Path, command: str
) -> None:
    shutil.copytree(place / "model", tmp_path / "model")
    (weights,) = (tmp_path / "model").glob("*.safetensors")
    stored = weights.read_bytes()
    start = 8 + int.from_bytes(stored[:8], "little")
    weights.write_bytes(stored[:start] + b"\xff" * (len(stored) - start))  # no number of the model can be used
    keys = {"model_name_or_path": tmp_path / "model", "dry_run": "true"}
    script = Path(dry_run.__file__).parents[1] / command
    asked = [sys.executable, str(script), *arguments(place, tmp_path / "out", **keys)]
    plain = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert plain.returncode == 0, plain.stderr
    assert "\x1b" not in plain.stdout
    assert "What trains (" in plain.stdout
    assert re.search(r"^ +learnt \| red square", plain.stdout, re.MULTILINE)
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        asked, stdout=theirs, stderr=theirs, stdin=theirs, env={**os.environ, "TERM": "xterm"}
    ) as ran:
        os.close(theirs)
        seen = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # Linux tells the end of a terminal so
                break
            if not part:
                break
            seen += part
    os.close(ours)
    assert ran.returncode == 0
    assert re.search(rb"\x1b\[1;32mred square", seen)  # learnt: green
    assert re.search(rb"\x1b\[2m<s>", seen)  # masked: dim
    assert re.search(rb"\x1b\[36m<image> x 4", seen)
    assert not (tmp_path / "out").exists()


def test_the_spans_of_a_row_are_its_labels(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_tokenizer_folder())
    words = tokenizer.encode("a red circle", bos=True)
    ids = np.array([*words, IMAGE_TOKEN_INDEX, *words[1:], *words[1:]])
    labels = np.full(len(ids), IGNORE_INDEX)
    labels[0] = ids[0]  # nothing predicts the first token
    labels[-len(words) + 1 :] = ids[-len(words) + 1 :]
    row = Encoded(ids, labels, None, (Layout(1, np.arange(9)),), len(ids) + 8)
    found = list(dry_run.spans(row, tokenizer))
    assert [kind for kind, _ in found] == ["masked", "visual", "masked", "learnt"]
    assert found[0][1] == "<s>a red circle"
    assert found[1][1] == "<image> x 9"
    assert found[3][1] == "a red circle"
