# SPDX-License-Identifier: Apache-2.0
"""Benchmarks at each evaluation of a training (``eval_benchmarks``), and its predictions (``do_predict``).

Nothing of the training depends on it: answers are greedy, no random number is drawn, and no weight is touched.
Contract: ``paddlemix.trainer.asking`` finds ``InTraining`` by its name.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paddlemix.datasets.reading import picture_rules, read_rows
from paddlemix.datasets.sample import Sample
from paddlemix.eval import answer_files, running
from paddlemix.eval.asked import max_new_tokens
from paddlemix.eval.benchmarks import CUSTOM, Benchmark, benchmark_named
from paddlemix.eval.evaluate import OWN, lines_of, questions_and_items
from paddlemix.eval.items import Item, Said
from paddlemix.eval.predicting import conversation_item
from paddlemix.eval.running import Job
from paddlemix.eval.scorers.score import Question
from paddlemix.eval.scorers.texts import grade_exact, grade_rouge
from paddlemix.eval.scoring import score_answers
from paddlemix.imaging.views import Film
from paddlemix.settings.model import LlavaConfig
from paddlemix.settings.run.training import TrainingSettings
from paddlemix.text import chat_template, templates
from paddlemix.text.messages import Conversation
from paddlemix.text.tokenizer import Tokenizer
from paddlemix.trainer.asking import PREDICTIONS, Asking
from paddlemix.utils.constants import IMAGE_TOKEN
from paddlemix.utils.errors import ConfigError, PaddleMixError
from paddlemix.utils.logging import get_logger
from paddlemix.utils.registry import nearest

FOLDER = "eval_benchmarks"


@dataclass(frozen=True)
class Slice:
    """The questions of a benchmark that are asked at each evaluation. ``annotations``: its right answers."""

    benchmark: Benchmark
    items: Sequence[Item]
    annotations: Path
    longest: int
    convention: str | None
    metric: str

    def logged(self) -> dict[str, str]:
        """The metrics that are logged, and what the log calls them behind ``eval_``."""
        names = (self.benchmark.scorer.main, *self.benchmark.scorer.beside)
        return {name: f"{self.metric}_{''.join(c if c.isalnum() else '_' for c in name)}" for name in names}


@dataclass
class _Opened:
    tokenizer: Tokenizer
    config: LlavaConfig
    chat_template: dict[str, Any] | None
    ends: tuple[int, ...]


class InTraining:
    """What one run asks its model. ConfigError and DataError for what is wrong with files, before a weight is read."""

    def __init__(self, settings: TrainingSettings) -> None:
        self.settings = settings
        training = settings.training
        self.output = Path(training.output_dir).expanduser()
        self.slices = [_slice(entry, number) for number, entry in enumerate(training.eval_benchmarks or ())]
        self._check_best()
        self.rows: Sequence[Sample] = ()
        if training.do_predict:
            # Rows to be answered have one answer at most, also where the training learns from pairs of them.
            found = read_rows(settings.with_changes(loss_type=None), parts=("test",)).test
            self.rows = [] if found is None else list(found.samples)
            self.items = [_row_item(number, sample) for number, sample in enumerate(self.rows)]
            _one_template(self.rows)
        self._opened: _Opened | None = None

    def _check_best(self) -> None:
        """ConfigError for a ``metric_for_best_model`` that none of the benchmarks gives."""
        training = self.settings.training
        name = (training.metric_for_best_model or "").removeprefix("eval_")
        own = [one for one in self.slices if name.startswith(f"{one.metric}_")]
        given = [logged for one in self.slices for logged in one.logged().values()]
        if training.load_best_model_at_end and own and name not in given:
            raise ConfigError(
                f'"metric_for_best_model" is "{name}"{nearest(name, given)}: known are {", ".join(given)}'
            )

    def open(
        self, tokenizer: Tokenizer, config: LlavaConfig, chat_template: dict[str, Any] | None, ends: Sequence[int]
    ) -> None:
        """See ``trainer.asking.Asks``."""
        self._opened = _Opened(tokenizer, config, chat_template, tuple(ends))

    # -- benchmarks ----------------------------------------------------------------------------------------------

    def measure(self, trainer: Asking, prefix: str, stopped: Callable[[], bool]) -> dict[str, float] | None:
        """See ``trainer.asking.Asks``: ``eval_pope_mean_f1``, ``eval_pope_accuracy``, perhaps ``eval_pope_failed``."""
        began = time.monotonic()
        metrics: dict[str, float] = {}
        asker = self._asker(trainer, 1)  # features of images are those of this step: none are kept for the next one
        for one in self.slices:
            asker.max_new_tokens = one.longest
            said, problem = _asked(trainer, lambda one=one: self._share(trainer, asker, one, stopped))
            trainer.stop_together(problem)
            parts = trainer.gathered(said)
            if any(part is None for part in parts):
                return None
            by_place = {place: answers for part in parts for place, answers in part.items()}
            metrics |= self._scored(trainer, one, by_place, prefix)
        return {**metrics, f"{prefix}_benchmarks_runtime": round(time.monotonic() - began, 4)} if metrics else {}

    def _share(
        self, trainer: Asking, asker: Any, one: Slice, stopped: Callable[[], bool]
    ) -> dict[int, list[Said]] | None:
        size, args = trainer.args.per_device_eval_batch_size, trainer.args
        batches = running.Batches(one.items, asker.length, size, args.dataset_world_size, args.dataset_rank)
        found: dict[int, list[Said]] = {}
        for number in range(len(batches)):
            if stopped():
                return None
            places = batches[number]
            found.update(zip(places, asker.ask([one.items[place] for place in places]), strict=True))
        return found

    def _scored(self, trainer: Asking, one: Slice, said: dict[int, list[Said]], prefix: str) -> dict[str, float]:
        model_id = f"{self.output.name}_step-{trainer.state.global_step}"
        write = lines_of(model_id)
        lines = [line for place in sorted(said) for line in write(one.items[place], said[place])]
        path = self.output / FOLDER / one.metric / f"step-{trainer.state.global_step:06d}.jsonl"
        if trainer.is_world_process_zero():
            try:
                answer_files.write_answers(path, lines)
            except (OSError, PaddleMixError) as error:
                get_logger(__name__).warning(f"the answers to {one.benchmark.title} cannot be written: {error}")
        records = answer_files.records_of(lines, path)
        found = score_answers(one.benchmark, records, one.annotations, convention=one.convention, asked=True).score
        failed = found.count("failed")
        if failed:
            first = next(problem.text for problem in found.problems if problem.kind == "failed")
            get_logger(__name__).warning(f"{one.benchmark.title}: {failed} questions failed: {first}")
        metrics = {f"{prefix}_{one.metric}_failed": float(failed)} if failed else {}
        for name, logged in one.logged().items():
            value = found.metrics.get(name, math.nan)
            if not math.isnan(value):  # of POPE's F1 there is none while every answer is "no"
                metrics[f"{prefix}_{logged}"] = round(value, 6)
        return metrics

    # -- predictions ---------------------------------------------------------------------------------------------

    def predict(self, trainer: Asking) -> dict[str, float]:
        """See ``trainer.asking.Asks``: the file ``generated_predictions.jsonl`` in ``output_dir``."""
        began = time.monotonic()
        training = self.settings.training
        asker = self._asker(trainer, training.max_new_tokens, template_of=self.rows)
        job = Job(
            self.items, self.output / PREDICTIONS, self._settings(trainer), _prediction,
            training.per_device_eval_batch_size, trainer.args.dataset_world_size, trainer.args.dataset_rank,
        )  # fmt: skip
        running.forget_others(job)

        def own() -> None:
            if not running.is_done(job.own_path, job.settings):
                running.run(job, asker, name="do_predict", shown=trainer.is_world_process_zero())

        _, problem = _asked(trainer, own)
        trainer.stop_together(problem)
        if trainer.is_world_process_zero():
            running.merge(job.path, job.parts)
            running.forget_parts(job)
        trainer.gathered(None)
        return {**_prediction_metrics(job.path), "predict_runtime": round(time.monotonic() - began, 4)}

    def _settings(self, trainer: Asking) -> dict[str, Any]:
        training = self.settings.training
        return {
            "model": self.settings.model.lora_path or self.settings.model.model_name_or_path,
            "steps": trainer.state.global_step if training.do_train else 0,
            "seed": training.seed,
            "rows": answer_files.digest([[item.where, item.turns[0].text] for item in self.items]),
            "max_new_tokens": training.max_new_tokens,
            "batch_size": training.per_device_eval_batch_size,
        }

    def _asker(self, trainer: Asking, longest: int, template_of: Sequence[Sample] = ()) -> Any:
        from paddlemix.eval.asking import Asker
        from paddlemix.generation.folder import processor_for
        from paddlemix.generation.predictor import Predictor
        from paddlemix.imaging.load import load_image

        opened = self._opened
        if opened is None:
            raise ConfigError("the model that is asked is not there yet")
        own = _one_template(template_of)
        template: Any = templates.get(opened.config.template) if opened.chat_template is None else None
        if own is not None:
            template = chat_template.load(own)
        elif opened.chat_template is not None:
            template = chat_template.ChatTemplate(opened.chat_template, "chat_template.json")
        processor = processor_for(opened.config)
        predictor = Predictor(trainer.model, opened.tokenizer, processor, template, ends=opened.ends)
        rules = picture_rules(self.settings)
        return Asker(
            predictor, longest, lambda image: load_image(image, rules.limits, transpose_exif=rules.exif_rotation)
        )


def _asked(trainer: Asking, ask: Callable[[], Any]) -> tuple[Any, PaddleMixError | None]:
    """What ``ask`` gives, or the problem that all processes have to hear of."""
    try:
        return ask(), None
    except PaddleMixError as error:
        return None, error


def _slice(entry: dict[str, Any], number: int) -> Slice:
    at = f'"eval_benchmarks": item {number}'
    try:
        if entry["name"] == CUSTOM:
            raise ConfigError(
                f'"{CUSTOM}": own rows go by the rule that scores them: {", ".join(OWN[:-1])} or {OWN[-1]}'
            )
        benchmark = benchmark_named(entry["name"])
        limit, form = entry.get("limit"), entry.get("prompts", "llava")
        if benchmark.scorer is None or benchmark.questions is None:
            raise ConfigError(f"{benchmark.title} cannot be scored here: {benchmark.unscored}")
        folder = entry.get("image_folder")
        convention = entry.get("convention")
        if convention is not None and convention not in benchmark.scorer.conventions:
            known = ", ".join(benchmark.scorer.conventions)
            raise ConfigError(f'unknown convention "{convention}" (known: {known})')
        found = questions_and_items(
            benchmark.name, Path(entry["data"]), form=form, split=entry.get("split"), limit=limit,
            image_folder=None if folder is None else Path(folder), remedy='name the right folder with "image_folder"',
        )  # fmt: skip
        found.require_known(benchmark)
    except PaddleMixError as error:
        raise type(error)(f"{at}: {error}") from error
    longest = entry.get("max_new_tokens") or max_new_tokens(benchmark.name, form)
    metric = str(entry.get("label") or benchmark.name).replace("-", "_")
    return Slice(benchmark, found.items, found.annotations, longest, convention, metric)


def _row_item(number: int, sample: Sample) -> Item:
    film = isinstance(sample.views, Film)
    talk = Conversation(sample.messages, sample.images, sample.id, film)
    label = talk.messages[-1].text if talk.messages and talk.messages[-1].role == "assistant" else None
    asked = conversation_item(number, sample.where, talk, None, {"label": label})
    if film or sample.views is None or asked.before is None or not sample.images:
        return asked
    marks = IMAGE_TOKEN * sample.views.count(len(sample.images))
    messages = tuple(
        replace(message, text=f"{marks}\n{message.text.replace(IMAGE_TOKEN, '').strip()}")
        if IMAGE_TOKEN in message.text else message
        for message in asked.before.messages
    )  # fmt: skip
    return replace(asked, views=sample.views, before=replace(asked.before, messages=messages, images=sample.images))


def _one_template(rows: Sequence[Sample]) -> str | None:
    """The chat_template.json of the test rows, if they have one. ConfigError when they have several."""
    found = {row.chat_template for row in rows}
    if len(found) > 1:
        raise ConfigError('do_predict asks with one template; give all entries of "test" the same "chat_template"')
    return found.pop() if found else None


def _prediction(item: Item, answers: Sequence[Said]) -> list[str]:
    (turn,), (said,) = item.turns, answers
    prompt = "\n".join(message.text for message in item.before.messages) if item.before else turn.text
    row = {"prompt": prompt, "predict": said.text, "label": turn.more["label"]}
    return [json.dumps(row | ({"error": said.failure} if said.failure else {}), ensure_ascii=False) + "\n"]


def _prediction_metrics(path: Path) -> dict[str, float]:
    """Exact match and ROUGE-L over the rows that have an answer; rows that could not be asked count as wrong."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    labelled = [row for row in rows if row["label"] is not None]
    metrics: dict[str, float] = {"predict_rows": len(rows), "predict_failed": sum("error" in row for row in rows)}
    for name, grade, convention in (("exact_match", grade_exact, "relaxed"), ("rouge_l", grade_rouge, "f-measure")):
        values = [
            0.0 if "error" in row else grade(Question("", (row["label"],)), row["predict"], convention)[1]
            for row in labelled
        ]
        if values:
            metrics[f"predict_{name}"] = round(sum(values) / len(values), 6)
    return metrics
