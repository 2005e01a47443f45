# SPDX-License-Identifier: Apache-2.0
"""Streams that cannot be written, files that the system refuses, variables and homes of no use: a sentence each."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from paddlemix.utils import env, home
from paddlemix.utils.entry_point import run_command
from paddlemix.utils.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SAYS = "from paddlemix.utils.entry_point import run_command; import sys; sys.exit(run_command(lambda argv: {}, []))"


def run(body: str, redirect: str = "", **variables: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command whose work is ``body``, in a shell with redirections."""
    script = f'exec "{sys.executable}" -c "$CODE" {redirect}'
    done = subprocess.run(
        ["sh", "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "CODE": SAYS.format(body), **variables},
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("body", ['print("x" * 10)', 'print("x" * 100_000)', 'print("x", flush=True)'])
def test_an_output_that_takes_nothing_is_told_in_a_sentence(body):
    code, _, errors = run(body, ">/dev/full")
    assert (code, errors) == (
        1, "error: the standard output cannot be written (No space left on device); send it somewhere else\n"
    )  # fmt: skip


def test_an_error_output_that_takes_nothing_ends_the_command_without_a_traceback():
    code, said, errors = run('sys.stderr.write("x")', "2>/dev/full")
    assert (code, said.strip(), errors) == (1, "", "")


@pytest.mark.parametrize("redirect", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams_do_not_stop_a_command(redirect):
    code, _, errors = run('print("x") or sys.stderr.write("y") and 0', redirect)
    assert code == 0
    assert "Traceback" not in errors


def test_a_reader_that_goes_away_is_no_error():
    code, said, errors = run('print("x\\n" * 100_000)', "| head -n 1")
    assert (code, said, errors) == (0, "x\n", "")


def test_a_question_is_read_as_utf8_whatever_the_locale():
    code = "import sys; from paddlemix.generation.terminal import asked; print(ascii(asked(sys.argv[1])))"
    variables = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT)}
    for text, wanted in (("f\u00fcr \u56fe".encode(), "f\u00fcr \u56fe"), (b"a\xffb", "a\ufffdb")):
        done = subprocess.run([sys.executable, "-c", code, text], env=variables, capture_output=True, timeout=60)
        assert done.stdout.decode().strip() == ascii(wanted), done.stderr


@pytest.mark.parametrize("name", ["x" * 300, "absent", "/proc/absent/x"])
def test_a_file_that_the_system_refuses_is_told_with_its_name(name, capsys):
    assert run_command(lambda argv: open(name).close(), []) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {name[:100]}")
    assert told.endswith("; check the path and its permissions\n")
    assert told.count("\n") == 1


def test_a_current_folder_that_is_gone_is_told(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert run_command(lambda argv: Path("model").absolute() and 0, []) == 2
    assert capsys.readouterr().err == "error: the current folder is gone; change to another one\n"


def test_an_error_of_the_system_that_names_nothing_keeps_its_traceback():
    def work(argv):
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        run_command(work, [])
    with pytest.raises(FileNotFoundError):
        run_command(lambda argv: Path("absent").read_bytes(), ["--debug"])


@pytest.mark.parametrize("value", ["x", "", "-1", "1.5", "\u0661", "1 ", "9" * 20, "9" * 5000])
@pytest.mark.parametrize("name", ["PADDLE_TRAINER_ID", "PADDLE_TRAINERS_NUM", "PADDLE_NNODES"])
def test_a_number_of_the_launcher_that_is_none_is_told_before_paddle_reads_it(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f'{name}="{value[:150]}.*": expected a whole number'):
        env.check_all()
    monkeypatch.setenv(name, "1")
    env.check_all()


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"NUM": "2"}, "PADDLE_TRAINER_ID is not set"),
        ({"NUM": "2", "ID": "1"}, "PADDLE_CURRENT_ENDPOINT is not set"),
        ({"NUM": "2", "ID": "2", "HERE": "127.0.0.1:1"}, 'PADDLE_TRAINER_ID is "2"'),
    ],
)
def test_processes_that_no_launcher_has_started_are_told_before_a_training(monkeypatch, variables, why):
    names = {"NUM": "PADDLE_TRAINERS_NUM", "ID": "PADDLE_TRAINER_ID", "HERE": "PADDLE_CURRENT_ENDPOINT"}
    for key, name in names.items():
        monkeypatch.setenv(name, variables.get(key, ""))
    with pytest.raises(ConfigError, match="start the processes with python -m paddle.distributed.launch") as caught:
        env.check_launch()
    assert why in str(caught.value)
    monkeypatch.setenv("PADDLE_TRAINER_ID", "0")
    monkeypatch.setenv("PADDLE_CURRENT_ENDPOINT", "127.0.0.1:1")
    env.check_launch()
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "1")
    env.check_launch()


def test_a_home_that_cannot_be_written_gives_way_and_what_lies_in_it_is_still_found(monkeypatch, capsys):
    for name in ("PPMIX_HOME", "HF_HOME", "MODELSCOPE_CACHE"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/proc")
    assert home.make_usable()
    assert "the home folder /proc cannot be written" in " ".join(capsys.readouterr().err.split())
    assert os.access(os.environ["HOME"], os.W_OK)
    assert env.get("PPMIX_HOME") == "/proc/.paddlemix"
    assert not home.make_usable()
    home._remove(os.environ["HOME"], os.getpid() + 1)
    assert Path(os.environ["HOME"]).is_dir()
    home._remove(os.environ["HOME"], os.getpid())
    assert not Path(os.environ["HOME"]).exists()


def test_a_home_that_can_be_written_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not home.make_usable()
    assert os.environ["HOME"] == str(tmp_path)
