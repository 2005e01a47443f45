# SPDX-License-Identifier: Apache-2.0
"""How many operators a training step and a decode step call on an npu, counted on the stand-in device.

    python tools/npu_counts.py          the tables of docs/npu-speed.md

A tiny bfloat16 model runs with one decoder layer and with two (and the tower likewise), with the fused operators and
without. What one more layer adds is a layer; what is left is the rest of the step. Kernels come from paddle's own log,
fused operators from the counters of the stand-in. ``empty``, ``reshape``, ``squeeze`` and ``unsqueeze`` give a tensor
that shares the memory of another, or memory alone: nothing runs on the device, and they are counted apart.
"""

import dataclasses
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

FREE = ("empty", "reshape", "squeeze", "unsqueeze", "view_shape")
PHASES = ("forward", "backward", "backward, recompute", "update", "decode")
PATHS = {"fused": {}, "plain": {"PADDLEMIX_NPU_FUSED": "0"}}
ASKS = ("numpy", "item", "tolist", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__")
"""Methods of a tensor in which the host waits for the device."""

_KERNEL = re.compile(r"\] (\w+) API kernel key: \[npu, ")
Counts = dict[str, dict[str, Counter[str]]]
"""Phase to size of the model (``1 layer``, ``2 layers``, ``tower``) to operators."""


def measure(flags: dict[str, str]) -> tuple[Counts, dict[str, int]]:
    """Run the worker on the stand-in: operators of each phase, and how often the host waited in it."""
    from paddlemix.ops.npu import record
    from tests.npu_standin import build

    reason = build.missing()
    if reason:
        raise SystemExit(reason)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).resolve()), "--worker"], cwd=ROOT,
        env=build.environment(build.build(), **record.LOG, **flags), capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return read(done.stderr)


def read(log: str) -> tuple[Counts, dict[str, int]]:
    """Take the log apart at the marks of the worker."""
    counts: Counts = {}
    waits: dict[str, int] = {}
    current: Counter[str] = Counter()
    for line in log.splitlines():
        if line.startswith("MARK "):
            mark = json.loads(line[5:])
            current.update({name: count for name, count in mark["fused"].items() if ":" not in name})
            if mark["phase"]:
                counts.setdefault(mark["phase"], {})[mark["size"]] = current
                waits[mark["phase"]] = mark["waits"]
            current = Counter()
        elif found := _KERNEL.search(line):
            current[found[1].rstrip("_")] += 1
    return counts, waits


def one_layer(of: dict[str, Counter[str]], more: str = "2 layers") -> Counter[str]:
    """What the larger model calls and the smaller does not."""
    found = of[more].copy()
    found.subtract(of["1 layer"])
    return Counter({name: count for name, count in found.items() if count})


def device(counts: Counter[str]) -> int:
    """Operators that run on the device."""
    return sum(count for name, count in counts.items() if name.removesuffix("_grad") not in FREE)


def tables(measured: dict[str, tuple[Counts, dict[str, int]]]) -> list[str]:
    """Both tables in Markdown."""
    lines = ["| | " + " | ".join(PHASES) + " |", "|---" * (len(PHASES) + 1) + "|"]
    for path, (counts, waits) in measured.items():
        layers = [one_layer(counts[phase]) for phase in PHASES]
        rest = [counts[phase]["1 layer"].copy() for phase in PHASES]
        for whole, layer in zip(rest, layers, strict=True):
            whole.subtract(layer)
        tower = one_layer(counts["forward"], "tower")
        lines.append(_row(f"{path}: a decoder layer", map(device, layers)))
        lines.append(_row(f"{path}: a tower layer", [device(tower), "", "", "", ""]))
        lines.append(_row(f"{path}: the rest, with one tower layer", map(device, rest)))
        lines.append(_row(f"{path}: the host waits", [waits[phase] for phase in PHASES]))
    lines += ["", "| a decoder layer, fused | operators |", "|---|---|"]
    for phase in PHASES:
        layer = one_layer(measured["fused"][0][phase])
        named = [(name, count) for name, count in sorted(layer.items()) if name.removesuffix("_grad") not in FREE]
        shared = sum(layer.values()) - device(layer)
        text = ", ".join(f"{name} {count}" for name, count in named)
        lines.append(f"| {phase} | {text}; {shared} share memory |")
    return lines


def _row(name: str, cells: Any) -> str:
    return f"| {name} | " + " | ".join(map(str, cells)) + " |"


def worker() -> None:
    """In a process on the stand-in: run every phase at every size, with marks in the log."""
    import paddle

    from tests.npu_standin.worker import Calls

    paddle.set_device("npu")
    calls, asked = Calls(), []
    for name in ASKS:
        original = getattr(paddle.Tensor, name)

        def count(self: Any, *args: Any, _original: Any = original, **kwargs: Any) -> Any:
            asked.append(1)
            return _original(self, *args, **kwargs)

        setattr(paddle.Tensor, name, count)

    def mark(phase: str, size: str) -> None:
        found = {"phase": phase, "size": size, "fused": calls.read(), "waits": len(asked)}
        found["fused"] = {name: n for name, n in found["fused"].items() if not name.startswith("swiglu")}  # in the log
        sys.stderr.write("MARK " + json.dumps(found) + "\n")
        sys.stderr.flush()
        calls.reset()
        asked.clear()

    for size, layers, tower in (("1 layer", 1, 1), ("2 layers", 2, 1), ("tower", 1, 2)):
        _train(size, layers, tower, mark)
        _decode(size, layers, tower, mark)


def _model(layers: int, tower: int) -> Any:
    from paddlemix.models.llava import LlavaForCausalLM, init_weights
    from tests.npu_standin import worker as standin

    config = standin.config()
    text = dataclasses.replace(config.text, num_hidden_layers=layers)
    vision = dataclasses.replace(config.vision, num_hidden_layers=tower + 1)  # the last one gives no feature
    model = LlavaForCausalLM(dataclasses.replace(config, text=text, vision=vision))
    init_weights(model, 0, "bfloat16")
    return model


def _train(size: str, layers: int, tower: int, mark: Any) -> None:
    import paddle

    from tests.npu_standin.worker import batch

    model = _model(layers, tower)
    for name, parameter in model.named_parameters():
        parameter.stop_gradient = "vision_tower" in name
    model.train()
    trained = [value for value in model.parameters() if not value.stop_gradient]
    optimizer = paddle.optimizer.AdamW(1e-4, parameters=trained, multi_precision=True)
    arguments = {key: paddle.to_tensor(value) for key, value in batch("right").items()}
    arguments["pixels"] = arguments["pixels"].astype("bfloat16")
    for again in (False, True, False):  # the first step makes the state of the optimizer
        model.enable_recompute(again)
        mark("", size)
        loss = model(**arguments)
        mark("forward", size)
        loss.backward()
        mark("backward, recompute" if again else "backward", size)
        optimizer.step()
        optimizer.clear_grad()
        mark("update", size)


def _decode(size: str, layers: int, tower: int, mark: Any) -> None:
    import numpy as np
    import paddle

    from paddlemix.generation.engine import generate
    from paddlemix.generation.sampling import Decoding
    from paddlemix.splice.plan import PlanRow, build_plan

    model = _model(layers, tower).prepare_inference()
    plan = build_plan([PlanRow(list(range(1, 9)), [])], tokens_per_tile=4)
    with paddle.no_grad():
        steps = generate(model, plan, None, Decoding(max_new_tokens=4, eos_ids=frozenset()))
        next(steps)
        next(steps)
        mark("", size)
        assert np.asarray(next(steps)).shape == (1,)  # noqa: S101 - a step was made
        mark("decode", size)


if __name__ == "__main__":
    if sys.argv[1:] == ["--worker"]:
        worker()
    else:
        print("\n".join(tables({path: measure(flags) for path, flags in PATHS.items()})))
