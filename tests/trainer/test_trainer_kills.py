# SPDX-License-Identifier: Apache-2.0
"""Runs that are killed at any moment, and started again by the same command."""

import contextlib
import subprocess
import sys
import time

import numpy as np
import pytest

from paddlemix.trainer import checkpointing
from paddlemix.utils import files
from paddlemix.utils.commands import COMMANDS
from tests.trainer.run_kit import arguments, go

KILLED = dict(save_strategy="steps", save_steps=1, save_total_limit=2, num_train_epochs=20)
"""Twenty times the six rows of ``place``, of which one has no image."""


@pytest.fixture(scope="module", params=[False, True], ids=["full", "lora"])
def straight(request, place, tmp_path_factory):
    """The keys of a run, and the weights that it leaves when nothing disturbs it."""
    keys = dict(KILLED, lora=str(request.param).lower())
    folder = tmp_path_factory.mktemp("straight")
    go(place, folder, **keys)
    return keys, folder / ("lora_model_state.safetensors" if request.param else "model.safetensors")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_is_killed_again_and_again_ends_as_the_straight_run(place, straight, tmp_path, workers, seed):
    keys, wanted = straight
    rng = np.random.default_rng([seed, workers])
    output = tmp_path / "killed"
    command = [
        sys.executable,
        str(COMMANDS["sft"].script),
        *arguments(place, output, dataloader_num_workers=workers, **keys),
    ]
    log = tmp_path / "log"
    kills, seen = 0, [0]
    for _ in range(40):
        steps = rng.integers(1, 24)  # counted in checkpoints and not in seconds: a busy machine is slow
        with log.open("w") as stream, subprocess.Popen(command, stdout=stream, stderr=stream) as run:
            while run.poll() is None and log.read_text().count("saved checkpoint") < steps:
                time.sleep(0.02)
            with contextlib.suppress(subprocess.TimeoutExpired):
                run.wait(rng.uniform(0, 0.05))
            if run.poll() is not None:
                assert run.returncode == 0, log.read_text()
                break
            run.kill()
            kills += 1
        found = checkpointing.checkpoints(output)
        assert [folder for _, folder in found if files.verify_folder(folder)] == []
        assert found[-1][0] >= seen[-1]
        seen.append(found[-1][0])
    assert kills >= 3
    assert (output / wanted.name).read_bytes() == wanted.read_bytes()
