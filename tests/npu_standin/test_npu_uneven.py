# SPDX-License-Identifier: Apache-2.0
"""Every strategy on two stand-in devices with uneven data: no hang, and the losses of one process on the CPU.

A step's loss is the mean over the labels of each micro-batch, averaged over the micro-batches of all processes. So the
peer is one process that accumulates as many micro-batches as the processes compute side by side.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddlemix.datasets.sampler import shuffled
from paddlemix.trainer.batches import split_batches
from tests.npu_standin.conftest import made_once
from tests.npu_standin.test_npu_tensor_parallel import CLOSE, launch, logged
from tests.tiny import tiny_config, tiny_image, tiny_tokenizer_folder

pytestmark = [pytest.mark.npu_standin, pytest.mark.dist, pytest.mark.timeout(280)]

ROWS, BATCH, SEED = 11, 2, 42
PICTURED = (2, 6, 9)
"""Rows with an image; ``test_the_data_are_uneven`` says what that makes of the steps."""
SECONDS = 150
"""Hard end of a launch of all cases, which takes a tenth of it on an idle machine."""

SHARED = {"gradient_accumulation_steps": 2}
"""Both devices compute the same rows, so they accumulate as one process does."""
PACKED = {"mixtoken": "true", "max_length": 128, "per_device_train_batch_size": 1}
CASES: dict[str, dict[str, Any]] = {
    "stage1": {"sharding": "stage1"},
    "stage2": {"sharding": "stage2"},
    "stage3": {"sharding": "stage3", "recompute": "true"},
    "data parallel": {},  # paddle takes no sharding after a run without
    "recompute": {"recompute": "true"},
    "packing": {**PACKED},
    "sequence parallel": {"sep_parallel_degree": 2, **SHARED},
    "sequence parallel, packing": {"sep_parallel_degree": 2, **PACKED, **SHARED},
    "sequence parallel, portions": {"sep_parallel_degree": 2, "use_fused_head_and_loss_fn": "true", **SHARED},
}
APART: dict[str, dict[str, Any]] = {
    "tensor parallel": {"tensor_parallel_degree": 2, **SHARED},
    "sequence parallel, stage2": {"sep_parallel_degree": 2, "sharding": "stage2", **SHARED},
}
"""Those that need other groups of processes, which paddle makes once."""


def write_place(root: Path) -> None:
    """A model with four heads of 64 and two key heads; rows of which few have an image, of many lengths."""
    from paddlemix.checkpoint.save import save_model
    from paddlemix.models.llava import LlavaForCausalLM, init_weights
    from paddlemix.text.tokenizer import load_tokenizer

    text = dict(hidden_size=256, intermediate_size=99, num_attention_heads=4, num_key_value_heads=2, vocab_size=449)
    vision = dict(hidden_size=128, intermediate_size=70, num_attention_heads=2)
    config = tiny_config()
    config = config.with_changes(text=replace(config.text, **text), vision=replace(config.vision, **vision))
    model = LlavaForCausalLM(config)
    init_weights(model, 3)
    save_model(root / "model", model, config, load_tokenizer(tiny_tokenizer_folder()))
    (root / "data").mkdir()
    rows = []
    for index in range(ROWS):
        asked, said = "what colour? " * (1 + index % 3), "red square, " * (1 + index * 5 % 4)
        rows.append({"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": said}]})
        if index in PICTURED:
            tiny_image(index).save(root / "data" / f"{index}.png")
            rows[-1]["image"] = f"{index}.png"
            rows[-1]["conversations"][0]["value"] = "<image>\n" + asked
    (root / "data" / "rows.json").write_text(json.dumps(rows))


def arguments(root: Path, output: str, **changes: Any) -> list[str]:
    """A run of one pass and no files but its log."""
    keys = {
        "model_name_or_path": root / "model",
        "data_path": root / "data" / "rows.json",
        "image_folder": root / "data",
        "output_dir": root / output,
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        "max_grad_norm": 0.5,
        "seed": SEED,
        "logging_steps": 1,
        "save_strategy": "no",
        "benchmark": "true",
        "tune_entire_model": "true",
        "do_train": "true",
        **changes,
    }
    return [part for name, value in keys.items() for part in (f"--{name}", str(value))]


@pytest.fixture(scope="session")
def runs(standin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the log of each case, on two devices and on the CPU."""
    from paddlemix.settings.run.loader import load_settings
    from paddlemix.trainer.run import finetune

    def make(root: Path) -> None:
        write_place(root)
        for name, keys in (("rows", {}), ("packed", CASES["packing"])):
            finetune(load_settings(arguments(root, name, device="cpu", **{**keys, **SHARED})))
        launch(standin, root, _arguments_of(root, CASES), 2, SECONDS)
        for name, keys in APART.items():
            launch(standin, root, _arguments_of(root, {name: keys}), 2, SECONDS)

    return made_once(tmp_path_factory, "uneven", make)


def _arguments_of(root: Path, cases: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    return {name: arguments(root, name, device="npu", **keys) for name, keys in cases.items()}


def test_the_data_are_uneven() -> None:
    order = shuffled(ROWS, SEED)(0)
    first, second = (split_batches(order, BATCH, rank=rank, world=2) for rank in (0, 1))
    assert [len(batch) for batch in first] != [len(batch) for batch in second]
    pictures = [[bool({*PICTURED} & {*batch}) for batch in batches] for batches in (first, second)]
    assert sorted({(one, other) for one, other in zip(*pictures, strict=True)}) != [(False, False), (True, True)]
    assert any(one != other for one, other in zip(*pictures, strict=True)), "one process has text alone in a step"


@pytest.mark.parametrize("case", {**CASES, **APART})
def test_losses_and_norms_equal_those_of_one_process(runs: Path, case: str) -> None:
    alone = runs / ("packed" if "packing" in case else "rows")
    losses = logged(runs / case, "loss")
    assert len(losses) >= 2
    assert len({*np.round(losses, 3)}) == len(losses)
    assert losses == pytest.approx(logged(alone, "loss"), abs=CLOSE)
    assert logged(runs / case, "grad_norm") == pytest.approx(logged(alone, "grad_norm"), rel=CLOSE)
