# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' own files, as downloaded, read into questions with their right answers.

Folders are those of LLaVA's ``playground/data/eval``; a file may lie in any of the places that its authors, or LLaVA's
documentation, put it. Each reader takes the folder of one benchmark.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from string import ascii_uppercase

from paddlemix.eval.records import Record, read_lines, read_list, read_object, read_table
from paddlemix.eval.scorers.choices import LETTERS
from paddlemix.eval.scorers.mme import COGNITION, PERCEPTION, mme_question_key
from paddlemix.eval.scorers.score import Question
from paddlemix.eval.scorers.views import parts_of
from paddlemix.eval.scorers.vqa import PEOPLE, textvqa_question_key
from paddlemix.utils.errors import DataError
from paddlemix.utils.foreign import read_text
from paddlemix.utils.paths import begins_at
from paddlemix.utils.shown import as_json, counted, shown

NO_VALUES = frozenset(
    ("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
     "NULL", "NaN", "None", "n/a", "nan", "null")
)  # fmt: skip
"""Cells of a table that pandas, with which LLaVA reads MMBench, takes for missing."""


def is_none(cell: str) -> bool:
    """Whether a cell of MMBench says that there is no hint, or no such option, as LLaVA's script sees it."""
    return cell in NO_VALUES or cell.lower() in ("nan", "none")


def find(folder: Path, *patterns: str, without: str = "/") -> Path:
    """The file below ``folder`` that fits a pattern, of those tried in their order, and has no ``without`` in its name.

    DataError when there is none, or when several fit alike.
    """
    if folder.is_file():
        raise DataError(f"{folder}: is a file; give the folder of the benchmark, as it was downloaded")
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder{begins_at(folder)}")
    for pattern in patterns:
        found = [path for path in sorted(folder.glob(pattern)) if without not in path.name.lower()]
        if len(found) > 1:
            names = ", ".join(str(path.relative_to(folder)) for path in found[:5])
            raise DataError(f"{folder}: {len(found)} files fit {pattern} ({shown(names)}); keep the right one of them")
        if found:
            return found[0]
    raise DataError(f"{folder}: no {' or '.join(patterns)} in it; docs/evaluation.md says which files are needed")


def one_file(path: Path, *patterns: str, without: str = "/") -> Path:
    """As ``find``, for benchmarks of one file, which may be given itself."""
    try:
        return path if path.is_file() else find(path, *patterns, without=without)
    except DataError as error:
        raise DataError(f"{error}, or give the path of the file") from error


def yes_no(record: Record, key: str) -> str:
    """A label that has to be yes or no."""
    label = record.text(key).strip().lower()
    if label not in ("yes", "no"):
        raise record.fault(key, f"expected yes or no, got {as_json(record.value[key])}")
    return label


def ten_answers(record: Record, given: tuple[str, ...], key: str = "answers") -> tuple[str, ...]:
    """The answers of people, of which VQA accuracy needs ten."""
    if len(given) != PEOPLE:
        raise record.fault(key, f"{counted(len(given), 'answer')}; VQA accuracy is defined over {PEOPLE}")
    return given


def pope(folder: Path) -> list[Question]:
    """``llava_pope_test.jsonl`` and ``coco/coco_pope_{random,popular,adversarial}.json``.

    The labels of a category belong to its questions in their order; image and question are compared, too.
    """
    asked: dict[str, list[Record]] = defaultdict(list)
    for record in read_lines(find(folder, "llava_pope_test.jsonl", "*pope*.jsonl")):
        asked[record.text("category")].append(record)
    found = []
    for category, questions in asked.items():
        path = find(folder, f"coco/coco_pope_{category}.json", f"**/coco_pope_{category}.json")
        labels = list(read_lines(path))
        if len(labels) != len(questions):
            raise DataError(
                f'{path}: {len(labels)} labels for {len(questions)} questions of category "{shown(category)}"; take '
                "the file of the POPE release that the question file was made from (LLaVA: commit e3e39262)"
            )
        for question, label in zip(questions, labels, strict=True):
            _require_same(question, label, path)
            found.append(Question(question.name("question_id"), (yes_no(label, "label"),), {"category": category}))
    return found


def _require_same(question: Record, label: Record, path: Path) -> None:
    text, image = label.text("text", ""), label.text("image", "")
    if not question.text("text").startswith(text) or (image and question.text("image", image) != image):
        raise DataError(
            f'{label.where}: asks "{shown(text, 80)}" about {shown(image, 80)}, but {question.where}, which stands at '
            f"the same place, does not; take the {path.name} that belongs to the question file"
        )


def scienceqa(folder: Path, split: str = "test") -> list[Question]:
    """``problems.json`` and ``pid_splits.json`` of ScienceQA."""
    splits = read_object(find(folder, "pid_splits.json", "**/pid_splits.json"))
    problems = read_object(find(folder, "problems.json", "**/problems.json"))
    found = []
    for key in splits.texts(split):
        problem = problems.record(key)
        choices, answer = len(problem.items("choices")), problem.number("answer")
        if not 0 <= answer < choices or choices > len(LETTERS):
            raise problem.fault("answer", f"{answer} of {choices} choices; expected 0 to {choices - 1}, of at most 5")
        image = "yes" if problem.value.get("image") else "no"
        found.append(Question(key, (LETTERS[answer],), {"image": image}, choices=choices))
    return found


def textvqa(folder: Path) -> list[Question]:
    """``TextVQA_0.5.1_val.json``. A question that an image has twice is scored twice, by its last answers."""
    data = list(read_object(one_file(folder, "TextVQA_0.5.1_val.json", "**/TextVQA*_val.json")).records("data"))
    keys = [textvqa_question_key(record.name("image_id"), record.text("question")) for record in data]
    people = {key: ten_answers(record, record.texts("answers")) for key, record in zip(keys, data, strict=True)}
    return [Question(key, people[key]) for key in keys]


def vqav2(folder: Path) -> list[Question]:
    """Annotations of the VQA challenge with their answers (``v2_mscoco_val2014_annotations.json``)."""
    path = one_file(folder, "v2_mscoco_*_annotations.json", "**/*annotations.json")
    found = []
    for record in read_object(path).records("annotations"):
        given = tuple(answer.text("answer") for answer in record.records("answers"))
        groups = {"answer_type": record.text("answer_type")} if "answer_type" in record.value else {}
        found.append(Question(record.name("question_id"), ten_answers(record, given), groups))
    return found


def vizwiz(folder: Path) -> list[Question]:
    """``val.json`` of VizWiz, in which images are the keys."""
    found = []
    for record in read_list(one_file(folder, "val.json", "**/val.json")):
        given = tuple(answer.text("answer") for answer in record.records("answers"))
        found.append(Question(record.text("image"), ten_answers(record, given)))
    return found


def vizwiz_images(folder: Path) -> dict[str, str]:
    """The image of each question of LLaVA's question file, by question_id; empty when that file is not there."""
    files = sorted((folder.parent if folder.is_file() else folder).glob("llava_*.jsonl"))
    return {record.name("question_id"): record.text("image") for path in files for record in read_lines(path)}


def gqa(folder: Path) -> list[Question]:
    """``testdev_balanced_questions.json`` of GQA; questions that are not of the balanced set are left out, as there."""
    found = []
    path = one_file(folder, "testdev_balanced_questions.json", "**/testdev_balanced_questions.json")
    data = read_object(path)
    for key in data.value:
        record = data.record(key)
        if record.value.get("isBalanced") is False:
            continue
        groups = {}
        if "types" in record.value:
            types = record.record("types")
            structural = types.text("structural", "")
            groups = {"structural": structural, "semantic": types.text("semantic", "")}
            groups["type"] = "open" if structural == "query" else "binary"
        found.append(Question(key, (record.text("answer"),), groups))
    return found


def seed(folder: Path) -> list[Question]:
    """``SEED-Bench.json``."""
    data = read_object(one_file(folder, "SEED-Bench.json", "SEED-Bench*.json", "**/SEED-Bench*.json"))
    names = {str(number): name for name, number in data.record("question_type").value.items()}
    found = []
    for record in data.records("questions"):
        kind = record.name("question_type_id")
        groups = {"type": names.get(kind, kind), "data_type": record.text("data_type")}
        found.append(Question(record.name("question_id"), (record.text("answer"),), groups, choices=4))
    return found


def mmbench(folder: Path) -> list[Question]:
    """``mmbench_dev_*.tsv``, whose rows have the answer; those of the test split have none."""
    return _mmbench(one_file(folder, "mmbench_dev*.tsv", "MMBench_DEV*.tsv", "*.tsv", without="cn"))


def mmbench_cn(folder: Path) -> list[Question]:
    """``mmbench_dev_cn_*.tsv``."""
    return _mmbench(one_file(folder, "mmbench_dev_cn*.tsv", "MMBench_DEV_CN*.tsv", "*.tsv"))


def _mmbench(path: Path) -> list[Question]:
    rows = read_table(path, ["index", "question", "A", "B"])
    for name in rows[0].value if rows else ():
        if name != "answer" and name.strip().lower() == "answer":
            raise DataError(f'{path}:1: the column "{shown(name)}" has to be called "answer"; rename it')
    if "answer" not in rows[0].value if rows else True:
        raise DataError(f"{path}: no column answer: this split is scored by its authors; write the upload file instead")
    found = []
    for row in rows:
        options = options_of(row)
        groups = {key: row.value[key] for key in ("category", "l2-category") if row.value.get(key)}
        found.append(Question(row.text("index"), (row.text("answer"),), groups, choices=len(options)))
    return found


def options_of(row: Record) -> list[str]:
    """The options of a row of MMBench: those before the first that is missing."""
    found = []
    for letter in "ABCD":
        option = row.text(letter, "")
        if is_none(option):
            break
        found.append(option)
    return found


def mme(folder: Path) -> list[Question]:
    """MME's folders of text files: ``CATEGORY/FILE.txt`` or ``CATEGORY/questions_answers_YN/FILE.txt``.

    Each file has two lines ``question<TAB>Yes|No`` about one image.
    """
    root = next((path for path in sorted(folder.glob("MME_Benchmark_release*")) if path.is_dir()), folder)
    found = [question for task in (*PERCEPTION, *COGNITION) for question in _mme_task(root, task)]
    if not found:
        raise DataError(f"{root}: no folder {PERCEPTION[0]}, {PERCEPTION[1]}, ... with MME's questions in it")
    return found


def _mme_task(root: Path, task: str) -> Iterator[Question]:
    folder = root / task / "questions_answers_YN"
    folder = folder if folder.is_dir() else root / task
    for path in sorted(folder.glob("*.txt")):
        lines = [line for line in read_text(path, DataError).splitlines() if line.strip()]
        if len(lines) != 2:
            raise DataError(f"{path}: {counted(len(lines), 'question')}; MME has two about each image")
        for number, line in enumerate(lines, 1):
            question, tab, answer = line.strip().partition("\t")
            label = answer.strip().lower()
            if not tab or label not in ("yes", "no"):
                raise DataError(f'{path}:{number}: expected "question<TAB>Yes" or "No", got "{shown(line, 80)}"')
            key = mme_question_key(task, path.stem, question)
            yield Question(key, (label,), {"category": task}, unit=f"{task}/{path.stem}")


def refcoco(folder: Path) -> list[Question]:
    """JSON lines as InternVL and Qwen-VL publish them: ``bbox`` (x1, y1, x2, y2), ``width``, ``height``, all in pixels.

    A question is named by ``question_id``, else by the number of its record from 0.
    """
    found = []
    for number, record in enumerate(read_list(one_file(folder, "refcoco*.jsonl", "*.jsonl"))):
        width, height = record.number("width"), record.number("height")
        box = record.items("bbox")
        if len(box) != 4 or not all(type(value) in (int, float) for value in box) or min(width, height) < 1:
            raise record.fault("bbox", f"expected x1, y1, x2, y2 in pixels, got {as_json(box)}")
        x1, y1, x2, y2 = box
        text = ", ".join(f"{share:.9f}" for share in (x1 / width, y1 / height, x2 / width, y2 / height))
        key = record.name("question_id") if "question_id" in record.value else str(number)
        split = record.text("split", "")
        found.append(Question(key, (f"[{text}]",), {"split": split} if split else {}))
    return found


def objects(folder: Path) -> list[Question]:
    """MV-LLaVA's rows of conversations: the turns whose answer is a word of quality, scale or style."""
    path = one_file(folder, "*.json", "*.jsonl")
    found = [
        Question(key, (right,), {"question": key.rpartition("/")[2]})
        for record in read_list(path)
        for key, _, right in parts_of(record.text("id"), pairs_of(record))
    ]
    if not found:
        raise DataError(f"{path}: no answer is a word of quality, scale or style; is this MV-LLaVA's instruction file?")
    return found


def pairs_of(record: Record) -> list[tuple[str, str]]:
    """Question and answer of each turn of a row of conversations."""
    turns = [turn.text("value") for turn in record.records("conversations")]
    if len(turns) % 2:
        raise record.fault("conversations", f"{counted(len(turns), 'turn')}; expected questions with their answers")
    return list(zip(turns[::2], turns[1::2], strict=True))


def own(folder: Path, *, letters: bool = False) -> list[Question]:
    """Own data, JSON lines: ``question_id`` (else the line's number from 0), ``answer`` or a list ``answers``.

    ``letters``: an answer has to be the letter of an option. DataError for others, and for an id that is there twice.
    """
    path = one_file(folder, "*.jsonl")
    found, seen = [], set()
    for number, record in enumerate(read_list(path)):
        key = record.name("question_id") if "question_id" in record.value else str(number)
        given = record.texts("answers") if "answers" in record.value else (record.text("answer"),)
        if not given:
            raise record.fault("answers", "an empty list; a question needs a right answer")
        if key in seen:
            raise record.fault("question_id", f"{as_json(key)} is that of an earlier row, too; give each row its own")
        seen.add(key)
        groups = {"category": record.text("category")} if "category" in record.value else {}
        options = len(record.items("options")) if "options" in record.value else 0
        if letters:
            _require_letter(record, given, options)
        found.append(Question(key, given, groups, choices=options))
    return found


def _require_letter(record: Record, given: tuple[str, ...], options: int) -> None:
    known = ascii_uppercase[: options or None]
    if len(given) != 1:
        raise record.fault(
            "answers", f"{counted(len(given), 'answer')}; expected the letter of one option, A to {known[-1]}"
        )
    if given[0] not in tuple(known):
        key = "answers/0" if "answers" in record.value else "answer"
        raise record.fault(
            key,
            f"{as_json(given[0])}: expected the letter of an option, A to {known[-1]}; or score by exact or rouge-l",
        )


def own_choice(folder: Path) -> list[Question]:
    """As ``own``, with the letter of an option as the one answer."""
    return own(folder, letters=True)


def own_vqa(folder: Path) -> list[Question]:
    """As ``own``, with the ten answers that VQA accuracy is defined over."""
    found = own(folder)
    for question in found:
        if len(question.expected) != PEOPLE:
            raise DataError(
                f'{folder}: question "{shown(question.key, 80)}": /answers: '
                f"{counted(len(question.expected), 'answer')}; VQA accuracy is defined over {PEOPLE}. "
                "With fewer, score by exact or rouge-l"
            )
    return found
