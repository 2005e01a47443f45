# SPDX-License-Identifier: Apache-2.0
"""The verb that asks a model: its flags, and what it tells the person."""

import argparse
import functools
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddlemix.utils.errors import ConfigError
from paddlemix.utils.foreign import JsonValue
from paddlemix.utils.options import device_flags, model_flags, opening, strict_config
from paddlemix.utils.paths import expanded, path_at
from paddlemix.utils.shown import counted, readable

if TYPE_CHECKING:
    from paddlemix.eval.evaluate import Outcome, Plan, Request

NAMED = 5
"""Failed answers and missing images that are named; the answer file has all of them."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of LLaVA's evaluation scripts, and ours."""
    parser.add_argument("benchmark", metavar="BENCHMARK", help="eval list names them; custom: own rows; all: see DIR")
    parser.add_argument("model", nargs="?", type=expanded, metavar="MODEL", help="the same as --model-path")

    def flag(name: str, text: str, **kind: Any) -> None:
        parser.add_argument(f"--{name}", help=text, **kind)

    flag("model-path", "model or adapter folder, or a known name", type=expanded)
    model_flags(parser, base=("base", "model-base"))
    data = "the benchmark's folder, as downloaded, or its question file; of all: the folder of those folders"
    flag("data", data, type=path_at, required=True, metavar="DIR")
    flag("split", "question file of this name in the folder (mmbench_dev_20230712)", metavar="NAME")
    flag("image-folder", "where the images are (default: as LLaVA has them in the folder)", type=path_at, metavar="DIR")
    flag("output", "folder of the results (default: eval_results/BENCHMARK/MODEL)", type=path_at, metavar="DIR")
    flag("num-chunks", "parts of the questions, one for each process (default 1)", type=int, default=1, metavar="N")
    flag("chunk-idx", "the part of this process, from 0", type=int, default=0, metavar="I")
    device_flags(parser)
    flag("batch-size", "questions that are asked at once (default 8)", type=int, default=8)
    flag("max-new-tokens", "longest answer in tokens (default: as the original scripts)", type=int)
    flag("conv-mode", "conversation template instead of the model's own")
    flag("prompts", "whose prompts: llava (default) or internvl", default="llava", metavar="NAME")
    flag("all-rounds", "MMBench: ask each question once for every rotation of its options", action="store_true")
    flag("limit", "ask so many questions only, spread over all", type=int, metavar="N")
    flag("metric", "own data: exact, choice, vqa or rouge-l (default: all that fit)", action="append", default=[])
    flag("convention", "whose scoring rules (default: the originals'; see eval list)", metavar="NAME")
    flag("no-score", "write the answers only", action="store_true")
    flag("restart", "forget what an earlier run has done", action="store_true")
    flag("dry-run", "check all files and show the first prompt, without loading weights", action="store_true")


def request_of(args: argparse.Namespace) -> "Request":
    """What the flags ask for. ConfigError when no model, or two, are named."""
    from paddlemix.eval.evaluate import Request
    from paddlemix.eval.models import Model
    from paddlemix.text import templates

    if args.model and args.model_path:
        raise ConfigError(f"{args.model} and --model-path {args.model_path}: give the model once")
    path = args.model or args.model_path
    if not path:
        raise ConfigError("which model? Give its folder or name with --model-path")
    if args.conv_mode is not None:
        templates.get(args.conv_mode)
    return Request(
        args.benchmark,
        args.data,
        Model(path, {**opening(args), "conv_mode": args.conv_mode}),
        args.output,
        args.prompts,
        args.split,
        args.image_folder,
        args.all_rounds,
        args.limit,
        args.max_new_tokens,
        args.batch_size,
        args.num_chunks,
        args.chunk_idx,
        args.convention,
        tuple(args.metric),
        not args.no_score,
    )


def carry_out(args: argparse.Namespace) -> int:
    """Plan, ask, score. Exit code 0, or 1 when answers failed or are missing."""
    with strict_config(args.strict_config):
        return _carry_out(args)


def _carry_out(args: argparse.Namespace) -> int:
    from paddlemix.eval import evaluate
    from paddlemix.eval.benchmarks import ALL

    if args.benchmark.lower() == ALL:
        return _carry_out_all(args)
    plan = evaluate.planned(request_of(args))
    for line in _plan_lines(plan):
        _note(line)
    if args.dry_run:
        _out("the first prompt:\n" + plan.model.first_prompt(plan.job.items[0]) + "\n")
        return 1 if plan.missing else 0
    return report(evaluate.carry_out(plan, _note, restart=args.restart), as_json=args.json)


def _carry_out_all(args: argparse.Namespace) -> int:
    """Every benchmark with a folder below --data, with one load of the model; the table of all at the end."""
    from paddlemix.eval import evaluate, tables
    from paddlemix.eval.report import report_lines, report_of

    for name in ("split", "image_folder", "convention", "metric"):
        if getattr(args, name):
            raise ConfigError(f"--{name.replace('_', '-')} is for one benchmark, not for all; leave it out")
    request = request_of(args)
    output = args.output or evaluate.RESULTS
    plans = [
        evaluate.planned(replace(request, benchmark=name, data=path, output=output / name / request.model.id))
        for name, path in evaluate.found_below(args.data).items()
    ]
    for plan in plans:
        for line in _plan_lines(plan):
            _note(line)
    if args.dry_run:
        return 1 if any(plan.missing for plan in plans) else 0
    opened = functools.cache(lambda: plans[0].model.open(1))
    outcomes = [evaluate.carry_out(plan, _note, restart=args.restart, opened=opened) for plan in plans]
    if args.json:
        _out(tables.as_text([outcome_value(outcome) for outcome in outcomes]))
        return 0 if all(outcome.complete for outcome in outcomes) else 1
    for outcome in outcomes:
        _out(f"{readable(str(outcome.path))}: {outcome.answers} answers, {len(outcome.failed)} failed\n")
        for line in outcome.notes:
            _note(f"note: {line}")
    scores = {f"{one.score.benchmark}": one for outcome in outcomes for one in outcome.scored}
    if scores:
        _out("\n" + "".join(f"{readable(line)}\n" for line in report_lines(report_of(scores))))
    return 0 if all(outcome.complete for outcome in outcomes) else 1


def report(outcome: "Outcome", *, as_json: bool) -> int:
    """Tell what a run has left, and return its exit code."""
    from paddlemix.eval import tables

    if as_json:
        _out(tables.as_text(outcome_value(outcome)))
        return 0 if outcome.complete else 1
    for found in outcome.scored:
        _out("".join(f"{readable(line)}\n" for line in [*tables.score_lines(found), ""]))
    _out(f"{readable(str(outcome.path))}: {outcome.answers} answers, {len(outcome.failed)} failed\n")
    for record in outcome.failed[:NAMED]:
        _out(f"  {readable(str(record.question_id))}: {readable(record.failure)}\n")
    if len(outcome.failed) > NAMED:
        _out(f"  and {len(outcome.failed) - NAMED} more; metadata.error in the answer file says why\n")
    for path in outcome.written:
        _out(f"{readable(str(path))}\n")
    for line in outcome.notes:
        _note(f"note: {line}")
    if not outcome.whole:
        _note("the other parts are not there yet; the process that ends last joins and scores them (or eval merge)")
    return 0 if outcome.complete else 1


def outcome_value(outcome: "Outcome") -> dict[str, JsonValue]:
    """What a run has left as a JSON value."""
    from paddlemix.eval import tables

    return {
        "answers": str(outcome.path),
        "count": outcome.answers,
        "failed": [{"question_id": one.question_id, "reason": one.failure} for one in outcome.failed],
        "whole": outcome.whole,
        "scores": [tables.score_value(one) for one in outcome.scored],
        "written": [str(path) for path in outcome.written],
        "notes": list(outcome.notes),
    }


def merge_parts(folder: Path, *, as_json: bool) -> int:
    """Join the parts in a folder, and score the whole."""
    from paddlemix.eval import evaluate, running

    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; give the --output of the parts")
    path = folder / running.ANSWERS
    parts = running.parts_there(folder)
    if not parts:
        raise ConfigError(f"{folder}: no parts ({running.part_path(path, 2, 0).name}, ...) in it")
    if not running.merge(path, parts):
        names = [running.part_path(path, parts, index) for index in range(parts)]
        gone = [one.name for one in names if not (one.is_file() and running.record_path(one).is_file())]
        raise ConfigError(f"{folder}: {', '.join(gone)} of {parts} parts not there; run them first")
    return report(evaluate.finish(path), as_json=as_json)


def _plan_lines(plan: "Plan") -> list[str]:
    items = plan.job.items
    turns = sum(len(item.turns) for item in items)
    lines = [f"{plan.question_file}: {counted(turns, 'question')}, images in {plan.image_folder}, answers of at most "
             f"{plan.max_new_tokens} tokens"]  # fmt: skip
    if plan.missing:
        named = ", ".join(plan.missing[:NAMED])
        lines.append(f"note: {counted(len(plan.missing), 'missing image')}, whose questions fail: {named}")
    return lines + [f"note: {line}" for line in plan.notes]


def _out(text: str) -> None:
    sys.stdout.write(text)


def _note(line: str) -> None:
    sys.stderr.write(f"{readable(line)}\n")
