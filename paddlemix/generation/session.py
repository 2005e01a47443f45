# SPDX-License-Identifier: Apache-2.0
"""A conversation with a model: text and images in, text out, nothing computed twice.

Two things are kept between rounds. The feature rows of every image (keyed by the image's pixels and the
preprocessing) and the attention cache. A new round renders the whole conversation to ids, takes the longest common
prefix of these ids with those in the cache, trims the cache to it and runs only the rest. So the answer is the same as
that of a fresh session; when the text of an answer does not tokenize back to the ids that were generated, the rest of
that answer is run again instead of being believed.

The history holds an answer's text without special tokens and stripped. (The original's serve/cli.py puts the decoded
``<s>`` and ``</s>`` into the next prompt, a conversation that no model was trained on.)
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from paddlemix.generation.features import Picture
from paddlemix.generation.predictor import Predictor
from paddlemix.generation.prefix import PrefixCache
from paddlemix.generation.prompt import Prompt
from paddlemix.generation.sampling import Decoding, DecodingField
from paddlemix.imaging.load import ImageSource
from paddlemix.text.batching import as_list
from paddlemix.text.messages import Message
from paddlemix.utils.constants import IMAGE_TOKEN
from paddlemix.utils.errors import ConfigError, DataError
from paddlemix.utils.logging import get_logger

Images: TypeAlias = ImageSource | Sequence[ImageSource] | None
"""The images of one question: some, one that stands alone, or none."""


@dataclass(frozen=True, eq=False)
class Turn:
    """One question with its images, and its answer (None while it is open)."""

    text: str
    pictures: tuple[Picture, ...] = ()
    answer: str | None = None


@dataclass(frozen=True)
class Stats:
    """What the last round was: its prompt and ids, its positions, and how many images went through the tower."""

    prompt: str
    prompt_rows: int
    reused_rows: int
    encoded_pictures: int
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]


class ChatSession:
    """A conversation. ``ask`` streams the answer to one question; the images and the cache stay for the next.

    ``context`` is the number of positions (prompt and answer) the model can hold, by default what its config says.
    When a round needs more, the oldest turns are dropped and ``note`` is called with a sentence that says so; their
    images move to the front of the oldest turn that stays, and are themselves dropped only when nothing else is left
    to drop.
    A session belongs to one thread.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        decoding: Decoding | None = None,
        system: str | None = None,
        context: int | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        self.predictor = predictor
        self.decoding = predictor.decoding(decoding)
        if system is not None and IMAGE_TOKEN in system:
            raise ConfigError(f'the system prompt holds "{IMAGE_TOKEN}"; images belong to a question')
        self.system = system
        self.context = context or predictor.context
        self.note = note or get_logger(__name__).warning
        self.turns: list[Turn] = []
        self.stats: Stats | None = None
        self._cache = PrefixCache()

    @property
    def about(self) -> str:
        """One line for the person: device, dtype, template."""
        return self.predictor.about

    def reset(self) -> None:
        """Forget the conversation. The features of its images are kept."""
        self.turns = []
        self.stats = None
        self._cache.clear()

    def answer(self, text: str, images: Images = (), **changes: DecodingField) -> str:
        """The whole answer at once: what ``ask`` streams, stripped."""
        return "".join(self.ask(text, images, **changes)).strip()

    def ask(self, text: str, images: Images = (), **changes: DecodingField) -> Iterator[str]:
        """Stream the answer to ``text``, piece by piece.

        ``images`` are paths, URLs, bytes or PIL images, or one of them. If the text holds no ``<image>``, they are
        put in front of it, each on a line of its own; else it holds one for each of them. ``changes`` replace fields of
        ``decoding`` for this answer. Work begins with the first piece. Closing the iterator keeps what was said so far
        as the answer; an interrupt does the same. A question to which nothing was said is not kept.
        DataError when the question alone is longer than the context, or an image cannot be used.
        """
        decoding = self.decoding.with_changes(**changes)
        encoded = self.predictor.features.encoded
        turn = Turn(text, self._pictures(text, images))
        encoded = self.predictor.features.encoded - encoded
        wanted = decoding.max_new_tokens
        turns, prompt, decoding = self._fit([*self.turns, turn], decoding)
        said: list[str] = []
        finished = False
        pieces = self.predictor.stream(prompt, decoding, cache=self._cache, draw=(len(self.turns),))
        try:
            for piece in pieces:
                said.append(piece)
                yield piece
            finished = True
            if pieces.finish == "length" and decoding.max_new_tokens < wanted:
                self.note(
                    f"the answer was cut after {decoding.max_new_tokens} tokens: the context of {self.context} is full"
                )
        finally:
            pieces.close()
            self.stats = Stats(prompt.text, prompt.length, pieces.reused, encoded, prompt.ids, pieces.ids)
            # An image place that the model wrote itself has no image, so it cannot stay one.
            answer = "".join(said).replace(IMAGE_TOKEN, "").strip()
            if answer or finished:
                self.turns = [*turns[:-1], replace(turns[-1], answer=answer)]

    def batch(
        self,
        texts: Sequence[str],
        images: Sequence[Images] = (),
        *,
        batch_size: int | None = None,
        **changes: DecodingField,
    ) -> list[str]:
        """Answers to independent questions, which neither see the conversation nor stay in it.

        ``images`` is empty, or has an entry for each question: None, one image, or a sequence of them.
        ``batch_size`` questions share a step (default: all); each gets the answer that it gets alone, where random ones
        of one ``seed`` are drawn by the number of the question. ``changes`` replace fields of ``decoding``. DataError
        names a question that is longer than the context.
        """
        if images and len(images) != len(texts):
            raise DataError(f"{len(texts)} questions and {len(images)} entries of images; give one for each, or none")
        turns = [
            Turn(text, self._pictures(text, own)) for text, own in zip(texts, images or [()] * len(texts), strict=True)
        ]
        prompts = [self._prompt([turn]) for turn in turns]
        longest = max((prompt.length for prompt in prompts), default=0)
        if longest >= self.context:
            number = next(i for i, prompt in enumerate(prompts) if prompt.length == longest)
            raise DataError(
                f"question {number} needs {longest} of the {self.context} positions of the model's context and leaves "
                "none for an answer; shorten it or send fewer images"
            )
        decoding = self.decoding.with_changes(**changes)
        answers = self.predictor.answer(prompts, decoding, batch_size=batch_size, context=self.context)
        for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            room = self.context - prompt.length
            if answer.finish == "length" and room < decoding.max_new_tokens:
                self.note(f"answer {number} was cut after {room} tokens: the context of {self.context} is full")
        return [answer.text for answer in answers]

    def _pictures(self, text: str, images: Images) -> tuple[Picture, ...]:
        images = as_list(images)
        places = text.count(IMAGE_TOKEN)
        if places and places != len(images):
            raise DataError(
                f'the question holds {places} "{IMAGE_TOKEN}" and comes with {len(images)} images; leave the places '
                "out to have the images put in front, or write one for each"
            )
        return tuple(self.predictor.picture(source) for source in images)

    def messages(self, turns: Sequence[Turn] | None = None) -> list[Message]:
        """The conversation as messages; image places are ``<image>``."""
        found = [Message("system", self.system)] if self.system is not None else []
        for turn in self.turns if turns is None else turns:
            found += self.predictor.question(turn.text, len(turn.pictures))
            if turn.answer is not None:
                found.append(Message("assistant", turn.answer))
        return found

    def _prompt(self, turns: Sequence[Turn]) -> Prompt:
        return self.predictor.prompt(self.messages(turns), [picture for turn in turns for picture in turn.pictures])

    def _fit(self, turns: list[Turn], decoding: Decoding) -> tuple[list[Turn], Prompt, Decoding]:
        """Turns that leave room for the answer, their prompt, and the decoding with no more tokens than there is room.

        Turns make way for ``max_new_tokens``, but for no more than a quarter of the context: with a small context the
        usual 512 would leave no conversation at all.
        """
        dropped_turns = dropped_pictures = 0
        own = len(turns[-1].pictures)
        reserve = min(decoding.max_new_tokens, max(1, self.context // 4))
        while True:
            prompt = self._prompt(turns)
            if prompt.length + reserve <= self.context:
                break
            if len(turns) > 1:
                turns = _without_oldest(turns)
                dropped_turns += 1
            elif len(turns[0].pictures) > own:
                turns = [replace(turns[0], pictures=turns[0].pictures[1:])]
                dropped_pictures += 1
            elif prompt.length < self.context:
                break
            else:
                raise DataError(
                    f"the question needs {prompt.length} of the {self.context} positions of the model's context and "
                    "leaves none for an answer; shorten it or send fewer images"
                )
        if dropped_turns or dropped_pictures:
            self.note(
                f"the conversation no longer fits the context of {self.context} tokens: dropped the oldest "
                f"{dropped_turns} turn(s) and {dropped_pictures} image(s)"
            )
        room = min(decoding.max_new_tokens, self.context - prompt.length)
        return turns, prompt, decoding.with_changes(max_new_tokens=room)


def _without_oldest(turns: list[Turn]) -> list[Turn]:
    """The turns but for the first, whose images move to the front of the second."""
    first, second = turns[:2]
    return [replace(second, pictures=first.pictures + second.pictures), *turns[2:]]
