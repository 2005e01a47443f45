# SPDX-License-Identifier: Apache-2.0
"""Teach a tiny multi-view LLaVA what one view cannot tell, on the CPU from scratch: the colour of the side behind.

Solids have four sides of colours that tell nothing about each other. The model is asked for the colour of the back:
with four views it has to be right, with the front alone (shown four times, as MV-LLaVA does) nobody can do better than
guess.
"""

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from paddlemix.annotate.contact_sheet import draw
from paddlemix.annotate.scripts import Question, Script
from paddlemix.demo.shapes import COLOURS
from paddlemix.demo.solids import SIDE, SIDES, SOLIDS, Scene, draw_scenes, views
from paddlemix.demo.verdict import verdict
from paddlemix.imaging.views import sheet_order
from paddlemix.utils import device
from paddlemix.utils.commands import COMMANDS, ROOT, shown
from paddlemix.utils.constants import IMAGE_TOKEN
from paddlemix.utils.errors import TrainingError
from paddlemix.utils.files import atomic_write
from paddlemix.utils.logging import console

if TYPE_CHECKING:
    from paddlemix.annotate.annotator import Annotator

RECIPE = ROOT / "paddlemix" / "config" / "demo" / "multiview.json"

CHANCE = 1 / len(COLOURS)
MARGIN = 0.10
"""One view may do better than chance by this much, which is luck with a few hundred objects."""

HIDDEN = "back"
FOLDERS = ("Cap3D_imgs_view0", "Cap3D_imgs_view1", "Cap3D_imgs_view4", "Cap3D_imgs_view5")
BATCH = 50
SHOWN = 16


@dataclass(frozen=True)
class Size:
    """How much is drawn, trained and asked. ``steps`` None: as the recipe says."""

    objects: int = 3000
    tests: int = 300
    steps: int | None = None
    checked: bool = True


FULL = Size()
QUICK = Size(objects=48, tests=20, steps=3, checked=False)
"""A run of seconds that goes through every step and learns nothing; for tests."""


def question(side: str) -> str:
    """The question for the colour of a side."""
    return f"What colour is the {side}?"


def rows(folder: Path, seed: int, objects: int) -> Iterator[dict[str, Any]]:
    """Draw the training objects into ``folder`` and yield their rows, in MV-LLaVA's format.

    Of eight objects three lie in the four files of cap3d rows, three in sv3d sheets, two are lone images of the
    front (their back is asked for too: the honest answer is a guess). One row in twenty is text only.
    """
    rng = random.Random(f"multi-view rows {seed}")
    for folder_name in (*FOLDERS, "sheets", "fronts"):
        (folder / folder_name).mkdir(parents=True, exist_ok=True)
    for number, scene in zip(range(objects), draw_scenes(seed, "train", unseen=False), strict=False):
        name = f"{number:05d}"
        kind = ("cap3d_", "sv3d_", "")[(0, 1, 0, 1, 0, 1, 2, 2)[number % 8]]
        image = _write(folder, name, kind, views(scene))
        yield {"id": f"{kind}{name}", "image": image, "conversations": _talk(scene, rng, kind)}
        if number % 20 == 0:
            solid = rng.choice(SOLIDS).name
            yield {"id": f"text_{name}", "conversations": _turns([(f"How many sides has a {solid}?", "four")])}


def _write(folder: Path, name: str, kind: str, pictures: Sequence[Image.Image]) -> str:
    """Save the views as rows of this kind have them; returns what the row calls them."""
    if kind == "cap3d_":
        for place, picture in zip(FOLDERS, pictures, strict=True):
            picture.save(folder / place / f"{name}.jpg", quality=95, subsampling=0)
        return name
    if kind == "sv3d_":
        sheet_of(pictures).save(folder / "sheets" / f"{name}.png", compress_level=1)
        return f"sheets/{name}.png"
    pictures[0].save(folder / "fronts" / f"{name}.png", compress_level=1)
    return f"fronts/{name}.png"


def sheet_of(pictures: Sequence[Image.Image]) -> Image.Image:
    """A 2 x 2 sheet that is cut into these four views in training order."""
    sheet = Image.new("RGB", (2 * SIDE, 2 * SIDE))
    for (row, column), picture in zip(sheet_order(2), pictures, strict=True):
        sheet.paste(picture, (column * SIDE, row * SIDE))
    return sheet


def _talk(scene: Scene, rng: random.Random, kind: str) -> list[dict[str, str]]:
    asked = [(question(side), scene.colour(side)) for side in SIDES]
    asked.append(("What solid is it?", scene.solid.name))
    places = IMAGE_TOKEN if not kind else IMAGE_TOKEN * len(SIDES)
    found = _turns(rng.sample(asked, len(asked)))
    found[0]["value"] = f"{places}\n{found[0]['value']}"
    return found


def _turns(rounds: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    speakers = ("human", "gpt")
    return [{"from": who, "value": text} for pair in rounds for who, text in zip(speakers, pair, strict=True)]


class Demo:
    """One run; a class only because its steps share paths and numbers."""

    def __init__(self, out: Path, seed: int, size: Size) -> None:
        self.out, self.seed, self.size = out, seed, size
        self.data = out / "data"
        self.results: dict[str, Any] = {"seed": seed, "chance": CHANCE}
        self.started = time.monotonic()

    def go(self) -> dict[str, Any]:
        """All steps in order; the numbers, which are also in ``results.json``."""
        device.tune_cpu()
        self._draw()
        self._train()
        self._test()
        self.results["seconds"] = round(time.monotonic() - self.started, 1)
        atomic_write(self.out / "results.json", json.dumps(self.results, indent=2) + "\n")
        self._say(
            f"{self.out / 'results.json'} and {self.out / 'answers.png'} are written ({self.results['seconds']} s)"
        )
        self._require()
        self._say(self.verdict())
        return self.results

    def _draw(self) -> None:
        self._say("[bold]1  Solids with four coloured sides, a vocabulary and random weights[/bold]")
        found = list(rows(self.data, self.seed, self.size.objects))
        (self.data / "train.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        from paddlemix.demo.multiview_model import write_start

        texts = [turn["value"].rpartition("\n")[2] for row in found for turn in row["conversations"]]
        count = write_start(self.out / "start", texts, self.seed)
        self._say(f"{len(found):,} conversations about objects, lone images and none; {count:,} parameters")

    def _train(self) -> None:
        self._say("[bold]2  Training from scratch, through the command that a user would type[/bold]")
        recipe = json.loads(RECIPE.read_text(encoding="utf-8"))
        recipe["dataset"]["train"][0].update(data_files=str(self.data / "train.json"), image_folder=str(self.data))
        recipe.update(model_name_or_path=str(self.out / "start"), output_dir=str(self.out / "model"), seed=self.seed)
        if self.size.steps is not None:
            recipe.update(max_steps=self.size.steps, logging_steps=1)
        path = self.out / "multiview.json"
        path.write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
        began = time.monotonic()
        console().print(f"$ {shown('sft', path)}", style="dim", markup=False, soft_wrap=True)
        script = COMMANDS["sft"].script
        done = subprocess.run([sys.executable, str(script), str(path)], check=False)  # noqa: S603 - our own command
        if done.returncode:
            raise TrainingError(f"the training ended with exit code {done.returncode}; its message stands above")
        self.results["training_seconds"] = round(time.monotonic() - began, 1)

    def _test(self) -> None:
        self._say("[bold]3  Objects that no training showed: what colour is the back?[/bold]")
        from paddlemix.annotate.annotator import Annotator
        from paddlemix.generation.sampling import Decoding

        scenes = [
            scene for _, scene in zip(range(self.size.tests), draw_scenes(self.seed, "test", unseen=True), strict=False)
        ]
        asker = Annotator.load(str(self.out / "model"), decoding=Decoding(max_new_tokens=8), device="cpu")
        seen = [views(scene) for scene in scenes]
        for side in SIDES:
            right = self._right(asker, seen, scenes, side)
            self.results[f"four_views_{side}"] = sum(right) / len(right)
            self._say(f"  four views, {side:<6} {100 * self.results[f'four_views_{side}']:5.1f} %")
        said: list[str] = []
        one = self._right(asker, [[pictures[0]] * len(SIDES) for pictures in seen], scenes, HIDDEN, said)
        front = self._right(asker, [[pictures[0]] * len(SIDES) for pictures in seen], scenes, "front")
        self.results.update(one_view_back=sum(one) / len(one), one_view_front=sum(front) / len(front))
        self._say(f"  one view,   back   {100 * self.results['one_view_back']:5.1f} %   (chance {100 * CHANCE:.1f} %)")
        self._say(f"  one view,   front  {100 * self.results['one_view_front']:5.1f} %   (it does see)")
        self._sheet(asker, seen, scenes, said)

    def _right(
        self,
        asker: "Annotator",
        objects: Sequence[Sequence[Image.Image]],
        scenes: Sequence[Scene],
        side: str,
        said: list[str] | None = None,
    ) -> list[bool]:
        """Which answers about a side are right, letter for letter; they are added to ``said``."""
        script = Script("demo", (Question(side, question(side)),))
        found: list[str] = []
        for first in range(0, len(objects), BATCH):
            found += [answer for (answer,) in asker.answers(script, objects[first : first + BATCH])]
        if said is not None:
            said += found
        return [answer == scene.colour(side) for answer, scene in zip(found, scenes, strict=True)]

    def _sheet(
        self, asker: "Annotator", seen: Sequence[Sequence[Image.Image]], scenes: Sequence[Scene], one: Sequence[str]
    ) -> None:
        four: list[str] = []
        self._right(asker, seen[:SHOWN], scenes[:SHOWN], HIDDEN, four)
        entries = []
        for scene, pictures, by_four, by_one in zip(scenes, seen, four, one, strict=False):
            words = f"The back is {scene.colour(HIDDEN)}. From four views: {by_four}. From the front alone: {by_one}."
            entries.append(({"id": scene.solid.name, "caption": words}, pictures))
        title = f"What colour is the back? {100 * self.results['four_views_back']:.1f} % with four views, " \
                f"{100 * self.results['one_view_back']:.1f} % with one"  # fmt: skip
        draw(self.out / "answers.png", entries, title)

    def verdict(self) -> str:
        """One sentence: what was reached beside what is promised."""
        reached = self.results["four_views_back"]
        what = f"Four views tell the colour of the back of {100 * reached:.1f} % of the objects"
        if not self.size.checked:
            return f"{what}; a quick run learns nothing."
        return verdict(what, reached, self.out / "results.json", self.seed)

    def _require(self) -> None:
        """One view cannot tell the back: a model that knows it was shown the other views by a fault."""
        one = self.results["one_view_back"]
        if self.size.checked and one > CHANCE + MARGIN:
            raise TrainingError(
                f"one view told the colour of the back in {100 * one:.1f} % (chance {100 * CHANCE:.1f} %), which is a "
                f"fault of the software; please report it with {self.out / 'results.json'}"
            )

    def _say(self, line: str) -> None:
        console().print(line)
