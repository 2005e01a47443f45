# SPDX-License-Identifier: Apache-2.0
"""Methods by a key, half precision and sample answers on two stand-in devices: what one process on the CPU computes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from paddlemix.utils import files
from tests.npu_standin.conftest import made_once
from tests.npu_standin.test_npu_tensor_parallel import CLOSE, arguments, launch, logged, write_place

pytestmark = [pytest.mark.npu_standin, pytest.mark.dist, pytest.mark.slow, pytest.mark.timeout(900)]

ADAPTERS = {"lora": "true", "lora_rank": 4, "lora_dropout": 0}
PARTS = json.dumps(["all-linear", ".*vision_tower.*(q|v)_proj", "mm_projector.0"])
SAVED = json.dumps(["embed_tokens", "lm_head", "mm_projector"])
ASKED = {"eval_generate": 3, "eval_generate_tokens": 6}
METHODS: dict[str, dict[str, Any]] = {
    "dora": {**ADAPTERS, "use_dora": "true", "lora_target_modules": PARTS, **ASKED},
    "pissa": {**ADAPTERS, "pissa": "true", "pissa_iter": 4},
    "saved": {**ADAPTERS, "rslora": "true", "lora_plus_scale": 4, "modules_to_save": SAVED},
}
SHARDED = {f"{stage} {name}": (stage, name) for stage in ("stage2", "stage3") for name in METHODS}

WHOLE = {"tune_entire_model": "true"}
O2 = {"fp16_opt_level": "O2"}
HALVES: dict[str, dict[str, Any]] = {
    "bf16 O1": {"bf16": "true"},
    "bf16 O2": {"bf16": "true", **O2},
    "fp16 O1": {"fp16": "true"},
    "fp16 O2": {"fp16": "true", **O2, "amp_master_grad": "true"},
}
NEAR = {"bf16": 0.1, "fp16": 0.02}
"""Of losses near 5: five times what one layer's rounding moves, as in ``test_npu_precision``."""
ONE = {"per_device_train_batch_size": 1}


@pytest.fixture(scope="session")
def runs(standin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with each case run on two devices, and what it is compared with on the CPU."""
    from paddlemix.settings.run.loader import load_settings
    from paddlemix.trainer.run import finetune

    def make(root: Path) -> None:
        write_place(root)

        def case(name: str, **keys: Any) -> list[str]:
            return arguments(root, root / name, "clip", **keys)

        alone = {"device": "cpu", **ONE, "gradient_accumulation_steps": 2}
        for name, keys in {**METHODS, "whole": WHOLE}.items():
            finetune(load_settings(case(name, **alone, **keys)))
        finetune(load_settings(case("answers", device="cpu", **WHOLE, **ASKED)))
        both = {"device": "npu", **ONE}
        cases = {name: {"sharding": stage, **METHODS[method]} for name, (stage, method) in SHARDED.items()}
        launch(standin, root, {name: case(name, **both, **keys) for name, keys in cases.items()}, devices=2)
        launch(standin, root, {name: case(name, **both, **WHOLE, **keys) for name, keys in HALVES.items()}, devices=2)
        tensor = case("tensor answers", device="npu", tensor_parallel_degree=2, **WHOLE, **ASKED)
        launch(standin, root, {"tensor answers": tensor}, devices=2)

    return made_once(tmp_path_factory, "methods", make)


@pytest.mark.parametrize("case", SHARDED)
def test_methods_under_sharding_give_the_losses_norms_and_adapters_of_one_process(runs: Path, case: str) -> None:
    alone = runs / SHARDED[case][1]
    assert len(logged(runs / case, "loss")) == 6
    assert logged(runs / case, "loss") == pytest.approx(logged(alone, "loss"), abs=CLOSE)
    assert logged(runs / case, "grad_norm") == pytest.approx(logged(alone, "grad_norm"), rel=CLOSE)
    assert files.verify_folder(runs / case / "checkpoint-6") == []
    one, other = (load_file(folder / "lora_model_state.safetensors") for folder in (alone, runs / case))
    assert one.keys() == other.keys()
    # AdamW divides a gradient by its size, so rounding noise near zero moves a weight too.
    assert max(float(np.abs(one[name] - other[name]).max()) for name in one) <= 10 * CLOSE


@pytest.mark.parametrize("half", HALVES)
def test_half_precision_on_two_devices_is_near_float32(runs: Path, half: str) -> None:
    near = NEAR[half.partition(" ")[0]]
    assert logged(runs / half, "loss") == pytest.approx(logged(runs / "whole", "loss"), abs=near)
    assert logged(runs / half, "grad_norm") == pytest.approx(logged(runs / "whole", "grad_norm"), rel=near)


@pytest.mark.parametrize(
    ("case", "alone"), [("stage2 dora", "dora"), ("stage3 dora", "dora"), ("tensor answers", "answers")]
)
def test_sample_answers_are_those_of_one_process(runs: Path, case: str, alone: str) -> None:
    said = [
        [path.read_text() for path in sorted((runs / name / "eval_answers").glob("*.jsonl"))] for name in (alone, case)
    ]
    assert len(said[0]) >= 4
    assert any(json.loads(line)["answer"] for text in said[0] for line in text.splitlines())
    assert said[0] == said[1]
