# SPDX-License-Identifier: Apache-2.0
"""What a model answers to the test questions, asked through the predictor that the chat uses."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from paddlemix.demo.data import LONGEST, Answer, Question
from paddlemix.generation.predictor import Predictor
from paddlemix.generation.prompt import Prompt
from paddlemix.generation.sampling import Decoding
from paddlemix.imaging.load import load_image

BATCH = 64
GREY = (127, 127, 127)


def open_model(folder: Path) -> Predictor:
    """The model of a folder in float32 on the CPU; an adapter stays beside the weights of its base."""
    return Predictor.load(folder, device="cpu", dtype="float32", lora="keep")


def prompts(predictor: Predictor, images: Path, questions: Sequence[Question], *, blind: bool = False) -> list[Prompt]:
    """One prompt a question, about its file in the folder ``images``; with ``blind`` a grey image stands there."""
    found = []
    for question in questions:
        image = load_image(images / question.picture)
        seen = predictor.picture(Image.new("RGB", image.size, GREY) if blind else image)
        found.append(predictor.prompt(predictor.question(question.text, 1), [seen]))
    return found


def answers(
    predictor: Predictor, images: Path, questions: Sequence[Question], *, blind: bool = False, longest: int = LONGEST
) -> list[Answer]:
    """Greedy answers of at most ``longest`` tokens, in the order of the questions."""
    asked = prompts(predictor, images, questions, blind=blind)
    said = predictor.answer(asked, Decoding(max_new_tokens=longest), batch_size=BATCH)
    return [Answer(question, answer.text) for question, answer in zip(questions, said, strict=True)]


def difference(one: Predictor, other: Predictor, images: Path, questions: Sequence[Question]) -> float:
    """Largest difference of two models' logits of the first token of each answer."""
    first, second = (model.scores(prompts(model, images, questions)) for model in (one, other))
    return float(abs(first - second).max())
