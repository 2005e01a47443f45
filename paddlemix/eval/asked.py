# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks ask: the questions of LLaVA's files, with the texts that LLaVA's and InternVL's scripts send.

A question's ``text`` goes to ``generation.Predictor.question``, which puts the image before it; its answer becomes a
record of ``answer_files.answer_line`` with ``question_id``, ``prompt`` and ``more``.
"""

import base64
import binascii
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from paddlemix.eval.question_files import is_none, one_file, options_of
from paddlemix.eval.records import Record, read_lines, read_list, read_table
from paddlemix.eval.scorers.mme import SHORT
from paddlemix.utils.constants import IMAGE_TOKEN
from paddlemix.utils.errors import ConfigError, DataError
from paddlemix.utils.registry import nearest

LETTER = "Answer with the option's letter from the given choices directly."
LETTER_CN = "请直接回答选项字母。"
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
OCR = "Reference OCR token: "

LOADER_TOKENS, LONG_TOKENS = 128, 1024
"""Longest answers of LLaVA's ``model_vqa_loader``, and of its scripts for MMBench, ScienceQA and judged benchmarks."""

CLOSINGS = {
    **dict.fromkeys(("vqav2", "gqa", "pope", "mme", "textvqa"), (SHORT,)),
    "vizwiz": (UNANSWERABLE, SHORT),
    **dict.fromkeys(("seed", "mmbench", "scienceqa"), (LETTER,)),
    "mmbench-cn": (LETTER_CN,),
}
"""The lines that LLaVA puts behind a question."""

INTERNVL = {
    **dict.fromkeys(("vqav2", "gqa", "textvqa"), ((SHORT,), 10)),
    "vizwiz": ((UNANSWERABLE, SHORT), 10),
}
"""What InternVL's own evaluation puts behind a question, joined by spaces, and its longest answers in tokens."""

FORMS = ("llava", "internvl")

T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    """One question. ``text``: what is said to the model, without the mark of the image.

    ``prompt``: what the answer's record holds. ``image``: a path below the image folder, the bytes of one, or None.
    ``more``: further keys of the record.
    """

    question_id: str | int
    text: str
    prompt: str
    image: str | bytes | None
    more: Mapping[str, Any] = field(default_factory=dict)


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


def _rows(path: Path, closing: Sequence[str], all_rounds: bool) -> Iterator[Asked]:
    """JSON lines with question_id, image and text, which is sent as it is."""
    for record in read_lines(path):
        record.name("question_id")
        text = record.text("text")
        yield Asked(record.value["question_id"], text, text, record.text("image"))


def _conversations(path: Path, closing: Sequence[str], all_rounds: bool) -> Iterator[Asked]:
    """ScienceQA's rows of conversations, of which the first turn is asked; some have no image."""
    for record in read_list(path):
        turn = next(record.records("conversations"), None)
        if turn is None:
            raise record.fault("conversations", "an empty list; the first turn is the question")
        text = "\n".join([turn.text("value").replace(IMAGE_TOKEN, "").strip(), *closing])
        image = record.text("image") if "image" in record.value else None
        yield Asked(record.text("id"), text, text if image is None else f"{IMAGE_TOKEN}\n{text}", image)


def _table(path: Path, closing: Sequence[str], all_rounds: bool) -> Iterator[Asked]:
    """MMBench's rows. ``all_rounds``: each question once for every rotation of its options."""
    for row in read_table(path, ["index", "question", "hint", "A", "B", "image"]):
        options = options_of(row)
        letters = list("ABCD"[: len(options)])
        for number in range(len(options) if all_rounds else 1):
            turned = options[number:] + options[:number]
            lines = [] if is_none(row.text("hint")) else [row.text("hint")]
            lines += [row.text("question"), *(f"{a}. {b}" for a, b in zip("ABCD", turned, strict=False))]
            more = {"round_id": number, "options": turned, "option_char": letters[number:] + letters[:number]}
            yield Asked(_index(row), "\n".join([*lines, *closing]), "\n".join(lines), _image(row), more)


def _index(row: Record) -> int | str:
    index = row.text("index")
    return int(index) if index.isascii() and index.isdecimal() else index


def _image(row: Record) -> bytes:
    try:
        return base64.b64decode(row.text("image"), validate=True)
    except binascii.Error as cause:
        raise row.fault("image", f"not an image in base64 ({cause})") from cause


QUESTIONS = {
    "vqav2": QuestionSet(("llava_vqav2_mscoco_test-dev2015.jsonl", "llava_vqav2*.jsonl"), "test2015", _rows),
    "gqa": QuestionSet(("llava_gqa_testdev_balanced.jsonl",), "data/images", _rows),
    "vizwiz": QuestionSet(("llava_test.jsonl", "llava_*.jsonl"), "test", _rows),
    "scienceqa": QuestionSet(("llava_test_CQM-A.json",), "images/test", _conversations, LONG_TOKENS),
    "textvqa": QuestionSet(("llava_textvqa_val_v051_ocr.jsonl", "llava_textvqa*.jsonl"), "train_images", _rows),
    "pope": QuestionSet(("llava_pope_test.jsonl",), "val2014", _rows),
    "mme": QuestionSet(("llava_mme.jsonl",), "MME_Benchmark_release_version", _rows),
    "mmbench": QuestionSet(("mmbench_dev*.tsv", "*.tsv"), "", _table, LONG_TOKENS, without="cn"),
    "mmbench-cn": QuestionSet(("mmbench_dev_cn*.tsv", "*cn*.tsv"), "", _table, LONG_TOKENS),
    "seed": QuestionSet(("llava-seed-bench.jsonl",), "", _rows),
    "llava-bench": QuestionSet(("questions.jsonl",), "images", _rows, LONG_TOKENS),
    "mm-vet": QuestionSet(("llava-mm-vet.jsonl",), "images", _rows, LONG_TOKENS),
}
"""Question files, image folders and limits of LLaVA's scripts, below the folder of each benchmark."""


def questions_of(benchmark: str, folder: Path, *, form: str = "llava", all_rounds: bool = False) -> list[Asked]:
    """The questions of a benchmark in the order of its file.

    ``form``: ``llava`` asks as LLaVA's scripts, ``internvl`` puts InternVL's VQA prompts in the place of LLaVA's lines.
    ConfigError for a benchmark that the form does not know, DataError for a row of another form.
    """
    if benchmark not in QUESTIONS:
        raise ConfigError(f'no questions are known for "{benchmark}" (known: {", ".join(QUESTIONS)})')
    if form not in FORMS:
        raise ConfigError(f'unknown form "{form}"{nearest(form, FORMS)} (known: {", ".join(FORMS)})')
    if form == "internvl" and benchmark not in INTERNVL:
        raise ConfigError(f"the form internvl is for {', '.join(INTERNVL)}, not for {benchmark}; ask in the form llava")
    known = QUESTIONS[benchmark]
    path = one_file(folder, *known.patterns, without=known.without)
    found = list(known.read(path, CLOSINGS.get(benchmark, ()), all_rounds))
    if not found:
        raise DataError(f"{path}: no questions")
    return [_as_internvl(benchmark, asked) for asked in found] if form == "internvl" else found


def max_new_tokens(benchmark: str, form: str = "llava") -> int:
    """The longest answer in tokens."""
    return INTERNVL[benchmark][1] if form == "internvl" else QUESTIONS[benchmark].max_new_tokens


def _as_internvl(benchmark: str, asked: Asked) -> Asked:
    question = asked.text
    for line in reversed(CLOSINGS[benchmark]):
        question = question.removesuffix(f"\n{line}")
    text = " ".join([question, *INTERNVL[benchmark][0]])
    return Asked(asked.question_id, text, asked.prompt, asked.image, asked.more)


def part_of(questions: Sequence[T], parts: int, index: int) -> Sequence[T]:
    """One of the parts that LLaVA's ``--num-chunks`` and ``--chunk-idx`` make: each has ceil(n / parts), the last less.

    Parts behind the end are empty. ConfigError for a part that is none.
    """
    if parts < 1 or not 0 <= index < parts:
        raise ConfigError(f"part {index} of {parts}: expected a number from 0 to {max(parts, 1) - 1}")
    size = math.ceil(len(questions) / parts)
    return questions[index * size : (index + 1) * size]
