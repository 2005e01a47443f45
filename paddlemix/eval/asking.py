# SPDX-License-Identifier: Apache-2.0
"""Asks a model the questions of items in batches. What cannot be asked fails with its reason."""

from collections.abc import Callable, Sequence

from PIL import Image

from paddlemix.datasets.pictures import is_remote
from paddlemix.eval.items import Item, Said
from paddlemix.generation.features import Picture
from paddlemix.generation.predictor import Predictor
from paddlemix.generation.prompt import Prompt
from paddlemix.generation.sampling import Decoding
from paddlemix.imaging.load import OWN_LIMITS, image_size, load_image
from paddlemix.imaging.processor import Frames
from paddlemix.imaging.views import Film
from paddlemix.text.messages import Message
from paddlemix.utils.constants import IMAGE_TOKEN
from paddlemix.utils.errors import ConfigError, DataError


def load_own(image: str | bytes) -> Image.Image:
    """An image of the user's own, as RGB."""
    return load_image(image, OWN_LIMITS)


class Asker:
    """A model and how long its answers may be, in tokens. Answers are greedy. ``load`` opens the images."""

    def __init__(
        self, predictor: Predictor, max_new_tokens: int, load: Callable[[str | bytes], Image.Image] = load_own
    ) -> None:
        self.predictor = predictor
        self.max_new_tokens = max_new_tokens
        self.load = load

    def length(self, item: Item) -> int:
        """Positions that an item's first prompt takes, about: from its text and the headers of its images; opens none.

        0 for an item whose images cannot be read.
        """
        predictor = self.predictor
        texts = [item.turns[0].text] if item.before is None else [message.text for message in item.before.messages]
        length = sum(len(predictor.tokenizer.encode(text)) for text in texts)
        if predictor.processor is None or item.views is not None:
            return length
        if any(map(is_remote, item.images)):
            return 0
        try:
            sizes = [image_size(image, OWN_LIMITS) for image in item.images]
        except DataError:
            return 0
        return length + sum(predictor.processor.layout(size).length for size in sizes)

    def ask(self, items: Sequence[Item]) -> list[list[Said]]:
        """The answers to the turns of each item. A turn that cannot be asked fails with all that follow it."""
        found: list[list[Said]] = [[] for _ in items]
        pictures = [self._pictures(item) for item in items]
        talks: list[list[Message]] = [[] for _ in items]
        for number in range(max((len(item.turns) for item in items), default=0)):
            prompts: dict[int, Prompt] = {}
            for place, item in enumerate(items):
                if number >= len(item.turns):
                    continue
                made = self._prompt(item, number, talks[place], pictures[place], found[place])
                if isinstance(made, Said):
                    found[place].append(made)
                else:
                    prompts[place] = made
            for place, said in zip(prompts, self._answers(list(prompts.values())), strict=True):
                found[place].append(said)
                talks[place].append(Message("assistant", said.text))
        return found

    def _pictures(self, item: Item) -> list[Picture] | str:
        """The images of an item with their features, or why they cannot be used."""
        try:
            for image in filter(is_remote, item.images):
                return f"{image}: addresses are not read; download the image"
            opened = [self.load(image) for image in item.images]
            if isinstance(item.views, Film):
                return [self.predictor.picture(Frames(opened))]
            if item.views is None:
                return [self.predictor.picture(image) for image in opened]
            return [self.predictor.picture(view) for view in item.views.cut(opened)] * item.views.repeat
        except (DataError, ConfigError) as error:
            return str(error)

    def _prompt(
        self, item: Item, number: int, talk: list[Message], pictures: list[Picture] | str, earlier: Sequence[Said]
    ) -> Prompt | Said:
        if isinstance(pictures, str):
            return Said("", pictures)
        if earlier and earlier[-1].failure:
            return Said("", earlier[-1].failure)
        predictor = self.predictor
        try:
            if item.before is not None:
                prompt = predictor.prompt(item.before, pictures)
            else:
                text = item.turns[number].text
                if item.views is not None and not number:
                    text = f"{IMAGE_TOKEN * len(pictures)}\n{text}"
                talk += predictor.question(text, 0 if number else len(pictures))
                prompt = predictor.prompt(talk, pictures)
        except DataError as error:
            return Said("", str(error))
        if prompt.length >= predictor.context:
            return Said(
                "",
                f"the question needs {prompt.length} of the {predictor.context} positions of the model's context and "
                "leaves none for an answer",
            )
        return prompt

    def _answers(self, prompts: Sequence[Prompt]) -> list[Said]:
        """One batch; each answer has at most the room that its prompt leaves in the context."""
        answers = self.predictor.answer(prompts, Decoding(max_new_tokens=self.max_new_tokens))
        return [Said(answer.text, "", answer.finish) for answer in answers]
