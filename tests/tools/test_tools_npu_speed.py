# SPDX-License-Identifier: Apache-2.0
"""The speed document holds what its tools give, and the tools count what they say."""

import re
from collections import Counter
from pathlib import Path

import paddle
import pytest

from tests.npu_standin import build
from tools import npu_counts, npu_recipes, npu_speed

DOC = Path(__file__).resolve().parents[2] / "docs" / "npu-speed.md"
COUNTED_WITH = "3.3.1"


def test_the_expectations_of_the_document_are_those_of_the_tool():
    assert "\n".join(npu_speed.table()) in DOC.read_text(encoding="utf-8"), "run: python tools/npu_speed.py"


def test_the_work_of_an_update_by_hand():
    recipe = npu_recipes.RECIPES[0]
    done = npu_speed.work(recipe)
    positions = 8 * 2 * 2048
    linears = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    head = 32000 * 4096
    scores = 32 * 4096 * 2048 * positions
    tower = 303e6 * 16 * 577 * 2
    assert done.positions == positions
    assert done.model == pytest.approx(6 * positions * (linears + head) + 6 * scores + tower, rel=1e-3)
    assert done.products == pytest.approx(positions * (8 * linears + 6 * head) + tower, rel=1e-3)
    assert done.attention == 8 * scores
    # Gradients of both portions and the parameters, 2 bytes each, to the seven others.
    assert done.sent == pytest.approx(2 * 6.76e9 * 3 * 7 / 8, rel=1e-2)


def test_adapters_have_no_gradient_of_frozen_weights_and_tensor_parallel_divides_the_products():
    recipe = next(one for one in npu_recipes.RECIPES if one.file == "llava_v1_6_34b_lora")
    done = npu_speed.work(recipe)
    assert 2 / 3 * 6.0 * done.positions * 34e9 / 8 < done.model < 0.8 * 6.0 * done.positions * 34e9 / 8
    assert done.sent > 4e12


def log(*kernels: str) -> list[str]:
    return [f"I1 api.cc:1] {name} API kernel key: [npu, NCHW, bfloat16]" for name in kernels]


def test_a_layer_is_what_the_larger_model_calls_on_top():
    mark = '{{"phase": "{}", "size": "{}", "fused": {{"rms_norm_npu": {}, "flash_attention_npu:mask": 9}}, "waits": 1}}'
    lines = log("conv2d", *["matmul", "reshape"] * 2)
    lines += ["MARK " + mark.format("forward", "1 layer", 2)]
    lines += log("conv2d", *["matmul", "reshape", "add_"] * 4)
    lines += ["MARK " + mark.format("forward", "2 layers", 4)]
    counts, waits = npu_counts.read("\n".join(lines))
    layer = npu_counts.one_layer(counts["forward"])
    assert layer == Counter({"matmul": 2, "reshape": 2, "add": 4, "rms_norm_npu": 2})
    assert npu_counts.device(layer) == 8
    assert waits == {"forward": 1}


@pytest.mark.npu_standin
@pytest.mark.timeout(300)
def test_the_counts_of_the_document_are_those_of_the_stand_in():
    if build.missing():
        pytest.skip(build.missing())
    counts, waits = npu_counts.measure(npu_counts.PATHS["fused"])
    assert waits == dict.fromkeys(npu_counts.PHASES, 0) | {"decode": 1}
    text = DOC.read_text(encoding="utf-8")
    assert f"paddle {COUNTED_WITH}" in text
    if paddle.__version__ == COUNTED_WITH:  # another one may split an operator otherwise
        for line in npu_counts.tables({"fused": (counts, waits)}):
            assert line in text, "run: python tools/npu_counts.py"
    assert npu_counts.one_layer(counts["forward"])["matmul"] == 7
    assert npu_counts.one_layer(counts["forward"])["flash_attention_npu"] == 1


def test_what_a_missing_operator_costs_is_what_was_counted():
    from paddlemix.ops.operators import OPERATORS

    text = DOC.read_text(encoding="utf-8")
    fused, plain = (
        int(re.search(rf"^\| {way}: a decoder layer \| (\d+)", text, re.M)[1]) for way in ("fused", "plain")
    )
    costs = {name: operator.cost for name, operator in OPERATORS.items()}
    told = {name: re.search(r"is (\d+) operators.* in place of (\d+)", cost) for name, cost in costs.items()}
    more = {name: int(found[1]) - int(found[2]) if found else 1 for name, found in told.items()}
    assert plain - fused == more["ATTENTION"] + 2 * more["RMS_NORM"] + 2 * more["ROPE"] + more["SWIGLU"]
