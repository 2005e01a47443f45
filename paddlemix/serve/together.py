# SPDX-License-Identifier: Apache-2.0
"""A worker and a page in front of it, as two processes of one command: both run, or neither does."""

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from paddlemix.serve.parent import end_with_parent
from paddlemix.utils.commands import ROOT, interpreter, near
from paddlemix.utils.errors import ConfigError

_ENDS_IN = 40.0
"""Seconds in which a process ends that was asked to; a worker takes 30 s for answers on their way."""
_AT = re.compile(r"listening at (http://\S+)")


def check_web(python: Path) -> None:
    """ConfigError when the interpreter of the page has no gradio."""
    words = [str(python), "-c", "import importlib.util as u, sys; sys.exit(u.find_spec('gradio') is None)"]
    try:
        found = subprocess.run(words, check=False, stdin=subprocess.DEVNULL).returncode == 0  # noqa: S603
    except OSError as error:
        reason = f"cannot be run ({error.strerror}); give the path of a Python"
        raise ConfigError(f"--web-python {python}: {reason}") from error
    if not found:
        what = f"-e '{near(ROOT)}[web]'" if (ROOT / "setup.py").is_file() else "'paddlemix[web]' (from its wheel)"
        raise ConfigError(
            f"{python} has no gradio, which draws the page: {interpreter()} -m venv .venv-web && "
            f".venv-web/bin/python -m pip install {what}, and then --web-python .venv-web/bin/python"
        )


def run_together(worker: Sequence[str], page: Sequence[str]) -> int:
    """Start the worker, and the page when it listens, with the worker's address behind its words.

    Until a signal comes or one of them ends, which ends the other one. The exit code is that of the one that failed.
    """
    running = [_started(worker, stderr=subprocess.PIPE)]
    asked: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        for process in running:
            process.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        address = _address_of(running[0])
        if address is not None and not asked:
            running.append(_started([*page, "--controller-url", address]))
        return _until_one_ends(running, asked)
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _started(words: Sequence[str], stderr: int | None = None) -> "subprocess.Popen[str]":
    # A group of its own: Ctrl-C of the terminal comes to this process, which tells both.
    return subprocess.Popen(  # noqa: S603
        words,
        stdin=subprocess.DEVNULL,
        stderr=stderr,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=end_with_parent,
    )


def _address_of(worker: "subprocess.Popen[str]") -> str | None:
    """Where the worker listens, once it does; what it says is handed on, now and later. None when it ends before."""
    lines = worker.stderr
    for line in lines or ():
        sys.stderr.write(line)
        sys.stderr.flush()
        if found := _AT.search(line):
            threading.Thread(target=_hand_on, args=(lines,), daemon=True).start()
            return found[1]
    return None


def _hand_on(lines: "Sequence[str]") -> None:
    for line in lines:
        sys.stderr.write(line)
        sys.stderr.flush()


def _until_one_ends(running: "list[subprocess.Popen[str]]", asked: Sequence[int]) -> int:
    ended = threading.Event()
    for process in running:
        threading.Thread(target=lambda one=process: (one.wait(), ended.set()), daemon=True).start()
    while not ended.wait(0.5):  # in pieces, so that a signal is handled on every system
        continue
    first = next(process for process in running if process.poll() is not None)
    for process in running:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_ENDS_IN)
            except subprocess.TimeoutExpired:
                process.kill()
    if asked:
        return 0
    code = first.returncode
    return 1 if code == 0 else code if code > 0 else 128 - code


def words_of(module: str, python: Path | None = None) -> list[str]:
    """The beginning of a command line that runs a module of ours, with this interpreter or another one.

    Another interpreter takes it from this checkout; what is installed there is its own, so as not to mix packages.
    """
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    words = [str(path)] if (ROOT / "setup.py").is_file() else ["-m", module]
    return [str(python or sys.executable), *words]
