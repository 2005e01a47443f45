# SPDX-License-Identifier: Apache-2.0
"""What the order of rows saves, and what the start of a run over many rows costs. Needs no paddle.

    python tools/bench.py order [--rows N]       useful share of positions for each order of an epoch
    python tools/bench.py rows [--rows N] [--lines] [--images none|exists|header] [--jobs N]

order draws lengths like those of LLaVA-1.5's mixture (665,000 rows: 6 % text alone). The useful share is that of the
positions of padded batches that hold a token. rows writes a JSON list (--lines: JSON lines) of so many rows into a
temporary folder, and reads it as a run does before its first step: once without offsets that are kept, and once more as
a run that goes on. Seconds are those of the clock and of all processors together; memory is the peak of each process.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

MIXTURE = (
    # thousands of rows, image rows have 576 positions more, median of text positions, spread (sigma of the logarithm)
    ("LLaVA-Instruct", 158, True, 260, 0.5),
    ("ShareGPT", 41, False, 1000, 0.8),
    ("VQAv2, GQA, OKVQA, A-OKVQA", 231, True, 150, 0.6),
    ("OCR-VQA, TextCaps", 102, True, 110, 0.5),
    ("RefCOCO, VisualGenome", 134, True, 420, 0.6),
)
"""Parts of LLaVA-1.5's instruction data; sizes are public (LLaVA's docs/Data.md), lengths are modelled."""

MAX_LENGTH = 2048


def lengths(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of ``rows`` rows of the mixture (int64 [rows]), and which of them have an image (bool [rows])."""
    chance = np.random.default_rng(seed)
    total = sum(part[1] for part in MIXTURE)
    parts = chance.choice(len(MIXTURE), rows, p=[part[1] / total for part in MIXTURE])
    medians, spreads = (np.array([part[at] for part in MIXTURE])[parts] for at in (3, 4))
    pictured = np.array([part[2] for part in MIXTURE])[parts]
    text = np.exp(np.log(medians) + spreads * chance.standard_normal(rows))
    return np.clip(text + 576 * pictured, 16, MAX_LENGTH).astype(np.int64), pictured


def shares(rows: int, world: int, batch: int) -> dict[str, float]:
    """Useful share of the first epoch in each order, by the function that decides the order of a training."""
    from paddlemix.datasets.build import order_of
    from paddlemix.datasets.packing import pack_epoch
    from paddlemix.datasets.sampler import useful_share
    from paddlemix.settings.run.training import TrainingSettings

    class Rows:
        def __init__(self, signed: np.ndarray) -> None:
            self.lengths, self.modality_lengths = np.abs(signed), signed

        def __len__(self) -> int:
            return len(self.lengths)

    def share(values: np.ndarray, **keys: bool) -> float:
        settings = TrainingSettings().with_changes(per_device_train_batch_size=batch, output_dir="-", **keys)
        return useful_share(np.abs(values), order_of(settings.training, Rows(values), world)(0), batch)

    found, pictured = lengths(rows)
    groups = pack_epoch(found, MAX_LENGTH, np.arange(rows), 42, 0)
    packs = np.array([found[group].sum() for group in groups])
    return {
        "random": share(found),
        "group_by_length": share(found, group_by_length=True),
        "group_by_modality_length": share(np.where(pictured, found, -found), group_by_modality_length=True),
        "mixtoken": share(packs),
    }


def print_orders(rows: int) -> None:
    """A table of the useful shares for 1 and 8 processes with batches of 4 and 16."""
    sys.stdout.write(f"{rows:,} rows like LLaVA-1.5's mixture, max_length {MAX_LENGTH}\n")
    for world in (1, 8):
        for batch in (4, 16):
            found = shares(rows, world, batch)
            told = ", ".join(f"{key} {value:.3f} ({value / found['random']:.2f} x)" for key, value in found.items())
            sys.stdout.write(f"{world} process(es), batches of {batch}: {told}\n")


def rows_like(count: int, images: int) -> Iterator[str]:
    """So many rows as JSON, nine in ten with one of ``images`` images, of one to three turns."""
    chance = random.Random(0)
    answer = 'It shows a [thing], "as it is", with {marks}.\n'
    for number in range(count):
        row = {"id": f"{number:09d}", "image": f"{number % images}.png", "conversations": []}
        if not number % 10:
            del row["image"]
        for turn in range(chance.choice((1, 1, 2, 3))):
            mark = "<image>\n" if "image" in row and not turn else ""
            row["conversations"] += [
                {"from": "human", "value": f"{mark}What is shown in picture {number}?"},
                {"from": "gpt", "value": answer * chance.randint(1, 12)},
            ]
        yield json.dumps(row)


def write_rows(folder: Path, count: int, *, lines: bool, images: int = 500) -> Path:
    """A data file in ``folder``, and the images of its rows."""
    from PIL import Image

    for number in range(images):
        Image.new("RGB", (64, 48), (number % 256, 99, 9)).save(folder / f"{number}.png")
    path = folder / ("rows.jsonl" if lines else "rows.json")
    with path.open("w", encoding="utf-8") as stream:
        stream.write("" if lines else "[\n")
        for number, row in enumerate(rows_like(count, images)):
            stream.write(("\n" if lines else ",\n") * bool(number) + row)
        stream.write("\n" if lines else "\n]\n")
    return path


def read_once(path: str, how: str, jobs: int) -> None:
    """Read a file as a run does before its first step; one line of figures."""
    from paddlemix.datasets.lazy import Look, open_all, read_all
    from paddlemix.datasets.pictures import PictureRules
    from paddlemix.datasets.preprocess import SampleEncoder
    from paddlemix.datasets.records import UnreadKeys
    from paddlemix.datasets.sample import BadSamples
    from paddlemix.datasets.sources import DatasetEntry
    from paddlemix.text import templates

    encoder = SampleEncoder(None, object(), templates.get("v1", training=True), max_length=MAX_LENGTH)
    began = time.monotonic()
    chosen = open_all([DatasetEntry((path,), str(Path(path).parent))])
    opened = time.monotonic() - began
    rows, faults = read_all(chosen, BadSamples(), UnreadKeys(), Look(encoder.check, PictureRules(), how), jobs=jobs)
    seconds = time.monotonic() - began
    own, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    used = sum(usage.ru_utime + usage.ru_stime for usage in (own, others))
    sys.stdout.write(
        f"{len(rows):,} rows, {len(faults)} faults: {seconds:.1f} s ({opened:.1f} s for the offsets), {used:.1f} s of "
        f"processor time, {own.ru_maxrss / 1024:.0f} MB, a helper {others.ru_maxrss / 1024:.0f} MB\n"
    )


def main(kind: str, arguments: list[str]) -> int:
    """Parse, measure, print."""
    from paddlemix.utils.options import at_least_one

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=at_least_one, default=100_000 if kind == "order" else 1_000_000)
    parser.add_argument("--lines", action="store_true")
    parser.add_argument("--images", choices=("none", "exists", "header"), default="exists")
    parser.add_argument("--jobs", type=at_least_one, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--read", metavar="FILE", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.read:
        read_once(args.read, args.images, args.jobs)
    elif kind == "order":
        print_orders(args.rows)
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = write_rows(Path(folder), args.rows, lines=args.lines)
            sys.stdout.write(f"{path.stat().st_size / 1e6:.0f} MB, {args.jobs} processes\n")
            sys.stdout.flush()
            again = ["env", f"PPMIX_HOME={folder}", sys.executable, str(Path(__file__).with_name("bench.py")), "rows"]
            for _ in range(2):
                subprocess.run(
                    [*again, "--read", str(path), "--images", args.images, "--jobs", str(args.jobs)], check=True
                )
    return 0
