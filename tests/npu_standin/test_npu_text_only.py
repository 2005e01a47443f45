# SPDX-License-Identifier: Apache-2.0
"""Two processes on two stand-in devices meet steps without an image, and go on from each step bit for bit."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from tests.npu_standin import text_only_worker
from tests.npu_standin.test_npu_parallel import both_devices

pytestmark = [pytest.mark.npu_standin, pytest.mark.dist, pytest.mark.timeout(280)]


@pytest.fixture(scope="session")
def runs(standin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes found with every kind of sharding; made once."""
    return both_devices(standin, tmp_path_factory)


@pytest.mark.parametrize("case", text_only_worker.CASES)
def test_a_run_goes_on_from_any_step_bit_for_bit_also_from_those_without_an_image(runs: Path, case: str) -> None:
    found: dict[str, Any] = json.loads((runs / "told.json").read_text())["text only"][case]
    steps = len(text_only_worker.ORDER)
    assert found["device"] == "npu:0"
    assert found["steps"] == steps
    assert found["weights"] >= len(found["trained"])
    assert found["equal"] == list(text_only_worker.AGAIN[case])
    # The first step has no image: what it does not reach has moments all the same, of zeros.
    kept = set()
    for path in (runs / "text only" / case / "checkpoint-1").glob("optimizer*.safetensors"):
        with safe_open(path, "np") as stored:
            kept |= {name.partition("/")[2] for name in stored.keys()}  # noqa: SIM118 - no dict
    assert kept == set(found["trained"])
