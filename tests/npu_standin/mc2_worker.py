# SPDX-License-Identifier: Apache-2.0
"""One of two processes that hold a decoder together, with products and sums in one operator and without."""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from paddlemix.models.llava import build_empty, init_weights
from paddlemix.ops.parallel import TensorParallel
from paddlemix.ops.runtime import Runtime
from paddlemix.utils.errors import BackendError
from tests.npu_standin import worker
from tests.npu_standin.worker import Calls

FLAG = "PADDLEMIX_NPU_FUSED_MC2"


def step(parallel: TensorParallel, again: bool) -> dict[str, np.ndarray]:
    """Loss and gradients of one bfloat16 step, exact bits as float32."""
    text = dataclasses.replace(worker.config().text, num_key_value_heads=2)
    model = build_empty(dataclasses.replace(worker.config(), text=text, vision=None), parallel)
    init_weights(model, 0, "bfloat16")
    model.train()
    model.enable_recompute(again)
    ids = paddle.to_tensor(np.random.default_rng(1).integers(3, 90, [2, 16]))
    source = paddle.arange(32).reshape([2, 16])
    places = paddle.arange(16).expand([2, 16])
    loss = model(token_ids=ids, source=source, positions=places, labels=ids)
    loss.backward()
    found = {name: value.grad.astype("float32").numpy() for name, value in model.named_parameters()}
    return {**found, "loss": loss.astype("float32").numpy()}


def main(folder: Path) -> None:
    """Fused and plain, with recompute and without; then what is refused. The first process writes what it found."""
    paddle.set_device("npu")
    paddle.distributed.init_parallel_env()
    parallel, calls, found = TensorParallel(paddle.distributed.get_rank(), 2), Calls(), {}
    for again in (False, True):
        os.environ.pop(FLAG, None)
        plain = step(parallel, again)
        os.environ[FLAG] = "1"
        calls.reset()
        fused = step(parallel, again)
        found[f"recompute {again}"] = {
            "different": [name for name in plain if not np.array_equal(plain[name], fused[name])],
            "names": len(plain),
            "calls": calls.library.npu_standin_calls(b"fused_mm_allreduce"),
        }
    found["refused"] = refused(parallel)
    if parallel.rank == 0:
        (folder / "told.json").write_text(json.dumps(found), encoding="utf-8")


def refused(parallel: TensorParallel) -> dict[str, Any]:
    """The errors of a forced operator that cannot serve."""
    on_cpu, parallel = parallel.on(Runtime.current("cpu")), parallel.on()
    found = {}
    x, weight = paddle.rand([4, 8]), paddle.rand([8, 8])
    cases = {
        "float32": lambda: parallel.product(x, weight, even=True),
        "uneven": lambda: parallel.product(x.astype("bfloat16"), weight.astype("bfloat16"), even=False),
        "cpu": lambda: on_cpu.product(x.cpu(), weight.cpu(), even=True),
    }
    for name, run in cases.items():
        try:
            run()
            found[name] = "no error"
        except BackendError as error:
            found[name] = str(error)
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
