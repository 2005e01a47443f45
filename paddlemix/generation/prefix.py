# SPDX-License-Identifier: Apache-2.0
"""A KV cache that knows what stands in it, so that the next prompt runs only what is new."""

from collections.abc import Sequence
from dataclasses import dataclass

from paddlemix.models.answering import AnsweringModel
from paddlemix.models.llm.cache import KVCache


@dataclass(frozen=True)
class Slot:
    """One entry of the id sequence: a text token of one position, or an image (``key``) of ``length`` positions."""

    token: int
    key: bytes = b""
    length: int = 1


def length_of(slots: Sequence[Slot]) -> int:
    """Positions that the slots take."""
    return sum(slot.length for slot in slots)


def common_prefix(left: Sequence[Slot], right: Sequence[Slot]) -> int:
    """Number of slots at the beginning that are the same in both."""
    count = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        count += 1
    return count


class PrefixCache:
    """The attention cache of one row and the slots that it holds; one conversation goes on in it."""

    def __init__(self) -> None:
        self.keys_values: KVCache | None = None
        self.slots: list[Slot] = []

    def keep(self, model: AnsweringModel, slots: Sequence[Slot]) -> int:
        """Cut the cache down to what it shares with ``slots``, at most all but the last; the number of shared slots."""
        if self.keys_values is None:
            self.keys_values = model.new_cache(1)
            self.slots = []
        kept = common_prefix(self.slots, slots[:-1])
        if model.config.text.rotates_anew(max(length_of(slots), self.keys_values.length)):
            kept = 0
        self.slots = self.slots[:kept]
        self.keys_values.trim(length_of(self.slots))
        return kept

    def note(self, slots: Sequence[Slot], answer: Sequence[int], *, beams: bool = False) -> None:
        """Write down what the cache holds now, however the answer ended: the prompt and the ids that were fed again.

        The cache counts a step only when all layers are written, so an interrupt inside a step leaves it sound.
        """
        prompt = length_of(slots)
        if beams:
            if not answer:
                self.clear()  # an interrupted search leaves beams of which nobody knows the parents
                return
            self.keys_values.trim(prompt)  # this much all beams have in common
            self.keys_values.reorder([0])
        fed = self.keys_values.length - prompt
        if fed >= 0:
            self.slots = [*slots, *(Slot(token) for token in answer[:fed])]

    def clear(self) -> None:
        """Forget everything."""
        self.keys_values = None
        self.slots = []
