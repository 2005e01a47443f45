# SPDX-License-Identifier: Apache-2.0
"""What the supported versions of paddle keep in different places is found in the one that runs."""

import os
import subprocess
import sys
from pathlib import Path

import paddle
import pytest

from paddlemix.ops import compat


@pytest.mark.parametrize("name", compat.PLACES)
def test_what_moved_is_found_in_the_paddle_that_runs(name):
    assert callable(compat.find(name))


def test_a_name_that_is_nowhere_is_told_with_the_places(monkeypatch):
    monkeypatch.setitem(compat.PLACES, "gone", ("paddle.nn.functional", "paddle.incubate"))
    with pytest.raises(AttributeError, match=r"has no gone in paddle\.nn\.functional, paddle\.incubate"):
        compat.find("gone")


def test_swiglu_is_the_same_function_wherever_it_stands():
    gate, up = paddle.to_tensor([[1.0, -2.0]]), paddle.to_tensor([[3.0, 0.5]])
    wanted = (paddle.nn.functional.silu(gate) * up).numpy()
    assert compat.find("swiglu")(gate, up).numpy() == pytest.approx(wanted, abs=1e-6)
    assert compat.find("swiglu")(paddle.concat([gate, up], -1), None).numpy() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.dist
@pytest.mark.timeout(120)
def test_gloo_groups_do_not_overwrite_each_others_addresses(tmp_path):
    launcher = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--backend", "gloo"]
    worker = Path(__file__).with_name("gloo_worker.py")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(worker.parents[2])}

    done = subprocess.run(
        [*launcher, "--log_dir", str(tmp_path), str(worker)], capture_output=True, timeout=100, env=env
    )

    said = [(tmp_path / f"workerlog.{rank}").read_text(encoding="utf-8") for rank in range(2)]
    assert done.returncode == 0, said
    assert [text.count("sum 3.0") for text in said] == [2, 2]
    assert all("addresses: those of the first group" in text for text in said), said
