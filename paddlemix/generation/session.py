# SPDX-License-Identifier: Apache-2.0
"""A conversation with a model: text and pictures in, text out, nothing computed twice.

Two things are kept between rounds. The feature rows of every picture (keyed by the picture's pixels and the
preprocessing) and the attention cache. A new round renders the whole conversation to ids, takes the longest common
prefix of these ids with those in the cache, trims the cache to it and runs only the rest. So the answer is the same as
that of a fresh session; when the text of an answer does not tokenize back to the ids that were generated, the rest of
that answer is run again instead of being believed.

The history holds an answer's text without special tokens and stripped. (The original's serve/cli.py puts the decoded
``<s>`` and ``</s>`` into the next prompt, a conversation that no model was trained on.)
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import paddle

from paddlemix.generation.engine import encode_images, generate
from paddlemix.generation.sampling import Decoding, Sampler
from paddlemix.imaging.layout import Layout
from paddlemix.imaging.load import load_image
from paddlemix.imaging.processor import ImageProcessor
from paddlemix.models.llava import LlavaForCausalLM
from paddlemix.models.llm.cache import KVCache
from paddlemix.splice.plan import Plan, PlanRow, build_plan
from paddlemix.text.chat_template import ChatTemplate
from paddlemix.text.messages import Message, first_turn_with_images
from paddlemix.text.render import render
from paddlemix.text.stream import TextStream
from paddlemix.text.templates import Template
from paddlemix.text.tokenizer import Tokenizer
from paddlemix.utils.constants import IMAGE_END_TOKEN, IMAGE_START_TOKEN, IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from paddlemix.utils.errors import ConfigError, DataError
from paddlemix.utils.logging import get_logger

KEPT_PICTURES = 32
"""Pictures whose features a session keeps although no turn holds them any more."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture of the conversation: what identifies it, where its rows go, and its features ``[N, P, D]``."""

    key: bytes
    layout: Layout
    features: paddle.Tensor


@dataclass(frozen=True, eq=False)
class Turn:
    """One question with its pictures, and its answer (None while it is open)."""

    text: str
    pictures: tuple[Picture, ...] = ()
    answer: str | None = None


@dataclass(frozen=True)
class Unit:
    """One entry of the id sequence: a text id of one row, or a picture (``key``) of ``rows`` rows."""

    token: int
    key: bytes = b""
    rows: int = 1


@dataclass(frozen=True)
class Stats:
    """What the last round was: its prompt and ids, its merged rows, and how many pictures went through the tower."""

    prompt: str
    prompt_rows: int
    reused_rows: int
    encoded_pictures: int
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]


class ChatSession:
    """A conversation. ``ask`` streams the answer to one question; the pictures and the cache stay for the next.

    ``context`` is the number of rows (prompt and answer) the model can hold, by default what its config says. When a
    round needs more, the oldest turns are dropped and ``note`` is called with a sentence that says so; their pictures
    move to the front of the oldest turn that stays, and are themselves dropped only when nothing else is left to drop.
    ``about`` is one line for the person: device, dtype, template (``load.load_chat`` writes it).
    A session belongs to one thread.
    """

    def __init__(
        self,
        model: LlavaForCausalLM,
        tokenizer: Tokenizer,
        processor: ImageProcessor | None,
        template: Template | ChatTemplate,
        *,
        decoding: Decoding | None = None,
        system: str | None = None,
        context: int | None = None,
        note: Callable[[str], None] | None = None,
        about: str = "",
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.processor = processor
        self.template = template
        decoding = (decoding or Decoding()).with_changes(vocab_size=tokenizer.vocab_size)
        ends = tuple(dict.fromkeys((tokenizer.eos_id, model.config.text.eos_token_id)))
        self.decoding = decoding if decoding.eos_ids else decoding.with_changes(eos_ids=ends)
        if system is not None and IMAGE_TOKEN in system:
            raise ConfigError(f'the system prompt holds "{IMAGE_TOKEN}"; pictures belong to a question')
        self.system = system
        self.context = context or context_of(model.config.text)
        self.note = note or get_logger(__name__).warning
        self.about = about
        self.turns: list[Turn] = []
        self.stats: Stats | None = None
        self._known: OrderedDict[bytes, Picture] = OrderedDict()
        self._cache: KVCache | None = None
        self._cached: list[Unit] = []
        self._encoded = 0

    def reset(self) -> None:
        """Forget the conversation. The features of its pictures are kept."""
        self.turns = []
        self.stats = None
        self._drop_cache()

    def answer(self, text: str, images: Sequence[Any] = (), **changes: Any) -> str:
        """The whole answer at once: what ``ask`` streams, stripped."""
        return "".join(self.ask(text, images, **changes)).strip()

    def ask(self, text: str, images: Sequence[Any] = (), **changes: Any) -> Iterator[str]:
        """Stream the answer to ``text``, piece by piece.

        ``images`` are paths, URLs, bytes or PIL pictures. If the text holds no ``<image>``, they are put in front of
        it, each on a line of its own; else it holds one for each of them. ``changes`` replace fields of ``decoding``
        for this answer. Work begins with the first piece. Closing the iterator keeps what was said so far as the
        answer; an interrupt does the same. A question to which nothing was said is not kept.
        DataError when the question alone is longer than the context, or a picture cannot be used.
        """
        decoding = self.decoding.with_changes(**changes)
        self._encoded = 0
        turn = Turn(text, self._pictures(text, images))
        wanted = decoding.max_new_tokens
        turns, decoding = self._fit([*self.turns, turn], decoding)
        said: list[str] = []
        finished = False
        pieces = self._stream(turns, decoding)
        try:
            for piece in pieces:
                said.append(piece)
                yield piece
            finished = True
            if self._was_cut(decoding, wanted):
                self.note(
                    f"the answer was cut after {decoding.max_new_tokens} tokens: the context of {self.context} is full"
                )
        finally:
            pieces.close()
            # A picture place that the model wrote itself has no picture, so it cannot stay one.
            answer = "".join(said).replace(IMAGE_TOKEN, "").strip()
            if answer or finished:
                self.turns = [*turns[:-1], replace(turns[-1], answer=answer)]

    # -- pictures ------------------------------------------------------------------------------------------------

    def _pictures(self, text: str, images: Sequence[Any]) -> tuple[Picture, ...]:
        places = text.count(IMAGE_TOKEN)
        if places and places != len(images):
            raise DataError(
                f'the question holds {places} "{IMAGE_TOKEN}" and comes with {len(images)} pictures; leave the places '
                "out to have the pictures put in front, or write one for each"
            )
        if images and self.processor is None:
            raise ConfigError("this model has no vision tower: ask without pictures, or load one that has")
        return tuple(self._picture(source) for source in images)

    def _picture(self, source: Any) -> Picture:
        image = load_image(source)
        digest = hashlib.sha256(f"{self.processor.image} {self.processor.vision} {image.size}".encode())
        digest.update(image.tobytes())
        key = digest.digest()
        if key not in self._known:
            processed = self.processor(image)
            self._known[key] = Picture(key, processed.layout, encode_images(self.model, processed.pixels))
            self._encoded += 1
        self._known.move_to_end(key)
        while len(self._known) > KEPT_PICTURES:
            self._known.popitem(last=False)
        return self._known.get(key)

    # -- the conversation as ids ---------------------------------------------------------------------------------

    def messages(self, turns: Sequence[Turn] | None = None) -> list[Message]:
        """The conversation as messages; picture places are ``<image>``."""
        found = [Message("system", self.system)] if self.system is not None else []
        for turn in self.turns if turns is None else turns:
            found += self._question(turn)
            if turn.answer is not None:
                found.append(Message("assistant", turn.answer))
        return found

    def _question(self, turn: Turn) -> list[Message]:
        """The messages of a turn's question; more than one where the template gives pictures a round of their own."""
        tags = self.model.config.use_im_start_end
        written = turn.text.count(IMAGE_TOKEN)
        if not written:
            return first_turn_with_images(
                turn.text, len(turn.pictures), mmtag=self.template.mmtag, use_im_start_end=tags
            )
        place = IMAGE_START_TOKEN + IMAGE_TOKEN + IMAGE_END_TOKEN if tags else IMAGE_TOKEN
        in_front = len(turn.pictures) - written
        return [Message("user", f"{place}\n" * in_front + turn.text.replace(IMAGE_TOKEN, place))]

    def _units(self, turns: Sequence[Turn]) -> tuple[list[Unit], list[int], str]:
        rendered = render(self.template, self.messages(turns), self.tokenizer, answer_open=True)
        ids = [int(token) for token in rendered.ids]
        pictures = iter([picture for turn in turns for picture in turn.pictures])
        units = []
        for token in ids:
            if token == IMAGE_TOKEN_INDEX:
                picture = next(pictures)
                units.append(Unit(token, picture.key, len(picture.layout.order)))
            else:
                units.append(Unit(token))
        return units, ids, rendered.text

    def _fit(self, turns: list[Turn], decoding: Decoding) -> tuple[list[Turn], Decoding]:
        """Turns that leave room for the answer, and the decoding with no more tokens than there is room for.

        Turns make way for ``max_new_tokens``, but for no more than a quarter of the context: with a small context the
        usual 512 would leave no conversation at all.
        """
        dropped_turns = dropped_pictures = 0
        own = len(turns[-1].pictures)
        reserve = min(decoding.max_new_tokens, max(1, self.context // 4))
        while True:
            rows = sum(unit.rows for unit in self._units(turns)[0])
            if rows + reserve <= self.context:
                break
            if len(turns) > 1:
                turns = _without_oldest(turns)
                dropped_turns += 1
            elif len(turns[0].pictures) > own:
                turns = [replace(turns[0], pictures=turns[0].pictures[1:])]
                dropped_pictures += 1
            elif rows < self.context:
                break
            else:
                raise DataError(
                    f"the question needs {rows} of the {self.context} positions of the model's context and leaves "
                    "none for an answer; shorten it or send fewer pictures"
                )
        if dropped_turns or dropped_pictures:
            self.note(
                f"the conversation no longer fits the context of {self.context} tokens: dropped the oldest "
                f"{dropped_turns} turn(s) and {dropped_pictures} picture(s)"
            )
        return turns, decoding.with_changes(max_new_tokens=min(decoding.max_new_tokens, self.context - rows))

    def _was_cut(self, decoding: Decoding, wanted: int) -> bool:
        """Whether the last answer ended only because the context did."""
        ids = self.stats.answer_ids
        full = len(ids) == decoding.max_new_tokens < wanted
        return full and ids[-1] not in decoding.eos_ids

    # -- running -------------------------------------------------------------------------------------------------

    def _drop_cache(self) -> None:
        self._cache = None
        self._cached = []

    def _stream(self, turns: Sequence[Turn], decoding: Decoding) -> Iterator[str]:
        units, ids, prompt = self._units(turns)
        prompt_rows = sum(unit.rows for unit in units)
        kept = self._keep_prefix(units)
        reused = self._cache.length
        plan, features = self._tail(ids[kept:], turns)
        answer_ids: list[int] = []
        stream = TextStream(self.tokenizer, self.template.stops)
        sampler = Sampler.of(decoding, (len(self.turns),))
        steps = generate(self.model, plan, None, decoding, features=features, cache=self._cache, samplers=[sampler])
        try:
            for (token,) in steps:
                answer_ids.append(token)
                piece = stream.put(token)
                if piece:
                    yield piece
                if stream.stopped:
                    break
            rest = stream.end()
            if rest:
                yield rest
        finally:
            steps.close()
            self._remember(units, answer_ids, prompt_rows, decoding)
            self.stats = Stats(prompt, prompt_rows, reused, self._encoded, tuple(ids), tuple(answer_ids))

    def _tail(self, ids: list[int], turns: Sequence[Turn]) -> tuple[Plan, paddle.Tensor | None]:
        """The plan of the ids that are not in the cache, and the features of the pictures among them."""
        pictures = [picture for turn in turns for picture in turn.pictures]
        pictures = pictures[len(pictures) - ids.count(IMAGE_TOKEN_INDEX) :]
        row = PlanRow(np.asarray(ids, dtype=np.int64), [picture.layout for picture in pictures])
        plan = build_plan([row], tokens_per_tile=self._rows_per_tile(), padding_side="left")
        return plan, paddle.concat([picture.features for picture in pictures]) if pictures else None

    def _rows_per_tile(self) -> int:
        vision = self.model.config.vision
        return vision.tokens_per_tile if vision is not None else 1

    def _keep_prefix(self, units: list[Unit]) -> int:
        """Trim the cache to what it shares with ``units``, at most all but the last; the number of shared units."""
        if self._cache is None:
            self._cache = self.model.new_cache(1)
            self._cached = []
        kept = common_prefix(self._cached, units[:-1])
        self._cached = self._cached[:kept]
        self._cache.trim(sum(unit.rows for unit in self._cached))
        return kept

    def _remember(self, units: list[Unit], answer_ids: list[int], prompt_rows: int, decoding: Decoding) -> None:
        """Write down which units the cache holds now, however the answer ended: prompt and ids that were fed again.

        The cache counts a step only when all layers are written, so an interrupt inside a step leaves it sound.
        """
        if decoding.num_beams > 1:
            if not answer_ids:
                self._drop_cache()  # an interrupted search leaves beams of which nobody knows the parents
                return
            self._cache.trim(prompt_rows)  # this much all beams have in common
            self._cache.reorder([0])
        fed = self._cache.length - prompt_rows
        if fed >= 0:
            self._cached = [*units, *(Unit(token) for token in answer_ids[:fed])]


def _without_oldest(turns: list[Turn]) -> list[Turn]:
    """The turns but for the first, whose pictures move to the front of the second."""
    first, second = turns[:2]
    return [replace(second, pictures=first.pictures + second.pictures), *turns[2:]]


def common_prefix(left: Sequence[Unit], right: Sequence[Unit]) -> int:
    """Length of the longest common prefix."""
    count = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        count += 1
    return count


def context_of(text: Any) -> int:
    """Rows that the language model can hold: its positions, times the factor of a scaling that stretches them.

    ``linear`` and ``dynamic`` scaling leave ``max_position_embeddings`` at the unscaled number; the others
    (``llama3``, ``yarn``, ``longrope``) write the scaled one. A sliding window is the limit where it is smaller.
    """
    scaling = text.rope_scaling or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    stretched = kind in {"linear", "dynamic"}
    rows = int(text.max_position_embeddings * (float(scaling.get("factor", 1.0)) if stretched else 1.0))
    return min(rows, text.sliding_window or rows)
