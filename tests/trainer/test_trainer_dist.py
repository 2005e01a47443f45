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


def test_adapters_with_a_start_of_their_own_are_the_same_in_two_processes_as_in_one(tmp_path):
    logging.getLogger("PaddleNLP").setLevel(logging.ERROR)
    keys = {"lora": True, "use_dora": True, "pissa": True, "pissa_iter": 3, "rslora": True, "lora_dropout": 0.0}
    alone = make_trainer(
        settings(tmp_path / "alone", per_device_train_batch_size=4, **keys),
        rows=Rows(12, equal=True),
        eval_rows=Rows(5),
    )
    begun = weights(alone.model)
    alone.train()
    told = launch(tmp_path / "both", save_strategy="steps", save_steps=4, sharding="stage1", **keys)
    assert told["losses"] == pytest.approx(losses(alone), rel=1e-5)
    assert told["resumed"] == told["losses"]
    values = dict(np.load(tmp_path / "both" / "weights-True.npz"))
    single = weights(alone.model)
    # Adam turns a gradient near 0, which a sum in another order moves, into a step: the effect is compared.
    layer = "llama.layers.0.self_attn.q_proj"
    for held in (single, values):
        moved = [np.abs(held[f"{layer}.{name}"] - begun[f"{layer}.{name}"]).max() for name in PARTS]
        assert min(moved[:3]) > 1e-4
        assert max(moved[3:]) < 1e-6
    for name in single:
        assert float(np.abs(single[name] - values[name]).max()) < 5e-4, name


PARTS = ("lora_A", "lora_B", "lora_magnitude_vector", "lora_start_A", "lora_start_B", "weight")
