# SPDX-License-Identifier: Apache-2.0
"""One run for each folder, whatever the lock file says and whoever has left it."""

import contextlib
import errno
import fcntl
import os
import subprocess
import sys
import threading

import pytest

from paddlemix.trainer import folder_lock
from paddlemix.trainer.folder_lock import LOCK_FILE, lock
from paddlemix.utils.errors import ConfigError

HOST = os.uname().nodename
STARTED = folder_lock._state_of(os.getpid())[1]
DEAD = "started at tick 1\n"


@contextlib.contextmanager
def held(folder, content):
    """The lock file with ``content``, held by somebody else."""
    (folder / LOCK_FILE).write_bytes(content if isinstance(content, bytes) else content.encode())
    with open(folder / LOCK_FILE, "rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield stream


@pytest.fixture(scope="module")
def gone():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def impatient(monkeypatch):
    """Waiting is an error."""
    monkeypatch.setattr(folder_lock.time, "sleep", lambda _: pytest.fail("it waits"))


def test_two_runs_cannot_share_a_folder(tmp_path, impatient):
    code = (
        "import time\n"
        "from paddlemix.trainer.folder_lock import lock\n"
        f"with lock({str(tmp_path)!r}):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=f"is in use by process {other.pid} on {HOST};"), lock(tmp_path):
            pass
        other.kill()
    with lock(tmp_path):  # a kill frees the folder
        pass


def test_a_run_notices_another_one_although_somebody_removed_the_lock_file(tmp_path, impatient):
    with lock(tmp_path):
        (tmp_path / LOCK_FILE).unlink()
        with pytest.raises(ConfigError, match="is in use by another run"), lock(tmp_path):
            pass
    with lock(tmp_path):
        pass


def of_dead(gone):
    """What a dead run leaves in the file: its number free, used again by this process, or kept for its parent."""
    child = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    yield f"process {gone} on {HOST}"
    yield f"process {gone} on {HOST}\nstarted at tick 77\n"
    yield f"process {os.getpid()} on {HOST}\n{DEAD}"
    yield f"process {child.pid} on {HOST}\nstarted at tick {folder_lock._state_of(child.pid)[1]}\n"
    child.communicate()


def test_a_folder_is_waited_for_when_only_the_processes_of_a_dead_run_still_hold_it(tmp_path, gone, monkeypatch):
    """Seen under load: a worker that was forked just before the kill had not come to its first line yet."""
    for content in of_dead(gone):
        with held(tmp_path, content) as stream:
            waited = []

            def let_go(seconds, stream=stream, waited=waited):
                waited.append(seconds)
                if len(waited) == 3:
                    fcntl.flock(stream, fcntl.LOCK_UN)

            monkeypatch.setattr(folder_lock.time, "sleep", let_go)
            with lock(tmp_path):
                assert len(waited) == 3, content
                assert (tmp_path / LOCK_FILE).read_text().splitlines()[0] == f"process {os.getpid()} on {HOST}"


def test_what_a_dead_run_has_started_and_does_not_end_is_told_after_a_while(tmp_path, gone, monkeypatch):
    monkeypatch.setattr(folder_lock, "_LETTING_GO", 0.2)
    with held(tmp_path, f"process {gone} on {HOST}"), pytest.raises(ConfigError, match=f"by process {gone} on"):
        lock(tmp_path).__enter__()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (f"process {os.getpid()} on {HOST}", f"process {os.getpid()} on "),  # as earlier versions wrote it
        (f"process {os.getpid()} on {HOST}\nstarted at tick {STARTED}\n", f"process {os.getpid()} on {HOST};"),
        ("process 1 on another.example", "process 1 on another.example;"),
        (f"process 9999999999 on {HOST}", "process 9999999999 on "),
        (f"process 0 on {HOST}", "process 0 on "),
        ("process 1 on a\x1b[2J\0b", r"process 1 on a\\x1b\[2J\\x00b;"),
        ("process " + "9" * 5000 + f" on {HOST}", "another run;"),
        (f"process \u0663 on {HOST}", "another run;"),
        (f"process -1 on {HOST}", "another run;"),
        ("", "another run;"),
        ("\0" * 60, "another run;"),
        (b"process 1 on \xff\xfe", "process 1 on \ufffd\ufffd;"),
        (b"\xff" * 10_000_000, "another run;"),
        (f"process 7 on {HOST}\n" * 1000, "another run;"),
        (f"process 7 on {HOST}\nstarted at tick x\n", "another run;"),
    ],
    ids=range(15),
)
def test_whatever_the_lock_file_says_a_held_folder_is_refused_at_once_and_a_free_one_is_taken(
    tmp_path, impatient, content, named
):
    with held(tmp_path, content), pytest.raises(ConfigError, match=f"is in use by {named}"):
        lock(tmp_path).__enter__()
    with lock(tmp_path):
        with pytest.raises(ConfigError, match=f"is in use by process {os.getpid()} on {HOST};"):
            lock(tmp_path).__enter__()
        assert (tmp_path / LOCK_FILE).stat().st_size < 500


def test_of_runs_that_start_at_the_same_time_one_goes_on(tmp_path, gone):
    (tmp_path / LOCK_FILE).write_text(f"process {gone} on {HOST}")
    count = 8
    ready, ended = threading.Barrier(count), threading.Semaphore(0)
    won, refused = [], []

    def start():
        ready.wait(60)
        try:
            with lock(tmp_path):
                won.append(1)
                for _ in range(count - 1):
                    assert ended.acquire(timeout=60)
        except ConfigError as error:
            refused.append(str(error))
        ended.release()

    threads = [threading.Thread(target=start) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert (len(won), len(refused)) == (1, count - 1)


@pytest.mark.parametrize("kind", ["pipe", "folder", "link", "device"])
def test_a_lock_file_of_another_kind_is_refused_and_nothing_is_written_through_it(tmp_path, kind):
    place, thesis = tmp_path / "out" / LOCK_FILE, tmp_path / "thesis.txt"
    thesis.write_text("mine")
    place.parent.mkdir()
    make = {"pipe": os.mkfifo, "folder": os.mkdir, "link": lambda path: path.symlink_to(thesis)}
    make.get(kind, lambda path: path.symlink_to("/dev/zero"))(place)
    with pytest.raises(ConfigError, match=r"out/\.lock is not a regular file; remove it"):
        lock(place.parent).__enter__()
    assert thesis.read_text() == "mine"


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock(tmp_path):
        said = " ".join(capsys.readouterr().err.split())
    assert "cannot be locked (No locks available)" in said


def test_a_full_disk_does_not_keep_a_run_from_holding_its_folder(tmp_path, monkeypatch, impatient):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", refuse)
    with lock(tmp_path), pytest.raises(ConfigError, match="is in use by another run"):
        lock(tmp_path).__enter__()
