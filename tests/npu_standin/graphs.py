# SPDX-License-Identifier: Apache-2.0
"""Tower, prefill and steps of a static cache on the stand-in device, as graphs and without."""

import json
import sys
from typing import Any

import numpy as np
import paddle
from paddle.static import InputSpec

from paddlemix.generation.engine import generate, generate_batch
from paddlemix.generation.sampling import Decoding
from paddlemix.ops.attention.contract import Mask
from paddlemix.ops.tracing import to_static
from paddlemix.splice.plan import PlanRow, build_plan
from tests.models.test_models_static import Encode, Prefill, whole
from tests.npu_standin import worker

LENGTH = 8


@paddle.no_grad()
def case_traced() -> dict[str, Any]:
    """Largest differences of graph and dynamic model, and the fused operators that each called."""
    paddle.set_device("npu")
    model, calls = worker.model("float32").prepare_inference(), worker.Calls()
    rng = np.random.default_rng(0)
    tiles = paddle.to_tensor(rng.standard_normal([2, 3, 28, 28], np.float32))
    features = model.encode_images(tiles)
    rows = np.arange(2 * LENGTH).reshape(2, LENGTH)
    given = [paddle.to_tensor(item) for item in (rng.integers(3, 90, [2, LENGTH]), rows, rows % LENGTH)]
    embeds = model.embed(*given[:2], features)
    logits = model.logits(model.decode(embeds, given[2], Mask(causal=True)))
    dynamic = calls.read()
    calls.reset()
    encode = to_static(Encode(model), [InputSpec([None, 3, 28, 28], "float32")])
    specs = [whole(None, None)] * 3 + [InputSpec([None, 4, 128], "float32")]
    prefill = to_static(Prefill(model), specs)
    return {
        "tower": float((encode(tiles) - features).abs().max()),
        "prefill": float((prefill(*given, features)[0] - logits).abs().max()),
        "dynamic": dynamic,
        "traced": calls.read(),
    }


def case_rows() -> dict[str, Any]:
    """Ids of rows of different length in one static cache, and of each row alone; the calls of the first."""
    paddle.set_device("npu")
    model, calls = worker.model("float32").prepare_inference(), worker.Calls()
    decoding = Decoding(max_new_tokens=6, eos_ids=frozenset())
    rows = [PlanRow([1, 7, 9, 30]), PlanRow([1, 5]), PlanRow([1, 8, 31, 32, 33, 34, 35])]
    alone = [generate_batch(model, build_plan([row], tokens_per_tile=4), None, decoding)[0] for row in rows]
    plan = build_plan(rows, tokens_per_tile=4, padding_side="right")
    calls.reset()
    steps = list(generate(model, plan, None, decoding, cache=model.new_static_cache(16)))
    return {"alone": alone, "together": [list(row) for row in zip(*steps, strict=True)], "calls": calls.read()}


if __name__ == "__main__":
    print("RESULT " + json.dumps(globals()[f"case_{sys.argv[1]}"]()))
