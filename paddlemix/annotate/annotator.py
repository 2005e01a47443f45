# SPDX-License-Identifier: Apache-2.0
"""Asks a model a script of questions about several objects at once, each answer fed back into the next prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL.Image import Image

from paddlemix.annotate.scripts import Script
from paddlemix.generation.features import Picture
from paddlemix.generation.load import load_predictor
from paddlemix.generation.predictor import Predictor
from paddlemix.generation.sampling import Decoding
from paddlemix.text.messages import Message
from paddlemix.text.render import render
from paddlemix.utils.errors import ConfigError, DataError

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from paddlemix.generation.predictor import Opening

_AGAIN = 8
"""Tokens kept free for every answer."""


@dataclass
class Annotator:
    """A model and how it is asked."""

    predictor: Predictor
    decoding: Decoding

    @classmethod
    def load(cls, path: str, *, decoding: Decoding | None = None, **opening: "Unpack[Opening]") -> "Annotator":
        """Open a model as the chat does. Its template is v1, which it was trained with, unless ``conv_mode`` says."""
        opening.setdefault("conv_mode", "v1")
        predictor = load_predictor(path, **opening)
        if predictor.processor is None:
            raise ConfigError(f"{path} has no vision tower; give a model that sees")
        return cls(predictor, predictor.decoding(decoding))

    @property
    def about(self) -> str:
        """One line for the person: device, dtype, template."""
        return self.predictor.about

    def answers(
        self, script: Script, objects: Sequence[Sequence[Image]], numbers: Sequence[int] | None = None
    ) -> list[list[str]]:
        """The answers to all questions for each object, which is its views in order.

        ``numbers`` tell the objects' random answers apart (default: 0, 1, ...), so that they do not depend on who
        shares a batch. The views are encoded once for all turns.
        """
        numbers = range(len(objects)) if numbers is None else numbers
        seen = [[self.predictor.picture(view) for view in views] for views in objects]
        decoding = self._fitting(script, seen)
        talks: list[list[Message]] = [[] for _ in objects]
        for turn in range(len(script.questions)):
            for talk, views in zip(talks, seen, strict=True):
                talk.append(Message("user", script.prompt(turn, len(views))))
            prompts = [self.predictor.prompt(talk, views) for talk, views in zip(talks, seen, strict=True)]
            answers = self.predictor.answer(prompts, decoding, draws=[(number, turn) for number in numbers])
            for talk, answer in zip(talks, answers, strict=True):
                talk.append(Message("assistant", answer.text))
        return [[message.text for message in talk if message.role == "assistant"] for talk in talks]

    def _fitting(self, script: Script, seen: Sequence[Sequence[Picture]]) -> Decoding:
        """Answers no longer than what leaves room for all of them; the same limit in every turn."""
        places = max(len(views) for views in seen)
        talk = []
        for turn in range(len(script.questions)):
            talk += [Message("user", script.prompt(turn, places)), Message("assistant", "-")]
        predictor = self.predictor
        texts = len(render(predictor.template, talk[:-1], predictor.tokenizer, answer_open=True).ids)
        asked = texts + max(sum(view.length for view in views) for views in seen) - places
        # The text of an answer can be some tokens longer than what was generated when it is read again.
        room = (predictor.context - asked) // len(script.questions) - _AGAIN
        if room < 1:
            raise DataError(
                f"the {len(script.questions)} questions and {places} views need {asked} positions, but the model holds "
                f"{predictor.context}; nothing is left for answers"
            )
        return self.decoding.with_changes(max_new_tokens=min(self.decoding.max_new_tokens, room))
