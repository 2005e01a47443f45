# SPDX-License-Identifier: Apache-2.0
"""What is asked, between the protocols and the engine: a question, the events of its answer, and its prompt."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from paddlemix.generation.features import Picture, Prepared
from paddlemix.generation.predictor import Predictor
from paddlemix.generation.prompt import Prompt
from paddlemix.generation.sampling import Decoding, TokenLogprob
from paddlemix.serve.faults import RequestError, refused
from paddlemix.text.messages import Message, placed_messages
from paddlemix.utils.constants import IMAGE_END_TOKEN, IMAGE_START_TOKEN, IMAGE_TOKEN

_PIECE = 1024
"""Characters that are split into ids at a time where only their number counts."""


@dataclass(frozen=True)
class Question:
    """Messages, or a whole prompt as text (LLaVA's worker protocol), with what the answer is drawn by.

    ``places[k]`` images stand at the k-th ``<image>``; ``images`` are those of all places in order. ``decoding``
    without ``max_new_tokens`` of the client has the largest one: the context ends the answer then. Of one ``seed``
    the choices differ, and the first is the chat command's answer in the same round. ``adapter`` is the name of one
    over the model, "" for the model itself.
    """

    id: str
    asked: tuple[Message, ...] | str
    decoding: Decoding
    images: tuple[Prepared, ...] = ()
    places: tuple[int, ...] = ()
    choices: int = 1
    adapter: str = ""

    @property
    def draws(self) -> list[tuple[int, ...]]:
        """What tells the random answers apart: the round of the conversation, then the choice."""
        answered = 0 if isinstance(self.asked, str) else sum(message.role == "assistant" for message in self.asked)
        return [(answered, *((choice,) if choice else ())) for choice in range(self.choices)]


@dataclass(frozen=True)
class Started:
    """The prompt is known: its positions, those of images included, and how many of them are image positions."""

    prompt_tokens: int
    image_tokens: int


@dataclass(frozen=True)
class Piece:
    """New text of a choice, and the log probabilities of the ids behind it when they were asked for."""

    choice: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Ended:
    """A choice is complete after ``tokens`` ids, the ending one included; ``reused`` positions were not run again."""

    choice: int
    finish: Literal["stop", "length"]
    tokens: int
    reused: int


@dataclass(frozen=True)
class Failed:
    """Nothing more comes of the whole question."""

    error: RequestError


Event: TypeAlias = Started | Piece | Ended | Failed


def prompt_of(predictor: Predictor, question: Question, pictures: Sequence[Picture]) -> Prompt:
    """The prompt of a question whose images are ``pictures``; RequestError when marks and images differ in number."""
    tags = predictor.model.config.use_im_start_end
    if isinstance(question.asked, str):
        _check_marks(question.asked.count(IMAGE_TOKEN), len(pictures))
        place = f"{IMAGE_START_TOKEN}{IMAGE_TOKEN}{IMAGE_END_TOKEN}" if tags else IMAGE_TOKEN
        text = question.asked.replace(IMAGE_TOKEN, place)
        pictures = [picture.among or picture for picture in pictures] if len(pictures) > 1 else pictures
        return Prompt(tuple(predictor.tokenizer.encode_with_images(text)), text, tuple(pictures))
    _check_marks(sum(message.text.count(IMAGE_TOKEN) for message in question.asked), len(question.places))
    messages = placed_messages(
        question.asked, layout=predictor.template, images=len(question.places), use_im_start_end=tags
    )
    return predictor.prompt(_spread(messages, question.places), pictures)


def fitted(decoding: Decoding, prompt: Prompt, context: int) -> Decoding:
    """``decoding`` with no more tokens than the context has room for; RequestError when it has none."""
    room = context - prompt.length
    if room < 1:
        images = sum(picture.length for picture in prompt.pictures)
        raise refused(
            f"the prompt needs {prompt.length} positions ({images} of them for images), and the model's context has "
            f"{context}, with at least one for the answer; shorten it or send fewer images",
            "messages",
            "context_length_exceeded",
        )
    return decoding.with_changes(max_new_tokens=min(decoding.max_new_tokens, room))


def check_length(predictor: Predictor, asked: Sequence[Message] | str) -> None:
    """RequestError for texts that are far too long for the context; ``fitted`` has the exact bound.

    For a thread beside the engine's, which would give no answer a step while it splits such a text into ids. It is
    looked at in pieces, and the rest is left alone as soon as there are twice as many ids as the context has room for.
    """
    texts = [asked] if isinstance(asked, str) else [message.text for message in asked]
    if sum(map(len, texts)) <= _PIECE:
        return
    ids = 0
    for text in texts:
        for start in range(0, len(text), _PIECE):
            ids += len(predictor.tokenizer.encode(text[start : start + _PIECE], bos=False))
            if ids > 2 * predictor.context:
                raise refused(
                    f"the prompt needs more than {ids} positions, and the model's context has {predictor.context}; "
                    "shorten it",
                    "messages",
                    "context_length_exceeded",
                )


def check_bias(decoding: Decoding, rows: int) -> None:
    """RequestError for a bias of an id that no score belongs to; ``rows`` is the size of the model's table."""
    known = min(rows, decoding.vocab_size or rows)
    strange = next((token for token, _ in decoding.logit_bias if token >= known), None)
    if strange is not None:
        raise refused(f"logit_bias names id {strange}; the vocabulary has the ids 0 to {known - 1}", "logit_bias")


def _check_marks(marks: int, images: int) -> None:
    if marks != images:
        raise refused(
            f'the texts hold {marks} "{IMAGE_TOKEN}" and come with {images} images; each mark needs one image, and an '
            "image part brings its own mark",
            "messages",
        )


def _spread(messages: Sequence[Message], places: Sequence[int]) -> list[Message]:
    """The messages with as many marks at each place as it has images."""
    counts, found = iter(places), []
    for message in messages:
        first, *rest = message.text.split(IMAGE_TOKEN)
        found.append(replace(message, text=first + "".join(IMAGE_TOKEN * next(counts) + part for part in rest)))
    return found
