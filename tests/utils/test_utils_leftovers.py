# SPDX-License-Identifier: Apache-2.0
"""What a killed writer leaves behind goes with the next run; what a living one holds stays."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from paddlemix.utils import files, leftovers
from paddlemix.utils.errors import TrainingError

WRITER = """
import sys, time
from pathlib import Path
from paddlemix.utils import files
with files.publish_folder(Path(sys.argv[1]), replace=True) as staging:
    (staging / "half").write_bytes(b"x" * 1000)
    print("begun", flush=True)
    time.sleep(60)
"""


def writer(target: Path) -> subprocess.Popen:
    """A process that is in the middle of publishing ``target``."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"begun\n"
    return process


def end(process: subprocess.Popen, number: int) -> int:
    process.send_signal(number)
    code = process.wait(timeout=60)
    process.stdout.close()
    return code


def test_the_next_run_removes_what_a_killed_one_left_and_says_so(tmp_path, capsys):
    process = writer(tmp_path / "out")
    (left,) = tmp_path.iterdir()
    end(process, signal.SIGKILL)
    assert (left / "half").is_file()
    with files.publish_folder(tmp_path / "out") as staging:
        (staging / "whole").touch()
        assert not left.exists()
    assert os.listdir(tmp_path) == ["out"]
    assert f"removed {left}" in " ".join(capsys.readouterr().err.split())  # lines are wrapped


def test_a_full_disk_inside_a_folder_that_is_written_is_told_of_that_folder(tmp_path, monkeypatch):
    def runs_full():
        with files.publish_folder(tmp_path / "out") as staging:
            (staging / "big").write_bytes(b"x" * (3 << 20))
            with files.publish_folder(staging / "part") as inner:
                (inner / "big").write_bytes(b"x" * (2 << 20))
                raise OSError(28, "No space left on device")

    with pytest.raises(TrainingError, match=r"/out: cannot be written .*, and 5 MiB of it") as caught:
        runs_full()
    assert ".tmp" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_a_living_process_writes_is_left_alone(tmp_path):
    process = writer(tmp_path / "out")
    (theirs,) = tmp_path.iterdir()
    try:
        with files.publish_folder(tmp_path / "out", replace=True):
            assert (theirs / "half").is_file()
    finally:
        end(process, signal.SIGKILL)


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, leftovers.TERMINATED), (signal.SIGINT, None)])
def test_a_signal_leaves_nothing_behind(tmp_path, number, code):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    found = end(writer(tmp_path / "out"), number)
    assert found == code if code else found != 0
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["old"]


def test_a_folder_whose_replacement_was_killed_between_the_renames_gets_its_name_back(tmp_path, capsys):
    aside = tmp_path / ".tmp-out-77.old"
    aside.mkdir()
    (aside / "old").touch()
    (tmp_path / ".tmp-out-77").mkdir()
    assert leftovers.remove_dead(tmp_path / "out") == [tmp_path / ".tmp-out-77"]
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["old"]
    assert "got its name back" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", [".tmp-out-x-77", ".tmp-out-77x", ".tmp-other-77", "out-77", ".tmp-out-"])
def test_temporaries_of_other_targets_are_not_touched(tmp_path, name):
    (tmp_path / name).touch()
    assert leftovers.remove_dead(tmp_path / "out") == []
    assert os.listdir(tmp_path) == [name]


def test_where_there_are_no_locks_a_leftover_is_named_and_kept(tmp_path, monkeypatch, capsys):
    import fcntl

    def unsupported(handle, how):
        raise OSError(95, "not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    (tmp_path / ".tmp-out-77").mkdir()
    assert leftovers.remove_dead(tmp_path / "out") == []
    assert (tmp_path / ".tmp-out-77").is_dir()
    assert "remove it by hand" in capsys.readouterr().err


def test_a_program_with_its_own_handler_keeps_it():
    before = signal.getsignal(signal.SIGTERM)
    mine = lambda number, frame: None  # noqa: E731
    signal.signal(signal.SIGTERM, mine)
    try:
        with leftovers.ending_on_sigterm():
            assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_free_space_is_measured_after_the_temporary_is_gone(tmp_path, monkeypatch):
    seen = []

    class Usage:
        free = 7 << 20

        def __init__(self, folder):
            seen.append(sorted(item.name for item in tmp_path.rglob("*")))

    monkeypatch.setattr(files.shutil, "disk_usage", Usage)

    def runs_full():
        with files.publish_folder(tmp_path / "out") as staging:
            (staging / "big").write_bytes(b"x" * (3 << 20))
            raise OSError(28, "No space left on device")

    with pytest.raises(TrainingError, match=r"out: cannot be written .*; 7 MiB are free, and 3 MiB"):
        runs_full()
    assert seen == [[]]


def test_a_folder_that_cannot_be_written_for_a_while_is_tried_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(files, "PAUSES", (0.0, 0.0, 0.0))
    tries = []

    def read_only(self, data):
        tries.append(self)
        if len(tries) < 3:
            raise OSError(30, "Read-only file system")
        self.touch()

    monkeypatch.setattr(Path, "write_bytes", read_only)
    files.wait_until_writable(tmp_path / "gone" / "out")
    assert len(tries) == 3
    assert capsys.readouterr().err.count("Read-only file system); next try in 0 s") == 2
    assert list((tmp_path / "gone" / "out").iterdir()) == []


def test_a_folder_that_stays_read_only_ends_with_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PAUSES", (0.0,))

    def read_only(self, data):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "write_bytes", read_only)
    with pytest.raises(TrainingError, match="cannot be written .Read-only file system"):
        files.wait_until_writable(tmp_path)
