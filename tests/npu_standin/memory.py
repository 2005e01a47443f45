# SPDX-License-Identifier: Apache-2.0
"""Workers on the stand-in: what attention takes in memory, by paddle's own counter."""

import json
import sys
from typing import Any

import paddle

from paddlemix.ops.attention import math as law
from paddlemix.ops.attention.contract import Mask


def case_peak() -> dict[str, Any]:
    """Bytes of plain attention for each score: at the peak of the backward pass, and kept from the forward pass."""
    from paddle.base import core

    paddle.set_device("npu")
    length, found = 1024, {}
    for dtype in ("bfloat16", "float32"):
        for heads, kv_heads in ((4, 4), (8, 2)):
            q, k, v = (paddle.rand([1, length, count, 64]).astype(dtype) for count in (heads, kv_heads, kv_heads))
            for tensor in (q, k, v):
                tensor.stop_gradient = False
            mask = Mask(True)
            mask.additive(length, length)  # one for all layers
            before = core.device_memory_stat_current_value("Allocated", 0)
            out = law.attend(q, k, v, mask, scale=0.125)
            kept = core.device_memory_stat_current_value("Allocated", 0) - before
            core.device_memory_stat_reset_peak_value("Allocated", 0)
            out.sum().backward()
            peak = core.device_memory_stat_peak_value("Allocated", 0) - before
            scores = heads * length**2
            found[f"{dtype}, {heads} heads, {kv_heads} key heads"] = [peak / scores, kept / scores]
    return {"bytes": found}


def case_head() -> dict[str, Any]:
    """A bfloat16 step with head and loss by portions, against the whole, with paddle's log of kernels on."""
    from tests.npu_standin import worker

    paddle.set_device("npu")
    model = worker.model("bfloat16")
    model.train()
    arguments = {name: paddle.to_tensor(value) for name, value in worker.batch("right").items()}
    arguments["pixels"] = arguments["pixels"].astype("bfloat16")
    found: dict[str, Any] = {}
    for portion in (0, 8):
        model.fuse_head_and_loss(portion)
        print(f"PHASE {portion}", file=sys.stderr, flush=True)
        loss = model(**arguments)
        loss.backward()
        print("PHASE end", file=sys.stderr, flush=True)
        found[str(portion)] = [float(loss), model.lm_head.weight.grad.astype("float32").numpy().tolist()]
        model.clear_gradients()
    return found


if __name__ == "__main__":
    print("RESULT " + json.dumps(globals()[f"case_{sys.argv[1]}"]()))
