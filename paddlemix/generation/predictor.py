# SPDX-License-Identifier: Apache-2.0
"""The one way to ask a model: messages and images in, a stream of text or a batch of answers out.

The chat, the batch tools, the demo, serving and evaluation stand on it. So they open a folder alike, write the same
prompt for the same conversation, end an answer at the same ids and stop strings, and share the features of images.

    predictor = Predictor.load("liuhaotian/llava-v1.5-7b")
    prompt = predictor.prompt(predictor.question("What is this?", pictures=1), [predictor.picture("a.png")])
    prompt = predictor.prompt(read_messages([{"role": "user", "content": [...]}]))  # datasets.rows
    for piece in predictor.stream(prompt): ...
    answers = predictor.answer([prompt, other_prompt], Decoding(max_new_tokens=16))
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

import numpy as np
import paddle

from paddlemix.checkpoint.folders import ending_ids
from paddlemix.checkpoint.load import Loaded, load_model
from paddlemix.generation.answers import Answer, AnswerReader, AnswerStream
from paddlemix.generation.continuous import ContinuousBatch, Row
from paddlemix.generation.engine import encode_images, next_scores
from paddlemix.generation.features import FeatureCache, Picture, Prepared, key_of, prepared
from paddlemix.generation.folder import context_of, picture_tokens, processor_for, template_for
from paddlemix.generation.prefix import PrefixCache
from paddlemix.generation.prefix_store import PrefixStore
from paddlemix.generation.prompt import Prompt, plan_of
from paddlemix.generation.sampling import Decoding
from paddlemix.imaging.load import OWN_LIMITS, ImageSource, load_image
from paddlemix.imaging.processor import Frames, ImageProcessor, Processed
from paddlemix.models.answering import AnsweringModel
from paddlemix.ops import few_rows
from paddlemix.ops.parallel import ALONE, TensorParallel
from paddlemix.text.chat_template import ChatTemplate
from paddlemix.text.messages import Conversation, Message, placed_messages, question
from paddlemix.text.render import render
from paddlemix.text.templates import Template
from paddlemix.text.tokenizer import Tokenizer, load_tokenizer
from paddlemix.text.vocabulary import fit_rows
from paddlemix.utils import device as devices
from paddlemix.utils.constants import IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from paddlemix.utils.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL.Image import Image
    from typing_extensions import Self, Unpack


class Opening(TypedDict, total=False):
    """How a model is opened, besides its path: the keywords of ``Predictor.load`` and of all that stands on it."""

    base: str | None
    """Needed only where the folder does not say (or no longer finds) what it belongs to."""
    device: str | None
    """``cpu``, ``gpu[:N]``, ``npu[:N]``; None is the best there is (``utils.device.choose``)."""
    dtype: str | None
    """``float32``, ``float16`` or ``bfloat16``; None is what the device computes best in."""
    conv_mode: str | None
    """Replaces the folder's template. Without it a PaddleNLP ``chat_template.json`` counts, else the configuration."""
    vision_tower: str | None
    projector: str | None
    lora: Literal["merge", "keep"]
    """``keep``: an adapter stays beside the weights, and nothing is fused."""
    beside: "Predictor | None"
    """The model that an adapter was trained on, opened with ``keep``: what both have is in memory once."""
    bits: int | None
    """8 or 4: hold the weights in so many bits; None: as they are stored."""


class Predictor:
    """A model that can be asked. ``features`` and ``prefixes`` are shared by everybody who asks it; it belongs to one
    thread.

    ``ends`` are the ids that end an answer; ``about`` is one line for the person: device, dtype, template. ``loaded``
    is where the weights came from when they were opened with ``lora="keep"``.
    """

    def __init__(
        self,
        model: AnsweringModel,
        tokenizer: Tokenizer,
        processor: ImageProcessor | None,
        template: Template | ChatTemplate,
        *,
        ends: Sequence[int] = (),
        about: str = "",
        features: FeatureCache | None = None,
        prefixes: PrefixStore | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.processor = processor
        self.template = template
        self.ends = tuple(dict.fromkeys((tokenizer.eos_id, model.config.text.eos_token_id, *ends)))
        self.about = about
        self.features = FeatureCache() if features is None else features
        self.prefixes = PrefixStore() if prefixes is None else prefixes
        self.loaded: Loaded | None = None

    @classmethod
    def load(cls, path: str | Path, *, parallel: TensorParallel = ALONE, **opening: "Unpack[Opening]") -> "Self":
        """Open what is in ``path``: an original, llava-hf or own folder, a LoRA adapter, or a projector.

        Of ``generation_config.json`` the ending ids are taken, and nothing of how to sample. ``parallel``: this process
        is one of several that share the model (``generation.load.load_predictor`` starts them).
        """
        conv_mode, lora = opening.pop("conv_mode", None), opening.setdefault("lora", "merge")
        beside = opening.pop("beside", None)
        chosen = _chosen(opening)
        paddle.set_device(chosen.name)
        share = None if beside is None else beside.loaded
        loaded = load_model(path, dtype=chosen.dtype, beside=share, parallel=parallel, **opening)
        few_rows.prepare(loaded.model.parameters())
        if lora == "merge":
            loaded.model.prepare_inference()
        config, tokenizer = loaded.config, load_tokenizer(loaded.tokenizer_folder)
        few = "" if loaded.model.bits is None else f"; weights of {loaded.model.bits} bits"
        fit_rows(tokenizer, config.text.vocab_size)
        template = template_for(loaded.template_folder, config, conv_mode)
        found = cls(
            loaded.model,
            tokenizer,
            processor_for(config),
            template,
            ends=ending_ids(loaded.folder, loaded.base),
            about=f"{path}: {chosen.reason}{few}; template {template.name}; {picture_tokens(config)}",
        )
        if lora == "keep":
            found.loaded = loaded
        return found

    @property
    def context(self) -> int:
        """Positions, prompt and answer together, that the model can hold."""
        return context_of(self.model.config.text)

    def picture(self, source: ImageSource | Frames | Prepared) -> Picture:
        """An image (path, address, bytes, PIL, or one that is prepared), or the frames of a video, with its features.

        ConfigError for a model without a tower.
        """
        if isinstance(source, Prepared):
            return self.features.get(source.key, lambda: self._encoded(source))
        processor = self.image_processor
        if isinstance(source, Frames):
            return self._video([load_image(frame, OWN_LIMITS) for frame in source.pictures])
        image = load_image(source, OWN_LIMITS)
        return self.features.get(key_of(image, processor), lambda: self._encoded(prepared(image, processor)))

    @property
    def image_processor(self) -> ImageProcessor:
        """What images go through; ConfigError for a model without a tower."""
        if self.processor is None:
            raise ConfigError("this model has no vision tower: ask without images, or load one that has")
        return self.processor

    def _video(self, frames: "Sequence[Image]") -> Picture:
        keys = b"".join(key_of(frame, self.processor) for frame in frames)
        key = hashlib.sha256(b"video" + keys).digest()

        def encoded() -> Picture:
            processed = self.processor.video(frames)
            return self._made(key, processed)

        return self.features.get(key, encoded)

    def _encoded(self, image: Prepared) -> Picture:
        among = None if image.among is None else self._encoded(image.among)
        return self._made(image.key, image.processed, among)

    def _made(self, key: bytes, processed: Processed, among: Picture | None = None) -> Picture:
        return Picture(key, processed.layout, encode_images(self.model, processed.pixels), among)

    def question(self, text: str, pictures: int = 0) -> list[Message]:
        """The messages of a person's question with so many images, as the model's template wants them."""
        tags = self.model.config.use_im_start_end
        return question(text, pictures, mmtag=self.template.mmtag, use_im_start_end=tags)

    def prompt(self, asked: Conversation | Sequence[Message], pictures: Sequence[Picture] | None = None) -> Prompt:
        """The prompt for the next answer. The texts hold one ``<image>`` for each image, in their order.

        A ``Conversation`` (``datasets.rows``) gets its marks where the training puts them, so that its ids are those
        that a row is trained with; ``pictures`` None opens its images. Messages alone are taken as they are written.
        DataError when the numbers differ or the messages are out of order.
        """
        messages: Sequence[Message] = asked.messages if isinstance(asked, Conversation) else asked
        if isinstance(asked, Conversation):
            sources = [Frames(asked.images)] if asked.video else asked.images
            pictures = [self.picture(image) for image in sources] if pictures is None else pictures
            tags = self.model.config.use_im_start_end
            messages = placed_messages(messages, layout=self.template, images=len(pictures), use_im_start_end=tags)
        pictures = pictures or ()
        if len(pictures) > 1:
            pictures = [picture.among or picture for picture in pictures]
        rendered = render(self.template, messages, self.tokenizer, answer_open=True)
        ids = tuple(int(token) for token in rendered.ids)
        places = ids.count(IMAGE_TOKEN_INDEX)
        if places != len(pictures):
            raise DataError(
                f'the conversation holds {places} "{IMAGE_TOKEN}" and comes with {len(pictures)} images; '
                "each mark needs one image"
            )
        return Prompt(ids, rendered.text, tuple(pictures))

    def decoding(self, decoding: Decoding | None = None) -> Decoding:
        """``decoding`` (default: greedy) with what the model and its tokenizer say: ending ids, padding, known ids."""
        decoding = decoding or Decoding()
        return decoding.with_changes(
            eos_ids=decoding.eos_ids or self.ends,
            pad_id=self.tokenizer.pad_id,
            vocab_size=decoding.vocab_size or self.tokenizer.vocab_size,
        )

    def stream(
        self,
        prompt: Prompt,
        decoding: Decoding | None = None,
        *,
        cache: PrefixCache | None = None,
        cancel: Callable[[], bool] | None = None,
        draw: Sequence[int] = (0,),
    ) -> AnswerStream:
        """The answer, piece by piece; the work of a step begins when its piece is asked for.

        ``cache`` is what an earlier prompt of the same conversation left: only what is new is run, and the answer is
        the same. ``cancel`` is asked after every token. ``draw`` tells the random answers of one seed apart.
        """
        decoding = self.decoding(decoding)
        cache = PrefixCache() if cache is None else cache
        return AnswerStream(self.model, prompt, decoding, self.reader(decoding), cache=cache, cancel=cancel, draw=draw)

    def reader(self, decoding: Decoding) -> AnswerReader:
        """What makes text of the ids of one answer; ``decoding`` is one that ``decoding()`` has completed."""
        return AnswerReader(self.tokenizer, (*self.template.stops, *decoding.stop), decoding)

    def answer(
        self,
        prompts: Sequence[Prompt],
        decoding: Decoding | None = None,
        *,
        batch_size: int | None = None,
        draws: Sequence[Sequence[int]] | None = None,
        context: int | None = None,
    ) -> list[Answer]:
        """The answers to independent prompts, in their order; ``batch_size`` of them share a step (default: all).

        The longest come first. ``draws`` tell the random answers of one seed apart (default: the number of the
        prompt), so that an answer does not depend on who shares its batch. Each ends where the ``context`` does, the
        positions of prompt and answer (default: the model's), if not before.
        """
        order = sorted(range(len(prompts)), key=lambda number: -prompts[number].length)
        draws = [(0, number) for number in range(len(prompts))] if draws is None else draws
        asked = ((prompts[number], draws[number]) for number in order)
        answers = self.answers(asked, decoding, slots=batch_size or max(1, len(prompts)), context=context)
        found = {order[place]: answer for place, answer in answers}
        return [found[number] for number in range(len(prompts))]

    def answers(
        self,
        asked: Iterable[tuple[Prompt, Sequence[int]]],
        decoding: Decoding | None = None,
        *,
        slots: int = 8,
        context: int | None = None,
    ) -> Iterator[tuple[int, Answer]]:
        """Number and answer of each prompt of ``asked`` (with its draw), as they end.

        A prompt is taken from ``asked`` when one of the ``slots`` is free, so those that come later need not be made.
        ``context``: see ``answer``. BackendError when the scores of a prompt are not finite.
        """
        decoding, source = self.decoding(decoding), enumerate(asked)
        context = context or self.context
        if decoding.num_beams > 1:
            for number, (prompt, draw) in source:
                yield number, self.stream(prompt, _fitted(decoding, context - prompt.length), draw=draw).read()
            return
        batch = self.new_batch(slots)
        open_rows: dict[Row, tuple[int, AnswerReader]] = {}
        while True:
            while len(open_rows) < slots and (taken := next(source, None)) is not None:
                number, (prompt, draw) = taken
                own = _fitted(decoding, context - prompt.length)
                open_rows[batch.submit(prompt, own, draw)] = number, self.reader(own)
            if not open_rows:
                return
            for row, token in batch.step():
                open_rows[row][1].put(token)
            for row in [row for row, (_, reader) in open_rows.items() if reader.finish or not row.open]:
                if row.error is not None:
                    raise row.error
                batch.cancel(row)
                number, reader = open_rows.pop(row)
                yield number, reader.answer(row.sampler)

    def new_batch(self, slots: int, *, keep_answers: bool = False) -> ContinuousBatch:
        """Rows of the model that share its steps, and what was kept of earlier prompts."""
        return ContinuousBatch(self.model, slots, prefixes=self.prefixes, keep_answers=keep_answers)

    def scores(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """Logits ``[B, V]`` (float32) of the token that each prompt is followed by."""
        plan, features = plan_of(prompts, self.model.config.tokens_per_tile)
        return next_scores(self.model, plan, features).numpy()


def _fitted(decoding: Decoding, room: int) -> Decoding:
    """``decoding`` with ``room`` tokens at most. A prompt that leaves no room is the caller's to refuse."""
    return decoding.with_changes(max_new_tokens=room) if 0 < room < decoding.max_new_tokens else decoding


def _chosen(opening: Opening) -> devices.Device:
    """The device that ``opening`` names. A CPU that is asked for bfloat16 holds the weights in it."""
    name, dtype = opening.pop("device", None), opening.pop("dtype", None)
    if dtype == "bfloat16" and not opening.get("bits") and devices.choose(name).kind == "cpu":
        opening["bits"] = 16
        dtype = None
    return devices.choose(name, dtype)
