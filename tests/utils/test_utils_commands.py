# SPDX-License-Identifier: Apache-2.0
"""Commands by name: the table, the one program, and command lines that run where their reader stands."""

import importlib
import shlex
import sys
from pathlib import Path

import pytest

from paddlemix import __main__ as program
from paddlemix.utils import commands


def scripts(folder: Path, *names: str) -> Path:
    """A folder of executables, as ``bin`` of an environment is one."""
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize("verb", list(commands.COMMANDS))
def test_every_command_has_a_main_and_a_script_of_its_own(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["somewhere/paddlemix"])
    command = commands.COMMANDS[verb]
    assert command.script.is_file()
    assert callable(importlib.import_module(command.module).main)
    assert f"  {verb} " in program.help_text()
    with pytest.raises(SystemExit) as ended:
        program.main([verb, "--help"])
    assert ended.value.code == 0
    help_text = capsys.readouterr().out
    assert "python paddlemix" not in help_text
    assert help_text.startswith(f"usage: paddlemix {verb} ")


def test_a_verb_that_is_not_known_is_exit_code_2_and_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["chatt"]) == 2
    assert 'unknown command "chatt", did you mean "chat"?' in capsys.readouterr().err
    for verb, own in (("finetune", "sft"), ("fine-tune", "sft"), ("train", "sft"), ("infer", "chat")):
        assert program.main([verb, "--x"]) == 2
        assert f'unknown command "{verb}", did you mean "{own}"?' in capsys.readouterr().err
    assert set(program.SYNONYMS.values()) <= set(commands.COMMANDS)
    assert not set(program.SYNONYMS) & set(commands.COMMANDS)
    assert program.main([]) == 2
    assert program.main(["--help"]) == 0


def test_a_shown_command_is_the_program_of_the_running_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = scripts(tmp_path / "venv" / "bin", "python", "paddlemix")
    other = scripts(tmp_path / "other", "paddlemix")
    monkeypatch.setattr(sys, "executable", str(home / "python"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{home}:{other}")
    assert commands.shown("chat", "--model-path", tmp_path / "a b") == "paddlemix chat --model-path 'a b'"
    monkeypatch.setenv("PATH", f"{other}:{home}")
    assert commands.shown("sft", Path("x.json"), 3) == "venv/bin/paddlemix sft x.json 3"
    monkeypatch.chdir(other)
    assert commands.shown("merge", tmp_path / "a") == shlex.join([f"{home}/paddlemix", "merge", f"{tmp_path}/a"])


def test_without_the_program_a_shown_command_is_the_interpreter_and_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = scripts(tmp_path / "bin", "python3")
    monkeypatch.setattr(sys, "executable", str(home / "python3"))
    script = commands.COMMANDS["chat"].script
    monkeypatch.chdir(commands.ROOT)
    monkeypatch.setenv("PATH", str(home))
    assert commands.shown("chat") == f"python3 {script.relative_to(commands.ROOT)}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    assert commands.shown("chat") == shlex.join(["bin/python3", str(script)])
