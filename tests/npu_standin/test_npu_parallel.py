# SPDX-License-Identifier: Apache-2.0
"""Two processes on two stand-in devices, started by the launcher, train what one process on the CPU trains."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from paddlemix.utils import files
from tests.npu_standin import build, parallel_worker
from tests.npu_standin.conftest import made_once

pytestmark = [pytest.mark.npu_standin, pytest.mark.dist, pytest.mark.timeout(280)]

CLOSE = 1e-5


def both_devices(standin: Path, factory: pytest.TempPathFactory) -> Path:
    """Folder of what two processes on the stand-in found with every kind of sharding; made once."""
    return made_once(factory, "parallel-runs", lambda folder: build.launch(standin, folder, "parallel_worker.py"))


@pytest.fixture(scope="session")
def runs(standin: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """One process on the CPU, two on the stand-in, and their folder; made once."""
    shared = both_devices(standin, tmp_path_factory)

    def make(folder: Path) -> None:
        (folder / "alone.pickle").write_bytes(pickle.dumps(parallel_worker.alone(shared / "alone")))

    alone = made_once(tmp_path_factory, "parallel-alone", make)
    return pickle.loads((alone / "alone.pickle").read_bytes()), json.loads((shared / "told.json").read_text()), shared


def largest(ours: Any, theirs: Any) -> float:
    """Largest difference of two sets of tensors with the same names."""
    assert set(ours) == set(theirs)
    return max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours)


every_case = pytest.mark.parametrize("case", parallel_worker.CASES)


@every_case
def test_two_devices_equal_one_cpu_with_twice_the_batch(runs: Any, case: str) -> None:
    alone, both, folder = runs
    straight = both[case]["straight"]
    assert both[case]["device"] == "npu:0"
    assert straight["losses"] == pytest.approx(alone["losses"], abs=CLOSE)
    assert straight["eval"] == pytest.approx(alone["eval"], abs=CLOSE)
    # Six steps of AdamW at 1e-3: it divides a gradient by its size, so rounding noise near zero moves a weight too.
    assert largest(np.load(folder / case / "straight.npz"), alone["weights"]) <= 10 * CLOSE


@every_case
def test_the_logged_norm_is_that_of_all_gradients_of_the_run(runs: Any, case: str) -> None:
    alone, both, _ = runs
    assert len(set(alone["norms"])) == 6
    assert both[case]["straight"]["norms"] == pytest.approx(alone["norms"], rel=CLOSE)


@every_case
def test_a_checkpoint_is_complete_and_a_resumed_run_equals_the_straight_one_bit_for_bit(runs: Any, case: str) -> None:
    _, both, folder = runs
    checkpoint = folder / case / "checkpoint-4"
    assert files.verify_folder(checkpoint) == []
    kept, wanted = (
        load_file(checkpoint / "model.safetensors"),
        load_file(folder / "alone/checkpoint-4/model.safetensors"),
    )
    assert largest(kept, wanted) <= 10 * CLOSE
    assert len(list(checkpoint.glob("optimizer*.safetensors"))) == (1 if case == "plain" else 2)
    straight, resumed = np.load(folder / case / "straight.npz"), np.load(folder / case / "resumed.npz")
    assert all((straight[name] == resumed[name]).all() for name in straight)
    assert both[case]["resumed"]["eval"] == both[case]["straight"]["eval"]


@every_case
def test_the_model_that_a_run_leaves_is_whole(runs: Any, case: str) -> None:
    from paddlemix.checkpoint.load import load_model

    folder = runs[2]
    loaded = dict(load_model(folder / case / "model").model.named_parameters())
    resumed = np.load(folder / case / "resumed.npz")
    assert largest({name: value.numpy() for name, value in loaded.items()}, resumed) == 0.0


def test_every_operator_is_fused_and_memory_is_logged(runs: Any) -> None:
    # Six steps and an evaluation of two layers: each operator is used at least once a layer and step.
    for name, least in (("flash_attention_npu", 12), ("rms_norm_npu", 30), ("fused_rope", 24), ("swiglu", 12)):
        for case in parallel_worker.CASES:
            calls = runs[1][case]["calls"]
            assert calls[name] >= least
            assert calls[f"{name}_grad"] >= least - 1
    memory = runs[1]["plain"]["straight"]["memory"]
    assert min(memory) > 1e-3  # GiB: the weights and moments of this model take more than a MiB
    assert sorted(memory) == memory
