# SPDX-License-Identifier: Apache-2.0
"""Static graphs beside the dynamic model: tower, prefill, a decode step, and the memory of either process.

    python tools/bench.py static [--shape tiny|mid] [--repeat N] [--json FILE]

Both are opened as a user does: a model folder of ours, and what deploy/llava/export_model.py makes of it (random
weights). One thread each, asked in turn; medians of CPU time.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tools.bench import ROOT, SHAPES, Contestant, decode, model_config, prefill, vision

KINDS = {"vision": vision, "prefill": prefill, "decode": decode}
FORMS = ("dynamic", "static")


def main(argv: list[str]) -> int:
    """Parse, measure, print."""
    from paddlemix.utils.options import at_least_one
    from paddlemix.utils.paths import new_file

    parser = argparse.ArgumentParser(
        prog="tools/bench.py static", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=tuple(SHAPES), default="tiny")
    parser.add_argument("--repeat", type=at_least_one, default=5)
    parser.add_argument("--json", type=new_file, help="also write the result to this file")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args.shape, args.repeat, Path(folder))
    print("\n".join(report(result)))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0


def measure(shape: str, repeat: int, folder: Path) -> dict[str, Any]:
    """Seconds of each form and stage, their ratios, and MB: resident in the process, weights on disk."""
    spec = {"kind": "static", "folder": str(folder), **SHAPES[shape]}
    bench = [sys.executable, str(ROOT / "tools" / "bench.py")]
    # In a process of its own, so that what an export leaves in memory is not counted.
    subprocess.run([*bench, "static-write", json.dumps(spec)], check=True)
    found = []
    try:
        for form in FORMS:
            found.append(Contestant(form, [*bench, "--worker"], {**spec, "form": form}))
            found[-1].ask()  # warm up
        for _ in range(repeat):
            for contestant in found:
                contestant.times.append(contestant.ask())
    finally:
        for contestant in found:
            contestant.close()
    dynamic, static = found
    seconds = {f"{one.name} {kind}": one.median(kind) for one in found for kind in KINDS}
    ratios = {f"static/dynamic {kind}": static.median(kind) / dynamic.median(kind) for kind in KINDS}
    memory = {f"{one.name} resident": one.median("MB") for one in found}
    stored = {"dynamic": folder / "model", "static": folder / "out"}
    memory |= {f"{form} on disk": _megabytes(path) for form, path in stored.items()}
    return {"kind": "static", "shape": shape, "repeat": repeat, "seconds": seconds, "ratios": ratios, "MB": memory}


def report(result: dict[str, Any]) -> Iterator[str]:
    """Lines for a person."""
    yield f"static, shape {result['shape']}, median of {result['repeat']}, one thread, CPU time"
    for name, seconds in result["seconds"].items():
        yield f"  {name:<28}{seconds * 1000:10.1f} ms"
    for name, size in result["MB"].items():
        yield f"  {name:<28}{size:10.1f} MB"
    for name, ratio in result["ratios"].items():
        yield f"  {name:<28}{ratio:10.3f}"


def write(spec: dict[str, Any]) -> None:
    """The model of ``spec`` with random weights in ``model``, its graphs in ``out``."""
    from paddlemix.checkpoint.save import save_model
    from paddlemix.demo.model import write_tokenizer
    from paddlemix.export.write import export_model
    from paddlemix.models.llava import build_empty, init_weights
    from paddlemix.text.tokenizer import load_tokenizer

    folder, config = Path(spec["folder"]), model_config(spec)
    model = build_empty(config)
    init_weights(model, seed=0)
    write_tokenizer(folder / "tokenizer", ["what is in the image", "where does it stand"])
    save_model(folder / "model", model, config, load_tokenizer(folder / "tokenizer"))
    del model
    export_model(folder / "model", folder / "out", device="cpu")


def work(spec: dict[str, Any]) -> Callable[[], dict[str, float]]:
    """Open one form; the returned function does all stages once."""
    import paddle

    from paddlemix.utils.device import tune_cpu

    tune_cpu()
    paddle.set_grad_enabled(False)
    model = opened(Path(spec["folder"]), spec["form"])
    stages = [stage(model, spec) for stage in KINDS.values()]

    def run() -> dict[str, float]:
        found: dict[str, float] = {}
        for stage in stages:
            found |= stage()
        return {**found, "MB": resident()}

    return run


def opened(folder: Path, form: str) -> Any:
    """The model of a form, as chat opens it."""
    from paddlemix.export.opening import open_static
    from paddlemix.generation.predictor import Predictor

    if form == "static":
        return open_static(folder / "out", folder / "out", device="cpu").model
    return Predictor.load(folder / "model", device="cpu").model


def resident() -> float:
    """MB of memory that this process has of its own or mapped, on Linux."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def _megabytes(folder: Path) -> float:
    return sum(item.stat().st_size for item in folder.rglob("*") if item.is_file()) / 1e6
