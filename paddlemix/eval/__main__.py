# SPDX-License-Identifier: Apache-2.0
"""Ask a model the questions of a benchmark and score its answers; compare two runs; write what the authors take.

    paddlemix eval pope --model-path MODEL --data eval/pope [--num-chunks N --chunk-idx I] [--dry-run]
    paddlemix eval custom --model-path MODEL --data rows.jsonl
    paddlemix eval all --model-path MODEL --data playground/data/eval
    paddlemix eval merge eval_results/pope/MODEL
    paddlemix eval score pope --answers answers.jsonl --data eval/pope --output scores/pope.json
    paddlemix eval compare scores/before.json scores/after.json
    paddlemix eval report scores --published
    paddlemix eval upload seed --answers answers.jsonl --data eval/seed_bench --output upload.jsonl
    paddlemix eval review --question Q --context C --answer-list REFERENCE MODEL --rule R --output reviews.jsonl \
        --base-url URL --judge-model NAME
    paddlemix eval summarize --files reviews.jsonl
    paddlemix eval judge mm-vet --answers answers.jsonl --data eval/mm-vet --output scores/mm-vet.json \
        --base-url URL --judge-model NAME
    paddlemix eval list

After a kill the same command goes on where it stopped. eval run --help lists the flags of the first three.
Exit code 0: done. 1: done, but answers are missing, failed, double or of no question (the summary names them).
2: a flag or a file is wrong.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

if not __package__:  # run by its path: imports begin at the repository, not beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from paddlemix.eval import judge_command, run_command
from paddlemix.utils import entry_point
from paddlemix.utils.errors import ConfigError
from paddlemix.utils.foreign import JsonValue
from paddlemix.utils.options import FLAGS, CommandParser, dashed
from paddlemix.utils.paths import path_at
from paddlemix.utils.registry import nearest
from paddlemix.utils.shown import counted, readable, shown

FOLDER = "the benchmark's folder, as downloaded"
DEBUG = "show the traceback of an error"
VERBS = ("run", "merge", "score", "compare", "report", "upload", "review", "summarize", "judge", "list")
WRITTEN = {"compare": (".md", ".json", ".png", ".html"), "report": (".md", ".json", ".png")}
"""What files a verb writes, by their endings."""
OPTIONS = replace(FLAGS, cards="--num-gpus", template="--conv-mode NAME")


def parser() -> argparse.ArgumentParser:
    """The flags of all verbs."""
    found = CommandParser(
        prog="paddlemix eval", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--debug", action="store_true", help=DEBUG)
    verbs = found.add_subparsers(dest="verb", metavar="VERB", required=True)

    run = verbs.add_parser("run", help="ask a model and score it; the word may be left out before a benchmark")
    run_command.add_flags(run)
    _common(run)
    merge = verbs.add_parser("merge", help="join the parts of a run (--num-chunks) and score the whole")
    merge.add_argument("folder", type=path_at, metavar="DIR")
    _common(merge)

    score = verbs.add_parser("score", help="score the answers of a benchmark")
    _answers(score)
    score.add_argument("--data", type=path_at, required=True, metavar="DIR", help=FOLDER)
    score.add_argument("--convention", metavar="NAME", help="whose rules (default: the originals'; see eval list)")
    score.add_argument("--output", type=path_at, metavar="FILE.json", help="score file, for compare and report")
    _sampling(score)

    compare = verbs.add_parser("compare", help="two score files side by side")
    compare.add_argument("a", type=path_at, metavar="A.json", help="score file of the first run")
    compare.add_argument("b", type=path_at, metavar="B.json", help="score file of the second run")
    compare.add_argument("--data", type=path_at, metavar="DIR", help="where the questions are (default: as in the run)")
    compare.add_argument("--image-folder", type=path_at, metavar="DIR", help="where their images are")
    compare.add_argument("--published", action="store_true", help="add the published figures of the models' authors")
    _outputs(compare, "as a .md, .json, .png or .html file; the last two with images")
    _sampling(compare)

    report = verbs.add_parser("report", help="one table over the score files of a folder")
    report.add_argument("folder", type=path_at, metavar="DIR")
    report.add_argument("--published", action="store_true", help="add the published figures of the models' authors")
    _outputs(report, "as a .md, .json or .png file")
    _common(report)

    upload = verbs.add_parser("upload", help="write the file that a benchmark's authors take")
    _answers(upload)
    upload.add_argument("--data", type=path_at, metavar="DIR", help=FOLDER)
    upload.add_argument("--output", type=path_at, required=True, metavar="FILE")
    upload.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
    )

    judged = verbs.add_parser(
        "review", help="let a judge review answers beside a reference's (LLaVA-Bench, 90 questions)"
    )
    judge_command.add_review(judged)
    _common(judged)
    summary = verbs.add_parser("summarize", help="sum up review files")
    judge_command.add_summarize(summary)
    _sampling(summary)
    grades = verbs.add_parser("judge", help="let a judge grade the answers of MM-Vet")
    judge_command.add_judge(grades)
    _sampling(grades)

    _common(verbs.add_parser("list", help="the benchmarks, their conventions and upload files"))
    return found


def _answers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("benchmark", metavar="BENCHMARK", help="eval list names them")
    parser.add_argument(
        "--answers", type=path_at, nargs="+", required=True, metavar="FILE", help="answers.jsonl, or its parts in order"
    )


def _outputs(parser: argparse.ArgumentParser, kinds: str) -> None:
    parser.add_argument(
        "--output", type=path_at, action="append", default=[], metavar="FILE", help=f"write it {kinds}; may be repeated"
    )


def _sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--resamples", type=int, default=1000, help="samples of the bootstrap (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    _common(parser)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one verb and return the exit code."""
    return entry_point.run_command(_run, argv, OPTIONS)


def _run(argv: list[str]) -> int:
    args = parser().parse_args(_with_verb(argv))
    for name in ("resamples", "seed"):
        if getattr(args, name, 1) < (name == "resamples"):
            raise ConfigError(f"--{name} {getattr(args, name)}: expected a number from {int(name == 'resamples')}")
    for path in args.output if args.verb in WRITTEN else ():
        if path.suffix not in WRITTEN[args.verb]:
            raise ConfigError(f"--output {path}: expected a file that ends with {', '.join(WRITTEN[args.verb])}")
    verbs = {"score": _score, "compare": _compare, "report": _report, "upload": _upload, "list": _list, "merge": _merge}
    verbs |= {"review": judge_command.review, "summarize": judge_command.summarize, "judge": judge_command.judge}
    return {**verbs, "run": run_command.carry_out}[args.verb](args)


def _with_verb(argv: list[str]) -> list[str]:
    """A benchmark in the place of a verb means that it is run."""
    from paddlemix.eval.benchmarks import ALIASES, ALL, BENCHMARKS, CUSTOM

    place = next((number for number, word in enumerate(argv) if not word.startswith("-")), None)
    first = "" if place is None else argv[place]
    if first.lower() in (*BENCHMARKS, *ALIASES, CUSTOM, ALL):
        argv = [*argv[:place], "run", *argv[place:]]
    elif place is not None and first not in VERBS:
        known = (*VERBS, *BENCHMARKS, CUSTOM, ALL)
        raise ConfigError(f'"{shown(first, 80)}" is no verb and no benchmark{nearest(first.lower(), known)} '
                          f"(verbs: {', '.join(VERBS)}; benchmarks: eval list)")  # fmt: skip
    return dashed(argv) if argv[place:][:1] == ["run"] else argv


def _merge(args: argparse.Namespace) -> int:
    return run_command.merge_parts(args.folder, as_json=args.json)


def _score(args: argparse.Namespace) -> int:
    from paddlemix.eval import scoring, tables
    from paddlemix.eval.benchmarks import benchmark_named

    if args.output and args.output.suffix != ".json":
        raise ConfigError(f"--output {args.output}: expected a .json file")
    scored = scoring.score_files(
        benchmark_named(args.benchmark),
        args.answers,
        args.data,
        convention=args.convention,
        resamples=args.resamples,
        seed=args.seed,
    )
    if args.output:
        scoring.write_score(args.output, scored)
    _show(args, tables.score_lines(scored), tables.score_value(scored))
    return 0 if scored.score.complete else 1


def _compare(args: argparse.Namespace) -> int:
    from paddlemix.eval import compare

    found = compare.compare_files(args.a, args.b, resamples=args.resamples, seed=args.seed)
    lines = compare.comparison_lines(found, published=args.published)
    value = compare.comparison_value(found, published=args.published)
    if any(path.suffix in (".png", ".html") for path in args.output):
        from paddlemix.eval import differences

        questions = differences.questions_of(found, args.data, args.image_folder)
        if questions is differences.without_questions:
            _note("the questions and images of these runs are not known; give their folder with --data")
    for path in args.output:
        if path.suffix == ".png":
            _write(path, differences.draw_sheet(found, questions))
        elif path.suffix == ".html":
            differences.write_page(path, found, questions)
        else:
            _write_text(path, lines, value)
    _show(args, lines, value)
    return 0


def _report(args: argparse.Namespace) -> int:
    from paddlemix.eval import report

    scores = report.read_folder(args.folder)
    found = report.report_of(scores, published=args.published)
    lines, value = report.report_lines(found), report.report_value(scores, found)
    for path in args.output:
        if path.suffix == ".png":
            from paddlemix.eval import report_picture

            _write(path, report_picture.draw(found))
        else:
            _write_text(path, lines, value)
    _show(args, lines, value)
    return 0


def _upload(args: argparse.Namespace) -> int:
    from paddlemix.eval import answer_files, uploads
    from paddlemix.eval.benchmarks import benchmark_named

    name = benchmark_named(args.benchmark).name
    empty = uploads.write_upload(name, answer_files.read_answers(args.answers), args.data, args.output)
    sys.stdout.write(f"wrote {readable(str(args.output))}\n")
    if empty:
        sys.stdout.write(
            f"{counted(len(empty), 'question')} without an answer, empty in it; the first: {readable(empty[0])}\n"
        )
    return 1 if empty else 0


def _list(args: argparse.Namespace) -> int:
    from paddlemix.eval import tables
    from paddlemix.eval.benchmarks import BENCHMARKS
    from paddlemix.eval.uploads import UPLOADS

    rows = []
    for name, one in BENCHMARKS.items():
        conventions = ", ".join(one.scorer.conventions) if one.scorer else ""
        upload = (UPLOADS[name][1] or "folder") if name in UPLOADS else ""
        rows.append((name, one.title, conventions, one.unscored or "eval score", upload))
    header = ("benchmark", "title", "conventions, the default first", "scored by", "upload")
    _show(args, tables.table(header, rows), [dict(zip(header, row, strict=True)) for row in rows])
    return 0


def _write_text(path: Path, lines: list[str], value: JsonValue) -> None:
    from paddlemix.eval import tables

    _write(path, tables.as_text(value) if path.suffix == ".json" else "\n".join(lines) + "\n")


def _write(path: Path, data: bytes | str) -> None:
    from paddlemix.utils.files import atomic_write

    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, data)


def _note(line: str) -> None:
    sys.stderr.write(f"note: {readable(line)}\n")


def _show(args: argparse.Namespace, lines: list[str], value: JsonValue) -> None:
    from paddlemix.eval import tables

    sys.stdout.write(tables.as_text(value) if args.json else "".join(f"{readable(line)}\n" for line in lines))


if __name__ == "__main__":
    sys.exit(main())
