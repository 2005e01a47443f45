# SPDX-License-Identifier: Apache-2.0
"""The verbs that ask a judge: their flags, and what they tell the person.

``review`` and ``summarize`` have the flags of LLaVA's ``eval_gpt_review_visual.py`` (or ``_bench``) and
``summarize_gpt_review.py``; ``judge`` grades MM-Vet.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddlemix.utils import env
from paddlemix.utils.errors import ConfigError
from paddlemix.utils.foreign import JsonValue
from paddlemix.utils.paths import path_at
from paddlemix.utils.shown import readable, shown

if TYPE_CHECKING:
    from paddlemix.eval.judge.asking import Cache
    from paddlemix.eval.judge.endpoint import Endpoint, Judged, RequestError

KEY = "PADDLEMIX_JUDGE_KEY"


def add_review(parser: argparse.ArgumentParser) -> None:
    """LLaVA's flags, and where the judge is."""

    def flag(*names: str, text: str, **kind: Any) -> None:
        parser.add_argument(*names, help=text, type=path_at, required=True, metavar="FILE", **kind)

    flag("-q", "--question", text="question file: question_id, text, image, category")
    flag("-c", "--context", text="what the judge reads in place of the images")
    flag("-a", "--answer-list", text="two answer files: the reference's and the model's", nargs=2)
    flag("-r", "--rule", text="LLaVA's rule.json: role and prompt of each category")
    flag("-o", "--output", text="review file, JSON lines; a page to read them is written beside it")
    parser.add_argument("--max-tokens", type=int, default=1024, help="longest review in tokens (default: 1024)")
    parser.add_argument("--convention", default="llava", metavar="NAME",
                        help="contexts that are one text: llava (default) or lmms-eval")  # fmt: skip
    parser.add_argument("--image-folder", type=path_at, metavar="DIR", help="show the images in the page")
    add_endpoint(parser)


def add_summarize(parser: argparse.ArgumentParser) -> None:
    """LLaVA's flags, and a score file."""
    parser.add_argument("-d", "--dir", type=path_at, metavar="DIR", help="folder of the review files")
    parser.add_argument("-f", "--files", nargs="*", default=[], metavar="FILE", help="review files")
    parser.add_argument("-i", "--ignore", nargs="*", default=[], metavar="ID", help="question ids to leave out")
    parser.add_argument("--output", type=path_at, metavar="FILE.json", help="score file of one review file")
    parser.add_argument(
        "--model", default="", metavar="NAME", help="name of the model in the score file (default: the review file's)"
    )


def add_judge(parser: argparse.ArgumentParser) -> None:
    """What MM-Vet needs."""
    parser.add_argument("benchmark", metavar="BENCHMARK", help="mm-vet")
    parser.add_argument("--answers", type=path_at, nargs="+", required=True, metavar="FILE",
                        help="answers.jsonl, or its parts in order")  # fmt: skip
    parser.add_argument(
        "--data", type=path_at, required=True, metavar="DIR", help="folder with mm-vet.json, or the file"
    )
    parser.add_argument("--output", type=path_at, required=True, metavar="FILE.json", help="score file")
    add_endpoint(parser)


def add_endpoint(parser: argparse.ArgumentParser) -> None:
    """Where the judge is, and what it may cost."""

    def flag(name: str, text: str, **kind: Any) -> None:
        parser.add_argument(f"--{name}", help=text, **kind)

    flag("base-url", "OpenAI-compatible address, such as http://127.0.0.1:8000/v1", required=True, metavar="URL")
    flag("judge-model", "name under which the endpoint knows the judge", required=True, metavar="NAME")
    flag("key-env", f"environment variable with the key (default: {KEY})", default=KEY, metavar="NAME")
    flag("allow-http", "send key and answers without encryption to another machine", action="store_true")
    flag("workers", "requests at a time (default: 4)", type=int, default=4, metavar="N")
    flag("attempts", "of one request, with longer pauses between them (default: 5)", type=int, default=5, metavar="N")
    flag("timeout", "seconds for one answer (default: 120)", type=float, default=120.0, metavar="S")
    flag("reasoning", "send max_completion_tokens and no temperature", action="store_true")
    flag("price-in", "price of a million tokens of prompts, for the estimate", type=float, metavar="X")
    flag("price-out", "price of a million tokens of answers", type=float, metavar="X")
    flag("max-cost", "stop before the start when the estimate is higher", type=float, metavar="X")
    flag("cache", "answers of the judge (default: beside the output)", type=path_at, metavar="FILE")
    flag("dry-run", "show the estimate and the first prompt, and ask nothing", action="store_true")


def review(args: argparse.Namespace) -> int:
    """Ask for reviews and write them. Exit code 1 when answers or scores are missing."""
    from paddlemix.eval.answer_files import read_answers
    from paddlemix.eval.judge import asking, page, reviews, summary
    from paddlemix.utils.files import atomic_write

    if args.max_tokens < 1:
        raise ConfigError(f"--max-tokens {args.max_tokens}: expected a number from 1")
    if args.output.suffix == ".html":
        raise ConfigError(f"--output {args.output}: the page of the reviews has this name; expected a .jsonl file")
    endpoint = _endpoint(args)
    answers = [read_answers([path]) for path in args.answer_list]
    pairs, problems = reviews.read_pairs(args.question, args.context, answers, args.rule, args.convention)
    bodies = [endpoint.body(pair.messages, args.max_tokens, reviews.TEMPERATURE) for pair in pairs]
    with asking.Cache(_cache(args)) as cache:
        if not _start(args, endpoint, bodies, cache):
            return 0
        replies = asking.ask_all(endpoint, bodies, cache, workers=args.workers)
    found = [reviews.reviewed(pair, reply) for pair, reply in zip(pairs, replies, strict=True)]
    problems = [*problems, *reviews.review_problems(found)]
    # A request that was refused is no review: the same command asks it again.
    kept = [one for one, reply in zip(found, replies, strict=True) if not isinstance(reply, Exception)]
    _tell_use(replies)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(args.output, "".join(one.line(number) for number, one in enumerate(kept, 1)))
    summed = summary.summarize(args.output)
    html = args.output.with_suffix(".html")
    page.write_reviews(html, found, summed, args.image_folder, f"{args.judge_model}, {endpoint.url}")
    if args.json:
        value = {**_summary_value(summed), "reviews": str(args.output), "page": str(html), "problems": _named(problems)}
        _out(_text(value))
    else:
        _out_lines([*_summary_lines(summed), "", *_problem_lines(problems), f"{args.output}", f"{html}"])
    return 1 if any(problem.kind != "empty" for problem in problems) else 0


def summarize(args: argparse.Namespace) -> int:
    """Sum up review files. Exit code 1 when reviews have no scores."""
    from paddlemix.eval.judge import summary
    from paddlemix.eval.scoring import write_score

    if not args.files and args.dir is None:
        raise ConfigError("which reviews? Give their folder with --dir, or files with --files")
    base = args.dir or Path()
    paths = sorted(base / path_at(name) for name in args.files) or summary.review_files(args.dir)
    if args.output and (len(paths) != 1 or args.output.suffix != ".json"):
        raise ConfigError(f"--output {args.output}: a score file (.json) is of one review file, there are {len(paths)}")
    found = [summary.summarize(path, args.ignore, resamples=args.resamples, seed=args.seed) for path in paths]
    if args.output:
        write_score(
            args.output, summary.scored(found[0], args.model or found[0].name, resamples=args.resamples, seed=args.seed)
        )
    if args.json:
        _out(_text([_summary_value(one) for one in found]))
    else:
        for one in found:
            _out_lines([*_summary_lines(one), "", *_problem_lines(one.problems)])
    return 1 if any(one.problems for one in found) else 0


def judge(args: argparse.Namespace) -> int:
    """Grade MM-Vet's answers and write a score file."""
    from paddlemix.eval import tables
    from paddlemix.eval.answer_files import read_answers
    from paddlemix.eval.benchmarks import benchmark_named
    from paddlemix.eval.judge import asking, mm_vet
    from paddlemix.eval.scoring import write_score
    from paddlemix.utils.files import sha256

    name = benchmark_named(args.benchmark).name
    if name != "mm-vet":
        other = "eval review asks for its reviews" if name in ("llava-bench", "qa90") else "eval score scores it"
        raise ConfigError(f"eval judge grades mm-vet, not {name}; {other}")
    if args.output.suffix != ".json":
        raise ConfigError(f"--output {args.output}: expected a .json file")
    endpoint = _endpoint(args)
    records = read_answers(args.answers)
    questions = mm_vet.read_questions(args.data)
    answers, problems = mm_vet.matched(questions, records)
    with asking.Cache(_cache(args)) as cache:
        if not _start(args, endpoint, mm_vet.bodies(endpoint, questions, answers), cache):
            return 0
        said = mm_vet.graded(endpoint, questions, answers, cache, workers=args.workers)
    _tell_use(list(said.values()))
    files = tuple((str(path), sha256(path)) for path in args.answers)
    found = mm_vet.score(questions, answers, problems, said, model=records[0].model_id, files=files,
                         resamples=args.resamples, seed=args.seed)  # fmt: skip
    write_score(args.output, found)
    _out(_text(tables.score_value(found)) if args.json else "")
    _out_lines([] if args.json else [*tables.score_lines(found), f"{args.output}"])
    return 0 if found.score.complete else 1


def _endpoint(args: argparse.Namespace) -> "Endpoint":
    from paddlemix.eval.judge.endpoint import Endpoint, checked

    for name in ("price_in", "price_out", "max_cost"):
        value = getattr(args, name)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"--{name.replace('_', '-')} {value:g}: expected a number from 0")
    if args.max_cost is not None and None in (args.price_in, args.price_out):
        raise ConfigError("--max-cost needs the prices: give --price-in and --price-out, too")
    if args.workers < 1:
        raise ConfigError(f"--workers {args.workers}: expected a number from 1")
    key = env.get(KEY) if args.key_env == KEY else env.raw(args.key_env)
    if key is None:
        raise ConfigError(f'--key-env: there is no environment variable "{shown(args.key_env, 40)}"; set it')
    endpoint = Endpoint(args.base_url, args.judge_model, key, args.timeout, args.attempts, reasoning=args.reasoning)
    return checked(endpoint, allow_http=args.allow_http)


def _cache(args: argparse.Namespace) -> Path:
    return args.cache or args.output.with_name(args.output.name + ".judge")


def _start(args: argparse.Namespace, endpoint: "Endpoint", bodies: Sequence[Mapping[str, Any]], cache: "Cache") -> bool:
    """Tell the estimate; whether the run goes on. ConfigError when it may cost more than the person wants."""
    from paddlemix.eval.judge import asking

    prices = asking.Prices(args.price_in, args.price_out)
    found = asking.estimate(endpoint, bodies, cache)
    _note(found.line(prices))
    cost = found.cost(prices)
    if args.max_cost is not None and cost is not None and cost > args.max_cost:
        raise ConfigError(f"--max-cost {args.max_cost:g}: the run may cost {cost:.2f}; nothing was asked")
    if args.dry_run:
        _out("the first prompt:\n" + readable(bodies[0]["messages"][-1]["content"]) + "\n")
    return not args.dry_run


def _tell_use(replies: "Sequence[Judged | RequestError]") -> None:
    """What the server counted, cached answers included."""
    counted = [one for one in replies if not isinstance(one, Exception) and one.prompt_tokens >= 0]
    if counted:
        prompts = sum(one.prompt_tokens for one in counted)
        answers = sum(max(one.completion_tokens, 0) for one in counted)
        _note(f"the endpoint counted {prompts} tokens of prompts and {answers} of answers, cached ones included")


def _summary_lines(found: Any) -> list[str]:
    from paddlemix.eval.judge.page import HEADER
    from paddlemix.eval.judge.summary import summary_rows
    from paddlemix.eval.tables import table

    return [found.name, "", *table(HEADER, list(summary_rows(found)))]


def _summary_value(found: Any) -> dict[str, JsonValue]:
    from dataclasses import asdict

    from paddlemix.eval.scoring import finite

    rows = {one.category: {**finite(asdict(one)), "interval": finite(asdict(one.interval))} for one in found.rows}
    return {"name": found.name, "file": str(found.path), "categories": rows, "problems": _named(found.problems)}


def _named(problems: Sequence[Any]) -> list[JsonValue]:
    return [{"kind": one.kind, "question_id": one.key, "text": one.text} for one in problems]


def _problem_lines(problems: Sequence[Any]) -> list[str]:
    from paddlemix.eval.tables import problem_lines

    return problem_lines(problems) if problems else ["every question has a review with two scores"]


def _text(value: JsonValue) -> str:
    from paddlemix.eval.tables import as_text

    return as_text(value)


def _out_lines(lines: Sequence[str]) -> None:
    _out("".join(f"{readable(line)}\n" for line in lines))


def _out(text: str) -> None:
    sys.stdout.write(text)


def _note(line: str) -> None:
    sys.stderr.write(f"{readable(line)}\n")
