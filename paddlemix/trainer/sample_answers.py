# SPDX-License-Identifier: Apache-2.0
"""``eval_generate``: what the model answers to a few rows of the eval data, at each evaluation.

The answers are greedy and the rows always the same, so that one evaluation can be laid beside the next one. Nothing of
the training depends on it: no random number is drawn, and no weight is touched.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import paddle
from paddle import nn

from paddlemix.datasets.preprocess import Encoded, Rows
from paddlemix.generation.engine import generate_batch
from paddlemix.generation.sampling import Decoding
from paddlemix.imaging.layout import Layout
from paddlemix.settings.model import LlavaConfig
from paddlemix.splice.plan import PlanRow, build_plan
from paddlemix.text.scores import relaxed, rouge_l
from paddlemix.text.tokenizer import Tokenizer
from paddlemix.trainer.answer_sheet import draw_sheet
from paddlemix.trainer.library import ShardingOption
from paddlemix.utils import files
from paddlemix.utils.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from paddlemix.utils.errors import PaddleMixError
from paddlemix.utils.logging import get_logger
from paddlemix.utils.shown import escaped, shown

FOLDER = "eval_answers"


class Evaluating(Protocol):
    """What of the trainer is used (PaddleNLP's names and ours)."""

    args: Any
    model: nn.Layer
    state: Any

    def gathered(self, value: Any) -> list[Any]:
        """The value of each process."""

    def stop_together(self, problem: PaddleMixError | None) -> None:
        """Raise the first problem of all processes on each of them."""

    def autocast_smart_context_manager(self) -> Any:
        """The mixed precision of the run."""

    def is_world_process_zero(self) -> bool:
        """Whether this process writes."""


@dataclass(frozen=True, eq=False)
class Asked:
    """A question of the eval data: the ids before its first answer (int64 [T]), their images, and the answer."""

    index: int
    where: str
    ids: np.ndarray
    layouts: tuple[Layout, ...]
    pixels: np.ndarray | None
    question: str
    reference: str
    end: int | None
    """The id that ends the answer in the row; None where the row was cut."""


@dataclass(frozen=True)
class SampleAnswer:
    """One line of the JSONL. ``exact_match`` and ``rouge_l`` are from 0 to 1."""

    index: int
    where: str
    question: str
    answer: str
    reference: str
    exact_match: float
    rouge_l: float


def asked_of(index: int, row: Encoded, tokenizer: Tokenizer, question: str | None = None) -> Asked | None:
    """The first question of a row that an answer is learnt to; None when the row holds none.

    The ids before an answer are those of the prompt for it (``text.render``). Of a packed row the first sample counts.
    """
    learnt = row.labels != IGNORE_INDEX
    learnt[:1] = False
    if not learnt.any():
        return None
    first = int(learnt.argmax())
    rest = np.flatnonzero(~learnt[first:])
    last = first + int(rest[0]) if len(rest) else len(learnt)
    if row.segments is not None:
        after = np.flatnonzero(row.segments[first:last] != row.segments[first])
        last = first + int(after[0]) if len(after) else last
    ids, answer = row.ids[:first], row.ids[first:last].tolist()
    images = int((ids == IMAGE_TOKEN_INDEX).sum())
    tiles = sum(layout.tiles for layout in row.layouts[:images])
    text = tokenizer.decode([token for token in ids.tolist() if token != IMAGE_TOKEN_INDEX])
    whole = last < len(learnt) or not row.truncated
    return Asked(
        index,
        row.where,
        ids,
        row.layouts[:images],
        row.pixels[:tiles] if tiles else None,
        (text if question is None else question).strip(),
        tokenizer.decode(answer).strip(),
        answer[-1] if whole else None,
    )


def chosen(rows: int, count: int) -> list[int]:
    """The rows that are asked: ``count`` of them, spread evenly over the eval data, the same ones every time."""
    count = min(rows, count)
    return [number * rows // count for number in range(count)]


class SampleAnswers:
    """Asks ``count`` rows of ``dataset`` and writes what the model says below ``output``."""

    def __init__(
        self, dataset: Rows, count: int, tokens: int, tokenizer: Tokenizer, config: LlavaConfig, output: Path
    ) -> None:
        self.dataset = dataset
        self.count = count
        self.tokens = tokens
        self.tokenizer = tokenizer
        self.config = config
        self.folder = output / FOLDER
        self._asked: list[Asked] | None = None

    def measure(self, trainer: Evaluating, prefix: str = "eval") -> dict[str, float]:
        """Answer, write and score; called by every process of a run, with the model in evaluation mode.

        Processes share the rows; those that compute together (tensor parallel, stage3) ask the same ones in step.
        DataError for a row that cannot be read, on all of them.
        """
        started = time.time()
        own = self._share(trainer)
        with paddle.no_grad(), trainer.autocast_smart_context_manager():
            said = [self._answer(trainer, item) for item in own]
        everybody = {answer.index: answer for part in trainer.gathered(said) for answer in part}
        answers = [everybody[index] for index in sorted(everybody)]
        if trainer.is_world_process_zero() and answers:
            self._write(trainer, answers)
        if not answers:
            return {}
        return {
            f"{prefix}_exact_match": round(sum(answer.exact_match for answer in answers) / len(answers), 6),
            f"{prefix}_rouge_l": round(sum(answer.rouge_l for answer in answers) / len(answers), 6),
            f"{prefix}_generated": len(answers),
            f"{prefix}_generate_runtime": round(time.time() - started, 4),
        }

    def _share(self, trainer: Evaluating) -> list[Asked]:
        problem: PaddleMixError | None = None
        if self._asked is None:
            try:
                self._asked = [asked for index in chosen(len(self.dataset), self.count) if (asked := self._ask(index))]
            except PaddleMixError as error:
                problem = error
        trainer.stop_together(problem)
        if _in_step(trainer):
            return self._asked
        return self._asked[trainer.args.dataset_rank :: trainer.args.dataset_world_size]

    def _ask(self, index: int) -> Asked | None:
        row = self.dataset[index]
        row = getattr(row, "chosen", row)  # of a pair of answers the one that is wanted
        return None if row is None else asked_of(index, row, self.tokenizer, self._question(index))

    def _question(self, index: int) -> str | None:
        """What the person says before the first learnt answer; None where the rows do not tell."""
        samples = getattr(self.dataset, "samples", None)
        said = None
        for message in samples[index].messages if samples is not None else ():
            if message.role == "assistant" and message.learns:
                return said
            said = message.text if message.role == "user" else said
        return None

    def _answer(self, trainer: Evaluating, asked: Asked) -> SampleAnswer:
        row = PlanRow(asked.ids, asked.layouts)
        plan = build_plan([row], tokens_per_tile=self.config.tokens_per_tile, padding_side="left")
        ends = self._ends(asked)
        # Stage3 fetches each layer for all processes at once, so none of them may stop before the others.
        decoding = Decoding(
            max_new_tokens=self.tokens,
            eos_ids=() if _in_step(trainer) else ends,
            vocab_size=self.tokenizer.vocab_size,
        )
        cache = trainer.model.new_cache(1)
        cache.dtype = _half(trainer.args) or cache.dtype
        found = generate_batch(trainer.model, plan, asked.pixels, decoding, cache=cache)[0]
        length = next((place for place, token in enumerate(found) if token in ends), len(found))
        answer = self.tokenizer.decode(found[:length]).strip()
        return SampleAnswer(
            asked.index,
            asked.where,
            asked.question,
            answer,
            asked.reference,
            float(relaxed(answer) == relaxed(asked.reference)),
            round(rouge_l(answer, asked.reference), 6),
        )

    def _ends(self, asked: Asked) -> tuple[int, ...]:
        ends = (self.tokenizer.eos_id, self.config.text.eos_token_id, asked.end)
        return tuple(dict.fromkeys(token for token in ends if token is not None))

    def _shown(self, asked: Asked) -> np.ndarray | None:
        """The tiles that show the images: all views of an object, the first tile of every other image."""
        samples = getattr(self.dataset, "samples", None)
        if asked.pixels is None or (samples is not None and samples[asked.index].views is not None):
            return asked.pixels
        counts = [layout.tiles for layout in asked.layouts]
        return asked.pixels[np.cumsum([0, *counts[:-1]])]

    def _write(self, trainer: Evaluating, answers: Sequence[SampleAnswer]) -> None:
        step = trainer.state.global_step
        stem = self.folder / f"step-{step:06d}"
        pictures = {asked.index: self._shown(asked) for asked in self._asked or ()}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps({"step": step, **asdict(answer)}, ensure_ascii=False) + "\n" for answer in answers]
            files.atomic_write(stem.with_suffix(".jsonl"), "".join(lines))
            files.atomic_write(stem.with_suffix(".md"), as_markdown(step, answers))
            page = draw_sheet(f"step {step:,}", answers, [pictures.get(item.index) for item in answers], self.config)
            files.atomic_write(stem.with_suffix(".png"), page)
        except (OSError, PaddleMixError) as error:
            get_logger(__name__).warning(f"the sample answers cannot be written: {shown(error)}")


def _in_step(trainer: Evaluating) -> bool:
    return ShardingOption.FULL_SHARD in trainer.args.sharding


def _half(args: Any) -> str | None:
    """What keys and values are computed in under mixed precision; None: as the weights."""
    return "bfloat16" if args.bf16 else "float16" if args.fp16 else None


def as_markdown(step: int, answers: Sequence[SampleAnswer]) -> str:
    """The answers for a person."""
    parts = [f"# Sample answers at step {step}\n"]
    for answer in answers:
        parts.append(
            f"\n## {answer.where or f'row {answer.index}'}\n\n{_quoted('Question', answer.question)}"
            f"{_quoted('Answer', answer.answer)}{_quoted('Reference', answer.reference)}"
            f"Exact match {answer.exact_match:.0f}, ROUGE-L {answer.rouge_l:.3f}\n"
        )
    return "".join(parts)


def _quoted(name: str, text: str) -> str:
    lines = "\n".join(f"> {line}" for line in (escaped(text) or "(nothing)").splitlines())
    return f"**{name}**\n\n{lines}\n\n"
