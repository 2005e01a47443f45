# SPDX-License-Identifier: Apache-2.0
"""The distribution that an id is drawn from, against the processors of transformers on random scores."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from paddlemix.generation.sampling import Decoding, Sampler, adjusted

pytestmark = [pytest.mark.reference, pytest.mark.timeout(300)]
WORKER = Path(__file__).with_name("processors_worker.py")
CASES = 400


def cases() -> list[dict]:
    draw = np.random.default_rng(0)
    made = []
    for _ in range(CASES):
        size = int(draw.integers(4, 60))
        # Quarters: transformers keeps a bias in float32.
        biased = draw.choice(size, draw.integers(0, 3), replace=False)
        bias = [[int(token), round(4 * draw.normal(0, 3)) / 4] for token in biased]
        made.append(
            {
                "scores": draw.normal(0, 3, size).tolist(),
                "seen": draw.integers(0, size, draw.integers(1, 20)).tolist(),
                "temperature": float(draw.choice([0.3, 1.0, 1.7])),
                "top_k": int(draw.choice([0, 3, 100])),
                "top_p": float(draw.choice([1.0, 0.9, 0.5])),
                "min_p": float(draw.choice([0.0, 0.05, 0.4])),
                "repetition_penalty": float(draw.choice([1.0, 1.3, 0.8])),
                "logit_bias": bias,
            }
        )
    return made


def test_the_distribution_is_that_of_transformers_on_random_scores() -> None:
    python = os.environ.get("PADDLEMIX_TORCH_PYTHON")
    if not python:
        pytest.skip("PADDLEMIX_TORCH_PYTHON names no interpreter with torch")
    given = cases()
    done = subprocess.run([python, str(WORKER)], input=json.dumps(given), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    for case, expected in zip(given, json.loads(done.stdout.splitlines()[-1]), strict=True):
        fields = {name: value for name, value in case.items() if name not in ("scores", "seen", "logit_bias")}
        decoding = Decoding(**fields, logit_bias=tuple((token, bias) for token, bias in case["logit_bias"]))
        chances = Sampler(decoding).probabilities(adjusted(np.array(case["scores"]), case["seen"], decoding))
        assert np.abs(chances - expected).max() < 1e-9, case
