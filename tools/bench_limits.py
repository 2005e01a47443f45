# SPDX-License-Identifier: Apache-2.0
"""How near a figure is to what the processor allows (bench.py): the limits, measured in the same run, and the work.

The limit of matrix products is the rate of one large product by the library that computes here; that of the memory is
the rate at which numpy reads vectors that fit in no cache. Both of one thread, like every figure.
"""

import time
from collections.abc import Callable
from typing import Any

PRODUCT = 1536
"""Rows, columns and depth of the large product."""
READ_BYTES = 256 << 20
"""Memory that is read for the other limit."""


def work(spec: dict[str, Any]) -> Callable[[], dict[str, float]]:
    """A worker of ``tools.bench``: the next call gives FLOP and bytes a second of CPU time."""
    del spec
    import numpy as np
    import paddle

    from paddlemix.utils.device import tune_cpu

    tune_cpu()
    paddle.set_grad_enabled(False)
    a, b = paddle.randn([PRODUCT, PRODUCT]), paddle.randn([PRODUCT, PRODUCT])
    vector = np.ones(READ_BYTES // 8, dtype=np.float32)
    other = vector.copy()

    def best(action: Callable[[], Any]) -> float:
        taken = []
        for _ in range(3):
            begun = time.process_time()
            action()
            taken.append(time.process_time() - begun)
        return min(taken)

    def run() -> dict[str, float]:
        return {
            "product": 2.0 * PRODUCT**3 / best(lambda: paddle.matmul(a, b)),
            "read": READ_BYTES / best(lambda: np.dot(vector, other)),
        }

    return run


def shares(stage: str, seconds: float, spec: dict[str, Any], limits: dict[str, float]) -> dict[str, float]:
    """What ``stage`` of a kind needs at least by each limit, as a share of ``seconds``; empty for other stages."""
    cost = {"vision": _vision, "prefill": _prefill, "decode": _decode, "step of 1": _decode, "step of 4": _step}
    if stage not in cost:
        return {}
    flop, size = cost[stage](spec)
    return {"product": flop / limits["product"] / seconds, "read": size / limits["read"] / seconds}


def _vision(spec: dict[str, Any]) -> tuple[float, float]:
    """FLOP and bytes of one tile through all blocks but the last, and the projector of two layers."""
    patches, width, out = (spec["image"] // spec["patch"]) ** 2, spec["vision_width"], spec["width"]
    block = 4 * width * width + 2 * width * spec["vision_ffn"]
    blocks = spec["vision_layers"] - 1
    ends = 3 * spec["patch"] ** 2 * width + width * out + out * out
    rows = patches + 1
    flop = blocks * (2 * rows * block + 4 * rows * rows * width) + 2 * patches * ends
    return flop, 4.0 * (blocks * block + ends)


def _weights(spec: dict[str, Any]) -> tuple[int, int]:
    """Values of the decoder's layers and of its head."""
    width, kv_width = spec["width"], spec["width"] // spec["heads"] * spec["kv_heads"]
    layer = 2 * width * width + 2 * width * kv_width + 3 * width * spec["ffn"]
    return spec["layers"] * layer, width * spec["vocab"]


def _prefill(spec: dict[str, Any]) -> tuple[float, float]:
    """All layers over the prompt, half of the scores, and one row of the head."""
    layers, head = _weights(spec)
    length = spec["prompt"]
    attention = spec["layers"] * 2 * length * length * spec["width"]
    return 2.0 * (length * layers + head) + attention, 4.0 * (layers + head)


def _decode(spec: dict[str, Any], rows: int = 1) -> tuple[float, float]:
    """Every weight once, and keys and values of each row."""
    layers, head = _weights(spec)
    kept = 2 * spec["layers"] * (spec["prompt"] + spec["tokens"] // 2) * (spec["width"] // spec["heads"])
    scores = 2 * kept * spec["heads"]
    return rows * (2.0 * (layers + head) + scores), 4.0 * (layers + head + rows * kept * spec["kv_heads"])


def _step(spec: dict[str, Any]) -> tuple[float, float]:
    return _decode(spec, 4)
