# SPDX-License-Identifier: Apache-2.0
"""What a model answers to the test questions, through the engine that the chat uses, and how often it is right."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle

from paddlemix.checkpoint.load import load_model
from paddlemix.demo.data import Answer, Question
from paddlemix.generation.engine import generate_batch
from paddlemix.generation.folder import processor_for, template_for
from paddlemix.generation.sampling import Decoding
from paddlemix.imaging.load import load_image
from paddlemix.models.llava import LlavaForCausalLM
from paddlemix.splice.plan import Plan, PlanRow, build_plan
from paddlemix.text.messages import Message
from paddlemix.text.render import render
from paddlemix.text.tokenizer import Tokenizer, load_tokenizer
from paddlemix.utils.constants import IMAGE_TOKEN

BATCH = 64
LONGEST = 12
"""Tokens of an answer; the longest right one has 5."""


@dataclass
class Examinee:
    """A model that can be asked. ``folder`` is a model or an adapter (kept unmerged)."""

    model: LlavaForCausalLM
    tokenizer: Tokenizer
    folder: Path

    @classmethod
    def load(cls, folder: Path) -> "Examinee":
        """Read a model folder, or an adapter folder with its base; adapters stay beside the weights."""
        loaded = load_model(folder, lora="keep")
        loaded.model.eval()
        return cls(loaded.model, load_tokenizer(loaded.tokenizer_folder), folder)

    def batch(self, pictures: Path, questions: Sequence[Question], *, blind: bool = False) -> tuple[Plan, np.ndarray]:
        """Plan of the prompts (padded on the left) and pixels ``[B, 3, S, S]``; ``blind`` shows a grey image."""
        config = self.model.config
        processor, template = processor_for(config), template_for(self.folder, config)
        rows, pixels = [], []
        for question in questions:
            picture = load_image(pictures / question.picture)
            if blind:
                picture.paste((127, 127, 127), (0, 0, *picture.size))
            seen = processor(picture)
            text = f"{IMAGE_TOKEN}\n{question.text}"
            prompt = render(template, [Message("user", text)], self.tokenizer, answer_open=True)
            rows.append(PlanRow(prompt.ids, (seen.layout,)))
            pixels.append(seen.pixels)
        plan = build_plan(rows, tokens_per_tile=config.vision.tokens_per_tile, padding_side="left")
        return plan, np.concatenate(pixels)

    def answer(self, pictures: Path, questions: Sequence[Question], *, blind: bool = False) -> list[Answer]:
        """Greedy answers, in the order of the questions."""
        decoding = Decoding(max_new_tokens=LONGEST, eos_ids=(self.tokenizer.eos_id,), pad_id=self.tokenizer.pad_id)
        found = []
        for first in range(0, len(questions), BATCH):
            part = questions[first : first + BATCH]
            plan, pixels = self.batch(pictures, part, blind=blind)
            ids = generate_batch(self.model, plan, pixels, decoding)
            found += [Answer(question, self.read(row)) for question, row in zip(part, ids, strict=True)]
        return found

    def read(self, ids: Sequence[int]) -> str:
        """The text of generated ids: up to the ending token, without spaces around it."""
        end = self.tokenizer.eos_id
        kept = list(ids[: ids.index(end)] if end in ids else ids)
        return self.tokenizer.decode(kept).strip()

    @paddle.no_grad()
    def scores(self, pictures: Path, questions: Sequence[Question]) -> np.ndarray:
        """Logits ``[B, V]`` of the first token of each answer."""
        plan, pixels = self.batch(pictures, questions)
        logits = self.model(
            paddle.to_tensor(plan.token_ids),
            paddle.to_tensor(plan.source),
            paddle.to_tensor(plan.positions),
            pixels=paddle.to_tensor(pixels),
            starts=paddle.to_tensor(plan.starts),
        )
        return logits[:, -1].numpy()
