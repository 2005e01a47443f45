# SPDX-License-Identifier: Apache-2.0
"""The memory that a dry run tells for a CPU is that of the run: within 15 %."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

WORKER = Path(__file__).with_name("memory_worker.py")
ROOT = WORKER.parents[2]
CLOSE = 0.15

CASES: dict[str, dict[str, Any]] = {
    "full": {"length": 384},
    "full, recompute": {"length": 384, "recompute": True},
    "lora": {"length": 384, "lora": True},
    "lora, recompute": {"length": 384, "lora": True, "recompute": True},
    "dora": {"length": 384, "lora": True, "use_dora": True},
    "dpo": {"length": 256, "loss_type": "sigmoid"},
}
MORE: dict[str, dict[str, Any]] = {
    "packed": {"length": 600, "packed": True, "per_device_train_batch_size": 1},
    "tower": {"length": 130, "tune_entire_model": True, "per_device_train_batch_size": 4},
    "accumulation": {
        "length": 300,
        "text": {"vocab_size": 8000, "num_key_value_heads": 4},
        "gradient_accumulation_steps": 2,
    },
    "projector": {"length": 384, "tune_mm_mlp_adapter": True},
    "pissa": {"length": 200, "lora": True, "pissa": True, "lora_rank": 32, "lora_dropout": 0.0},
    "dora, recompute": {"length": 384, "lora": True, "use_dora": True, "recompute": True},
    "saved modules": {
        "length": 200,
        "text": {"vocab_size": 8000},
        "lora": True,
        "modules_to_save": ["embed_tokens", "lm_head"],
    },
    "dpo, lora": {"length": 256, "loss_type": "sigmoid", "lora": True, "lora_dropout": 0.0},
    "dpo, vocabulary": {"length": 256, "loss_type": "sigmoid", "text": {"vocab_size": 8000}},
    "orpo": {"length": 256, "loss_type": "orpo", "recompute": True},
    "kto": {"length": 256, "loss_type": "kto"},
}


@pytest.mark.parametrize(
    "case", [*CASES.values(), *(pytest.param(case, marks=pytest.mark.slow) for case in MORE.values())],
    ids=[*CASES, *MORE],
)  # fmt: skip
def test_the_memory_of_a_run_on_a_cpu_is_that_of_the_estimate(case: dict[str, Any]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PADDLEMIX_LOG_LEVEL": "ERROR"}
    command = [sys.executable, "-W", "ignore", str(WORKER), json.dumps(case)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 0, ran.stderr[-2000:]
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["need"] == pytest.approx(told["peak"], rel=CLOSE), told
