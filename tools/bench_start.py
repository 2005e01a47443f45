# SPDX-License-Identifier: Apache-2.0
"""A look at many rows, and the start of a training on them, each as the command itself in a process of its own.

    python tools/bench.py validate [--rows N] [--jobs N] [--decode] [--kill reading,look,worker,costs] [--keep FOLDER]
    python tools/bench.py start [--rows N] [--lines] [--keep FOLDER]

validate writes so many rows, each with an image file of its own, and runs ``paddlemix validate`` over them: rows a
second as the command says, and the memory of the main process and of its helpers in each fifth of the run. --kill ends
the same look by SIGKILL in these places, one after the other (worker: a helper, in the middle of the look), and then
lets it go on to its end: what each kill has left, and whether the files are those of the straight run. start trains a
LLaVA of a million weights on a JSON list of a million rows: seconds to the end of the first step, of a new run and of
one that goes on from its checkpoint, and the largest memory. Memory is that which a process does not share with a file
(RssAnon). --keep uses what is in a folder again, the straight look as well.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from paddlemix.validate.survey import PORTION
from tools.bench_data import rows_like, write_rows

ROOT = Path(__file__).resolve().parent.parent
KILLS = ("reading", "look", "worker", "costs")
WRITTEN = ("summary.json", "bad_rows.jsonl", "lengths.png")
_SIZES = ((64, 48), (48, 64), (80, 80), (32, 96))


def model(folder: Path) -> Path:
    """The model of the demo before its first step; its vocabulary is made of rows like those that are measured."""
    if not (folder / "model").is_dir():
        code = (
            "import sys\nfrom pathlib import Path\nfrom paddlemix.demo.model import write_start\n"
            "write_start(Path(sys.argv[1]), sys.argv[2:], 0)\n"
        )
        said = [turn["value"] for row in rows_like(40, 10) for turn in json.loads(row)["conversations"]]
        subprocess.run([sys.executable, "-c", code, str(folder / "model"), *said], check=True, cwd=ROOT)
    return folder / "model"


def pictured_rows(folder: Path, count: int) -> Path:
    """``count`` rows as a JSON list; every row with an image has a file of its own."""
    from PIL import Image

    path = folder / "rows.json"
    if path.is_file():
        return path
    folder.mkdir()
    samples = []
    for number, size in enumerate(_SIZES):
        Image.effect_mandelbrot(size, (-2, -1.5, 1, 1.5), 60).convert("RGB").save(folder / f"sample{number}.jpg")
        samples.append((folder / f"sample{number}.jpg").read_bytes())
    for number in range(count):
        place = folder / "images" / f"{number // 1000}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.jpg").write_bytes(samples[number % len(samples)])
    with path.with_suffix(".part").open("w", encoding="utf-8") as stream:
        for number, text in enumerate(rows_like(count, count)):
            row = json.loads(text)
            if "image" in row:
                row["image"] = f"images/{number // 1000}/{number}.jpg"
            stream.write(("," if number else "[") + "\n" + json.dumps(row))
        stream.write("\n]\n")
    path.with_suffix(".part").rename(path)
    return path


class Watched:
    """A command in a process of its own, its output line by line with times, and the memory of it and its helpers."""

    def __init__(self, command: list[str], **environment: str) -> None:
        self.began = time.monotonic()
        given = ["env", *(f"{name}={value}" for name, value in environment.items()), "OMP_NUM_THREADS=1"]
        self.process = subprocess.Popen(
            [*given, sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
        )
        self.lines: list[tuple[float, str]] = []
        self.memory: list[tuple[float, float, float]] = []
        self._threads = [threading.Thread(target=task) for task in (self._read, self._watch)]
        for thread in self._threads:
            thread.start()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.began

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append((self.seconds, line.rstrip()))

    def _watch(self) -> None:
        while self.process.poll() is None:
            with contextlib.suppress(OSError, StopIteration):
                helpers = [megabytes(pid) for pid in self.helpers()]
                self.memory.append((self.seconds, megabytes(self.process.pid), sum(helpers)))
            time.sleep(0.1)

    def helpers(self) -> list[int]:
        """Numbers of the processes that it has started."""
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as handle:
            return [int(number) for number in handle.read().split()]

    def end(self) -> int:
        """Wait; the exit code."""
        code = self.process.wait()
        for thread in self._threads:
            thread.join()
        self.total = self.seconds
        return code

    def said(self, words: str) -> str:
        """The first line with these words."""
        found = next((line for _, line in self.lines if words in line), None)
        if found is None:
            raise SystemExit("\n".join(line for _, line in self.lines[-20:]))
        return found

    def when(self, words: str) -> float:
        """Seconds until the first line with these words."""
        return next(at for at, line in self.lines if line == self.said(words))


def megabytes(pid: int) -> float:
    """What a process shares with no file."""
    with open(f"/proc/{pid}/status") as handle:
        return next(int(line.split()[1]) / 1024 for line in handle if line.startswith("RssAnon:"))


def looked(folder: Path, report: Path, args: argparse.Namespace) -> Watched:
    """``paddlemix validate`` over the rows of ``folder``."""
    rows = pictured_rows(folder / "data", args.rows)
    command = ["-m", "paddlemix", "validate", "--model_name_or_path", str(model(folder)), "--data_path", str(rows)]
    command += ["--image_folder", str(folder / "data"), "--output_dir", str(folder / "out"), "--do_train", "true"]
    command += ["--max_length", "512", "--device", "cpu", "--report", str(report), "--jobs", str(args.jobs)]
    return Watched([*command, *(["--decode"] if args.decode else [])], PPMIX_HOME=str(folder / "home"))


def killed(watched: Watched, where: str, journal: Path, rows: int) -> None:
    """End a look, or a helper of it, in the middle of its work."""
    portions = -(-rows // PORTION)
    while watched.process.poll() is None:
        done = journal.read_bytes().count(b"\n") - 1 if journal.is_file() else -1
        reached = {
            "reading": bool(watched.helpers()) and done < 0, "look": done > portions / 3,
            "worker": done > 2 * portions / 3, "costs": done >= portions,
        }  # fmt: skip
        if reached[where]:
            os.kill(watched.helpers()[0] if where == "worker" else watched.process.pid, signal.SIGKILL)
            return
        time.sleep(0.01)
    raise SystemExit(f"{where}: the look was over before it could be ended")


def validate(folder: Path, args: argparse.Namespace) -> Iterator[str]:
    """Figures of a look that runs through, and of one that is killed in several places and begun again each time."""
    straight = folder / "straight"
    if not all((straight / name).is_file() for name in WRITTEN):
        look = looked(folder, straight, args)
        code = look.end()
        yield f"{look.said('rows/s')}; {look.total:.0f} s in all, exit code {code}"
        for part in range(5):
            span = [entry for entry in look.memory if part <= 5 * entry[0] / look.total < part + 1]
            own, helpers = (max(entry[at] for entry in span) for at in (1, 2))
            yield f"  memory, fifth {part + 1}: main process {own:.0f} MB, helpers together {helpers:.0f} MB"
    places = [where for where in KILLS if where in args.kill.split(",")]
    report = Path(tempfile.mkdtemp(prefix="killed-", dir=folder))
    for where in places:
        look = looked(folder, report, args)
        killed(look, where, report / "progress.jsonl", args.rows)
        code = look.end()
        told = next((f", {line}" for _, line in look.lines if "error" in line.lower()), "")
        kept = max((report / "progress.jsonl").read_bytes().count(b"\n") - 1, 0) if where != "reading" else 0
        yield f"{where}: ended after {look.total:.0f} s with code {code}, {kept * PORTION:,} rows are kept{told}"
    if places:
        look = looked(folder, report, args)
        code = look.end()
        same = all((report / name).read_bytes() == (straight / name).read_bytes() for name in WRITTEN)
        yield f"to the end: {look.total:.0f} s, code {code}, {'the same files' if same else 'OTHER FILES'}"


def start(folder: Path, args: argparse.Namespace) -> Iterator[str]:
    """Figures of a new run over so many rows, and of one that goes on."""
    rows = folder / "data" / ("rows.jsonl" if args.lines else "rows.json")
    if not rows.is_file():
        rows.parent.mkdir(exist_ok=True)
        write_rows(rows.parent, args.rows, lines=args.lines)
    output = Path(tempfile.mkdtemp(prefix="run-", dir=folder)) / "out"
    command = ["-m", "paddlemix", "sft", "--model_name_or_path", str(model(folder)), "--data_path", str(rows)]
    command += ["--image_folder", str(rows.parent), "--output_dir", str(output), "--do_train", "true"]
    command += ["--device", "cpu", "--max_length", "512"]
    command += ["--per_device_train_batch_size", "2", "--logging_steps", "1", "--max_steps", "8"]
    command += ["--save_strategy", "steps", "--save_steps", "2", "--learning_rate", "1e-4"]
    for name, ends in (("a new run", True), ("a run that goes on", False)):
        run = Watched(command, PPMIX_HOME=str(folder / "home"))
        while ends and run.process.poll() is None and not (output / "checkpoint-4").is_dir():
            time.sleep(0.05)
        if ends:
            run.process.kill()
        run.end()
        step = run.when("step: ")
        main, helper = (max(entry[at] for entry in run.memory) for at in (1, 2))
        yield f"{name}: {step:.1f} s to the end of the first step ({run.said('step: ').split(',')[0]}), "
        yield f"  {main:.0f} MB at most, helpers together {helper:.0f} MB"


def main(kind: str, arguments: list[str]) -> int:
    """Parse, measure, print."""
    from paddlemix.utils.options import at_least_one

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=at_least_one, default=100_000 if kind == "validate" else 1_000_000)
    parser.add_argument("--jobs", type=at_least_one, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--decode", action="store_true")
    parser.add_argument("--lines", action="store_true")
    parser.add_argument("--kill", default="", help=",".join(KILLS))
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args(arguments)
    if unknown := set(filter(None, args.kill.split(","))) - set(KILLS):
        parser.error(f"--kill {', '.join(unknown)}: known are {', '.join(KILLS)}")
    with contextlib.ExitStack() as stack:
        folder = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        for line in (validate if kind == "validate" else start)(folder, args):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
    return 0
