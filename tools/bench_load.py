# SPDX-License-Identifier: Apache-2.0
"""Measure loading and converting on made-up checkpoints: peak memory over the model's bytes, time over a plain read.

    python tools/bench.py load [--size GB] [--dtypes float16,bfloat16,float32] [--repeat N] [--peer PYTHON]

Each checkpoint is written in shards in llava-hf's layout, loaded, converted into our own form in float32 and loaded
from there, then removed. The model is in float32 after loading, as a CPU computes. Every measurement is a fresh
process whose mathematics has one thread; the threads that a loader starts itself (ours and that of transformers) are
its own affair. On a busy machine the wall clock says little: look at the load that is printed, and at the processor
time. Contestants take turns, medians are printed. Files are read once beforehand, so the page cache is warm.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent

_OURS = """
import json, resource, sys, threading, time
import paddle
from paddlemix.checkpoint.load import load_model
from paddlemix.utils.device import tune_cpu
"""
_PEER = """
import json, resource, sys, threading, time
import torch, transformers
torch.set_num_threads(1)
transformers.utils.logging.set_verbosity_error()
"""
_MEASURE = """
def status(name):
    for line in open("/proc/self/status"):
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
before, anon, done = status("VmRSS"), [status("RssAnon")], threading.Event()
def watch():
    while not done.wait(0.01):
        anon.append(status("RssAnon"))
watcher = threading.Thread(target=watch); watcher.start()
wall, cpu, used = time.perf_counter(), time.process_time(), resource.getrusage(resource.RUSAGE_SELF)
result = work(sys.argv[1])
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
system = resource.getrusage(resource.RUSAGE_SELF).ru_stime - used.ru_stime
done.set(); watcher.join()
print(json.dumps({"wall": wall, "cpu": cpu, "system": system, "bytes": count(result), "peak": status("VmHWM") - before,
                  "total": status("VmHWM"), "anon": max(anon) - anon[0]}))
"""
_WORK = {
    "ours": _OURS
    + "tune_cpu()\nwork = lambda folder: load_model(folder).model\n"
    + "count = lambda model: sum(p.size for p in model.parameters()) * 4\n",
    "convert": _OURS
    + "from paddlemix.checkpoint.convert.layouts import convert\nimport paddlemix.models.llava\n"
    + "work = lambda folder: convert(folder, sys.argv[2], 'own', dtype='float32')\ncount = lambda made: made.nbytes\n",
    "peer": _PEER
    + "work = lambda folder: transformers.LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)\n"
    + "count = lambda model: sum(p.numel() for p in model.parameters()) * 4\n",
}

Result = dict[str, float]


def run(kind: str, folder: Path, *more: str, python: str = sys.executable) -> Result:
    """One measurement in a process of its own."""
    environment = ["env", "OMP_NUM_THREADS=1", "MKL_NUM_THREADS=1", f"PYTHONPATH={ROOT}", "PADDLEMIX_LOG_LEVEL=ERROR"]
    command = [*environment, python, "-W", "ignore", "-c", _WORK[kind] + _MEASURE, str(folder), *more]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{kind}: the worker ended with code {done.returncode}; its error is above")
    return json.loads(done.stdout.splitlines()[-1])


def _touch(nbytes: float) -> None:
    """Use that much memory and give it back, in a process of its own.

    On a virtual machine memory that nobody has used yet is fetched from the host page by page, which took up to four
    times as long as the clearing of known pages: whoever comes first would pay for those who come after.
    """
    subprocess.run([sys.executable, "-c", f"bytearray(b'x') * {int(nbytes)}"], check=False)


def plain_read(folder: Path) -> Result:
    """Read the weight files into one buffer, again and again the same: the time no loader can beat by much."""
    buffer = bytearray(16 << 20)
    wall, cpu = time.perf_counter(), time.process_time()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as handle:
            while handle.readinto(buffer):
                pass
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def write_checkpoint(folder: Path, size: float, dtype: str) -> None:
    """A LLaVA-1.5 of ``size`` GB in llava-hf's layout, in shards, with random values, one tensor at a time."""
    sys.path.insert(0, str(ROOT))
    from paddlemix.checkpoint import keymap
    from paddlemix.checkpoint.convert.config import hf_data, hf_processor
    from paddlemix.checkpoint.formats.base import ARRAY_TYPES, from_float32
    from paddlemix.checkpoint.formats.safetensors import Stored
    from paddlemix.checkpoint.save_files import write_json, write_weights
    from paddlemix.models.llava import build_empty
    from paddlemix.settings.model import ImageConfig, LlavaConfig, TextConfig, VisionConfig

    width, ffn, vocabulary = (2048, 5504, 32064) if size >= 1 else (256, 688, 2048)
    vision = VisionConfig(1024, 4096, 24, 16, 336, 14) if size >= 1 else VisionConfig(128, 512, 4, 4, 56, 14)
    per_layer = 4 * width * width + 3 * width * ffn
    item = ARRAY_TYPES[dtype].itemsize
    fixed = 2 * vocabulary * width + (12 * 1024**2 * 24 if size >= 1 else 0)
    layers = max(1, round((size * 1e9 / item - fixed) / per_layer + 0.5))
    text = TextConfig(vocabulary, width, ffn, layers, width // 64, width // 64)
    config = LlavaConfig(text, vision, ImageConfig(vision.image_size, vision.image_size, "square"), dtype=dtype)
    pool = (np.random.default_rng(0).standard_normal(1 << 22, dtype=np.float32)) * np.float32(0.02)
    values = from_float32(pool, dtype)
    tensors = []
    for name, parameter in build_empty(config).named_parameters():
        target = keymap.theirs(name, "llava_hf")
        shape = tuple(parameter.shape[::-1] if target.transpose else parameter.shape)
        tensors.append(Stored(target.name, dtype, shape, lambda shape=shape: np.resize(values, shape)))
    folder.mkdir(parents=True)
    write_weights(folder, tensors, max(1, int(size * 1e9 / 3.5)), {"format": "pt"})
    write_json(folder / "config.json", hf_data(config, vocabulary=vocabulary, image_id=5, pad_id=0, dtype=dtype))
    write_json(folder / "preprocessor_config.json", hf_processor(config)[0])


def measure(dtype: str, place: Path, size: float, repeat: int, peer: str | None) -> dict[str, Any]:
    """All figures of one dtype. The files are removed at the end."""
    published, own = place / "published", place / "own"
    try:
        write_checkpoint(published, size, dtype)
        converted = run("convert", published, str(own))
        plain_read(published), plain_read(own)
        results: dict[str, list[Result]] = {}
        for _ in range(repeat):
            for name, result in _round(published, own, peer):
                results.setdefault(name, []).append(result)
        found = {name: _median(rows) for name, rows in results.items()}
        nbytes = sum(path.stat().st_size for path in published.glob("*.safetensors"))
        return {"dtype": dtype, "files": nbytes, "convert": converted, **found}
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _round(published: Path, own: Path, peer: str | None) -> Iterator[tuple[str, Result]]:
    nbytes = sum(path.stat().st_size for path in own.glob("*.safetensors"))  # in float32, as in memory
    yield "read", plain_read(published)
    _touch(nbytes)
    yield "published", run("ours", published)
    yield "own", run("ours", own)
    if peer:
        _touch(nbytes)
        yield "peer", run("peer", published, python=peer)


def _median(rows: list[Result]) -> Result:
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def report(found: dict[str, Any]) -> Iterator[str]:
    """Lines for a person; targets in brackets."""
    held = found["published"]["bytes"]
    yield f"{found['dtype']}: {found['files'] / 1e9:.2f} GB in files, {held / 1e9:.2f} GB in memory"
    read = found["read"]["wall"]
    for name in ("published", "own", "peer"):
        if name not in found:
            continue
        row = found[name]
        line = (
            f"  {name:<10} {row['wall']:6.2f} s wall, {row['cpu']:6.2f} s cpu ({row['system']:.2f} in the system), "
            f"{row['wall'] / read:5.2f} x plain read"
        )
        line += f", peak {row['peak'] / row['bytes']:.3f} x bytes, anonymous {row['anon'] / row['bytes']:.3f}"
        if name != "peer":
            allowed = 1.06 * row["bytes"] + 300e6
            line += f", whole process {row['total'] / 1e9:.2f} GB [<= {allowed / 1e9:.2f}]"
            if "peer" in found:
                line += f", {row['wall'] / found['peer']['wall']:.2f} x peer wall, "
                line += f"{row['cpu'] / found['peer']['cpu']:.2f} x cpu [<= {2.0 if name == 'published' else 0.5}]"
        yield line
    made = found["convert"]
    yield (
        f"  convert    {made['wall']:6.2f} s wall, {made['wall'] / read:5.2f} x plain read, "
        f"peak {made['peak'] / 1e6:.0f} MB over the start"
    )


def main(argv: list[str]) -> int:
    """Run and print."""
    from paddlemix.utils.options import at_least_one
    from paddlemix.utils.paths import new_file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=0.2, help="GB of each checkpoint's files (real runs: 4 or more)")
    parser.add_argument("--dtypes", default="float16,bfloat16,float32")
    parser.add_argument("--repeat", type=at_least_one, default=3)
    parser.add_argument("--peer", help="interpreter with torch and transformers")
    parser.add_argument("--folder", help="where to put the files (default: the system's temporary folder)")
    parser.add_argument("--json", type=new_file, help="write all figures there")
    args = parser.parse_args(argv)
    everything = []
    if hasattr(os, "getloadavg"):
        print(f"{os.cpu_count()} processors, load before the start {os.getloadavg()[0]:.1f}", flush=True)
    for dtype in args.dtypes.split(","):
        place = Path(tempfile.mkdtemp(prefix="bench-load-", dir=args.folder))
        free = shutil.disk_usage(place).free
        if free < 3.5e9 * args.size:
            raise SystemExit(f"{place}: {3.5 * args.size:.1f} GB are needed, {free / 1e9:.1f} GB are free")
        found = measure(dtype, place, args.size, args.repeat, args.peer)
        everything.append(found)
        print("\n".join(report(found)), flush=True)
    if args.json:
        args.json.write_text(json.dumps(everything, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
