# SPDX-License-Identifier: Apache-2.0
"""What is said, before any template: messages, conversations with their images, segments of rendered text."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from paddlemix.utils.constants import IMAGE_END_TOKEN, IMAGE_START_TOKEN, IMAGE_TOKEN
from paddlemix.utils.errors import DataError

Role = Literal["system", "user", "assistant"]
TAGGED_IMAGE = f"<Image>{IMAGE_TOKEN}</Image>"
ROW_ROLES: dict[str, Role] = {
    "human": "user",
    "gpt": "assistant",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
}


@dataclass(frozen=True)
class Message:
    """One turn. The text holds ``<image>`` at image places. ``learns`` False: an answer that is shown, not learnt."""

    role: Role
    text: str
    learns: bool = True


@dataclass(frozen=True)
class Conversation:
    """Messages and the images of their ``<image>`` marks in order, whatever form they were written in.

    ``images`` are references that nothing has opened: paths and addresses as written; from Python also bytes and PIL.
    ``datasets.rows`` makes conversations of rows and of what is asked. ``video``: the images are the frames of one
    video, which has one mark.
    """

    messages: tuple[Message, ...]
    images: tuple[Any, ...] = ()
    id: str = ""
    video: bool = False

    def before_answer(self, number: int = -1) -> "Conversation":
        """What the assistant's answer of that number (default: the last) is an answer to, with the images of that.

        IndexError when there is no such answer.
        """
        places = [index for index, message in enumerate(self.messages) if message.role == "assistant"]
        messages = self.messages[: places[number]]
        marks = sum(message.text.count(IMAGE_TOKEN) for message in messages)
        shown = self.images if self.video and marks else self.images[:marks]
        return replace(self, messages=messages, images=shown, video=self.video and bool(shown))


@dataclass(frozen=True)
class Segment:
    """A stretch of rendered text. ``learns``: its tokens are targets; ``quoted``: a person or a data row wrote it."""

    text: str
    learns: bool = False
    quoted: bool = False


class ChatFormat(Protocol):
    """Anything that can write messages as segments: a ``Template`` or a ``ChatTemplate``."""

    name: str
    mmtag: bool
    assistant_first: bool
    train_as: str | None

    def segments(self, messages: Sequence[Message], *, answer_open: bool) -> list[Segment]:
        """The conversation as text in order; with ``answer_open`` it ends where the next answer begins."""
        ...


def check_turns(messages: Sequence[Message], *, assistant_first: bool = False) -> tuple[str | None, list[Message]]:
    """Split off a leading system message and check that user and assistant alternate.

    Returns ``(system text or None, turns)``. DataError names the index of the first message that is out of order.
    """
    system = messages[0].text if messages and messages[0].role == "system" else None
    skipped = 0 if system is None else 1
    turns = list(messages[skipped:])
    expected = turns[0].role if turns and assistant_first else "user"
    for i, message in enumerate(turns):
        if message.role != expected:
            raise DataError(
                f'message {i + skipped} has role "{message.role}", expected "{expected}": user and assistant take turns'
            )
        expected = "assistant" if expected == "user" else "user"
    return system, turns


def placed_messages(
    messages: Sequence[Message], *, layout: ChatFormat, images: int, use_im_start_end: bool = False
) -> list[Message]:
    """The messages of a conversation, its image places where the original's training puts them.

    ``images`` is the number of image places. As in the original (preprocess_multimodal and the
    preprocess_* functions of train.py): a turn that holds ``<image>`` is stripped and begins with "<image>\\n"; mmtag
    templates write "<Image><image></Image>"; ``use_im_start_end`` wraps the place in "<im_start>" and "<im_end>"; a
    conversation that begins with the assistant loses that turn unless the layout takes it. Without an image the
    messages stay as they are.

    We deviate in one thing: the original merges several ``<image>`` of one turn into one. A conversation with several
    images keeps them all, where they stand.
    """
    found = list(messages)
    first = int(bool(found) and found[0].role == "system")
    if len(found) > first and found[first].role == "assistant" and not layout.assistant_first:
        del found[first]
    if images:
        texts = [place_images(m.text, images, layout.mmtag, use_im_start_end) for m in found]
        found = [Message(m.role, text, m.learns) for m, text in zip(found, texts, strict=True)]
    return found


def place_images(text: str, images: int, mmtag: bool = False, use_im_start_end: bool = False) -> str:
    """The text of one turn with its image places in the original's form; without ``<image>`` it comes back as it is."""
    count = text.count(IMAGE_TOKEN)
    if not count:
        return text
    if count == 1 or images == 1:
        text = f"{IMAGE_TOKEN}\n{text.replace(IMAGE_TOKEN, '').strip()}"
    text = text.strip()
    if mmtag:
        text = text.replace(IMAGE_TOKEN, TAGGED_IMAGE)
    wrapped = f"{IMAGE_START_TOKEN}{IMAGE_TOKEN}{IMAGE_END_TOKEN}"
    return text.replace(IMAGE_TOKEN, wrapped) if use_im_start_end else text


def first_turn_with_images(
    text: str, images: int, *, mmtag: bool = False, use_im_start_end: bool = False
) -> list[Message]:
    """Messages that open a chat about images, as the original's demos write them.

    The text loses its own ``<image>`` marks and gets one place an image in front, each followed by a newline. With
    mmtag templates the images are a round of their own, answered by "Received.".
    """
    text = text.replace(IMAGE_TOKEN, "").strip()
    place = f"{IMAGE_START_TOKEN}{IMAGE_TOKEN}{IMAGE_END_TOKEN}" if use_im_start_end else IMAGE_TOKEN
    if not images:
        return [Message("user", text)]
    if mmtag:
        tagged = "".join(TAGGED_IMAGE.replace(IMAGE_TOKEN, place) for _ in range(images))
        return [Message("user", tagged), Message("assistant", "Received."), Message("user", text)]
    return [Message("user", f"{place}\n" * images + text)]


def question(text: str, images: int = 0, *, mmtag: bool = False, use_im_start_end: bool = False) -> list[Message]:
    """The messages of a person's question with so many images.

    A text without ``<image>`` gets the images in front, each on a line of its own, where some templates (``mmtag``)
    give them a round of their own. A text with marks keeps them; images beyond its marks are put in front.
    """
    written = text.count(IMAGE_TOKEN)
    if not written:
        return first_turn_with_images(text, images, mmtag=mmtag, use_im_start_end=use_im_start_end)
    place = f"{IMAGE_START_TOKEN}{IMAGE_TOKEN}{IMAGE_END_TOKEN}" if use_im_start_end else IMAGE_TOKEN
    return [Message("user", f"{place}\n" * (images - written) + text.replace(IMAGE_TOKEN, place))]
