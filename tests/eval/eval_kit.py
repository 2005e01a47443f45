# SPDX-License-Identifier: Apache-2.0
"""Small benchmarks in the forms in which their authors publish them, and answer files as LLaVA's scripts write them."""

import json
from pathlib import Path
from typing import Any

SHORT = "\nAnswer the question using a single word or phrase."


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def answer(key: str | int, text: str, prompt: str = "", **more: Any) -> dict[str, Any]:
    return {
        "question_id": key,
        "prompt": prompt,
        "text": text,
        "answer_id": "x",
        "model_id": "tiny",
        "metadata": {},
        **more,
    }


def pope(folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """Twelve questions in three categories; right are all answers but the first of each category."""
    rows, answers = [], []
    for category in ("random", "popular", "adversarial"):
        labels = []
        for n in range(4):
            label, image = "yes" if n % 2 else "no", f"COCO_{n}.jpg"
            text = f"Is there a {category} thing {n} in the image?"
            labels.append({"question_id": n + 1, "image": image, "text": text, "label": label})
            key = len(rows)
            rows.append({"question_id": key, "image": image, "text": text + SHORT, "category": category})
            said = {"yes": "Yes, there is.", "no": "No"}[label if n else "yes"]
            answers.append(answer(key, said, text + SHORT))
        write_lines(folder / "coco" / f"coco_pope_{category}.json", labels)
    write_lines(folder / "llava_pope_test.jsonl", rows)
    return folder, answers


def scienceqa(folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """Four questions, three with an image; wrong are one of each kind."""
    problems = {
        str(n): {"question": "?", "choices": ["a", "b", "c"], "answer": n % 3, "image": "image.png" if n < 3 else None}
        for n in range(5)
    }
    write_json(folder / "problems.json", problems)
    write_json(folder / "pid_splits.json", {"test": ["0", "1", "2", "3"], "val": ["4"]})
    said = ["A", "B.", "C. because", "The answer is B."]
    return folder, [answer(str(n), text, "<image>\n?" if n < 3 else "?") for n, text in enumerate(said)]


def textvqa(folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    data = [
        {"image_id": f"i{n // 2}", "question": f"What {n}?", "question_id": n, "answers": ["stop"] * 4 + ["go"] * 6}
        for n in range(4)
    ]
    write_json(folder / "TextVQA_0.5.1_val.json", {"data": data})
    said = ["Stop", "go.", "left", "the go"]
    prompts = [f"{row['question']}\nReference OCR token: STOP{SHORT}" for row in data]
    return folder, [
        answer(row["image_id"], text, prompt) for row, text, prompt in zip(data, said, prompts, strict=True)
    ]


def vqav2(folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    kinds = ("yes/no", "number", "other")
    annotations = [
        {
            "question_id": 100 + n,
            "answer_type": kinds[n],
            "answers": [{"answer": ("yes", "2", "dog")[n], "answer_id": m + 1} for m in range(10)],
        }
        for n in range(3)
    ]
    write_json(folder / "v2_mscoco_val2014_annotations.json", {"annotations": annotations})
    return folder, [answer(100 + n, text) for n, text in enumerate(("Yes.", "two", "cat"))]


def vizwiz(folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    images = [f"VizWiz_val_{n:08d}.jpg" for n in range(3)]
    rows = [{"image": image, "question": "?", "answers": [{"answer": "unanswerable"}] * 10} for image in images]
    write_json(folder / "val.json", rows)
    write_lines(folder / "llava_val.jsonl", [{"question_id": n, "image": image} for n, image in enumerate(images)])
    return folder, [answer(n, text) for n, text in enumerate(("Unanswerable", "unanswerable.", "a dog"))]


def gqa(folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    questions = {
        str(20 + n): {
            "question": "?",
            "answer": ("yes", "red")[n % 2],
            "isBalanced": n < 4,
            "types": {"structural": ("verify", "query")[n % 2], "semantic": "attr", "detailed": "x"},
        }
        for n in range(5)
    }
    write_json(folder / "testdev_balanced_questions.json", questions)
    return folder, [answer(str(20 + n), text) for n, text in enumerate(("Yes.", "red", "no", "Red"))]


def seed(folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    questions = [
        {
            "question_id": str(n),
            "answer": "ABCD"[n],
            "question_type_id": 1 + n // 2,
            "data_type": ("image", "video")[n // 2],
        }
        for n in range(4)
    ]
    kinds = {"Scene Understanding": 1, "Action Recognition": 2}
    write_json(folder / "SEED-Bench.json", {"question_type": kinds, "questions": questions})
    return folder, [answer(n, text) for n, text in enumerate(("A", "B.", "C", "A"))]


MMBENCH = [
    ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category", "comment",
     "split"],
    ["7", "What is it?", "nan", "a dog", "=1+1", "", "", "A", "kind", "QUJD", "s", "coarse", "", "dev"],
    ["9", "How many?", "Look", "1", "2", "3", "4", "B", "count", "QUJD", "s", "fine", "nan", "dev"],
]  # fmt: skip


def mmbench(folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join("\t".join(row) + "\n" for row in MMBENCH)
    (folder / "mmbench_dev_20230712.tsv").write_text(text, encoding="utf-8")
    return folder, [answer(7, "A"), answer(9, "(C) three")]


def mme(folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """Two images of each of two subtasks, in both layouts; one of the eight answers is wrong."""
    answers = []
    for task, sub in (("existence", "questions_answers_YN/"), ("code_reasoning", "")):
        for n in range(2):
            path = folder / "MME_Benchmark_release_version" / task / f"{sub}{n:04d}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            asked = [
                (f"Is it {word}?{'  ' if n else ' '}Please answer yes or no.", label)
                for word, label in (("x", "Yes"), ("y", "No"))
            ]
            path.write_text("".join(f"{question}\t{label}\n" for question, label in asked), encoding="utf-8")
            for question, label in asked:
                bare = question.replace("Please answer yes or no.", "").strip()
                said = "Yes" if (task, n) == ("existence", 1) else label
                answers.append(answer(f"{task}/{n:04d}.png", said, bare + SHORT))
    return folder, answers


def refcoco(folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    rows = [
        {"question_id": n, "bbox": [10, 20, 50, 80], "width": 100, "height": 200, "split": ("testA", "testB")[n]}
        for n in range(2)
    ]
    write_lines(folder / "refcoco_val.jsonl", rows)
    return folder, [answer(0, "It is at [0.10, 0.10, 0.50, 0.40]."), answer(1, "[0.3, 0.1, 0.9, 0.4]")]


def own(folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    write_lines(
        folder / "rows.jsonl", [{"answer": "a red ball"}, {"question_id": "b", "answers": ["left", "to the left"]}]
    )
    return folder, [answer(0, "a red ball"), answer("b", "The left")]


FOLDERS = {
    "pope": (pope, {"mean_f1": 0.8, "accuracy": 0.75, "recall": 1.0, "precision": 2 / 3, "yes_ratio": 0.75}),
    "scienceqa": (scienceqa, {"accuracy": 0.5, "image_accuracy": 2 / 3}),
    "textvqa": (textvqa, {"accuracy": 0.75}),
    "vqav2": (vqav2, {"accuracy": 2 / 3, "accuracy/answer_type=other": 0.0}),
    "vizwiz": (vizwiz, {"accuracy": 2 / 3}),
    "gqa": (gqa, {"accuracy": 0.75, "accuracy/type=open": 1.0, "accuracy/type=binary": 0.5}),
    "seed": (seed, {"accuracy": 0.5, "accuracy/data_type=image": 0.5, "accuracy/type=Action Recognition": 0.5}),
    "mmbench": (mmbench, {"accuracy": 0.5, "accuracy/category=kind": 1.0}),
    "mme": (mme, {"perception": 75.0 + 50.0, "cognition": 200.0}),
    "refcoco": (refcoco, {"accuracy@0.5": 0.5, "mean_iou": (1 + 1 / 4) / 2}),
    "exact": (own, {"accuracy": 0.5}),
    "rouge-l": (own, {"rouge_l": (1 + 0.8) / 2}),
}
"""Maker of each benchmark, and what its answers score, worked out by hand."""
