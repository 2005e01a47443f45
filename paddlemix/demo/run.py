# SPDX-License-Identifier: Apache-2.0
"""The demo from the first image to the last answer. Training and merging are the commands that a user would type."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddlemix.demo import data, sheets
from paddlemix.demo.benchmarks import write_benchmarks
from paddlemix.demo.data import LONGEST, Answer, accuracy, by_kind
from paddlemix.demo.shapes import PLACES
from paddlemix.demo.steps import clear, run, say, say_command, title
from paddlemix.demo.verdict import verdict
from paddlemix.utils import device
from paddlemix.utils.commands import ROOT, shown
from paddlemix.utils.errors import TrainingError
from paddlemix.utils.files import atomic_write

RECIPES = ROOT / "paddlemix" / "config" / "demo"

BENCHMARKS = ("vqav2", "gqa", "vizwiz", "custom")
"""Those with open questions of the kinds that the model has learnt. The first three are scored by their own rules."""

CLOSE = 1e-3
"""Largest difference of a logit between adapter and merged model: the same sums in another order."""


@dataclass(frozen=True)
class Size:
    """How much is drawn, trained and asked. ``steps`` None: as the recipe says; ``second``: the task for LoRA too."""

    training_pictures: int = 10000
    second_pictures: int = 4000
    test_pictures: int = 400
    benchmark_pictures: int = 100
    steps: int | None = None
    checked: bool = True
    second: bool = True


FULL = Size()
QUICK = Size(training_pictures=64, second_pictures=32, test_pictures=24, benchmark_pictures=6, steps=4, checked=False)
"""A run of seconds that goes through every step and learns nothing; for tests."""


@dataclass(frozen=True)
class Paths:
    """The folders of a run below its ``out``."""

    out: Path

    @property
    def data(self) -> Path:
        """Images and questions."""
        return self.out / "data"

    @property
    def start(self) -> Path:
        """The model before its first step."""
        return self.out / "start"

    @property
    def model(self) -> Path:
        """The model after the first task."""
        return self.out / "model"

    @property
    def adapter(self) -> Path:
        """What LoRA learnt of the second task."""
        return self.out / "lora"

    @property
    def merged(self) -> Path:
        """Model and adapter in one."""
        return self.out / "merged"

    @property
    def scores(self) -> Path:
        """Answers to the benchmarks, and their scores."""
        return self.out / "eval"


def run_demo(out: Path, seed: int = 0, size: Size = FULL, *, chat: bool = True) -> dict[str, Any]:
    """Run everything and return the numbers, which are also in ``out/results.json``.

    TrainingError when a training fails or the merged model differs from the adapter. An accuracy below the promise is
    reported at the end and is no error: it is what the model has learnt.
    """
    return Demo(Paths(out), seed, size).go(chat=chat)


class Demo:
    """One run; a class only because its steps share paths, questions and numbers."""

    def __init__(self, paths: Paths, seed: int, size: Size) -> None:
        self.paths = paths
        self.seed = seed
        self.size = size
        self.started = time.monotonic()
        self.results: dict[str, Any] = {"seed": seed}

    def go(self, *, chat: bool) -> dict[str, Any]:
        """All steps in order."""
        self._clear()
        device.tune_cpu()
        self._draw()
        self._train("sft", "train", self.paths.start, self.paths.model)
        answers = self._test_first()
        fault = self._second_task() if self.size.second else None
        self._show(answers)
        self._benchmarks()
        self._keep()
        if fault:
            raise TrainingError(fault)
        self._talk(chat)
        say(self.verdict())
        return self.results

    # -- steps ---------------------------------------------------------------------------------------------------

    def _clear(self) -> None:
        """Take away the folders of an earlier demo. Folders of these names that no demo made are left alone."""
        paths = self.paths
        clear(paths.out, (paths.data, paths.start, paths.model, paths.adapter, paths.merged, paths.scores))
        paths.data.mkdir()

    def _draw(self) -> None:
        self._title("1", "Images, questions, a vocabulary and random weights")
        folder, size = self.paths.data, self.size
        look, count, several = data.LOOK, data.COUNT, len(PLACES)
        training = [
            data.write_training(folder, "train", [(look, 2)], self.seed, size.training_pictures),
            data.write_training(folder, "count", [(count, 1), (look, 1)], self.seed, size.second_pictures, several),
        ]
        self.questions = data.write_test(folder, "test", look, self.seed, size.test_pictures)
        self.counting = data.write_test(folder, "count_test", count, self.seed, size.test_pictures, several)
        compared = data.require_unseen(folder, ["train", "count"], ["test", "count_test"])
        drawn = size.training_pictures + size.second_pictures
        say(f"{drawn:,} images to learn from, {compared} others to be asked about.")
        say("Each of these shows a thing (say, a green star) in the one place where no training image shows it.")
        # Paddle is imported from here on: everything before needs no second of it.
        from paddlemix.demo.model import write_start

        parameters = write_start(self.paths.start, data.all_texts(training), self.seed)
        say(f"A LLaVA of {parameters:,} parameters, none of which knows anything yet: {self.paths.start}")

    def _test_first(self) -> list[Answer]:
        self._title("3", f"{len(self.questions)} questions about unseen images")
        from paddlemix.demo import answers as asking

        model = asking.open_model(self.paths.model)
        answers = asking.answers(model, self.paths.data, self.questions)
        blind = asking.answers(model, self.paths.data, self.questions, blind=True)
        guess = data.best_guess(self.paths.data / "train.json", self.questions)
        self.results.update(questions=len(answers), accuracy=accuracy(answers), blind=accuracy(blind), best_guess=guess)
        for kind, (right, asked) in by_kind(answers).items():
            say(f"  {kind:<14} {right:>3} of {asked:<3}")
        say(f"  [bold]all            {sum(a.right for a in answers):>3} of {len(answers)}"
            f" = {100 * self.results['accuracy']:.1f} %[/bold]")  # fmt: skip
        say(f"  the same questions with a grey image: {100 * self.results['blind']:.1f} %"
            f"; best guess without looking: {100 * guess:.1f} %")  # fmt: skip
        return answers

    def _second_task(self) -> str | None:
        """Teach it to count; the fault of the software when the merged model is another one than the adapter."""
        self._title("4", "A second task with LoRA: how many shapes are there?")
        from paddlemix.demo import answers as asking

        images = self.paths.data
        before = accuracy(asking.answers(asking.open_model(self.paths.model), images, self.counting))
        self._train("lora", "count", self.paths.model, self.paths.adapter, title=False)
        adapted = asking.open_model(self.paths.adapter)
        answers = asking.answers(adapted, images, self.counting)
        first = asking.answers(adapted, images, self.questions)
        say(f"  counting: {100 * before:.1f} % before, [bold]{100 * accuracy(answers):.1f} % after[/bold]"
            f" ({len(answers)} unseen images); the first task: {100 * accuracy(first):.1f} %")  # fmt: skip
        run("merge", "--lora_path", self.paths.adapter, "--merge_model_path", self.paths.merged)
        merged = asking.open_model(self.paths.merged)
        again = asking.answers(merged, images, self.counting)
        same = sum(one.said == other.said for one, other in zip(answers, again, strict=True))
        apart = asking.difference(adapted, merged, images, self.counting[:64])
        say(f"  merged and unmerged: {same} of {len(answers)} answers are the same, logits {apart:.0e} apart")
        self.results.update(
            count_before=before,
            count_after=accuracy(answers),
            accuracy_after_lora=accuracy(first),
            merged_same_answers=same,
            merged_logit_difference=apart,
        )
        if same == len(answers) and apart <= CLOSE:
            return None
        return f"{self.paths.merged} does not answer as {self.paths.adapter} does; this is a fault of the software"

    def _show(self, answers: Sequence[Answer]) -> None:
        shown = sheets.choose_for_sheet(answers)
        right, wrong = sum(a.right for a in answers), sum(not a.right for a in answers)
        sheets.draw_answers(
            self.paths.out / "answers.png",
            self.paths.data,
            shown,
            f"{right} of {len(answers)} questions about unseen images answered rightly",
            f"The first questions of the test, with {sum(not a.right for a in shown)} of its {wrong} wrong answers.",
        )
        runs = {"Loss, from scratch": self.paths.model}
        if self.size.second:
            runs["Loss, counting with LoRA"] = self.paths.adapter
        curves = [sheets.Curve(title, read_losses(folder)) for title, folder in runs.items()]
        sheets.draw_curves(self.paths.out / "loss.png", curves)

    def _benchmarks(self) -> None:
        """Other unseen images in the formats of benchmarks, by the command that runs the real ones."""
        self._title("5", "Benchmarks: drawn images in the files of their authors, scored by the authors' rules")
        data = self.paths.data / "benchmarks"
        write_benchmarks(data, self.seed, self.size.benchmark_pictures, BENCHMARKS, closing=False)
        run("eval", "all", "--model-path", self._last(), "--data", data, "--output", self.paths.scores,
            "--device", "cpu", "--max-new-tokens", LONGEST)  # fmt: skip
        scores = [
            json.loads(path.read_text(encoding="utf-8")) for path in sorted(self.paths.scores.rglob("score*.json"))
        ]
        self.results["benchmarks"] = {one["benchmark"]: one["metrics"][one["main"]]["value"] for one in scores}

    def _keep(self) -> None:
        self.results["seconds"] = round(time.monotonic() - self.started, 1)
        atomic_write(self.paths.out / "results.json", json.dumps(self.results, indent=2) + "\n")
        self._title("6", "Done")
        made = {"answers.png": "questions and answers", "loss.png": "the losses", "results.json": "all numbers"}
        for name, what in made.items():
            say(f"  {self.paths.out / name}  ({what})")

    def verdict(self) -> str:
        """One sentence: what was reached beside what is promised."""
        reached = self.results["accuracy"]
        what = f"{100 * reached:.1f} % of the questions about unseen images are answered rightly"
        if not self.size.checked:
            return f"{what}; a quick run learns nothing."
        return verdict(what, reached, self.paths.out / "results.json", self.seed)

    def _talk(self, chat: bool) -> None:
        """A chat when somebody is there, else the first rounds of one."""
        picture = self.paths.data / self.questions[0].picture
        flags = ("--model-path", self._last(), "--image-file", picture, "--temperature", "0")
        if chat and sys.stdin.isatty():
            say(f"Talk with it about {picture}; an empty line ends the chat.")
            run("chat", *flags)
            return
        say("A conversation with the model:")
        session = self._session()
        counts = ("How many shapes are there?",) if self.size.second else ()
        for text in (*counts, "What is in the picture?", "Where is the shape?"):
            said = session.answer(text, () if session.turns else (str(picture),))
            say(f"  USER: {text}\n  ASSISTANT: {said}")
        say("Go on with it:")
        say_command(f"  {shown('chat', *flags)}")

    def _last(self) -> Path:
        return self.paths.merged if self.size.second else self.paths.model

    # -- tools ---------------------------------------------------------------------------------------------------

    def _train(self, recipe: str, rows: str, model: Path, output: Path, *, title: bool = True) -> None:
        if title:
            self._title("2", "Training from scratch: vision tower, projector and language model")
        steps = () if self.size.steps is None else ("--max_steps", self.size.steps, "--logging_steps", 1)
        began = time.monotonic()
        run(
            "sft", RECIPES / f"{recipe}.json",
            "--model_name_or_path", model,
            "--data_path", self.paths.data / f"{rows}.json",
            "--image_folder", self.paths.data,
            "--output_dir", output,
            "--seed", self.seed,
            *steps,
        )  # fmt: skip
        self.results[f"{recipe}_seconds"] = round(time.monotonic() - began, 1)

    def _session(self) -> Any:
        from paddlemix.generation.load import load_chat

        return load_chat(str(self._last()), device="cpu")

    def _title(self, number: str, text: str) -> None:
        title(number, text, time.monotonic() - self.started)


def read_losses(folder: Path) -> tuple[tuple[int, float], ...]:
    """(step, loss) of a training's log, in order."""
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    return tuple((int(entry["step"]), float(entry["loss"])) for entry in state["log_history"] if "loss" in entry)
