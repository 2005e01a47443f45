# SPDX-License-Identifier: Apache-2.0
"""Two stand-in devices that hold one model together answer as one CPU does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.npu_standin import build
from tests.npu_standin.test_npu_tensor_parallel import write_place

pytestmark = [pytest.mark.npu_standin, pytest.mark.dist, pytest.mark.timeout(280)]

WORKER = build.REPOSITORY / "tests" / "generation" / "lockstep_worker.py"


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize("model", ["clip", pytest.param("intern", marks=pytest.mark.slow),
                                   pytest.param("siglip", marks=pytest.mark.slow)])  # fmt: skip
def test_two_devices_answer_as_one_cpu(standin: Path, tmp_path: Path, model: str) -> None:
    """Three heads, which the devices share as two and one."""
    write_place(tmp_path)
    told = []
    for cards, device in ((1, "cpu"), (2, "npu")):
        file = tmp_path / f"{cards}.json"
        words = [sys.executable, "-W", "ignore", str(WORKER), str(tmp_path / model), str(cards), device, str(file)]
        changes = {"PADDLEMIX_NPU_ATTENTION_FLOAT32": "1", "NPU_STANDIN_FLOAT32": "1", "NPU_STANDIN_DEVICES": "2"}
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=200, env=build.environment(standin, **changes)
        )
        assert done.returncode == 0, done.stderr[-3000:]
        told.append(json.loads(file.read_text()))
    assert told[1] == told[0]
