# SPDX-License-Identifier: Apache-2.0
"""Measure head and loss by portions against the whole table of logits: time and peak memory, forward and backward.

    python tools/bench.py head [--positions N] [--width D] [--vocab V] [--labelled SHARE] [--frozen] [--repeat N]

Each contestant is a process of its own with one thread, asked in turn. Time is CPU time; memory is the peak of paddle's
own counter above what lies there before the step (the rows and the head).
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

WAYS = ("whole", "portions", "labelled")
AIMS = {"portions": (1.05, 0.40), "labelled": (1.05, 0.40)}
"""Time and memory over those of the whole."""


def work(spec: dict[str, Any]) -> Callable[[], dict[str, float]]:
    """One forward and backward pass of head and loss; ``way``: one of ``WAYS``."""
    import numpy as np
    import paddle

    from paddlemix.models.llava import build_empty, init_weights
    from paddlemix.settings.model import LlavaConfig, TextConfig
    from paddlemix.splice.plan import label_places
    from paddlemix.utils.device import tune_cpu
    from tools.bench import timed

    tune_cpu()
    width, vocab, length = spec["width"], spec["vocab"], spec["positions"]
    model = build_empty(LlavaConfig(TextConfig(vocab, width, 64, 1, 1, 1), None, None))
    init_weights(model)
    model.lm_head.weight.stop_gradient = spec["frozen"]
    model.llama.decode = lambda embeds, *more: embeds
    if spec["way"] != "whole":
        model.fuse_head_and_loss()
    rng = np.random.default_rng(0)
    labels = rng.integers(3, vocab, [1, length])
    labels[:, : length - int(spec["labelled"] * length)] = -100
    rows = paddle.to_tensor(rng.standard_normal([1, length, width], dtype=np.float32) * 0.02)
    rows.stop_gradient = False
    model.embed = lambda *given: rows
    places = paddle.to_tensor(label_places(labels)) if spec["way"] == "labelled" else None
    ids = paddle.zeros([1, length], "int64")
    given = {"token_ids": ids, "source": ids, "positions": ids, "labels": paddle.to_tensor(labels)}
    counter = paddle.base.core

    def step() -> None:
        model(**given, label_places=places).backward()
        rows.clear_gradient(False)
        model.lm_head.weight.clear_gradient(False)

    def run() -> dict[str, float]:
        before = counter.host_memory_stat_current_value("Allocated", 0)
        counter.host_memory_stat_reset_peak_value("Allocated", 0)
        seconds = timed(step)
        return {"seconds": seconds, "bytes": counter.host_memory_stat_peak_value("Allocated", 0) - before}

    return run


def main(argv: list[str]) -> int:
    """Run and print."""
    from paddlemix.utils.options import at_least_one
    from tools.bench import Contestant

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=at_least_one, default=4096)
    parser.add_argument("--width", type=at_least_one, default=1024)
    parser.add_argument("--vocab", type=at_least_one, default=32000)
    parser.add_argument("--labelled", type=float, default=1.0, metavar="SHARE", help="positions that carry a label")
    parser.add_argument("--frozen", action="store_true", help="the head does not train (LoRA)")
    parser.add_argument("--repeat", type=at_least_one, default=3)
    args = parser.parse_args(argv)
    worker = [sys.executable, str(Path(__file__).with_name("bench.py")), "--worker"]
    with ExitStack() as stack:
        contestants = [Contestant(way, worker, {"kind": "head", "way": way, **vars(args)}) for way in WAYS]
        for contestant in contestants:
            stack.callback(contestant.close)
            contestant.ask()  # warm up
        for _ in range(args.repeat):
            for contestant in contestants:
                contestant.times.append(contestant.ask())
    whole = contestants[0]
    print(f"head and loss, {json.dumps(vars(args))}, one thread, CPU time, medians")
    for contestant in contestants:
        seconds, peak = contestant.median("seconds"), contestant.median("bytes")
        line = f"  {contestant.name:<10}{seconds * 1000:10.1f} ms{peak / 1e6:10.1f} MB"
        if contestant is not whole:
            pairs = zip(contestant.times, whole.times, strict=True)
            ratio = statistics.median(ours["seconds"] / theirs["seconds"] for ours, theirs in pairs)
            line += f"   x whole: time {ratio:.2f} [<= {AIMS[contestant.name][0]}]"
            line += f", memory {peak / whole.median('bytes'):.2f} [<= {AIMS[contestant.name][1]}]"
        print(line)
    return 0
