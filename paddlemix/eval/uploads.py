# SPDX-License-Identifier: Apache-2.0
"""The files that the benchmarks' authors take: for EvalAI, MMBench's and SEED's servers, MM-Vet's judge, GQA's tool.

Formats, order and bytes are those of LLaVA's ``convert_*_for_submission`` scripts. Where those leave out what is
missing, or end in a KeyError, the questions without an answer are named.
"""

import io
import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddlemix.eval import question_files
from paddlemix.eval.answer_files import AnswerRecord
from paddlemix.eval.question_files import NO_VALUES, one_file
from paddlemix.eval.records import Record, read_lines, read_object, read_table
from paddlemix.eval.scorers.mme import ASKED, mme_key
from paddlemix.eval.scorers.score import is_failure
from paddlemix.eval.scorers.words import evalai
from paddlemix.utils.errors import ConfigError, DataError
from paddlemix.utils.files import atomic_write
from paddlemix.utils.install import install_line
from paddlemix.utils.shown import counted, shown


@dataclass(frozen=True)
class Upload:
    """What is written: one file, or several by their names. ``empty``: questions that stay without an answer."""

    content: bytes | dict[str, bytes]
    empty: tuple[str, ...] = ()


Texts = Mapping[str, str]
"""The text of each answer by its question_id; the last one of several."""


def _texts(answers: Sequence[AnswerRecord]) -> dict[str, str]:
    failed = [answer for answer in answers if is_failure(answer.text, answer.failure)]
    if failed:
        reason = failed[0].failure or shown(failed[0].text, 80)
        raise DataError(
            f"{failed[0].where}: {counted(len(failed), 'failed answer')} ({reason}); an upload file would hold them as "
            "answers. Ask these questions again first"
        )
    return {str(answer.question_id): answer.text for answer in answers}


def _require_all(keys: Sequence[str], texts: Texts, path: Path) -> None:
    missing = [key for key in keys if key not in texts]
    if missing:
        raise DataError(
            f'{path}: {len(missing)} of {len(keys)} questions have no answer, the first is "{shown(missing[0], 80)}"; '
            "the authors take complete files only"
        )


def _missing(keys: Sequence[str], texts: Texts, path: Path) -> tuple[str, ...]:
    """The questions without an answer; DataError when there is none for any."""
    missing = tuple(key for key in keys if key not in texts)
    if len(missing) == len(keys):
        raise DataError(f"{path}: no answer belongs to a question of it; these are of another benchmark or split")
    return missing


def vqav2(answers: Sequence[AnswerRecord], folder: Path) -> Upload:
    """EvalAI's list for VQAv2: every question of the split, processed answers; missing ones are empty, as there."""
    texts = _texts(answers)
    path = one_file(folder, "llava_vqav2_mscoco_test2015.jsonl", "llava_vqav2*.jsonl")
    records = list(read_lines(path))
    empty = _missing([record.name("question_id") for record in records], texts, path)
    found = [
        {"question_id": record.value["question_id"], "answer": evalai(texts.get(record.name("question_id"), ""))}
        for record in records
    ]
    return Upload(json.dumps(found).encode(), empty)


def vizwiz(answers: Sequence[AnswerRecord], folder: Path) -> Upload:
    """EvalAI's list for VizWiz: image and processed answer."""
    texts = _texts(answers)
    path = one_file(folder, "llava_test.jsonl", "llava*.jsonl")
    records = list(read_lines(path))
    _require_all([record.name("question_id") for record in records], texts, path)
    found = [{"image": r.text("image"), "answer": evalai(texts[r.name("question_id")])} for r in records]
    return Upload(json.dumps(found).encode())


def textvqa(answers: Sequence[AnswerRecord], folder: Path) -> Upload:
    """EvalAI's list for TextVQA's test split: question_id and processed answer, in the order of the annotation file."""
    texts = _texts(answers)
    path = one_file(folder, "TextVQA_0.5.1_test.json", "**/TextVQA*_test.json")
    records = list(read_object(path).records("data"))
    _require_all([record.name("question_id") for record in records], texts, path)
    found = [{"question_id": r.value["question_id"], "answer": evalai(texts[r.name("question_id")])} for r in records]
    return Upload(json.dumps(found).encode())


def gqa(answers: Sequence[AnswerRecord], folder: Path) -> Upload:
    """The predictions that GQA's ``eval.py`` reads."""
    _texts(answers)
    found = [{"questionId": one.question_id, "prediction": one.text.rstrip(".").lower()} for one in answers]
    return Upload(json.dumps(found).encode())


def seed(answers: Sequence[AnswerRecord], folder: Path) -> Upload:
    """SEED-Bench's JSON lines, in the order of its file."""
    texts = _texts(answers)
    path = one_file(folder, "SEED-Bench.json", "SEED-Bench*.json", "**/SEED-Bench*.json")
    records = list(read_object(path).records("questions"))
    _require_all([record.name("question_id") for record in records], texts, path)
    lines = [
        json.dumps({"question_id": r.value["question_id"], "prediction": texts[r.name("question_id")]}) + "\n"
        for r in records
    ]
    return Upload("".join(lines).encode())


def mm_vet(answers: Sequence[AnswerRecord], folder: Path) -> Upload:
    """MM-Vet's object ``{"v1_0": text, ...}``."""
    found = {f"v1_{key}": text for key, text in _texts(answers).items()}
    return Upload(json.dumps(found, indent=2).encode())


LEFT_OUT = ("hint", "category", "source", "image", "comment", "l2-category")
"""Columns of MMBench's table that its server does not want."""


def mmbench_rows(answers: Sequence[AnswerRecord], folder: Path) -> list[list[Any]]:
    """Header and rows of MMBench's table with ``prediction`` as the seventh column; None is an empty cell."""
    texts = _texts(answers)
    path = one_file(folder, "mmbench_test*.tsv", "*.tsv")
    rows = read_table(path, ["index", "question", "A", "B"])
    _missing([row.text("index") for row in rows], texts, path)
    names = [name for name in (rows[0].value if rows else ()) if name not in LEFT_OUT]
    return [[*names[:6], "prediction", *names[6:]], *(_mmbench_row(row, names, texts) for row in rows)]


def _mmbench_row(row: Record, names: Sequence[str], texts: Texts) -> list[Any]:
    cells: list[Any] = [None if row.value[name] in NO_VALUES else row.value[name] for name in names]
    index = names.index("index")
    cells[index] = int(cells[index]) if str(cells[index]).isdecimal() else cells[index]
    return [*cells[:6], texts.get(row.text("index")), *cells[6:]]


def mmbench(answers: Sequence[AnswerRecord], folder: Path) -> Upload:
    """MMBench's xlsx file. ConfigError without the package openpyxl (extra ``eval``)."""
    rows = mmbench_rows(answers, folder)
    try:
        from openpyxl import Workbook
        from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
    except ImportError as cause:
        raise ConfigError(f"an xlsx file needs the package openpyxl: {install_line('eval')}") from cause
    book = Workbook()
    sheet = book.active
    for line, row in enumerate(rows, 1):
        for column, value in enumerate(row, 1):
            text = value
            if isinstance(value, str):  # without what XML has no form for, halves of surrogate pairs too
                text = ILLEGAL_CHARACTERS_RE.sub("", value.encode("utf-8", "ignore").decode())
            cell = sheet.cell(line, column, text)
            if isinstance(text, str):
                cell.data_type = "s"  # a text that begins with = is no formula
    stream = io.BytesIO()
    book.save(stream)
    return Upload(stream.getvalue(), tuple(str(row[0]) for row in rows[1:] if row[6] is None))


def mme(answers: Sequence[AnswerRecord], folder: Path) -> Upload:
    """The text files that MME's calculation reads, one for each subtask: image, question, right answer, answer.

    All questions are there, each image's two together. Tabs and line ends in an answer, which end a column there,
    become spaces.
    """
    _texts(answers)
    texts = {mme_key(str(answer.question_id), answer.prompt): answer.text for answer in answers}
    questions = question_files.mme(folder)
    _require_all([question.key for question in questions], texts, folder)
    lines: dict[str, list[str]] = defaultdict(list)
    for question in questions:
        task, file = question.unit.split("/", 1)
        asked = f"{question.key.partition(': ')[2]} {ASKED}"
        said = re.sub(r"[\t\r\n]", " ", texts[question.key])
        lines[f"{task}.txt"].append(f"{file}.txt\t{asked}\t{question.expected[0].capitalize()}\t{said}\n")
    return Upload({name: "".join(found).encode() for name, found in lines.items()})


Writer = Callable[[Sequence[AnswerRecord], Path], Upload]

UPLOADS: dict[str, tuple[Writer, str]] = {
    "vqav2": (vqav2, ".json"),
    "vizwiz": (vizwiz, ".json"),
    "textvqa": (textvqa, ".json"),
    "gqa": (gqa, ".json"),
    "mmbench": (mmbench, ".xlsx"),
    "mmbench-cn": (mmbench, ".xlsx"),
    "seed": (seed, ".jsonl"),
    "mme": (mme, ""),
    "mm-vet": (mm_vet, ".json"),
}
"""Writer of each benchmark's file, and its suffix; without one it is a folder of files."""


def write_upload(benchmark: str, answers: Sequence[AnswerRecord], folder: Path | None, path: Path) -> tuple[str, ...]:
    """Write the upload file of a benchmark; returns the questions without an answer, which are empty in it.

    ConfigError when it has none, or when it needs ``folder``."""
    if benchmark not in UPLOADS:
        raise ConfigError(f"{benchmark} has no upload file (those that have one: {', '.join(UPLOADS)})")
    write, suffix = UPLOADS[benchmark]
    if suffix and path.suffix != suffix:
        raise ConfigError(f"{path}: the upload file of {benchmark} is a {suffix} file; name it so")
    if folder is None and benchmark not in ("mm-vet", "gqa"):
        raise ConfigError(f"the upload file of {benchmark} follows its question file; give the folder with --data")
    if not suffix and path.exists() and not path.is_dir():
        raise ConfigError(f"{path}: is a file; {benchmark} is written as a folder of files, name another place")
    upload = write(answers, folder or Path())
    content = upload.content if isinstance(upload.content, dict) else {"": upload.content}
    for name, data in content.items():
        target = path / name if name else path
        target.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(target, data)
    return upload.empty
