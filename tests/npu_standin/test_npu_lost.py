# SPDX-License-Identifier: Apache-2.0
"""A device process that is killed or stopped: it is named, nothing stays, and the last checkpoint is whole."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from paddlemix.trainer.checkpointing import newest_valid
from tests.npu_standin import build
from tests.npu_standin.test_npu_tensor_parallel import arguments, write_place

pytestmark = [pytest.mark.npu_standin, pytest.mark.dist, pytest.mark.timeout(280)]

ENTRY_POINT = build.REPOSITORY / "paddlemix" / "tools" / "supervised_finetune.py"
STRATEGIES: dict[str, dict[str, Any]] = {
    "data parallel": {},
    "stage1": {"sharding": "stage1"},
    "stage2": {"sharding": "stage2"},
    "stage3": {"sharding": "stage3"},
    "tensor parallel": {"tensor_parallel_degree": 2},
}
SAID = {signal.SIGKILL: "rank 1 has ended (process ", signal.SIGSTOP: "rank 1 gives no sign of life for "}
CASES = [(name, how) for name in STRATEGIES for how in SAID]
QUICK = ("tensor parallel", signal.SIGKILL)


def started(standin: Path, root: Path, keys: dict[str, Any]) -> subprocess.Popen[bytes]:
    """A run without end, by paddle's launcher on two devices."""
    run = arguments(
        root, root / "out", "clip", device="npu", max_steps=5000, do_eval="false", save_total_limit=2, **keys
    )
    launcher = [sys.executable, "-W", "ignore", "-m", "paddle.distributed.launch", "--npus", "0,1"]
    float32 = {"PADDLEMIX_NPU_ATTENTION_FLOAT32": "1", "NPU_STANDIN_FLOAT32": "1", "NPU_STANDIN_DEVICES": "2"}
    return subprocess.Popen(
        [*launcher, "--log_dir", str(root / "logs"), str(ENTRY_POINT), *run],
        env=build.environment(standin, **float32),
        cwd=root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def ranks(launcher: int) -> dict[str, int]:
    """The processes that a launcher has started, by the number of their rank."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    told = {child: Path(f"/proc/{child}/environ").read_text().split("\0") for child in children}
    return {
        word.partition("=")[2]: int(child)
        for child, words in told.items()
        for word in words
        if word.startswith("PADDLE_TRAINER_ID=")
    }


def wait_for(text: str, log: Path, seconds: float = 150) -> None:
    until = time.monotonic() + seconds
    while not (log.exists() and text in log.read_text(errors="replace")):
        assert time.monotonic() < until, log.read_text(errors="replace")[-2000:] if log.exists() else "no log"
        time.sleep(0.2)


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize(
    ("strategy", "how"), [pytest.param(*case, marks=[] if case == QUICK else pytest.mark.slow) for case in CASES]
)
def test_the_lost_one_is_named_and_all_end(standin: Path, tmp_path: Path, strategy: str, how: signal.Signals) -> None:
    write_place(tmp_path)
    log = tmp_path / "logs" / "workerlog.0"
    with started(standin, tmp_path, STRATEGIES[strategy]) as launcher:
        try:
            wait_for("saved checkpoint-4", log)
            processes = ranks(launcher.pid)
            assert set(processes) == {"0", "1"}
            os.kill(processes["1"], how)
            assert launcher.wait(60) not in (0, 75)
        finally:
            for process in [*ranks(launcher.pid).values(), launcher.pid] if launcher.poll() is None else []:
                os.kill(process, signal.SIGKILL)
    assert SAID[how] in log.read_text(errors="replace")
    assert not any(Path(f"/proc/{process}").exists() for process in processes.values())
    assert newest_valid(tmp_path / "out") is not None
