# SPDX-License-Identifier: Apache-2.0
"""How reliably the demo learns: its first task with many seeds, CPU tuning on and off, or another order of sums.

    python tools/demo_series.py --seeds 8 --tuning both
    python tools/demo_series.py --seeds 8 --tuning avx2
    python tools/demo_series.py --demo multiview --seeds 4
    python tools/demo_series.py --demo real --seeds 3 --tuning on     # with demo_out/smollm2 (tools/fetch_smollm2.py)

Each run is `paddlemix demo --no-lora` in a process of its own, at low priority. Results are kept in <out>/series.jsonl:
the same command goes on with the runs that are missing, and makes all anew when the demo or its recipes have changed.
The last line, median and worst, stands in docs/demo.md.
"""

import argparse
import hashlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from paddlemix.utils.entry_point import run_command
from paddlemix.utils.errors import TrainingError

DEMOS = {
    "shapes": ("paddlemix.demo", ("--no-lora", "--no-chat"), "accuracy"),
    "multiview": ("paddlemix.demo.multiview", (), "four_views_back"),
    "real": ("paddlemix.demo.real", ("--no-chat",), "accuracy"),
}
"""Module, flags, and the promised number of its results.json."""

TUNING = {
    "on": ("PADDLEMIX_CPU_TUNING=1",),
    "off": ("PADDLEMIX_CPU_TUNING=0",),
    "avx2": ("PADDLEMIX_CPU_TUNING=1", "MKL_ENABLE_INSTRUCTIONS=AVX2"),
}
"""Environment of a run. On AMD the tuning chooses MKL's path and with it the order of sums. On Intel it changes no sum;
there ``avx2`` does on a processor with AVX-512, which MKL would use."""


def parser() -> argparse.ArgumentParser:
    """The flags of the tool."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--demo", choices=DEMOS, default="shapes", help="which demo (default: shapes)")
    found.add_argument("--seeds", type=int, default=8, help="seeds 0 to N - 1 (default: 8)")
    found.add_argument("--tuning", choices=(*TUNING, "both"), default="both", help="both: on and off (default)")
    found.add_argument("--out", type=Path, default=Path("demo_series"), help="folder of the runs (demo_series)")
    found.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the series. Exit code 0; 1 when a run fails (not when it learns less than promised)."""
    return run_command(_run, argv)


def _run(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / "series.jsonl"
    known = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()] if kept.is_file() else []
    os.nice(10)
    rows = []
    for run in _runs(args):
        row = next((row for row in known if row["run"] == run), None)
        if row is None:
            row = {"run": run} | one(run, args.out / f"{run['demo']}-{run['seed']}-{run['tuning']}")
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        rows.append(row)
        print(line(row), flush=True)
    print(summary(rows))
    return 0


def _runs(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What decides a run: demo, seed, tuning, and the code and recipes of the demos by their digest."""
    package = ROOT / "paddlemix"
    files = sorted([*(package / "demo").glob("*.py"), *(package / "config" / "demo").glob("*.json")])
    code = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
    for seed in range(args.seeds):
        for tuning in ("on", "off") if args.tuning == "both" else (args.tuning,):
            yield {"demo": args.demo, "seed": seed, "tuning": tuning, "code": code}


def one(run: dict[str, Any], out: Path) -> dict[str, Any]:
    """Numbers of one run of a demo; the folder ``out`` is taken away behind it. TrainingError when the run fails."""
    module, flags, promised = DEMOS[run["demo"]]
    shutil.rmtree(out, ignore_errors=True)
    settings = TUNING[run["tuning"]]
    command = ["env", *settings, sys.executable, "-m", module, "--out", str(out.absolute()), "--seed", str(run["seed"])]
    before = _cpu_of_children()
    done = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL,
                          check=False)  # fmt: skip
    if done.returncode:
        said = f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        raise TrainingError(f"{' '.join(command)} ended with exit code {done.returncode}:\n{said}")
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    shutil.rmtree(out)
    return {"reached": results[promised], "cpu": round(_cpu_of_children() - before, 1), "results": results}


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def line(row: dict[str, Any]) -> str:
    """One run in words."""
    run = row["run"]
    return f"seed {run['seed']}, tuning {run['tuning']:<4}  {100 * row['reached']:6.2f} %  {row['cpu']:4.0f} s of CPU"


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Median and worst of the series, and what a run costs."""
    worst = min(rows, key=lambda row: row["reached"])
    middle = 100 * statistics.median(row["reached"] for row in rows)
    cpu = statistics.median(row["cpu"] for row in rows)
    return (
        f"{len(rows)} runs: median {middle:.2f} %, worst {100 * worst['reached']:.2f} % (seed {worst['run']['seed']}, "
        f"tuning {worst['run']['tuning']}); CPU time (user and system) of a run: {cpu:.0f} s in the median"
    )


if __name__ == "__main__":
    sys.exit(main())
