# SPDX-License-Identifier: Apache-2.0
"""The demo's shapes in the file format of every benchmark, with the right answers: small enough to be run anywhere.

    python -m paddlemix.demo.benchmarks --out shapes_eval [--seed 0] [--pictures 12]

Each folder is what `paddlemix eval NAME --data FOLDER` takes. `right.json` has the answer to every question, so that
the score of any set of answers is known. The images show combinations that no training image of the demo shows.
"""

import base64
import io
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddlemix.demo.shapes import COLOURS, KINDS, PLACES, SIDE, Scene, Shape, draw_scenes, paint
from paddlemix.utils.constants import IMAGE_TOKEN
from paddlemix.utils.entry_point import run_command
from paddlemix.utils.errors import ConfigError
from paddlemix.utils.object_words import QUALITY, SCALES, STYLES
from paddlemix.utils.options import command_parser
from paddlemix.utils.paths import path_at

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
VIZWIZ = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
POPE_CATEGORIES = ("random", "popular", "adversarial")
PEOPLE = 10


@dataclass(frozen=True)
class Picture:
    """An image of one shape: its file name and what it shows."""

    name: str
    scene: Scene

    @property
    def shape(self) -> Shape:
        """The only shape."""
        return self.scene.shapes[0]

    def png(self) -> bytes:
        """The image as a PNG file."""
        stream = io.BytesIO()
        paint(self.scene).save(stream, "PNG", compress_level=1)
        return stream.getvalue()

    def asked(self, number: int) -> tuple[str, str]:
        """A question about it with its answer; the kinds of questions take turns."""
        shape = self.shape
        return (
            ("What shape is it?", shape.kind),
            ("What colour is the shape?", shape.colour),
            ("Where is the shape?", shape.place),
        )[number % 3]


Right = list[str]
"""The right answers, in the order of the questions."""


def write_benchmarks(
    folder: Path, seed: int = 0, pictures: int = 12, names: Sequence[str] | None = None, *, closing: bool = True
) -> dict[str, Right]:
    """Write a folder for each benchmark (of ``names``) below ``folder``; returns the right answers of each.

    ``closing`` False leaves out the lines behind a question that ask for a short answer ("Answer the question using
    ..."), which the demo's model has never read.

    Benchmarks that a judge scores have none. ConfigError for fewer than two pictures.
    """
    if pictures < 2:
        raise ConfigError(f"--pictures {pictures}: expected a number from 2")
    scenes = draw_scenes(seed, "benchmarks", unseen=True)
    shown = [Picture(f"{number:06d}.png", scene) for number, scene in zip(range(pictures), scenes, strict=False)]
    right = {name: WRITERS[name](folder / name, shown) for name in names or WRITERS}
    for path in () if closing else sorted(folder.glob("*/llava_*.jsonl")):
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(json.dumps(VIZWIZ)[1:-1], "").replace(json.dumps(SHORT)[1:-1], ""), "utf-8")
    _json(folder / "right.json", right)
    return right


def _json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _lines(path: Path, rows: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _images(folder: Path, pictures: Sequence[Picture]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        (folder / picture.name).write_bytes(picture.png())


def _open(pictures: Sequence[Picture]) -> Iterator[tuple[int, Picture, str, str]]:
    for number, picture in enumerate(pictures):
        yield (number, picture, *picture.asked(number))


def _vqav2(folder: Path, pictures: Sequence[Picture]) -> Right:
    _images(folder / "test2015", pictures)
    asked = list(_open(pictures))
    _lines(
        folder / "llava_vqav2_mscoco_test-dev2015.jsonl",
        [{"question_id": n, "image": p.name, "text": q + SHORT, "category": "default"} for n, p, q, _ in asked],
    )
    people = [{"question_id": n, "answer_type": "other", "answers": _people(a)} for n, _, _, a in asked]
    _json(folder / "v2_mscoco_val2014_annotations.json", {"annotations": people})
    return [answer for *_, answer in asked]


def _people(answer: str) -> list[dict[str, Any]]:
    return [{"answer": answer, "answer_id": number + 1} for number in range(PEOPLE)]


def _gqa(folder: Path, pictures: Sequence[Picture]) -> Right:
    _images(folder / "data" / "images", pictures)
    rows, questions = [], {}
    for number, picture, question, answer in _open(pictures):
        rows.append({"question_id": str(number), "image": picture.name, "text": question + SHORT})
        types = {"structural": "query", "semantic": "attr"}
        questions[str(number)] = {"question": question, "answer": answer, "isBalanced": True, "types": types}
    _lines(folder / "llava_gqa_testdev_balanced.jsonl", rows)
    _json(folder / "testdev_balanced_questions.json", questions)
    return [value["answer"] for value in questions.values()]


def _vizwiz(folder: Path, pictures: Sequence[Picture]) -> Right:
    _images(folder / "test", pictures)
    asked = list(_open(pictures))
    rows = [{"question_id": n, "image": p.name, "text": q + VIZWIZ + SHORT} for n, p, q, _ in asked]
    _lines(folder / "llava_test.jsonl", rows)
    people = [{"image": p.name, "question": q, "answers": _people(a)} for _, p, q, a in asked]
    _json(folder / "val.json", people)
    return [answer for *_, answer in asked]


def _textvqa(folder: Path, pictures: Sequence[Picture]) -> Right:
    _images(folder / "train_images", pictures)
    rows, data = [], []
    for number, picture, question, answer in _open(pictures):
        name = picture.name.removesuffix(".png")
        text = f"{question}\nReference OCR token: {answer}{SHORT}"
        rows.append({"question_id": name, "image": picture.name, "text": text})
        data.append({"image_id": name, "question": question, "question_id": number, "answers": [answer] * PEOPLE})
    _lines(folder / "llava_textvqa_val_v051_ocr.jsonl", rows)
    _json(folder / "TextVQA_0.5.1_val.json", {"data": data})
    return [row["answers"][0] for row in data]


def _options(answer: str, words: Sequence[str], number: int) -> tuple[list[str], str]:
    """Four options with the right one among them, and its letter."""
    others = [word for word in words if word != answer]
    options = random.Random(f"{answer} {number}").sample(others, min(3, len(others)))
    place = number % (len(options) + 1)
    options.insert(place, answer)
    return options, "ABCD"[place]


def _choices(pictures: Sequence[Picture]) -> Iterator[tuple[int, Picture, str, list[str], str]]:
    words = (KINDS, tuple(COLOURS), PLACES)
    for number, picture, question, answer in _open(pictures):
        yield (number, picture, question, *_options(answer, words[number % 3], number))


def _listed(options: Sequence[str]) -> str:
    return "".join(f"\n{letter}. {option}" for letter, option in zip("ABCD", options, strict=False))


def _scienceqa(folder: Path, pictures: Sequence[Picture]) -> Right:
    rows, problems, right = [], {}, []
    for number, picture, question, options, letter in _choices(pictures):
        key = str(number)
        image = folder / "images" / "test" / key / "image.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(picture.png())
        turns = [{"from": "human", "value": f"{IMAGE_TOKEN}\n{question}{_listed(options)}"}]
        rows.append({"id": key, "image": f"{key}/image.png", "conversations": turns})
        problems[key] = {"question": question, "choices": options, "answer": "ABCD".index(letter), "image": "image.png"}
        right.append(letter)
    words = [{"from": "human", "value": f"Which is a colour?{_listed(['star', 'red'])}"}]
    rows.append({"id": str(len(pictures)), "conversations": words})
    problems[str(len(pictures))] = {"question": "?", "choices": ["star", "red"], "answer": 1, "image": None}
    _json(folder / "llava_test_CQM-A.json", rows)
    _json(folder / "problems.json", problems)
    _json(folder / "pid_splits.json", {"test": list(problems)})
    return [*right, "B"]


def _pope(folder: Path, pictures: Sequence[Picture]) -> Right:
    _images(folder / "val2014", pictures)
    rows, right = [], []
    for category in POPE_CATEGORIES:
        labels = []
        for number, picture in enumerate(pictures):
            kind = picture.shape.kind if number % 2 else KINDS[(KINDS.index(picture.shape.kind) + 1) % len(KINDS)]
            text = f"Is there a {kind} in the image?"
            label = "yes" if number % 2 else "no"
            labels.append({"question_id": number + 1, "image": picture.name, "text": text, "label": label})
            rows.append({"question_id": len(rows), "image": picture.name, "text": text + SHORT, "category": category})
            right.append(label)
        _lines(folder / "coco" / f"coco_pope_{category}.json", labels)
    _lines(folder / "llava_pope_test.jsonl", rows)
    return right


def _mme(folder: Path, pictures: Sequence[Picture]) -> Right:
    root, rows, right = folder / "MME_Benchmark_release_version", [], []
    for number, picture in enumerate(pictures):
        task = ("existence", "color", "position")[number % 3]
        shape, name = picture.shape, picture.name.removesuffix(".png")
        colour = list(COLOURS)[(list(COLOURS).index(shape.colour) + 1) % len(COLOURS)]
        asked = [(f"Is the shape {shape.colour}?", "Yes"), (f"Is the shape {colour}?", "No")]
        path = root / task / "questions_answers_YN" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{q} Please answer yes or no.\t{a}\n" for q, a in asked), encoding="utf-8")
        (root / task / picture.name).write_bytes(picture.png())
        for question, answer in asked:
            image = f"{task}/{picture.name}"
            rows.append({"question_id": image, "image": image, "text": question + SHORT, "category": task})
            right.append(answer)
    _lines(folder / "llava_mme.jsonl", rows)
    return right


def _mmbench(folder: Path, pictures: Sequence[Picture], name: str = "mmbench_dev_20230712.tsv") -> Right:
    header = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category",
              "comment", "split"]  # fmt: skip
    lines, right = ["\t".join(header)], []
    for number, picture, question, options, letter in _choices(pictures):
        cells = [*options, *[""] * (4 - len(options))]
        image = base64.b64encode(picture.png()).decode()
        row = [str(number), question, "", *cells, letter, "shapes", image, "demo", "perception", "", "dev"]
        lines.append("\t".join(row))
        right.append(letter)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return right


def _mmbench_cn(folder: Path, pictures: Sequence[Picture]) -> Right:
    return _mmbench(folder, pictures, "mmbench_dev_cn_20231003.tsv")


def _seed(folder: Path, pictures: Sequence[Picture]) -> Right:
    _images(folder / "SEED-Bench-image", pictures)
    rows, questions = [], []
    for number, picture, question, options, letter in _choices(pictures):
        text = question + _listed(options) + LETTER
        rows.append({"question_id": str(number), "image": f"SEED-Bench-image/{picture.name}", "text": text})
        kind = {"question_id": str(number), "question_type_id": 1 + number % 2, "data_type": "image"}
        questions.append({**kind, "answer": letter})
    kinds = {"Instance Identity": 1, "Instance Attributes": 2}
    _lines(folder / "llava-seed-bench.jsonl", rows)
    _json(folder / "SEED-Bench.json", {"question_type": kinds, "questions": questions})
    return [row["answer"] for row in questions]


def _refcoco(folder: Path, pictures: Sequence[Picture]) -> Right:
    _images(folder / "train2014", pictures)
    rows, right = [], []
    for picture in pictures:
        shape = picture.shape
        row, column = divmod(PLACES.index(shape.place), 2)
        half = SIDE // 2
        box = [column * half, row * half, (column + 1) * half, (row + 1) * half]
        image = {"image": f"data/coco/train2014/{picture.name}", "width": SIDE, "height": SIDE}
        rows.append({**image, "sent": f"{shape.colour} {shape.kind}", "bbox": box})
        right.append(f"[{', '.join(f'{value / SIDE:.2f}' for value in box)}]")
    _lines(folder / "refcoco_val.jsonl", rows)
    return right


def _mv_llava(folder: Path, pictures: Sequence[Picture]) -> Right:
    _images(folder, pictures)
    rows, right = [], []
    for number, picture in enumerate(pictures):
        name = f"shape_{number}"
        words = {
            "quality": ("What do you think about the overall quality?", tuple(QUALITY)[number % len(QUALITY)]),
            "scale": ("What do you think about the scale?", SCALES[number % len(SCALES)].replace("_", "-")),
            "style": ("What do you think about the overall style?", STYLES[number % len(STYLES)]),
        }
        turns = [("Describe it.", f"a {picture.shape.kind}"), *words.values()]
        said = [
            {"from": who, "value": text} for turn in turns for who, text in zip(("human", "gpt"), turn, strict=True)
        ]
        said[0]["value"] = f"{IMAGE_TOKEN}\n{said[0]['value']}"
        rows.append({"id": name, "image": picture.name, "conversations": said})
        right += [answer for _, answer in words.values()]
    _json(folder / "objects.json", rows)
    return right


def _turn(who: str, text: str) -> dict[str, str]:
    return {"from": who, "value": text}


def _judged(file: str, folder: Path, pictures: Sequence[Picture], images: str = "images") -> Right:
    _images(folder / images, pictures)
    rows = [{"question_id": n, "image": p.name, "text": q, "category": "default"} for n, p, q, _ in _open(pictures)]
    _lines(folder / file, rows)
    return []


def _own(folder: Path, pictures: Sequence[Picture]) -> Right:
    _images(folder, pictures)
    rows = [{"question_id": str(n), "image": p.name, "question": q, "answers": [a]} for n, p, q, a in _open(pictures)]
    _lines(folder / "rows.jsonl", rows)
    return [row["answers"][0] for row in rows]


WRITERS: dict[str, Callable[[Path, Sequence[Picture]], Right]] = {
    "vqav2": _vqav2,
    "gqa": _gqa,
    "vizwiz": _vizwiz,
    "scienceqa": _scienceqa,
    "textvqa": _textvqa,
    "pope": _pope,
    "mme": _mme,
    "mmbench": _mmbench,
    "mmbench-cn": _mmbench_cn,
    "seed": _seed,
    "refcoco": _refcoco,
    "mv-llava": _mv_llava,
    "llava-bench": lambda folder, pictures: _judged("questions.jsonl", folder, pictures),
    "mm-vet": lambda folder, pictures: _judged("llava-mm-vet.jsonl", folder, pictures),
    "qa90": lambda folder, pictures: _judged("qa90_questions.jsonl", folder, pictures, "val2014"),
    "custom": _own,
}
"""What writes the folder of each benchmark."""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the folders and return the exit code."""
    return run_command(_run, argv)


def _run(argv: list[str]) -> int:
    found = command_parser(__doc__, prog="python -m paddlemix.demo.benchmarks")
    found.add_argument("--out", type=path_at, default=Path("shapes_eval"), help="folder for everything")
    found.add_argument("--seed", type=int, default=0, help="decides the images (default: 0)")
    found.add_argument("--pictures", type=int, default=12, help="images of each benchmark (default: 12)")
    args = found.parse_args(argv)
    right = write_benchmarks(args.out, args.seed, args.pictures)
    for name, answers in right.items():
        sys.stdout.write(f"{args.out / name}: {len(answers) or args.pictures} questions\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
