# SPDX-License-Identifier: Apache-2.0
"""Every command in an environment that lacks what it needs: one line that says what to type, and no traceback."""

import shlex
import subprocess
from pathlib import Path

import pytest

from paddlemix.utils.commands import COMMANDS
from tests.environments import borrowed, environment
from tests.tiny import write_rows

ROOT = Path(__file__).resolve().parent.parent
MODEL = "tests/data/golden/llava/hub/liuhaotian/llava-v1.5-tiny"
ARGUMENTS = {
    "chat": ["--model-path", "model"],
    "multiview": ["--model-path", "model", "--image-file", "a.png"],
    "sft": ["paddlemix/config/llava/v1_5/lora_sft_argument.json", "--model_name_or_path", MODEL],
    "preference_tune": ["paddlemix/config/llava/v1_5/dpo_argument.json", "--model_name_or_path", MODEL],
    "validate": ["paddlemix/config/llava/v1_5/lora_sft_argument.json", "--model_name_or_path", MODEL],
    "pretrain": ["paddlemix/config/llava/pretrain.json", "--model_name_or_path", "paddlemix/config"],
    "merge": ["--lora_path", "adapter"],
    "convert": ["--src", "model", "--dst", "new", "--to", "own"],
    "eval": ["list"],
    "predict": ["--model-path", "model", "--data", "tests", "--output", "out.jsonl"],
    "serve": ["--model-path", "model"],
    "page": ["--model-path", "model"],
    "doctor": [],
    "demo": [],
}
"""What brings each command to its first import of a package."""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with the standard library alone."""
    return environment(tmp_path_factory.mktemp("bare") / "venv")


@pytest.fixture(scope="module")
def without_paddle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with every package of this one but paddle and paddlenlp."""
    home = tmp_path_factory.mktemp("no_paddle")
    packages = borrowed(home / "packages", lambda name: not name.startswith(("paddle", "pip")))
    return environment(home / "venv", packages)


def said(python: Path, *words: str) -> tuple[int, str]:
    """Exit code and everything that a command says, in the checkout; nothing may be downloaded."""
    done = subprocess.run(
        [str(python), *words],
        cwd=ROOT, capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL,
        env={"PATH": "/usr/bin:/bin", "PADDLEMIX_HUB": "off"},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def install_line(python: Path) -> str:
    return f"uv pip install --python {python} -e '.[cpu]'"


@pytest.mark.parametrize("verb", [verb for verb in COMMANDS if verb != "doctor"])
def test_a_command_without_packages_is_one_line_with_what_to_type(bare: Path, verb: str) -> None:
    by_path = ["-m", "paddlemix.demo.multiview"] if verb == "demo" else [str(COMMANDS[verb].script)]
    for start in (by_path, ["-m", "paddlemix", verb]):
        code, text = said(bare, *start, *ARGUMENTS[verb])
        assert code == 2, text
        assert text.count("\n") == 1, text
        assert text.endswith(f"{install_line(bare)}\n")
        assert f"is not installed for {bare}" in text


@pytest.mark.parametrize("python", ["bare", "without_paddle"])
def test_the_doctor_without_packages_marks_it_and_says_what_to_type(
    python: str, request: pytest.FixtureRequest
) -> None:
    found = request.getfixturevalue(python)
    code, text = said(found, "-m", "paddlemix", "doctor")
    assert code == 1
    assert "Traceback" not in text
    assert install_line(found) in [line.strip() for line in text.splitlines()], "in one piece, to be copied"


@pytest.mark.parametrize("verb", ["chat", "multiview", "sft"])
def test_a_command_without_paddle_says_so_in_one_line(without_paddle: Path, verb: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    write_rows(data)
    files = ["--image-file", str(data / "0.png")] if verb in ("chat", "multiview") else []
    rows = ["--data_path", str(data / "train.json"), "--image_folder", str(data)]
    files += [*rows, "--output_dir", str(tmp_path / "out")] if verb == "sft" else []
    code, text = said(without_paddle, "-m", "paddlemix", verb, *ARGUMENTS[verb], *files)
    assert code == 2, text
    assert text.splitlines()[-1].endswith(install_line(without_paddle))
    assert "Traceback" not in text


def test_the_line_is_for_a_shell(bare: Path) -> None:
    assert shlex.split(install_line(bare))[-2:] == ["-e", ".[cpu]"]
