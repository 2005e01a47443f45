# SPDX-License-Identifier: Apache-2.0
"""Asks a model a script of questions about several objects at once, each answer fed back into the next prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import paddle
from PIL.Image import Image

from paddlemix.checkpoint.load import load_model
from paddlemix.generation.engine import encode_images, generate
from paddlemix.generation.load import picture_tokens, processor_for
from paddlemix.generation.sampling import Decoding, Sampler
from paddlemix.generation.scripts import Script
from paddlemix.generation.session import context_of
from paddlemix.imaging.layout import Layout
from paddlemix.imaging.processor import ImageProcessor
from paddlemix.models.llava import LlavaForCausalLM
from paddlemix.splice.plan import PlanRow, build_plan
from paddlemix.text import templates
from paddlemix.text.messages import Message
from paddlemix.text.render import render
from paddlemix.text.templates import Template
from paddlemix.text.tokenizer import Tokenizer, load_tokenizer
from paddlemix.utils import device as devices
from paddlemix.utils.constants import IMAGE_TOKEN
from paddlemix.utils.errors import ConfigError, DataError

_AGAIN = 8
"""Tokens kept free for every answer."""


@dataclass
class Annotator:
    """A model and how it is asked. ``about`` is one line for the person."""

    model: LlavaForCausalLM
    tokenizer: Tokenizer
    processor: ImageProcessor
    template: Template
    decoding: Decoding
    about: str = ""

    @classmethod
    def load(
        cls,
        path: str,
        *,
        base: str | None = None,
        template: str = "v1",
        decoding: Decoding | None = None,
        device: str | None = None,
        dtype: str | None = None,
    ) -> "Annotator":
        """Read a model as ``load_chat`` does. The template is the one that the model was trained with: v1."""
        chosen = devices.choose(device, dtype)
        paddle.set_device(chosen.name)
        loaded = load_model(path, base=base, dtype=chosen.dtype)
        loaded.model.prepare_inference()
        processor = processor_for(loaded.config)
        if processor is None:
            raise ConfigError(f"{path} has no vision tower; give a model that sees")
        return cls(
            loaded.model,
            load_tokenizer(loaded.tokenizer_folder),
            processor,
            templates.get(template),
            decoding or Decoding(),
            f"{path}: {chosen.reason}; template {template}; {picture_tokens(loaded.config)}",
        )

    def __post_init__(self) -> None:
        ends = tuple(dict.fromkeys((self.tokenizer.eos_id, self.model.config.text.eos_token_id)))
        self.decoding = self.decoding.with_changes(
            eos_ids=self.decoding.eos_ids or ends, pad_id=self.tokenizer.pad_id, vocab_size=self.tokenizer.vocab_size
        )

    def answers(
        self, script: Script, objects: Sequence[Sequence[Image]], numbers: Sequence[int] | None = None
    ) -> list[list[str]]:
        """The answers to all questions for each object, which is its views in order.

        ``numbers`` tell the objects' random answers apart (default: 0, 1, ...), so that they do not depend on who
        shares a batch. The views are encoded once for all turns.
        """
        numbers = range(len(objects)) if numbers is None else numbers
        layouts, features = self._seen(objects)
        decoding = self._fitting(script, layouts)
        talks: list[list[Message]] = [[] for _ in objects]
        for turn in range(len(script.questions)):
            for talk, own in zip(talks, layouts, strict=True):
                talk.append(Message("user", script.prompt(turn, len(own))))
            samplers = [Sampler.of(self.decoding, (number, turn)) for number in numbers]
            for talk, said in zip(talks, self._turn(talks, layouts, features, samplers, decoding), strict=True):
                talk.append(Message("assistant", said))
        return [[message.text for message in talk if message.role == "assistant"] for talk in talks]

    def _seen(self, objects: Sequence[Sequence[Image]]) -> tuple[list[list[Layout]], paddle.Tensor]:
        seen = [[self.processor(view) for view in views] for views in objects]
        pixels = np.concatenate([view.pixels for views in seen for view in views])
        return [[view.layout for view in views] for views in seen], encode_images(self.model, pixels)

    def _turn(
        self,
        talks: Sequence[Sequence[Message]],
        layouts: Sequence[Sequence[Layout]],
        features: paddle.Tensor,
        samplers: Sequence[Sampler],
        decoding: Decoding,
    ) -> list[str]:
        rows = [
            PlanRow(render(self.template, talk, self.tokenizer, answer_open=True).ids, own)
            for talk, own in zip(talks, layouts, strict=True)
        ]
        per_tile = self.processor.vision.tokens_per_tile
        plan = build_plan(rows, tokens_per_tile=per_tile, padding_side="left")
        steps = list(generate(self.model, plan, None, decoding, features=features, samplers=samplers))
        return [self._read([step[row] for step in steps]) for row in range(len(rows))]

    def _fitting(self, script: Script, layouts: Sequence[Sequence[Layout]]) -> Decoding:
        """Answers no longer than what leaves room for all of them; the same limit in every turn."""
        places = max(len(own) for own in layouts)
        talk = []
        for turn in range(len(script.questions)):
            talk += [Message("user", script.prompt(turn, places)), Message("assistant", "-")]
        texts = len(render(self.template, talk[:-1], self.tokenizer, answer_open=True).ids)
        asked = texts + max(sum(len(layout.order) for layout in own) for own in layouts) - places
        context = context_of(self.model.config.text)
        # The text of an answer can be some tokens longer than what was generated when it is read again.
        room = (context - asked) // len(script.questions) - _AGAIN
        if room < 1:
            raise DataError(
                f"the {len(script.questions)} questions and {places} views need {asked} positions, but the model holds "
                f"{context}; nothing is left for answers"
            )
        return self.decoding.with_changes(max_new_tokens=min(self.decoding.max_new_tokens, room))

    def _read(self, ids: list[int]) -> str:
        """Text of generated ids up to the end mark, without a stop string, stripped; a picture place cannot stay."""
        end = next((i for i, token in enumerate(ids) if token in self.decoding.eos_ids), len(ids))
        text = self.tokenizer.decode(ids[:end]).strip()
        for stop in self.template.stops:
            text = text.removesuffix(stop).strip()
        return text.replace(IMAGE_TOKEN, "").strip()
