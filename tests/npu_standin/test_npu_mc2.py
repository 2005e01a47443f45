# SPDX-License-Identifier: Apache-2.0
"""Products of tensor parallel with their sum in one operator, on two stand-in devices."""

from pathlib import Path
from typing import Any

import pytest

from tests.npu_standin import build
from tests.npu_standin.conftest import made_once
from tests.npu_standin.worker import LAYERS

pytestmark = [pytest.mark.npu_standin, pytest.mark.dist]


@pytest.fixture(scope="module")
def told(standin: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    import json

    folder = made_once(tmp_path_factory, "mc2", lambda folder: build.launch(standin, folder, "mc2_worker.py"))
    return json.loads((folder / "told.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("again", "forward"), [(False, 1), (True, 2)])
def test_the_fused_product_gives_the_bits_of_product_and_sum(told: dict[str, Any], again: bool, forward: int) -> None:
    found = told[f"recompute {again}"]
    assert found["different"] == []
    assert found["names"] > 20
    assert found["calls"] == 2 * LAYERS * forward, "attention and MLP of every layer"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("float32", "takes float16 and bfloat16, not float32"),
        ("uneven", "wants equal parts on 2, 4, 8 devices"),
        ("cpu", "the tensors are on cpu, not on an npu"),
    ],
)
def test_what_the_operator_cannot_serve_is_refused_when_it_is_forced(
    told: dict[str, Any], name: str, words: str
) -> None:
    assert told["refused"][name].startswith("PADDLEMIX_NPU_FUSED_MC2=1: ")
    assert words in told["refused"][name]
