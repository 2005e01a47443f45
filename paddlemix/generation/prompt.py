# SPDX-License-Identifier: Apache-2.0
"""A conversation as the model gets it: token ids, images with their features, and the plan of a batch of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import paddle

from paddlemix.generation.features import Picture
from paddlemix.generation.prefix import Slot, length_of
from paddlemix.splice.plan import Plan, PlanRow, build_plan
from paddlemix.utils.constants import IMAGE_TOKEN_INDEX


@dataclass(frozen=True, eq=False)
class Prompt:
    """A conversation, rendered once: ids with IMAGE_TOKEN_INDEX at image places, its text, its images in order."""

    ids: tuple[int, ...]
    text: str
    pictures: tuple[Picture, ...]

    @cached_property
    def slots(self) -> list[Slot]:
        """What stands in the sequence, one entry a text token or image."""
        pictures = iter(self.pictures)
        return [
            Slot(token, picture.key, picture.length)
            if token == IMAGE_TOKEN_INDEX and (picture := next(pictures))
            else Slot(token)
            for token in self.ids
        ]

    @cached_property
    def length(self) -> int:
        """Positions that the prompt takes."""
        return length_of(self.slots)


def plan_of(prompts: Sequence[Prompt], tokens_per_tile: int, skip: int = 0) -> tuple[Plan, paddle.Tensor | None]:
    """The left-padded plan of prompts and the features of their images ``[N, P, D]``.

    ``skip`` leaves out so many slots at the beginning of each, which stand in a cache already.
    """
    rows, pictures = [], []
    for prompt in prompts:
        ids = prompt.ids[skip:]
        seen = prompt.pictures[len(prompt.pictures) - ids.count(IMAGE_TOKEN_INDEX) :]
        rows.append(PlanRow(np.asarray(ids, dtype=np.int64), [picture.layout for picture in seen]))
        pictures += seen
    plan = build_plan(rows, tokens_per_tile=tokens_per_tile, padding_side="left")
    return plan, paddle.concat([picture.features for picture in pictures]) if pictures else None
