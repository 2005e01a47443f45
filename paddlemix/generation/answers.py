# SPDX-License-Identifier: Apache-2.0
"""Token ids become an answer: read up to its end, and streamed one piece at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from paddlemix.generation.engine import generate
from paddlemix.generation.prefix import PrefixCache
from paddlemix.generation.prompt import Prompt, plan_of
from paddlemix.generation.sampling import Decoding, Sampler, TokenLogprob
from paddlemix.models.answering import AnsweringModel
from paddlemix.text.stream import TextStream
from paddlemix.text.tokenizer import Tokenizer
from paddlemix.utils.constants import IMAGE_TOKEN

Finish = Literal["stop", "length", "cancelled"]
"""Why an answer ended: an ending id or a stop string, ``max_new_tokens``, or whoever asked for it."""


@dataclass(frozen=True)
class Answer:
    """One answer: its text without white space around it, its ids (the ending one included), and why it ended."""

    text: str
    ids: tuple[int, ...]
    finish: Finish
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each id, when the decoding asks for them."""


class AnswerReader:
    """Ids of one answer to text, up to the ending id, a stop string or the limit. ``finish`` is None until then."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], decoding: Decoding) -> None:
        self.ids: list[int] = []
        self.finish: Finish | None = None
        self._decoding = decoding
        self._stream = TextStream(tokenizer, stops)
        self._text: list[str] = []

    def put(self, token: int) -> str:
        """The text that the next id makes certain; nothing after the end."""
        if self.finish is not None:
            return ""
        self.ids.append(token)
        piece = self._stream.put(token)
        if self._stream.stopped or token in self._decoding.ends:
            self.finish = "stop"
        elif len(self.ids) >= self._decoding.max_new_tokens:
            self.finish = "length"
        if self.finish:
            piece += self._stream.end()
        self._text.append(piece)
        return piece

    def answer(self, sampler: Sampler) -> Answer:
        """What was said so far. An image place that the model wrote itself has no image, so it is left out.

        ``sampler`` is the one that drew the ids.
        """
        text = "".join(self._text).replace(IMAGE_TOKEN, "").strip()
        return Answer(text, tuple(self.ids), self.finish or "cancelled", tuple(sampler.logprobs[: len(self.ids)]))


class AnswerStream(Iterator[str]):
    """Pieces of one answer. ``close`` ends it early; the cache stays usable for the next prompt however it ended.

    ``reused`` are the positions that came from the cache, known from the first piece on. ``cancel`` is asked after
    every token. ``draw`` tells the random answers of one seed apart.
    """

    def __init__(
        self,
        model: AnsweringModel,
        prompt: Prompt,
        decoding: Decoding,
        reader: AnswerReader,
        *,
        cache: PrefixCache,
        cancel: Callable[[], bool] | None = None,
        draw: Sequence[int] = (0,),
    ) -> None:
        self.prompt = prompt
        self.decoding = decoding
        self.reused = 0
        self._model, self._reader, self._cache = model, reader, cache
        self._cancel, self._sampler = cancel, Sampler(decoding, draw)
        self._pieces = self._run()

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids of the answer so far, its ending id included."""
        return tuple(self._reader.ids)

    @property
    def finish(self) -> Finish | None:
        """Why the answer ended; None while it runs."""
        return self._reader.finish

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """End the answer here."""
        self._reader.finish = self._reader.finish or "cancelled"
        self._pieces.close()

    def read(self) -> Answer:
        """The rest of the answer at once, and all of it as one value."""
        for _ in self._pieces:
            pass
        return self._reader.answer(self._sampler)

    def _run(self) -> Iterator[str]:
        slots = self.prompt.slots
        kept = self._cache.keep(self._model, slots)
        self.reused = self._cache.keys_values.length
        plan, features = plan_of([self.prompt], self._model.config.tokens_per_tile, skip=kept)
        cache, samplers = self._cache.keys_values, [self._sampler]
        steps = generate(self._model, plan, None, self.decoding, features=features, cache=cache, samplers=samplers)
        try:
            for (token,) in steps:
                piece = self._reader.put(token)
                if piece:
                    yield piece
                if self._cancel is not None and self._cancel():
                    self._reader.finish = self._reader.finish or "cancelled"
                if self._reader.finish:
                    break
        finally:
            steps.close()
            self._cache.note(slots, self._reader.ids, beams=self.decoding.num_beams > 1)
