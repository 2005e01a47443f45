# SPDX-License-Identifier: Apache-2.0
"""What the README says is run: its commands as they stand, in a fresh environment, with a tiny model."""

import importlib
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import setuptools

from paddlemix.settings.run.loader import load_settings
from paddlemix.utils.commands import COMMANDS
from tests.environments import PACKAGES, add_program, environment

ROOT = Path(__file__).resolve().parent.parent
READMES = ("README.md", "README_zh.md")
PAGES = (
    "CONTRIBUTING.md",
    "examples/README.md",
    "deploy/README.md",
    "deploy/npu/README.md",
    "paddlemix/tools/README.md",
)
TOWER = "openai/clip-vit-tiny-patch14-56"
MODEL = "liuhaotian/llava-v1.5-tiny"
"""Folders of the golden data's hub that stand in for what the demo trains and what a name leads to."""


def commands(text: str) -> list[str]:
    """Lines of the bash blocks, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.S)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


FOLDERS = ("paddlemix", "tools", "config", "examples", "deploy")
FILES = ("Makefile", "setup.py", "pyproject.toml", "README.md")


@pytest.fixture(params=["borrowed", pytest.param("installed", marks=pytest.mark.slow)])
def checkout(
    request: pytest.FixtureRequest, tmp_path: Path, golden_llava: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A checkout after ``make demo``, with a tiny model in place of the demo's.

    ``borrowed`` has a fresh environment in ``.venv`` with the packages of this one; in ``installed`` there is none
    yet, so that ``make venv`` downloads and installs everything, for the interpreter that the variable PYTHON names.
    """
    place = tmp_path / "checkout"
    place.mkdir()
    if request.param == "borrowed":
        for name in (*FOLDERS, *FILES):
            (place / name).symlink_to(ROOT / name)
        borrow_environment(place, monkeypatch)
    else:
        for name in FOLDERS:
            shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in FILES:
            shutil.copy(ROOT / name, place / name)
    for name in ("model", "merged"):
        shutil.copytree(golden_llava / "hub" / MODEL, place / "demo_out" / name)
    shutil.copytree(golden_llava / "hub" / TOWER, tmp_path / "home" / "models" / TOWER)
    return place


def borrow_environment(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``.venv`` as an installation of the checkout would leave it, in a second."""
    python = environment(place / ".venv", place, PACKAGES)
    given: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    runpy.run_path(str(ROOT / "setup.py"))
    for line in given["entry_points"]["console_scripts"]:
        name, _, target = line.partition(" = ")
        add_program(python, name, target)
    (place / ".venv" / ".installed").touch()  # newer than setup.py, so make has nothing to install


def run(command: str, place: Path, said: str = "") -> subprocess.CompletedProcess[str]:
    """A shell command in the checkout, as in a new terminal; nothing may be downloaded."""
    settings = {"PPMIX_HOME": str(place.parent / "home"), "OMP_NUM_THREADS": "1", "PADDLEMIX_HUB": "off"}
    settings |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    settings |= {"PYTHON": os.environ.get("PYTHON", sys.executable), "HOME": os.environ["HOME"], "LANG": "C.UTF-8"}
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=place,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", **settings},
        input=said,
        capture_output=True,
        text=True,
        timeout=1700,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


@pytest.mark.timeout(1800)
def test_readme_commands_run_in_order_in_a_fresh_environment(checkout: Path) -> None:
    """Environment, chat, LoRA training, chat with the adapter, merge: as printed in the README, one after the other."""
    lines = commands((ROOT / "README.md").read_text(encoding="utf-8"))
    assert lines[:2] == ["make demo", "make test"], "they take minutes, and are tested by themselves"
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
    assert {"demo", "test"} <= set(targets)
    before, chats, hints = "", [], []
    for line in lines[2:]:
        if line.startswith(". "):
            before += f"{line} && "
            continue
        done = run(before + line, checkout, "What colour is the shape?\n\n")
        chats += [done] if line.startswith("paddlemix chat") else []
        hints += [text.strip() for text in done.stdout.splitlines() if text.startswith("  paddlemix chat ")]
    assert len(chats) == 2
    assert all(done.stdout.strip() for done in chats)
    assert [hint.replace(" --image-file IMAGE", "") for hint in hints] == [
        "paddlemix chat --model-path outputs/lora",
        "paddlemix chat --model-path outputs/merged",
    ]
    assert run(f"{before} {hints[-1]} --max-new-tokens 4", checkout, "What colour is the shape?\n").stdout.strip()


def test_the_walkthrough_names_flags_and_files_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command of examples/README.md is taken by its parser or the settings; what it reads is there."""
    monkeypatch.chdir(ROOT)
    lines = commands((ROOT / "examples" / "README.md").read_text(encoding="utf-8"))
    calls = [shlex.split(line.rpartition("| ")[2]) for line in lines]
    verbs = [words[1] for words in calls if words[0] == "paddlemix"]
    assert {"chat", "sft", "merge", "convert", "doctor"} <= set(verbs)
    for words in calls:
        read = [word for word in words if word.startswith(("examples/", "paddlemix/"))]
        assert all((ROOT / word).exists() for word in read), words
        if words[0] == "paddlemix":
            module = importlib.import_module(COMMANDS[words[1]].module)
            (module.parser().parse_args if hasattr(module, "parser") else load_settings)(words[2:])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("checkout", ["borrowed"], indirect=True)
def test_the_walkthrough_runs_in_order(checkout: Path) -> None:
    """The commands of examples/README.md, with what each of them has to leave."""
    before, said = "", {}
    for line in commands((ROOT / "examples" / "README.md").read_text(encoding="utf-8")):
        if line.startswith(". "):
            before += f"{line} && "
        else:
            said[line] = run(before + line, checkout).stdout
    piped = next(text for line, text in said.items() if line.startswith("printf"))
    assert len(piped.splitlines()) >= 2
    second = [text for line, text in said.items() if line.startswith("paddlemix sft")][1]
    assert "going on from" in second
    for name in ("example-merged", "example-original", "example-hf"):
        assert (checkout / "outputs" / name / "config.json").is_file()


def test_both_readmes_show_the_same_commands() -> None:
    """The Chinese page is a translation: its commands are those of the English one."""
    english, chinese = (
        [line.split("  ")[0] for line in commands((ROOT / name).read_text(encoding="utf-8"))] for name in READMES
    )
    assert english == chinese


@pytest.mark.parametrize(
    "readme", [*READMES, *PAGES, *(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))]
)
def test_every_link_leads_to_a_file(readme: str) -> None:
    """No dead relative links."""
    text = (ROOT / readme).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)", text)
    dead = [link for link in links if "://" not in link and not ((ROOT / readme).parent / link).exists()]
    assert not dead


def test_the_files_that_the_readme_names_in_code_exist() -> None:
    """Every `paddlemix/...` and `tools/...` path that is shown in the READMEs is there."""
    for readme in READMES:
        shown = re.findall(
            r"\b((?:paddlemix|tools|config|deploy)/[\w./-]+\.(?:py|json|sh|md))",
            (ROOT / readme).read_text(encoding="utf-8"),
        )
        missing = sorted({path for path in shown if not (ROOT / path).is_file()})
        assert not missing, (readme, missing)


def test_the_rows_of_the_readme_are_valid_json() -> None:
    """The sample rows can be pasted into a file."""
    for readme in READMES:
        block = re.search(r"```json\n(.*?)```", (ROOT / readme).read_text(encoding="utf-8"), flags=re.S)
        assert json.loads(block.group(1))[0]["conversations"][0]["from"] == "human"
