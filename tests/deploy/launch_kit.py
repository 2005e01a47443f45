# SPDX-License-Identifier: Apache-2.0
"""Made-up machines for the launch scripts: fake tools, fake cards, a fake interpreter and a fake rank."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NPU = ROOT / "deploy" / "npu"


def tool(folder, name, text):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return path


def make_bench(tmp_path):
    """Folder with fake tools in front of the PATH, eight fake cards, and ``start(script, *args, **variables)``."""

    class Bench:
        tools = tmp_path / "tools"
        dev = tmp_path / "dev"

        def environment(self, **variables):
            kept = {"PATH": f"{self.tools}:{os.environ['PATH']}", "HOME": str(tmp_path), "DEV_FOLDER": str(self.dev)}
            return kept | {"PYTHON": "python"} | variables

        def start(self, script, *args, **variables):
            return subprocess.run(
                ["bash", str(NPU / script), *args], env=self.environment(**variables), cwd=tmp_path,
                capture_output=True, text=True, timeout=60,
            )  # fmt: skip

        def dry(self, **variables):
            done = self.start("launch.sh", "c.json", "--max_steps", "3", DRY_RUN="1", **variables)
            assert done.returncode == 0, done.stderr
            return done.stdout.splitlines()

    made = Bench()
    made.tools.mkdir()
    made.dev.mkdir()
    for number in range(8):
        (made.dev / f"davinci{number}").touch()
    (made.dev / "davinci_manager").touch()
    return made


FAKE_PYTHON = f"""#!/usr/bin/env bash
[ "$1" != -c ] || exec {sys.executable} "$@"
echo "$*" >> "$HOME/calls"
case "$*" in
  *doctor.py*)
    [ -z "${{SLOW_DOCTOR:-}}" ] || {{ touch "$HOME/ready"; exec sleep 30; }}
    exit "${{DOCTOR:-0}}"
    ;;
  "- "*) exec {sys.executable} "$@" ;;
esac
[ -z "${{WAITS:-}}" ] || {{ touch "$HOME/ready"; exec sleep 30; }}
env | grep -E '^(FLAGS_|HCCL_|RANK_TABLE|PADDLE_TRAINERS|PADDLE_XCCL|POD_IP)' >> "$HOME/seen"
[ -n "${{RANK:-}}" ] || exit 3
{sys.executable} "$HOME/rank.py" &
wait $!
"""

# A shell cannot take a signal back that was ignored when it began; a rank in Python can, and does.
FAKE_RANK = """
import pathlib, signal, sys, time
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
(pathlib.Path.home() / "ready").touch()
time.sleep(30)
"""


@contextlib.contextmanager
def launched(bench, folder, **environment):
    """``launch.sh`` in a session of its own, once the fake in it has made ``ready``; nothing of it is left behind."""
    running = subprocess.Popen(
        ["bash", str(NPU / "launch.sh"), "c.json"], env=bench.environment(**environment), cwd=folder,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        for _ in range(1200):  # a minute, for a busy machine
            if (folder / "ready").exists():
                break
            time.sleep(0.05)
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
