# SPDX-License-Identifier: Apache-2.0
"""Tensor parallel: several processes that share a model compute what one process with the whole model computes."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddlemix.models.llava import build_empty
from paddlemix.ops.parallel import TensorParallel, part_of, whole_shape
from paddlemix.utils.errors import ConfigError
from tests.tiny import tiny_config, tiny_intern_config

CLOSE = 1e-5
WORKER = Path(__file__).with_name("parallel_worker.py")


def check(told: dict[str, Any]) -> None:
    """Loss, logits, every gradient, the gathered weights and the generated ids of all cases."""
    assert len(told) == 8
    for case, found in told.items():
        assert found["loss"] < CLOSE, case
        assert found["logits"] < CLOSE, case
        assert found["gradient"] < CLOSE, (case, found["worst"])
        # The same parameters have a gradient.
        assert found["gradients"][0] == found["gradients"][1] > 30, case
        assert found["weights"], case
        assert found["ids"], case


@pytest.mark.dist
@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_that_share_a_model_equal_one(tmp_path: Path, processes: int) -> None:
    command = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", str(processes)]
    done = subprocess.run(
        [*command, "--backend", "gloo", "--log_dir", str(tmp_path / "log"), str(WORKER), str(tmp_path / "told"), "cpu"],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    told = "\n".join(path.read_text()[-2000:] for path in sorted((tmp_path / "log").glob("workerlog.*")))
    assert done.returncode == 0, told
    check(json.loads((tmp_path / "told").read_text()))


def test_devices_hold_every_place_once() -> None:
    for units, size in ((25, 8), (6, 3), (7, 2), (3, 5)):
        for repeats in (1, 3):
            shares = [TensorParallel(rank, size).share(units).times(4).repeated(repeats) for rank in range(size)]
            axis = np.arange(units * 4 * repeats)
            held = [share.cut(axis[None], 1)[0] for share in shares]
            assert [len(places) for places in held] == [share.count for share in shares]
            assert sorted(np.concatenate(held)) == axis.tolist()
            # Nobody holds more than a unit more than another, and repeats stay in step.
            assert max(map(len, held)) - min(map(len, held)) <= 4 * repeats
            assert all(len(places) % (4 * repeats) == 0 for places in held)


def test_intern_vit_6b_fits_on_eight_devices_as_a_whole() -> None:
    """25 heads of 128: the first device takes four, the others three; together they hold the published shapes."""
    config = tiny_intern_config()
    vision = replace(config.vision, hidden_size=3200, num_attention_heads=25, intermediate_size=12800)
    config = config.with_changes(vision=vision, text=replace(config.text, num_attention_heads=8, num_key_value_heads=8))
    whole = {name: tuple(value.shape) for name, value in build_empty(config).named_parameters()}
    heads, sizes = [], dict.fromkeys(whole, 0)
    for rank in range(8):
        model = build_empty(config, TensorParallel(rank, 8))
        heads.append(model.llama.vision_tower.vision_tower.encoder.layers[0].attn.heads)
        for name, value in model.named_parameters():
            assert whole_shape(value) == whole[name]
            sizes[name] += value.size if part_of(value) is not None or rank == 0 else 0
    assert heads == [4, 3, 3, 3, 3, 3, 3, 3]
    assert sizes == {name: int(np.prod(shape)) for name, shape in whole.items()}


def test_more_devices_than_heads_is_an_error_that_names_both() -> None:
    with pytest.raises(
        ConfigError, match=r'"tensor_parallel_degree" is 3, but the model has only 2 key and value heads'
    ):
        build_empty(tiny_config(), TensorParallel(0, 3))
    config = tiny_config()
    narrow = config.with_changes(vision=replace(config.vision, num_attention_heads=1))
    with pytest.raises(ConfigError, match="only 1 heads in the vision tower"):
        build_empty(narrow, TensorParallel(0, 2))
