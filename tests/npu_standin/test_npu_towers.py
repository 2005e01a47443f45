# SPDX-License-Identifier: Apache-2.0
"""Models with an InternViT, EVA-CLIP or SigLIP tower train on the stand-in as on the CPU, with every layer fused."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.npu_standin.test_npu_standin import CLOSE, FLOAT32, LAYERS, TOWER

pytestmark = pytest.mark.npu_standin

STEPS = 2

NORMS = {"intern": 4 * TOWER, "eva": 0, "siglip": 0}
"""RMS norms of one pass through the tower: InternViT has four a layer, the others have layer norms."""


@pytest.mark.parametrize("kind", ["intern", "eva", "siglip"])
@pytest.mark.parametrize("how", ["plain", "recompute"])
def test_a_model_with_another_tower_equals_the_cpu(worker: Callable[..., dict[str, Any]], kind: str, how: str) -> None:
    found = worker(f"towers.{kind}", **FLOAT32)[how]
    assert found["loss"] <= CLOSE
    assert found["gradients"] <= CLOSE < found["gradient_size"] / 100
    assert found["after"] <= CLOSE < found["moved"] / 10
    passes = STEPS * (2 if how == "recompute" else 1)  # the layers, tower included, run once more in the backward pass
    layers = LAYERS + TOWER
    assert found["calls"] == {
        "flash_attention_npu": passes * layers,
        "flash_attention_npu_grad": STEPS * layers,
        "flash_attention_npu:plain": passes * TOWER,
        "flash_attention_npu:mask": passes * LAYERS,
        "flash_attention_npu:triangle": passes * LAYERS,
        "rms_norm_npu": passes * (2 * LAYERS + NORMS[kind]) + STEPS,  # the last norm is in no layer
        "rms_norm_npu_grad": STEPS * (2 * LAYERS + NORMS[kind] + 1),
        "fused_rope": passes * 2 * LAYERS,
        "fused_rope_grad": STEPS * 2 * LAYERS,
        "swiglu": passes * LAYERS,
        "swiglu_grad": STEPS * LAYERS,
    }
