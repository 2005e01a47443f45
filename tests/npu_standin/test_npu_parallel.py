# SPDX-License-Identifier: Apache-2.0
"""Two processes on two stand-in devices, started by the launcher, train what one process on the CPU trains."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.npu_standin import build, parallel_worker

pytestmark = [pytest.mark.npu_standin, pytest.mark.dist]

CLOSE = 1e-5


def launched(standin: Path, folder: Path) -> dict:
    """What the first of two processes wrote."""
    script = build.REPOSITORY / "tests" / "npu_standin" / "parallel_worker.py"
    logs = folder / "logs"
    command = [sys.executable, "-W", "ignore", "-m", "paddle.distributed.launch", "--npus", "0,1"]
    done = subprocess.run(
        [*command, "--log_dir", str(logs), str(script), str(folder), "npu"],
        env=build.environment(standin, PADDLEMIX_NPU_ATTENTION_FLOAT32="1", NPU_STANDIN_FLOAT32="1"),
        cwd=build.REPOSITORY,
        capture_output=True,
        text=True,
        timeout=110,
    )
    told = "\n".join(path.read_text()[-3000:] for path in sorted(logs.glob("workerlog.*")))
    assert done.returncode == 0, told
    return json.loads((folder / "told.json").read_text())


def test_two_devices_equal_one_cpu_with_twice_the_batch_and_resume_bit_for_bit(standin: Path, tmp_path: Path) -> None:
    alone = parallel_worker.train(tmp_path / "alone", "cpu", per_device_train_batch_size=4)
    both = tmp_path / "both"
    both.mkdir()
    told = launched(standin, both)
    assert told["device"] == "npu:0"
    assert told["straight"]["losses"] == pytest.approx(alone["losses"], abs=CLOSE)
    assert told["straight"]["eval"] == pytest.approx(alone["eval"], abs=CLOSE)
    straight, resumed = np.load(both / "straight.npz"), np.load(both / "resumed.npz")
    # Six steps of AdamW at 1e-3: it divides a gradient by its size, so rounding noise near zero moves a weight too.
    assert max(float(np.abs(alone["weights"][name] - straight[name]).max()) for name in straight) <= 10 * CLOSE
    assert all((straight[name] == resumed[name]).all() for name in straight)
    # Six steps and an evaluation of two layers: each operator is used at least once a layer and step.
    for name, least in (("flash_attention_npu", 12), ("rms_norm_npu", 30), ("fused_rope", 24), ("swiglu", 12)):
        assert told["calls"][name] >= least
        assert told["calls"][f"{name}_grad"] >= least - 1
