# SPDX-License-Identifier: Apache-2.0
"""The plain path, which serves where a fused operator cannot, uses no operator that a plug-in may lack either."""

import subprocess
import sys

import pytest

from paddlemix.ops.npu import record
from tests.npu_standin import build

pytestmark = pytest.mark.npu_standin


def test_without_fused_operators_a_step_uses_what_the_plug_in_has():
    if build.missing():
        pytest.skip(build.missing())
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.npu_standin.worker", "record"],
        env=build.environment(build.build(), PADDLEMIX_NPU_FUSED="0", **record.LOG),
        cwd=build.REPOSITORY, capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    phases = ran.stderr.split("PHASE train right", 1)[1]  # the start of the weights comes before
    used = record.read_log(phases.splitlines(), "npu")
    assert record.Used("softmax", "float32", False) in used, "attention is written out"
    assert record.objections(used) == []
    assert "roll" not in {kernel.operator for kernel in used}


def test_what_is_named_assumed_and_missing_are_three_lists():
    lists = (record.NAMED, record.ASSUMED, record.WITHOUT)
    assert sum(map(len, lists)) == len({name for names in lists for name in names})
    used = [record.Used(name, "bfloat16", gradient) for name, gradient in (("topk", False), ("add", True))]
    assert record.objections(used) == ["topk in bfloat16: the host waits for the device"]
