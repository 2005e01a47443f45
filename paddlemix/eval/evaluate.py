# SPDX-License-Identifier: Apache-2.0
"""A benchmark from its files to answers, score and upload file: what is asked, what is checked before, what is written.

    plan = planned(Request("pope", Path("eval/pope"), "liuhaotian/llava-v1.5-7b"))
    outcome = carry_out(plan)

Everything that can be wrong with files and names is found by ``planned``, before paddle is imported.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddlemix.eval import asked as asking_for
from paddlemix.eval import running
from paddlemix.eval.answer_files import AnswerRecord, answer_line, read_answers
from paddlemix.eval.benchmarks import ALIASES, BENCHMARKS, CUSTOM, Benchmark, benchmark_named
from paddlemix.eval.items import Item, Said, items_of, missing_files, part_with
from paddlemix.eval.models import Model
from paddlemix.eval.records import read_list
from paddlemix.eval.running import ANSWERS, Job
from paddlemix.eval.scorers.vqa import PEOPLE
from paddlemix.eval.scoring import Scored, score_answers, write_score
from paddlemix.eval.uploads import UPLOADS, write_upload
from paddlemix.utils.errors import ConfigError, DataError, PaddleMixError
from paddlemix.utils.files import sha256
from paddlemix.utils.leftovers import remove
from paddlemix.utils.paths import begins_at

if TYPE_CHECKING:
    from paddlemix.eval.asking import Asker

OWN = ("exact", "choice", "vqa", "rouge-l")
IN_ONE_FILE = ("mmbench", "mmbench-cn", "refcoco", "mv-llava", *OWN)
"""Benchmarks whose question file has the right answers, too."""

RESULTS = Path("eval_results")


@dataclass(frozen=True)
class Request:
    """What a person asks for. None is what the benchmark, or the model, has itself."""

    benchmark: str
    data: Path
    model: Model
    output: Path | None = None
    form: str = "llava"
    split: str | None = None
    image_folder: Path | None = None
    all_rounds: bool = False
    limit: int | None = None
    max_new_tokens: int | None = None
    batch_size: int = 8
    parts: int = 1
    index: int = 0
    convention: str | None = None
    metrics: tuple[str, ...] = ()
    scored: bool = True


@dataclass(frozen=True)
class Plan:
    """What a request comes to. ``notes`` are lines for the person, ``missing`` image files that are not there."""

    job: Job
    model: Model
    max_new_tokens: int
    question_file: Path
    image_folder: Path
    notes: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def done(self) -> bool:
        """Whether the answers of this part, or of the whole, are there already."""
        job = self.job
        return running.is_done(job.own_path, job.settings) or running.is_done(job.path, job.settings)


@dataclass(frozen=True)
class Outcome:
    """What a run has left: ``failed`` are the answers that are none. ``whole`` False: other parts are still missing."""

    path: Path
    whole: bool
    answers: int = 0
    failed: tuple[AnswerRecord, ...] = ()
    scored: tuple[Scored, ...] = ()
    written: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every question of this part has an answer of the model."""
        return not self.failed and all(one.score.complete for one in self.scored)


@dataclass(frozen=True)
class Found:
    """The questions of a benchmark with their files. ``missing``: image files that are not there."""

    items: list[Item]
    question_file: Path
    image_folder: Path
    annotations: Path
    """Where its right answers are: the folder, or the question file itself."""
    missing: list[str]

    def require_known(self, benchmark: Benchmark) -> None:
        """DataError unless the right answers can be read, and some question that is asked has one."""
        known = {question.key for question in benchmark.questions(self.annotations)} if benchmark.questions else set()
        key = benchmark.keys(self.annotations)
        turns = [turn for item in self.items for turn in item.turns]
        asked = [key(AnswerRecord(turn.key, "", turn.prompt, where=str(self.question_file))) for turn in turns]
        if known.isdisjoint(asked):
            raise DataError(
                f'{self.annotations}: has no right answer for "{asked[0]}" and all other questions that are asked; are '
                "these the annotations of another split?"
            )


def questions_and_items(
    benchmark: str,
    data: Path,
    *,
    form: str = "llava",
    split: str | None = None,
    all_rounds: bool = False,
    limit: int | None = None,
    image_folder: Path | None = None,
    remedy: str = "give the right folder with --image-folder",
) -> Found:
    """What a benchmark asks, and whether its images are there. ``remedy``: how the image folder is named."""
    path = asking_for.question_file(benchmark, data, split)
    asked = asking_for.questions_of(benchmark, path, form=form, all_rounds=all_rounds)
    base = data if data.is_dir() else data.parent
    usual = base / asking_for.QUESTIONS[benchmark].images
    folder = image_folder or (usual if usual.is_dir() else base)
    items = part_with(items_of(asked, folder, search=benchmark == "refcoco"), limit)
    annotations = path if benchmark in IN_ONE_FILE else base
    return Found(items, path, folder, annotations, missing_files(items, folder, remedy))


def planned(request: Request) -> Plan:
    """Read the files of a benchmark and check what the run needs. ConfigError, DataError, CheckpointError."""
    benchmark = CUSTOM if request.benchmark.lower() == CUSTOM else benchmark_named(request.benchmark).name
    asked_as = "exact" if benchmark == CUSTOM else benchmark
    if request.limit is not None and request.limit < 1:
        raise ConfigError(f"--limit {request.limit}: expected a number from 1")
    if request.batch_size < 1:
        raise ConfigError(f"--batch-size {request.batch_size}: expected a number from 1")
    asking_for.part_of((), request.parts, request.index)
    if request.all_rounds and not asked_as.startswith("mmbench"):
        raise ConfigError(f"--all-rounds turns the options of MMBench; {benchmark} has none to turn")
    found = questions_and_items(
        asked_as, request.data, form=request.form, split=request.split, all_rounds=request.all_rounds,
        limit=request.limit, image_folder=request.image_folder,
    )  # fmt: skip
    path, items = found.question_file, found.items
    longest = request.max_new_tokens or asking_for.max_new_tokens(asked_as, request.form)
    if longest < 1:
        raise ConfigError(f"--max-new-tokens {longest}: expected a number from 1")
    metrics, notes = _metrics(benchmark, request, found)
    settings = {
        "benchmark": benchmark, "prompts": request.form, "question_file": sha256(path),
        "image_folder": str(request.image_folder or ""), "all_rounds": request.all_rounds, "limit": request.limit,
        "max_new_tokens": longest, "batch_size": request.batch_size, **request.model.settings(),
    }  # fmt: skip
    about = {
        "benchmark": benchmark, "data": str(found.annotations.absolute()), "question_file": str(path.absolute()),
        "convention": request.convention, "metrics": metrics,
        "upload": request.limit is None and not request.all_rounds,
    }  # fmt: skip
    output = request.output or RESULTS / benchmark / request.model.id
    job = Job(items, output / ANSWERS, settings, lines_of(request.model.id), request.batch_size, request.parts,
              request.index, about)  # fmt: skip
    return Plan(job, request.model, longest, path, found.image_folder, tuple(notes), tuple(found.missing))


def lines_of(model_id: str) -> running.Lines:
    """Writes the answer record of each turn of an item."""

    def lines(item: Item, answers: Sequence[Said]) -> list[str]:
        return [
            answer_line(turn.key, turn.prompt, said.text, model_id, _metadata(said), **turn.more)
            for turn, said in zip(item.turns, answers, strict=True)
        ]

    return lines


def _metadata(said: Said) -> dict[str, Any]:
    return {"error": said.failure} if said.failure else {}


def _metrics(benchmark: str, request: Request, found: Found) -> tuple[list[str], list[str]]:
    """What the answers are scored by, and notes. The right answers are looked at now, not after hours of asking."""
    wanted = _own_metrics(found.question_file, request.metrics) if benchmark == CUSTOM else [benchmark]
    if request.metrics and benchmark != CUSTOM:
        raise ConfigError(f"--metric chooses how own data are scored; {benchmark} has its own rules")
    if not request.scored:
        return [], []
    if request.all_rounds:
        return [], ["not scored: MMBench's circular evaluation, which takes all rounds, is not computed here"]
    notes, metrics = [], []
    for name in wanted:
        one = benchmark_named(name)
        if one.scorer is None or one.questions is None:
            notes.append(f"not scored: {one.unscored}")
            continue
        if request.convention is not None and request.convention not in one.scorer.conventions:
            raise ConfigError(
                f'unknown convention "{request.convention}" for {name} (known: {", ".join(one.scorer.conventions)})'
            )
        try:
            found.require_known(one)
        except DataError as error:
            if name not in UPLOADS:
                raise DataError(f"{error}. Without the right answers: --no-score") from error
            notes.append(f"not scored, only the upload file is written: {error}")
            continue
        metrics.append(name)
    return metrics, notes


def _own_metrics(path: Path, wanted: Sequence[str]) -> list[str]:
    """The rules that own rows are scored by: those wanted, else all that fit."""
    for name in wanted:
        if name not in OWN:
            raise ConfigError(f"--metric {name}: expected {', '.join(OWN)}")
    if wanted:
        return list(dict.fromkeys(wanted))
    rows = [record.value for record in read_list(path)]
    options = bool(rows) and all(row.get("options") for row in rows)
    people = bool(rows) and all(isinstance(row.get("answers"), list) and len(row["answers"]) == PEOPLE for row in rows)
    return ["choice"] if options else ["exact", *(["vqa"] if people else []), "rouge-l"]


def found_below(root: Path) -> dict[str, Path]:
    """The folders of benchmarks below ``root``, by the names that LLaVA, or we, give them. DataError for none."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder{begins_at(root)}")
    names = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}
    known = {**{name: name for name in (*BENCHMARKS, CUSTOM)}, **ALIASES}
    found = {known[name]: path for name, path in names.items() if name in known}
    if not found:
        raise DataError(f"{root}: no folder of a benchmark in it ({', '.join(BENCHMARKS)})")
    return {name: found[name] for name in (*BENCHMARKS, CUSTOM) if name in found}


def carry_out(
    plan: Plan,
    tell: Callable[[str], None] = lambda line: None,
    *,
    restart: bool = False,
    opened: Callable[[], "Asker"] | None = None,
) -> Outcome:
    """Ask what is not answered yet, then merge the parts, score and write what the authors take.

    ``opened`` gives a model that is loaded already; without it that of the plan is loaded when there is a question.
    """
    job = plan.job
    if restart:
        running.forget(job)
        for left in job.path.parent.glob("score*.json"):
            left.unlink()
    if not plan.done:
        job.path.parent.mkdir(parents=True, exist_ok=True)  # what cannot be written is told before weights are read
        asker = plan.model.open(plan.max_new_tokens) if opened is None else opened()
        asker.max_new_tokens = plan.max_new_tokens
        if opened is None:
            tell(asker.predictor.about)
        running.run(job, asker, name=str(job.settings["benchmark"]))
    remove(job.journal)
    if job.parts > 1 and not running.is_done(job.path, job.settings) and not running.merge(job.path, job.parts):
        # More parts than blocks of questions leave some parts without any.
        records = read_answers([job.own_path]) if job.own_path.stat().st_size else []
        return Outcome(job.own_path, False, len(records), _failed(records))
    return finish(job.path)


def _failed(records: Sequence[AnswerRecord]) -> tuple[AnswerRecord, ...]:
    return tuple(record for record in records if record.failure)


def finish(path: Path, resamples: int = 1000) -> Outcome:
    """Score a whole answer file as its run was asked to, and write the upload file. DataError for another file."""
    about: Mapping[str, Any] = running.record_of(path)["about"]
    records = read_answers([path])
    scored, written, notes = [], [], []
    folder = Path(about["data"])
    for name in about["metrics"]:
        found = score_answers(
            benchmark_named(name), records, folder, convention=about["convention"], resamples=resamples, asked=True,
            files=((str(path), sha256(path)),),
        )  # fmt: skip
        target = path.with_name("score.json" if len(about["metrics"]) == 1 else f"score-{name}.json")
        write_score(target, found)
        scored.append(found)
        written.append(target)
    # TextVQA's authors take its test split, whose right answers nobody else has.
    if about["benchmark"] in UPLOADS and not (scored and about["benchmark"] == "textvqa"):
        try:
            written.append(_upload(path, about, records))
        except PaddleMixError as error:
            notes.append(f"no upload file: {error}")
    return Outcome(path, True, len(records), _failed(records), tuple(scored), tuple(written), tuple(notes))


def _upload(path: Path, about: Mapping[str, Any], records: Sequence[AnswerRecord]) -> Path:
    if not about["upload"]:
        raise ConfigError("the authors take one answer to every question")
    suffix = UPLOADS[about["benchmark"]][1]
    target = path.with_name(f"upload{suffix}")
    write_upload(about["benchmark"], records, Path(about["data"]), target)
    return target
