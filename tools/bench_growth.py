# SPDX-License-Identifier: Apache-2.0
"""How the times grow with tiles, rows of a step, context and rounds, as a table and a picture.

    python tools/bench.py all [--shape tiny|mid] [--repeat N] [--json FILE] [--png FILE]

Tiles: an image of 1 to 5 tiles, encoded, and the prefill of its rows and 64 words. Batch: one step of 1 to 8 rows
behind prompts of ``prompt`` places. Context: one token behind so many places. Rounds: the first token of the rounds of
one session, and of the same rounds when image and conversation are run again. CPU time of one thread, medians.
"""

import argparse
import importlib.util
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

TILES, ROWS, ROUNDS = (1, 2, 3, 4, 5), (1, 2, 4, 8), (1, 2, 3, 4, 5)
WORDS = 64
"""Positions of the prompt beside the tiles' rows."""
CONTEXT = {"tiny": (64, 128, 256, 512), "mid": (128, 640, 1280, 2560)}

Grown = dict[str, dict[str, float]]
"""Seconds by curve and size; the sizes are text, as JSON has them."""
PICTURE = {
    "tiles": ("vision", "prefill"), "batch": ("step",), "context": ("decode",),
    "rounds": ("kept", "again"),
}  # fmt: skip
"""The curves of each part of the picture."""


def work(spec: dict[str, Any]) -> Callable[[], Grown]:
    """A worker of ``tools.bench``: all curves once."""
    import numpy as np
    import paddle

    from paddlemix.generation.prompt import Prompt
    from tools import bench_batch
    from tools.bench import build, feeder, timed

    model = build(spec)
    draw = np.random.default_rng(0)
    patches = (spec["image"] // spec["patch"]) ** 2
    pixels = paddle.randn([1, 3, spec["image"], spec["image"]])
    rows = draw.integers(3, spec["vocab"], (max(ROWS), spec["prompt"]))
    prompts = [Prompt(tuple(row.tolist()), "", ()) for row in rows]

    def prefilled(length: int) -> float:
        feed = feeder(model, {**spec, "prompt": length})
        return timed(lambda: feed(0, length, model.new_cache(1)))

    def decoded(length: int) -> float:
        feed, cache, new = feeder(model, {**spec, "prompt": length}), model.new_cache(1), spec["tokens"]
        feed(0, length, cache)
        return timed(lambda: [feed(length + i, length + i + 1, cache) for i in range(new)]) / new

    def run() -> Grown:
        tiles = {str(count): timed(lambda count=count: [model.encode_images(pixels) for _ in range(count)])
                 for count in TILES}  # fmt: skip
        return {
            "vision": tiles,
            "prefill": {str(count): prefilled(count * patches + WORDS) for count in TILES},
            "step": {str(count): bench_batch.step(model, prompts[:count], spec["tokens"]) for count in ROWS},
            "decode": {str(length): decoded(length) for length in spec["context"]},
            **_rounds(model),
        }

    return run


def _rounds(model: Any) -> Grown:
    from tools.bench import timed
    from tools.bench_chat import QUESTION, rounds

    fresh, picture, again = rounds(model)
    session, kept, anew = fresh(), {}, {}
    for number in ROUNDS:
        other = fresh()
        if number > 1:
            other.turns = list(session.turns)
            anew[str(number)] = timed(lambda other=other: again(other))
        images = [picture] if number == 1 else []
        kept[str(number)] = timed(lambda images=images: session.answer(QUESTION, images, max_new_tokens=1))
    return {"kept": kept, "again": anew}


def grown(found: list[Grown]) -> Grown:
    """Medians of every size of every curve."""
    first = found[0]
    return {
        curve: {size: statistics.median(one[curve][size] for one in found) for size in sizes}
        for curve, sizes in first.items()
    }


def report(curves: Grown) -> list[str]:
    """Lines for a person: milliseconds, and in brackets the ratio to the first size."""
    lines = []
    for part, names in PICTURE.items():
        for name in names:
            sizes = curves[name]
            first = next(iter(sizes.values()))
            shown = "  ".join(f"{size}: {taken * 1e3:.1f} ({taken / first:.2f})" for size, taken in sizes.items())
            lines.append(f"{part:<9}{name:<9}{shown}")
    return lines


def draw_curves(curves: Grown, path: Path, title: str) -> None:
    """Write the picture: a part for each of tiles, batch, context and rounds."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, places = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    for place, (part, names) in zip(places.flat, PICTURE.items(), strict=True):
        for name in names:
            place.plot([int(size) for size in curves[name]], [one * 1e3 for one in curves[name].values()], "o-")
        place.legend(names)
        place.set(xlabel=part, ylabel="CPU time, ms", xticks=[int(size) for size in curves[names[0]]])
        place.set_ylim(bottom=0)
        place.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def main(argv: list[str]) -> int:
    """Parse, measure, print, draw."""
    from paddlemix.utils.options import at_least_one
    from paddlemix.utils.paths import new_file
    from tools.bench import ROOT, SHAPES, Contestant

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="tiny")
    parser.add_argument("--repeat", type=at_least_one, default=3)
    parser.add_argument("--json", type=new_file, help="also write the result to this file")
    parser.add_argument("--png", type=new_file, help="draw the curves into this file (matplotlib)")
    args = parser.parse_args(argv)
    if args.png and importlib.util.find_spec("matplotlib") is None:
        parser.error("--png needs matplotlib, which is not installed: pip install matplotlib, or leave --png out")
    spec = {"kind": "growth", **SHAPES[args.shape], "context": CONTEXT[args.shape]}
    contestant = Contestant("ours", [sys.executable, str(ROOT / "tools" / "bench.py"), "--worker"], spec)
    contestant.ask()  # warm up
    curves = grown([contestant.ask() for _ in range(args.repeat)])
    contestant.close()
    title = f"shape {args.shape}, median of {args.repeat}, one thread, CPU time in ms"
    print("\n".join([title, *report(curves)]))
    if args.json:
        result = {"kind": "all", "shape": args.shape, "repeat": args.repeat, "seconds": curves}
        args.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    if args.png:
        draw_curves(curves, args.png, title)
    return 0
