# SPDX-License-Identifier: Apache-2.0
"""train.sh starts a real run of two processes on the CPU, as its header says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from paddlemix.checkpoint.save import save_model
from paddlemix.text.tokenizer import load_tokenizer
from tests.environments import environment
from tests.tiny import tiny_model, tiny_tokenizer_folder, write_rows

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "paddlemix" / "tools" / "train.sh"


def start(folder: Path, python: Path | str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    variables = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "PYTHON": str(python), **variables}
    return subprocess.run(
        ["sh", str(SCRIPT), *words],
        cwd=folder, capture_output=True, text=True, timeout=240, env={**variables, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, rows, and the settings of two steps."""
    folder = tmp_path_factory.mktemp("launch")
    model = tiny_model()
    save_model(folder / "model", model, model.config, load_tokenizer(tiny_tokenizer_folder()))
    write_rows(folder)
    settings = {
        "model_name_or_path": "model", "data_path": "train.json", "image_folder": ".", "output_dir": "out",
        "do_train": True, "device": "cpu", "max_steps": 2, "logging_steps": 1, "save_strategy": "no", "lora": True,
        "per_device_train_batch_size": 1, "learning_rate": 1e-3,
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.dist
@pytest.mark.timeout(300)
@pytest.mark.parametrize("backend", ["gloo", pytest.param("", marks=pytest.mark.slow)])
def test_two_processes_train_two_steps_on_the_cpu(place: Path, backend: str) -> None:
    output = f"out-{backend}"
    logs = place / f"logs-{backend}"
    given = {"NPROC": "2", "BACKEND": backend, "LOG_DIR": str(logs)}
    done = start(place, sys.executable, "settings.json", "--output_dir", output, **given)
    told = [file.read_text() for file in sorted(logs.glob("workerlog.*"))]
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:] + "\n".join(told)[-3000:]
    assert len(told) == 2
    state = json.loads((place / output / "trainer_state.json").read_text())
    assert state["global_step"] == 2
    assert state["log_history"][0]["loss"] > 0
    assert "step: 2/2" in told[0]
    assert "step: 2/2" not in told[1], "one process speaks"
    assert [file.name for file in sorted((place / output).glob("*.log"))] == ["train.log", "train.rank1.log"]


def test_without_paddle_the_launch_says_what_to_type(place: Path, tmp_path: Path) -> None:
    done = start(place, environment(tmp_path / "venv"), "settings.json", NPROC="2")
    assert done.returncode == 2
    assert "is not installed for" in done.stderr
    assert done.stderr.rstrip().endswith(f"-e '{ROOT}[cpu]'")


@pytest.mark.dist
@pytest.mark.timeout(300)
def test_what_the_second_process_alone_finds_is_said_where_the_run_was_started(place: Path) -> None:
    rows = json.loads((place / "train.json").read_text())
    pictured = [row for row in rows if "image" in row]
    pictured[1] = {**pictured[1], "image": "gone.png"}  # the files are shared in turn: the second one is rank 1's
    (place / "gone.json").write_text(json.dumps(pictured))
    given = {"NPROC": "2", "BACKEND": "gloo", "LOG_DIR": str(place / "logs-gone")}
    done = start(place, sys.executable, "settings.json", "--data_path", "gone.json", "--output_dir", "o", **given)
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert re.search(r"error: rank 1: gone\.json: /1.*gone\.png: no such image file", said), said[-3000:]
    assert not (place / "o").exists(), "nothing is left of a run that did not begin"
