# SPDX-License-Identifier: Apache-2.0
"""What the two batch tools share: their options, and the call that runs a job."""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddlemix.utils.entry_point import run_command
from paddlemix.utils.options import (
    FLAGS,
    answer_flags,
    command_parser,
    dashed,
    device_flags,
    model_flags,
    opening,
    strict_config,
)
from paddlemix.utils.paths import expanded, path_at

if TYPE_CHECKING:
    from paddlemix.annotate.batch import Job, Progress

OPTIONS = replace(FLAGS, cards="--num-gpus", template="--template NAME")
EVERY_SECONDS = 10.0
"""Without a terminal, progress is a line this often."""


def main(name: str, about: str, argv: Sequence[str] | None) -> int:
    """Run the tool of the script ``name``. Exit code 2 when an option, the input or the model cannot be used."""
    return run_command(lambda arguments: _run(name, parser(name, about), arguments), argv, OPTIONS)


def parser(name: str, about: str) -> argparse.ArgumentParser:
    """The options of a tool; underscores work in place of the dashes."""
    sheets = name == "syn"
    key = "image_pth" if sheets else "id"
    kind_of_root = "folder that image_pth starts from" if sheets else "folder that holds Cap3D_imgs_view0, 1, 4, 5"
    found = command_parser(about)

    def flag(text: str, **kind: Any) -> None:
        found.add_argument(f"--{text}", **kind)

    flag("model-path", required=True, type=expanded, help="model or adapter folder, or a known name")
    model_flags(found)
    flag("input", required=True, type=path_at, help=f"objects: .csv or .tsv ({key},caption), .json, .jsonl")
    flag("image-root", default=Path(), type=path_at, help=kind_of_root)
    folder = "mv_gen_zeropp_sigma_38w" if sheets else "mv_gen"
    flag("output-dir", default=Path(folder), type=path_at, help=f"folder of the results (default {folder})")
    flag("split-index", type=int, help="work on this part only; its file is <index>.json (default: all, all.json)")
    flag("num-splits", type=int, help=f"parts of the input (default: {'256' if sheets else 'of about 1000 objects'})")
    flag("exif-rotation", action="store_true", help="turn images as their EXIF data say (default: as the original)")
    flag("batch-size", type=int, default=8, help="objects that are asked at once (default 8)")
    flag("template", default="v1", help="v1: as the model was trained (default); share4v_v1: as the original tool asks")
    answer_flags(found, seed=0)
    device_flags(found)
    flag("unknown-score", type=int, help="score of an answer that is none (default null; the original's syn tool: 1)")
    flag("contact-sheet", type=int, default=24, metavar="N", help="draw N objects as a PNG beside the file (0: none)")
    flag("restart", action="store_true", help="forget what an earlier run has done")
    if sheets:
        flag("grid", type=int, default=2, help="views along a side of a sheet (default 2)")
        flag("sheet-order", choices=("training", "reading"), help="order of the views (default: training for 2 x 2)")
    return found


def _run(name: str, options: argparse.ArgumentParser, argv: list[str]) -> int:
    args = options.parse_args(dashed(argv))
    job = job_of(name, args)
    if job.output.is_file() and not args.restart:
        print(f"{job.output} is there already; --restart makes it anew")
        _after_a_kill(job, args.contact_sheet)
        return 0
    job.output.parent.mkdir(parents=True, exist_ok=True)
    annotator = _annotator(args)
    print(annotator.about, file=sys.stderr)
    from paddlemix.annotate.batch import run

    note, close = _progress(len(job.records))
    try:
        records = run(job, annotator.answers, note, restart=args.restart)
    finally:
        close()
    print(f"{job.output}: {_summary(records)}")
    if args.contact_sheet > 0:
        print(_contact_sheet(job, records, args.contact_sheet))
    return 0


def _after_a_kill(job: "Job", count: int) -> None:
    """What a run that was killed behind its result has left to do."""
    job.journal.unlink(missing_ok=True)
    if count > 0 and not job.output.with_suffix(".png").is_file():
        print(_contact_sheet(job, json.loads(job.output.read_bytes()), count))


def job_of(name: str, args: argparse.Namespace) -> "Job":
    """The job that the options describe. Everything that can be wrong with them is found before paddle loads."""
    from paddlemix.annotate.batch import Job
    from paddlemix.annotate.objects import ObjectImages, part_of, read_objects, split_count
    from paddlemix.annotate.scripts import SCRIPTS
    from paddlemix.imaging.views import sheet_order
    from paddlemix.text import templates
    from paddlemix.utils.errors import ConfigError
    from paddlemix.utils.files import sha256

    sheets = name == "syn"
    if args.batch_size < 1 or args.contact_sheet < 0:
        raise ConfigError("--batch-size wants a whole number from 1, --contact-sheet one from 0")
    if args.num_splits is not None and (args.num_splits < 1 or args.split_index is None):
        raise ConfigError("--num-splits wants a whole number from 1, and --split-index to name one of the parts")
    templates.get(args.template)
    source = ObjectImages(
        args.image_root, args.grid if sheets else 0, args.sheet_order if sheets else None, args.exif_rotation
    )
    if sheets:
        sheet_order(args.grid, args.sheet_order)
    everything = records = read_objects(args.input, source.key())
    source.require_some(everything)
    count = args.num_splits or split_count(len(everything), sheets)
    if args.split_index is not None:
        records = part_of(everything, count, args.split_index)
    names = ("model_path", "base", "vision_tower", "projector", "image_root", "template", "temperature", "top_p",
             "max_new_tokens", "seed", "split_index", "unknown_score", "fp16", "exif_rotation", "grid",
             "sheet_order")  # fmt: skip
    settings: dict[str, Any] = {key: getattr(args, key, None) for key in names}
    settings |= {"script": name, "input": sha256(args.input), "image_root": str(args.image_root), "num_splits": count}
    part = "all" if args.split_index is None else str(args.split_index)
    return Job(
        SCRIPTS[name],
        source,
        records,
        args.output_dir / f"{part}.json",
        settings,
        batch_size=args.batch_size,
        whole=sheets,
        unknown_score=args.unknown_score,
        first=math.ceil(len(everything) / count) * (args.split_index or 0),
    )


def _annotator(args: argparse.Namespace) -> Any:
    from paddlemix.generation.sampling import Decoding
    from paddlemix.utils import device

    decoding = Decoding(
        max_new_tokens=args.max_new_tokens, temperature=args.temperature, top_p=args.top_p, seed=args.seed
    )
    device.before_asking(args.device)
    from paddlemix.annotate.annotator import Annotator

    with strict_config(args.strict_config):
        return Annotator.load(args.model_path, **opening(args), conv_mode=args.template, decoding=decoding)


def _progress(total: int) -> tuple[Callable[["Progress"], None], Callable[[], None]]:
    """What is told after each batch, and what ends it: a bar on a terminal, else a line now and then."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars

        bars = Bars(BarColumn(), TextColumn("{task.description}"), console=Console(stderr=True))
        task = bars.add_task("", total=total)
        bars.start()
        return lambda progress: bars.update(task, completed=progress.done, description=progress.line), bars.stop
    said = [0.0]

    def line(progress: "Progress") -> None:
        if time.monotonic() - said[0] >= EVERY_SECONDS or progress.done == progress.total:
            said[0] = time.monotonic()
            print(progress.line, file=sys.stderr, flush=True)

    return line, lambda: None


def _summary(records: Sequence[dict[str, Any]]) -> str:
    from paddlemix.annotate.batch import Progress

    progress = Progress(len(records))
    progress.count(records, here=False)
    return progress.line


def _contact_sheet(job: "Job", records: Sequence[dict[str, Any]], count: int) -> str:
    from paddlemix.annotate.contact_sheet import draw

    path = job.output.with_suffix(".png")
    shown = [(record, [] if "error" in record else job.source.views(record)) for record in records[:count]]
    draw(path, shown, f"{job.script.name}: {len(shown)} of {len(records)} objects")
    return f"{path}: {len(shown)} objects with their captions and scores"
