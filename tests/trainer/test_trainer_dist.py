"""Two processes train what one would."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from paddlemix.trainer.checkpointing import read_state
from paddlemix.utils import files
from tests.trainer.trainer_kit import Rows, losses, make_trainer, settings, weights

pytestmark = pytest.mark.dist

WORKER = Path(__file__).with_name("dist_worker.py")


def launch(output, **keys):
    pairs = [f"{name}={json.dumps(value)}" for name, value in keys.items()]
    command = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--backend", "gloo"]
    log = output.parent / "log"
    done = subprocess.run(
        [*command, "--log_dir", str(log), str(WORKER), str(output), *pairs],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    told = "\n".join(file.read_text()[-1500:] for file in sorted(log.glob("workerlog.*")))
    assert done.returncode == 0, told
    return json.loads((output / "told.json").read_text())


@pytest.mark.parametrize("sharding", ["", pytest.param("stage1", marks=pytest.mark.slow)])
def test_two_processes_equal_one_with_twice_the_batch_and_resume_bit_for_bit(tmp_path, sharding):
    logging.getLogger("PaddleNLP").setLevel(logging.ERROR)
    alone = make_trainer(
        settings(tmp_path / "alone", per_device_train_batch_size=4, logging_steps=3),
        rows=Rows(12, equal=True),
        eval_rows=Rows(5),
    )
    alone.train()
    told = launch(tmp_path / "both", save_strategy="steps", save_steps=4, sharding=sharding, logging_steps=3)
    assert told["losses"] == pytest.approx(losses(alone), rel=1e-5)
    norms = [entry["grad_norm"] for entry in alone.state.log_history if "grad_norm" in entry]
    assert told["norms"] == pytest.approx(norms, rel=1e-5)  # of all rows, not of those of the first process
    assert told["eval_loss"] == pytest.approx(alone.evaluate()["eval_loss"], rel=1e-5)
    values = dict(np.load(tmp_path / "both" / "weights-True.npz"))
    single = weights(alone.model)
    assert max(float(np.abs(single[name] - values[name]).max()) for name in single) < 5e-5
    shown, wanted = told["refused"]  # the first process tells what the second one met, and both have saved
    assert shown == wanted
    assert files.verify_folder(tmp_path / "both" / "refused" / "checkpoint-2") == []
    assert told["resumed"] == told["losses"]  # step 4 lies between two lines of the log
    assert (
        len(set(read_state(tmp_path / "both" / "checkpoint-4").open_losses)) == 2
    )  # each process goes on with its own
