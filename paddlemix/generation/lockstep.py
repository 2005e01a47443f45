# SPDX-License-Identifier: Apache-2.0
"""One model over several cards (tensor parallel): the first card's process is asked, the others do each step with it.

The first process (``LeadingPredictor``) tells the others what it is about to do, command by command: an image to
encode, a prompt to take, one step of a batch. All of them then make the same calls of the model, which meet in its
sums. What has to be decided is decided once: the first process picks the ids and sends them, so that rounding that
differs between cards can never let them part.
"""

import itertools
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import paddle

from paddlemix.checkpoint.holding import bits_held
from paddlemix.checkpoint.sources import find_sources
from paddlemix.generation.answers import AnswerReader, AnswerStream
from paddlemix.generation.continuous import ContinuousBatch, Row
from paddlemix.generation.engine import encode_images
from paddlemix.generation.features import Picture
from paddlemix.generation.group import Group, GroupLostError, Shown, Value, in_step
from paddlemix.generation.predictor import Predictor
from paddlemix.generation.prefix import PrefixCache
from paddlemix.generation.prefix_store import PrefixStore
from paddlemix.generation.prompt import Prompt
from paddlemix.generation.sampling import Decoding
from paddlemix.imaging.processor import Processed
from paddlemix.models.llava import LlavaForCausalLM, build_empty
from paddlemix.ops.parallel import TensorParallel
from paddlemix.utils import device as devices
from paddlemix.utils.errors import BackendError, ConfigError
from paddlemix.utils.options import current

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from paddlemix.generation.predictor import Opening

T = TypeVar("T")


def lead(path: str | Path, cards: int, **opening: "Unpack[Opening]") -> "LeadingPredictor":
    """Open the model in ``path`` over the first ``cards`` cards of a kind, and start the processes of the others.

    ConfigError or CheckpointError before any is started when the model cannot be divided so, or is not whole.
    """
    name, kind = current().cards, devices.choose(opening.pop("device", None), opening.get("dtype")).name
    if ":" in kind:
        raise ConfigError(f"device {kind} is one card, and {name} is {cards}; name its kind, {kind.split(':')[0]}")
    if kind != "cpu":
        devices.choose(f"{kind}:{cards - 1}")
    named = {name: opening.get(name) for name in ("base", "vision_tower", "projector")}
    sources = find_sources(path, **named)
    in_sixteen = kind == "cpu" and opening.get("dtype") == "bfloat16"
    bits = bits_held(sources, opening.get("bits") or (16 if in_sixteen else None))
    if bits is not None:
        raise ConfigError(f"{path}: weights of {bits} bits are not divided among {cards} cards; leave out {name}")
    build_empty(sources.config, TensorParallel(0, cards, name=name))
    group = Group(kind, cards, {"path": str(path), "opening": dict(opening)})
    found = LeadingPredictor.load(path, parallel=group.join(), device=name_of(kind, 0), **opening)
    group.wait()
    found.group, found.prefixes = group, common_store(found.model)
    found.about += f"; over {cards} cards"
    return found


def require_no_beams(decoding: Decoding) -> None:
    """ConfigError for a search with beams, which is not divided over cards."""
    if decoding.num_beams > 1:
        raise ConfigError(f"{decoding.num_beams} beams need one card; ask for 1 beam, or leave out {current().cards}")


def common_store(model: LlavaForCausalLM) -> PrefixStore:
    """A store that keeps and lets go of the same rows on all cards, also where they hold unequal parts of them."""
    heads, parallel = model.config.text.num_key_value_heads, model.parallel
    own, most = parallel.share(heads).count, -(-heads // parallel.size)
    return PrefixStore(size=lambda row: row.bytes // own * most)


def name_of(kind: str, card: int) -> str:
    """The device of a card, as ``paddle.set_device`` takes it."""
    return kind if kind == "cpu" else f"{kind}:{card}"


class LeadingPredictor(Predictor):
    """The first card's share of a model; every call of the model is made by all cards together."""

    group: Group

    def __init__(self, *args: Any, **fields: Any) -> None:
        super().__init__(*args, **fields)
        self.numbers = itertools.count()
        self._encoded_as: weakref.WeakKeyDictionary[Picture, int] = weakref.WeakKeyDictionary()
        self._gone: deque[tuple[str, int]] = deque()

    def tell(self, *message: Value) -> None:
        """Send a command, after those that let go of what nobody here holds any more."""
        with in_step():
            while self._gone:
                self.group.send(*self._gone.popleft())
            self.group.send(*message)

    def together(self, work: Callable[[], T], *message: Value) -> T:
        """``work`` here and what ``message`` means there, as one. GroupLostError when it cannot be finished."""
        with in_step():
            self.tell(*message)
            try:
                return work()
            except GroupLostError:
                raise
            except Exception as error:
                self.group.lost()
                raise GroupLostError(f"the cards are no longer in step: {type(error).__name__}: {error}") from error

    def hold(self, thing: "LeadingBatch | Picture", number: int, ending: str) -> None:
        """The others hold something under a number as long as this process holds ``thing``."""
        weakref.finalize(thing, self._gone.append, (ending, number))

    def _made(self, key: bytes, processed: Processed, among: Picture | None = None) -> Picture:
        number = next(self.numbers)
        make = super()._made
        found = self.together(lambda: make(key, processed, among), "encode", number, processed.pixels)
        self._encoded_as[found] = number
        self.hold(found, number, "forget")
        return found

    def shown(self, prompt: Prompt) -> Shown:
        """A prompt for the others: they have the features of its images already."""
        return prompt.ids, prompt.text, [
            (picture.key, picture.layout, self._encoded_as[picture]) for picture in prompt.pictures
        ]  # fmt: skip

    def new_batch(self, slots: int, *, keep_answers: bool = False) -> "LeadingBatch":
        """As ``Predictor`` has it, on all cards."""
        return LeadingBatch(self, slots, keep_answers=keep_answers)

    def stream(
        self,
        prompt: Prompt,
        decoding: Decoding | None = None,
        *,
        cache: PrefixCache | None = None,
        cancel: Callable[[], bool] | None = None,
        draw: Sequence[int] = (0,),
    ) -> AnswerStream:
        """As ``Predictor`` has it. What was run of a conversation is kept for all of them, so ``cache`` has no use."""
        decoding = self.decoding(decoding)
        require_no_beams(decoding)
        cache = PrefixCache() if cache is None else cache
        reader = self.reader(decoding)
        return _LeadingStream(self, prompt, decoding, reader, cache=cache, cancel=cancel, draw=draw)

    def scores(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """As ``Predictor`` has it [prompts, words], on all cards."""
        shown = [self.shown(prompt) for prompt in prompts]
        return self.together(lambda: super(LeadingPredictor, self).scores(prompts), "scores", shown)


class LeadingBatch(ContinuousBatch):
    """A batch of which the other cards have a copy each."""

    def __init__(self, predictor: LeadingPredictor, slots: int, *, keep_answers: bool) -> None:
        super().__init__(predictor.model, slots, prefixes=predictor.prefixes, keep_answers=keep_answers)
        self._predictor = predictor
        self._number = next(predictor.numbers)
        self._numbers: weakref.WeakKeyDictionary[Row, int] = weakref.WeakKeyDictionary()
        predictor.tell("batch", self._number, slots, keep_answers)
        predictor.hold(self, self._number, "end")

    def submit(self, prompt: Prompt, decoding: Decoding, draw: Sequence[int] = (0,)) -> Row:
        """As ``ContinuousBatch`` has it."""
        with in_step():
            row = super().submit(prompt, decoding, draw)
            self._numbers[row] = next(self._predictor.numbers)
            shown = self._predictor.shown(prompt)
            self._predictor.tell("submit", self._number, self._numbers[row], shown, decoding, tuple(draw))
        return row

    def cancel(self, row: Row) -> None:
        """As ``ContinuousBatch`` has it."""
        with in_step():
            if row.open:
                self._predictor.tell("cancel", self._number, self._numbers[row])
            super().cancel(row)

    def step(self) -> list[tuple[Row, int]]:
        """As ``ContinuousBatch`` has it; GroupLostError when the cards are no longer in step."""
        return self._predictor.together(super().step, "step", self._number)

    def _pick(self, scores: paddle.Tensor, rows: list[Row]) -> list[int]:
        try:
            found = super()._pick(scores, rows)
        except BackendError:
            self._predictor.group.send(None)
            raise
        self._predictor.group.send(found)
        return found


class _LeadingStream(AnswerStream):
    """One answer as the only row of a batch."""

    def __init__(
        self, predictor: LeadingPredictor, prompt: Prompt, decoding: Decoding, reader: AnswerReader, **how: Any
    ) -> None:
        super().__init__(predictor.model, prompt, decoding, reader, **how)
        self._predictor, self._draw = predictor, how["draw"]

    def _run(self) -> Iterator[str]:
        batch = self._predictor.new_batch(1, keep_answers=True)
        row = batch.submit(self.prompt, self.decoding, self._draw)
        self._sampler = row.sampler
        try:
            while self._reader.finish is None and row.open:
                for _, token in batch.step():
                    self.reused = row.reused
                    piece = self._reader.put(token)
                    if piece:
                        yield piece
                    if self._cancel is not None and self._cancel():
                        self._reader.finish = self._reader.finish or "cancelled"
            if row.error is not None:
                raise row.error
        finally:
            batch.cancel(row)


class _FollowingBatch(ContinuousBatch):
    """A copy of the first card's batch, whose ids come from there."""

    receive: Callable[[], Any]

    def _pick(self, scores: paddle.Tensor, rows: list[Row]) -> list[int]:
        (found,) = self.receive()
        if found is None:
            raise BackendError("the first card's scores are not finite")
        return found


class Follower:
    """Does what the first card's process says. ``receive`` waits for the next message."""

    def __init__(self, predictor: Predictor, receive: Callable[[], Any]) -> None:
        self._predictor = predictor
        self._predictor.prefixes = common_store(predictor.model)
        self._receive = receive
        self._features: dict[int, paddle.Tensor] = {}
        self._batches: dict[int, _FollowingBatch] = {}
        self._rows: dict[int, dict[int, Row]] = {}

    def run(self) -> None:
        """Serve until the process is ended."""
        while True:
            command, *values = self._receive()
            getattr(self, f"do_{command}")(*values)

    def do_encode(self, number: int, pixels: np.ndarray) -> None:
        """Features of an image (pixels [N, 3, S, S]), kept under a number."""
        self._features[number] = encode_images(self._predictor.model, pixels)

    def do_forget(self, number: int) -> None:
        """The first process holds the image no more."""
        del self._features[number]

    def do_batch(self, number: int, slots: int, keep_answers: bool) -> None:
        """A new batch."""
        predictor = self._predictor
        batch = _FollowingBatch(predictor.model, slots, prefixes=predictor.prefixes, keep_answers=keep_answers)
        batch.receive = self._receive
        self._batches[number], self._rows[number] = batch, {}

    def do_end(self, number: int) -> None:
        """A batch that nobody asks any more."""
        del self._batches[number], self._rows[number]

    def do_submit(self, batch: int, number: int, shown: Shown, decoding: Decoding, draw: Sequence[int]) -> None:
        """A row for a batch."""
        self._rows[batch][number] = self._batches[batch].submit(self._prompt(shown), decoding, draw)

    def do_cancel(self, batch: int, number: int) -> None:
        """The end of a row."""
        self._batches[batch].cancel(self._rows[batch].pop(number))

    def do_step(self, batch: int) -> None:
        """One step of a batch."""
        self._batches[batch].step()
        rows = self._rows[batch]
        for number in [number for number, row in rows.items() if not row.open]:
            del rows[number]

    def do_scores(self, shown: Sequence[Shown]) -> None:
        """The scores behind some prompts, which the first process reads."""
        self._predictor.scores([self._prompt(prompt) for prompt in shown])

    def _prompt(self, shown: Shown) -> Prompt:
        ids, text, pictures = shown
        return Prompt(ids, text, tuple(Picture(key, layout, self._features[at]) for key, layout, at in pictures))
