# SPDX-License-Identifier: Apache-2.0
"""Measure weights of 16, 8 and 4 bits against float32: memory, decoding, prefill, an image, and the logits.

    python tools/bench.py bits [--shape tiny|mid] [--repeat N] [--folder DIR] [--json FILE]

A random model is written in float32 and, by ``convert``, in 8 and 4 bits; every contestant opens its folder in a
process of its own with one thread, and they are asked in turn. Times are CPU time, medians. Memory is what the process
has grown by since before the model was opened, file pages included, after a prompt and an answer. The cosine is that
of the logits of the prompt's last places, over float32's, for the same ids.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

WAYS = (32, 16, 8, 4)
AIMED = "mid"
"""The shape that the aims speak of: in a smaller one the weights are the smaller part."""
AIMS = {8: {"memory": 0.32, "decode": 0.5, "prefill": 1.1, "cosine": 0.999}, 4: {"memory": 0.20}}
CHECKED = 8
"""Last places of the prompt whose logits are compared."""


def work(spec: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Open ``spec["folder"]`` and give a function that encodes, prefills and decodes once."""
    import paddle

    from paddlemix.checkpoint.load import load_model
    from paddlemix.ops.attention.contract import Mask
    from paddlemix.utils.device import tune_cpu
    from tools.bench import feeder, timed

    tune_cpu()
    paddle.set_grad_enabled(False)
    paddle.matmul(paddle.ones([64, 64]), paddle.ones([64, 64]))  # the library's own memory is there from here on
    before = resident()
    model = load_model(spec["folder"], bits=16 if spec["way"] == 16 else None).model.prepare_inference()
    paddle.seed(0)
    pixels = paddle.randn([1, 3, spec["image"], spec["image"]])
    length, new = spec["prompt"], spec["tokens"]
    ids, places = paddle.randint(3, spec["vocab"], [1, length]), paddle.arange(length).unsqueeze(0)
    feed = feeder(model, spec)

    def compared() -> list[list[float]]:
        hidden = model.decode(model.embed(ids, places, None), places, Mask(causal=True), model.new_cache(1))
        return model.logits(hidden[:, -CHECKED:])[0].numpy().tolist()

    def run() -> dict[str, Any]:
        found: dict[str, Any] = {"vision": timed(lambda: model.encode_images(pixels).sum().item())}
        cache = model.new_cache(1)
        found["prefill"] = timed(lambda: feed(0, length, cache))
        found["decode"] = timed(lambda: [feed(length + i, length + i + 1, cache) for i in range(new)]) / new
        found["memory"] = resident() - before
        if spec.pop("compare", False):
            found["logits"] = compared()
        return found

    return run


def resident() -> int:
    """Bytes of this process in memory, pages of mapped files included."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("no VmRSS in /proc/self/status: the memory is measured on Linux")


def write_folders(place: Path, spec: dict[str, Any]) -> dict[int, Path]:
    """The folder of each way."""
    from paddlemix.checkpoint.convert.layouts import convert
    from paddlemix.checkpoint.save import save_model
    from paddlemix.models.llava import build_empty, init_weights
    from tools.bench import model_config

    if not (place / "32").is_dir():
        model = build_empty(model_config(spec))
        init_weights(model)
        save_model(place / "32", model, model.config, None)
    for bits in (8, 4):
        if not (place / str(bits)).is_dir():
            convert(place / "32", place / str(bits), "own", bits=bits)
    return {way: place / str(32 if way == 16 else way) for way in WAYS}


def cosine(ours: list[list[float]], theirs: list[list[float]]) -> float:
    """The least over the places."""
    import numpy as np

    a, b = np.array(ours), np.array(theirs)
    return float(((a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))).min())


def main(argv: list[str]) -> int:
    """Run and print."""
    from paddlemix.utils.options import at_least_one
    from paddlemix.utils.paths import new_file
    from tools.bench import SHAPES, Contestant

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="tiny")
    parser.add_argument("--repeat", type=at_least_one, default=3)
    parser.add_argument("--folder", type=Path, help="keep the models there, and use those that are (default: removed)")
    parser.add_argument("--json", type=new_file, help="also write the result to this file")
    args = parser.parse_args(argv)
    shape = SHAPES[args.shape]
    worker = [sys.executable, str(Path(__file__).with_name("bench.py")), "--worker"]
    with tempfile.TemporaryDirectory(prefix="bench-bits-") as place, ExitStack() as stack:
        folders = write_folders(args.folder or Path(place), shape)
        contestants, logits = {}, {}
        for way, folder in folders.items():
            spec = {"kind": "bits", "way": way, "folder": str(folder), "compare": True, **shape}
            contestants[way] = Contestant(f"{way} bits", worker, spec)
            stack.callback(contestants[way].close)
            logits[way] = contestants[way].ask()["logits"]  # warm up
        for _ in range(args.repeat):
            for contestant in contestants.values():
                contestant.times.append(contestant.ask())
        # The whole process counts: what is compared above has come and gone.
        found = {way: row_of(contestant) for way, contestant in contestants.items()}
    for way, row in found.items():
        row["cosine"] = cosine(logits[way], logits[32])
    print(f"weights by bits, shape {args.shape}, median of {args.repeat}, one thread, CPU time")
    for way, row in found.items():
        print(line_of(way, row, found[32], AIMS.get(way, {}) if args.shape == AIMED else {}))
    if args.json:
        args.json.write_text(json.dumps({"shape": args.shape, "bits": found}, indent=1), encoding="utf-8")
    return 0


def row_of(contestant: Any) -> dict[str, float]:
    """Medians of one way."""
    stages = ("memory", "decode", "prefill", "vision")
    return {stage: statistics.median(item[stage] for item in contestant.times) for stage in stages}


def line_of(way: int, row: dict[str, float], whole: dict[str, float], aims: dict[str, float]) -> str:
    """A line for a person; aims in brackets."""
    cells = [f"  {way:>2} bits"]
    for stage, number in row.items():
        if stage == "cosine":
            cells.append(f"cosine {number:.5f}" + (f" [>= {aims[stage]}]" if stage in aims else ""))
            continue
        aim = aims.get(stage)
        shown = f"{number / 1e6:.0f} MB" if stage == "memory" else f"{number * 1000:.1f} ms"
        cells.append(f"{stage} {shown}, {number / whole[stage]:.3f} x" + (f" [<= {aim}]" if aim else ""))
    return "   ".join(cells)
