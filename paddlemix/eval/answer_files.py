# SPDX-License-Identifier: Apache-2.0
"""The answer files of LLaVA's evaluation scripts: JSON lines with a record for each answer.

    {"question_id": 1, "prompt": "...", "text": "yes", "answer_id": "...", "model_id": "llava-v1.5-7b", "metadata": {}}

A record whose ``metadata`` has an ``error`` says that there is no answer and why.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddlemix.eval.records import Record, read_lines
from paddlemix.utils.errors import DataError
from paddlemix.utils.files import atomic_write
from paddlemix.utils.foreign import JsonValue
from paddlemix.utils.shown import shown


@dataclass(frozen=True)
class AnswerRecord:
    """One line. ``question_id`` is as the file writes it, ``where`` is its place, ``failure`` why there is no text."""

    question_id: str | int
    text: str
    prompt: str = ""
    model_id: str = ""
    where: str = ""
    failure: str = ""
    answer_id: str = ""


def read_answers(paths: Sequence[Path]) -> list[AnswerRecord]:
    """The records of one answer file, or of the parts of one in their order. DataError when there are none."""
    found = [_answer(record) for path in paths for record in read_lines(path)]
    if not found:
        raise DataError(f"{', '.join(map(str, paths))}: no answers; expected one JSON object a line")
    return found


def records_of(lines: Iterable[str], path: Path) -> list[AnswerRecord]:
    """The same for lines of ``answer_line`` that are, or would be, in ``path``."""
    return [_answer(Record(json.loads(line), f"{path}:{number}")) for number, line in enumerate(lines, 1)]


def _answer(record: Record) -> AnswerRecord:
    record.name("question_id")
    failure = ""
    metadata = record.value.get("metadata")
    if isinstance(metadata, dict) and metadata.get("error"):
        failure = shown(metadata["error"], 300)
    return AnswerRecord(
        record.value["question_id"],
        record.text("text", "" if failure else None),
        record.text("prompt", ""),
        record.text("model_id", ""),
        record.where,
        failure,
        str(record.value.get("answer_id") or ""),
    )


def answer_line(
    question_id: str | int,
    prompt: str,
    text: str,
    model_id: str,
    metadata: dict[str, Any] | None = None,
    **more: JsonValue,
) -> str:
    """One line of an answer file, with its line end. ``more`` are keys that some benchmarks add behind the text.

    ``answer_id`` follows from the other values, so that a run that was done again, or in parts, has the same bytes.
    """
    content = [question_id, prompt, text, model_id, more]
    record = {
        "question_id": question_id,
        "prompt": prompt,
        "text": text,
        **more,
        "answer_id": digest(content),
        "model_id": model_id,
        "metadata": metadata or {},
    }
    return json.dumps(record) + "\n"


def digest(value: JsonValue) -> str:
    """22 hexadecimal digits that stand for a JSON value."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:22]


def write_answers(path: Path, lines: Iterable[str]) -> None:
    """A whole answer file, from lines of ``answer_line``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, "".join(lines))
