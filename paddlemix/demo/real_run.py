# SPDX-License-Identifier: Apache-2.0
"""The demo on a real language model, step by step. Everything that trains is a command that a user would type."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddlemix.demo import data, sheets
from paddlemix.demo.data import Answer, accuracy, by_kind
from paddlemix.demo.real_data import CAPTION, FACTS, KEPT, SENTENCE, TALK, TOLD, add_text, facts_told
from paddlemix.demo.run import read_losses
from paddlemix.demo.steps import clear, run, say, say_command, title
from paddlemix.demo.verdict import verdict
from paddlemix.text.scores import rouge_l
from paddlemix.utils import device
from paddlemix.utils.commands import ROOT, shown
from paddlemix.utils.errors import ConfigError
from paddlemix.utils.files import atomic_write

if TYPE_CHECKING:
    from paddlemix.generation.predictor import Predictor

RECIPES = ROOT / "paddlemix" / "config" / "demo"
PROMISED = 0.90
"""Part of the sentences about unseen images that a run aims to answer rightly, letter for letter (docs/demo.md)."""
BATCH = 16


@dataclass(frozen=True)
class Size:
    """How much is drawn, trained and asked. ``steps`` None: as the recipes say."""

    captions: int = 3200
    talks: int = 700
    test_pictures: int = 300
    blind: int = 60
    texts: int = len(TOLD)
    times: int = 2
    steps: int | None = None
    tower: tuple[str, ...] = ()
    checked: bool = True


FULL = Size()
QUICK = Size(
    captions=32, talks=24, test_pictures=8, blind=4, texts=2, times=1, steps=2, tower=("--quick",), checked=False
)
"""A run of seconds (with a tiny language model) that goes through every step and learns nothing; for tests."""


class Demo:
    """One run; a class only because its steps share paths, questions and numbers.

    ``seeing`` is the folder of a model that the small demo trained, whose tower is taken; None trains one.
    """

    def __init__(self, out: Path, language_model: Path, seeing: Path | None, seed: int, size: Size) -> None:
        self.out, self.language_model, self.seeing, self.seed, self.size = out, language_model, seeing, seed, size
        self.data, self.tower = out / "data", out / "small" / "vision_tower"
        self.projector, self.adapter = out / "pretrain" / "mm_projector.safetensors", out / "lora"
        self.started = time.monotonic()
        self.results: dict[str, Any] = {"seed": seed}

    def go(self, *, chat: bool) -> dict[str, Any]:
        """All steps in order; the numbers, which are also in ``results.json``.

        ConfigError without a language model, TrainingError when a training fails. An accuracy below the promise is
        reported at the end and is no error.
        """
        self._clear()
        device.tune_cpu()
        self._train_tower()
        before = self._draw()
        self._train("3", "Stage 1: the projector learns from captions", "pretrain", "real_pretrain", "captions",
                    "--output_dir", self.projector.parent)  # fmt: skip
        self._train("4", "Stage 2: LoRA learns to talk about images", "sft", "real_lora", "talk",
                    "--pretrain_mm_mlp_adapter", self.projector, "--output_dir", self.adapter)  # fmt: skip
        answers = self._test(before)
        self._show(answers)
        self._talk(chat)
        say(self.verdict())
        return self.results

    # -- steps ---------------------------------------------------------------------------------------------------

    def _clear(self) -> None:
        """Take away the folders of an earlier run, but not those that no demo made."""
        if not (self.language_model / "config.json").is_file():
            raise ConfigError(
                f"{self.language_model}: no language model is there; make it with "
                f'"python tools/fetch_smollm2.py {self.language_model}", or name one with --language-model'
            )
        made = [self.out / name for name in ("tower", "small", "data", "pretrain", "lora")]
        clear(self.out, made)
        self.data.mkdir()

    def _train_tower(self) -> None:
        self._title("1", "A vision tower: the small demo trains it from random weights")
        began = time.monotonic()
        if self.seeing is None:
            run("demo", "--out", self.out / "tower", "--seed", self.seed, "--no-lora", "--no-chat", *self.size.tower)
        seeing = self.seeing or self.out / "tower" / "model"
        run("convert", "--src", seeing, "--dst", self.out / "small", "--to", "original")
        self.results["tower_seconds"] = round(time.monotonic() - began, 1)

    def _draw(self) -> dict[str, tuple[str, bool]]:
        """Images, captions and conversations; what the language model says to questions without an image."""
        self._title("2", "Images, captions and conversations; what the language model says without an image")
        folder, size = self.data, self.size
        data.write_training(folder, "captions", [(CAPTION, 1)], self.seed, size.captions)
        talk = data.write_training(folder, "talk", [(TALK, 3)], self.seed, size.talks)
        self.questions = data.write_test(folder, "test", TALK, self.seed, size.test_pictures)
        compared = data.require_unseen(folder, ["captions", "talk"], ["test"])
        self.guess = data.best_guess(talk, self.questions)
        say(f"{size.captions:,} images with captions, {size.talks:,} with conversations, {compared} to be asked about.")
        model = open_model(self.language_model)
        before = text_answers(model, [*TOLD[: size.texts], *FACTS])
        told = {question: text for question, (text, whole) in before.items() if whole and question in TOLD}
        add_text(talk, told, size.times)
        say(f"{len(told)} questions without an image join the conversations, with the language model's own answers.")
        return {question: before[question] for question in FACTS}

    def _test(self, before: Mapping[str, tuple[str, bool]]) -> list[Answer]:
        self._title("5", f"{len(self.questions)} questions about unseen images, {len(FACTS)} without an image")
        from paddlemix.demo import answers as asking

        model, size = open_model(self.adapter), self.size
        answers = asking.answers(model, self.data, self.questions, longest=SENTENCE)
        blind = asking.answers(model, self.data, self.questions[: size.blind], blind=True, longest=SENTENCE)
        for kind, (right, asked) in by_kind(answers).items():
            say(f"  {kind:<14} {right:>3} of {asked:<3}")
        right = sum(answer.right for answer in answers)
        say(f"  [bold]all            {right:>3} of {len(answers)} = {100 * accuracy(answers):.1f} %[/bold]")
        say(f"  {len(blind)} of them with a grey image: {100 * accuracy(blind):.1f} %; best guess without looking: "
            f"{100 * self.guess:.1f} %")  # fmt: skip
        self._compare(before, text_answers(model, list(FACTS)))
        self.results.update(
            questions=len(answers), accuracy=accuracy(answers), blind=accuracy(blind), best_guess=self.guess,
            by_kind=by_kind(answers),
        )  # fmt: skip
        return answers

    def _compare(self, before: Mapping[str, tuple[str, bool]], after: Mapping[str, tuple[str, bool]]) -> None:
        """Say how near the answers without an image are to those of the language model alone."""
        for question in list(FACTS)[:4]:
            say(f"  {question}\n    before: {before[question][0]}\n    after:  {after[question][0]}")
        was, now = ({question: text for question, (text, _) in told.items()} for told in (before, after))
        same = sum(now[question] == text for question, text in was.items())
        endless = sum(before[question][1] and not after[question][1] for question in was)
        near = sum(rouge_l(now[question], text) for question, text in was.items()) / len(was)
        say(f"  without an image {same} of {len(FACTS)} answers are the same, word for word (ROUGE-L {near:.2f}); "
            f"{endless} that ended within {KEPT} tokens no longer do; facts told: {facts_told(was)} before, "
            f"{facts_told(now)} after")  # fmt: skip
        self.results.update(
            text_same=same, text_endless=endless, text_rouge_l=near, facts_before=facts_told(was),
            facts_after=facts_told(now), text_before=was, text_after=now,
        )  # fmt: skip

    def _show(self, answers: Sequence[Answer]) -> None:
        shown_answers = sheets.choose_for_sheet(answers)
        right = sum(a.right for a in answers)
        sheets.draw_answers(
            self.out / "answers.png",
            self.data,
            shown_answers,
            f"{right} of {len(answers)} questions about unseen images answered rightly",
            f"The first questions of the test, with {sum(not a.right for a in shown_answers)} of its "
            f"{len(answers) - right} wrong answers.",
            lines=3,
        )
        runs = {"Loss, stage 1: projector": self.projector.parent, "Loss, stage 2: LoRA": self.adapter}
        sheets.draw_curves(self.out / "loss.png", [sheets.Curve(name, read_losses(at)) for name, at in runs.items()])
        self.results["seconds"] = round(time.monotonic() - self.started, 1)
        atomic_write(self.out / "results.json", json.dumps(self.results, indent=2) + "\n")
        self._title("6", "Done")
        made = {"answers.png": "questions and answers", "loss.png": "the losses", "results.json": "all numbers"}
        for name, what in made.items():
            say(f"  {self.out / name}  ({what})")

    def verdict(self) -> str:
        """One sentence: what was reached beside what is promised."""
        reached = self.results["accuracy"]
        what = f"{100 * reached:.1f} % of the questions about unseen images are answered rightly, in sentences"
        if not self.size.checked:
            return f"{what}; a quick run learns nothing."
        return verdict(what, reached, self.out / "results.json", self.seed, promised=PROMISED)

    def _talk(self, chat: bool) -> None:
        picture = self.data / self.questions[0].picture
        flags = ("--model-path", self.adapter, "--image-file", picture, "--temperature", "0")
        if chat and sys.stdin.isatty():
            say(f"Talk with it about {picture}; an empty line ends the chat.")
            run("chat", *flags)
            return
        say("Talk with it:")
        say_command(f"  {shown('chat', *flags)}")

    # -- tools ---------------------------------------------------------------------------------------------------

    def _train(self, number: str, text: str, verb: str, recipe: str, rows: str, *flags: str | Path) -> None:
        self._title(number, text)
        steps = () if self.size.steps is None else ("--max_steps", self.size.steps, "--logging_steps", 1)
        began = time.monotonic()
        run(
            verb, RECIPES / f"{recipe}.json",
            "--model_name_or_path", self.language_model,
            "--vision_tower", self.tower,
            "--data_path", self.data / f"{rows}.json",
            "--image_folder", self.data,
            "--seed", self.seed,
            *flags,
            *steps,
        )  # fmt: skip
        self.results[f"{recipe}_seconds"] = round(time.monotonic() - began, 1)

    def _title(self, number: str, text: str) -> None:
        title(number, text, time.monotonic() - self.started)


def open_model(folder: Path) -> "Predictor":
    """The model of a folder in float32 on the CPU, an adapter folded into its weights."""
    from paddlemix.generation.predictor import Predictor

    return Predictor.load(folder, device="cpu", dtype="float32")


def text_answers(model: "Predictor", questions: Sequence[str]) -> dict[str, tuple[str, bool]]:
    """For each question without an image the greedy answer, and whether it ended within ``KEPT`` tokens."""
    from paddlemix.generation.sampling import Decoding

    prompts = [model.prompt(model.question(text)) for text in questions]
    said = model.answer(prompts, Decoding(max_new_tokens=KEPT), batch_size=BATCH)
    return {text: (answer.text, answer.finish == "stop") for text, answer in zip(questions, said, strict=True)}
