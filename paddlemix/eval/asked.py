# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks ask: the questions of LLaVA's files, with the texts that LLaVA's and InternVL's scripts send.

A question's ``text`` goes to ``generation.Predictor.question``, which puts the image before it; its answer becomes a
record of ``answer_files.answer_line`` with ``question_id``, ``prompt`` and ``more``.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from paddlemix.eval import question_rows as rows
from paddlemix.eval.question_files import one_file
from paddlemix.eval.question_rows import Asked
from paddlemix.eval.scorers.mme import SHORT
from paddlemix.utils.errors import ConfigError, DataError
from paddlemix.utils.registry import nearest

LETTER = "Answer with the option's letter from the given choices directly."
LETTER_CN = "请直接回答选项字母。"
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
OCR = "Reference OCR token: "

LOADER_TOKENS, LONG_TOKENS, BOX_TOKENS = 128, 1024, 100
"""Longest answers of LLaVA's ``model_vqa_loader``, of its scripts for MMBench, ScienceQA and judged benchmarks, and of
InternVL's for boxes."""

CLOSINGS = {
    **dict.fromkeys(("vqav2", "gqa", "pope", "mme", "textvqa"), (SHORT,)),
    "vizwiz": (UNANSWERABLE, SHORT),
    **dict.fromkeys(("seed", "mmbench", "scienceqa"), (LETTER,)),
    "mmbench-cn": (LETTER_CN,),
    **dict.fromkeys(("exact", "choice", "vqa", "rouge-l"), (LETTER,)),
}
"""The lines that LLaVA puts behind a question; those of own data stand behind options alone."""

INTERNVL = {
    **dict.fromkeys(("vqav2", "gqa", "textvqa"), ((SHORT,), 10)),
    "vizwiz": ((UNANSWERABLE, SHORT), 10),
    "refcoco": ((), BOX_TOKENS),
}
"""What InternVL's own evaluation puts behind a question, joined by spaces, and its longest answers in tokens."""

FORMS = ("llava", "internvl")

T = TypeVar("T")
Reader = Callable[[Path, Sequence[str], bool], Iterator[Asked]]


@dataclass(frozen=True)
class QuestionSet:
    """Where the questions of a benchmark are (``patterns``), where its images, and how long answers may be (tokens)."""

    patterns: tuple[str, ...]
    images: str
    read: Reader
    max_new_tokens: int = LOADER_TOKENS
    without: str = "/"


def question_text(
    benchmark: str, question: str, *, options: Sequence[str] = (), hint: str = "", ocr: Sequence[str] = ()
) -> str:
    """A question as LLaVA's files write it: hint, question, options with letters, OCR tokens, closing lines."""
    lines = [hint] if hint else []
    lines += [question, *(f"{letter}. {option}" for letter, option in zip("ABCDE", options, strict=False))]
    lines += [OCR + ", ".join(ocr)] if ocr else []
    return "\n".join([*lines, *CLOSINGS[benchmark]])


QUESTIONS = {
    "vqav2": QuestionSet(("llava_vqav2_mscoco_test-dev2015.jsonl", "llava_vqav2*.jsonl"), "test2015", rows.rows),
    "gqa": QuestionSet(("llava_gqa_testdev_balanced.jsonl",), "data/images", rows.rows),
    "vizwiz": QuestionSet(("llava_test.jsonl", "llava_*.jsonl"), "test", rows.rows),
    "scienceqa": QuestionSet(("llava_test_CQM-A.json",), "images/test", rows.conversations, LONG_TOKENS),
    "textvqa": QuestionSet(("llava_textvqa_val_v051_ocr.jsonl", "llava_textvqa*.jsonl"), "train_images", rows.rows),
    "pope": QuestionSet(("llava_pope_test.jsonl",), "val2014", rows.rows),
    "mme": QuestionSet(("llava_mme.jsonl",), "MME_Benchmark_release_version", rows.rows),
    "mmbench": QuestionSet(("mmbench_dev*.tsv", "*.tsv"), "", rows.table, LONG_TOKENS, without="cn"),
    "mmbench-cn": QuestionSet(("mmbench_dev_cn*.tsv", "*cn*.tsv"), "", rows.table, LONG_TOKENS),
    "seed": QuestionSet(("llava-seed-bench.jsonl",), "", rows.rows),
    "llava-bench": QuestionSet(("questions.jsonl",), "images", rows.rows, LONG_TOKENS),
    "qa90": QuestionSet(("qa90_questions.jsonl", "*qa90*.jsonl"), "val2014", rows.rows, LONG_TOKENS),
    "mm-vet": QuestionSet(("llava-mm-vet.jsonl",), "images", rows.rows, LONG_TOKENS),
    "refcoco": QuestionSet(("refcoco*.jsonl", "*.jsonl"), "", rows.boxes, BOX_TOKENS),
    "mv-llava": QuestionSet(("*.json", "*.jsonl"), "", rows.objects),
    **dict.fromkeys(("exact", "choice", "vqa", "rouge-l"), QuestionSet(("*.jsonl", "*.json"), "", rows.own, 512)),
}
"""Question files, image folders and limits of LLaVA's scripts, below the folder of each benchmark. Files of ShareGPT4V,
which have its name in the place of LLaVA's, are taken where those are not there."""


def question_file(benchmark: str, folder: Path, split: str | None = None) -> Path:
    """The question file of a benchmark in its folder: that of LLaVA, else that of ShareGPT4V.

    ``split`` is the name of another one, as LLaVA's scripts name a split (``mmbench_dev_20230712``), with its ending or
    without. DataError when there is none, or several; ConfigError for a benchmark that asks nothing.
    """
    if benchmark not in QUESTIONS:
        raise ConfigError(f'no questions are known for "{benchmark}" (known: {", ".join(QUESTIONS)})')
    known = QUESTIONS[benchmark]
    if split is None:
        theirs = [pattern.replace("llava", "share4v", 1) for pattern in known.patterns if "llava" in pattern]
        return one_file(folder, *known.patterns, *theirs, without=known.without)
    if folder.is_file():
        raise ConfigError(f"--split {split}: --data {folder} names the file already; leave one of the two out")
    endings = ("", *dict.fromkeys(Path(pattern).suffix for pattern in known.patterns))
    found = next((path for path in (folder / f"{split}{ending}" for ending in endings) if path.is_file()), None)
    if found is None:
        there = sorted(path.name for ending in endings[1:] for path in folder.glob(f"*{ending}"))
        raise DataError(f"{folder}: no {split}{endings[-1]} in it; there is {', '.join(there[:8]) or 'no such file'}")
    return found


def questions_of(
    benchmark: str, folder: Path, *, form: str = "llava", all_rounds: bool = False, split: str | None = None
) -> list[Asked]:
    """The questions of a benchmark in the order of its file.

    ``form``: ``llava`` asks as LLaVA's scripts, ``internvl`` puts InternVL's VQA prompts in the place of LLaVA's lines.
    ConfigError for a benchmark that the form does not know, DataError for a row of another form.
    """
    if form not in FORMS:
        raise ConfigError(f'unknown form "{form}"{nearest(form, FORMS)} (known: {", ".join(FORMS)})')
    if form == "internvl" and benchmark not in INTERNVL:
        raise ConfigError(f"the form internvl is for {', '.join(INTERNVL)}, not for {benchmark}; ask in the form llava")
    path = question_file(benchmark, folder, split)
    found = list(QUESTIONS[benchmark].read(path, CLOSINGS.get(benchmark, ()), all_rounds))
    if not found:
        raise DataError(f"{path}: no questions")
    return [_as_internvl(benchmark, asked) for asked in found] if form == "internvl" else found


def max_new_tokens(benchmark: str, form: str = "llava") -> int:
    """The longest answer in tokens."""
    return INTERNVL[benchmark][1] if form == "internvl" else QUESTIONS[benchmark].max_new_tokens


def _as_internvl(benchmark: str, asked: Asked) -> Asked:
    if benchmark == "refcoco":
        return replace(asked, text=rows.BOX.format(f"<ref>{asked.text.removeprefix(rows.BOX.format(''))}</ref>"))
    question = asked.text
    for line in reversed(CLOSINGS[benchmark]):
        question = question.removesuffix(f"\n{line}")
    return replace(asked, text=" ".join([question, *INTERNVL[benchmark][0]]))


def part_of(questions: Sequence[T], parts: int, index: int) -> Sequence[T]:
    """One of the parts that LLaVA's ``--num-chunks`` and ``--chunk-idx`` make: each has ceil(n / parts), the last less.

    Parts behind the end are empty. ConfigError for a part that is none.
    """
    if parts < 1 or not 0 <= index < parts:
        raise ConfigError(f"part {index} of {parts}: expected a number from 0 to {max(parts, 1) - 1}")
    size = math.ceil(len(questions) / parts)
    return questions[index * size : (index + 1) * size]
