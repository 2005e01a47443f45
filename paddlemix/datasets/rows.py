# SPDX-License-Identifier: Apache-2.0
"""The one reader of conversations: LLaVA's turns (ShareGPT's too), chatml pairs, OpenAI messages with content parts.

A row of a data file goes through ``read_row``, what a program or a client asks through ``read_messages``; both give a
``Conversation``. Nothing of it is dropped in silence: what is null or empty is not there, what nobody reads is counted
by its key.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from paddlemix.datasets.frames import VIDEO_MARK
from paddlemix.datasets.records import LongNumber, Place, UnreadKeys, kind_of
from paddlemix.text.messages import ROW_ROLES, Conversation, Message
from paddlemix.utils.constants import IMAGE_TOKEN
from paddlemix.utils.foreign import JsonValue
from paddlemix.utils.registry import nearest

IMAGE_KEYS = ("image", "images")
SYSTEM_KEYS = ("system", "system_prompt")
VIDEO_KEYS = ("video", "videos")
ROW_KEYS = ("id", "conversations", "messages", *IMAGE_KEYS, *SYSTEM_KEYS, *VIDEO_KEYS)
LEARN_KEYS = ("weight", "loss", "train")
"""Whether a turn is learnt, as OpenAI, ms-swift and axolotl spell it."""
LLAVA_TURN_KEYS = ("from", "value", *LEARN_KEYS)
CHAT_TURN_KEYS = ("role", "content", *LEARN_KEYS)
PART_KEYS = ("type", "text", "image_url", "image", "path")
CHAT_ROLES = ("system", "user", "assistant")
FROM_SOURCE = "file://"
_LEARN = {False: "0 (not learnt) or 1", True: "false (not learnt) or true"}


@dataclass(frozen=True)
class MarkRules:
    """What becomes of rows whose images and ``<image>`` marks do not go together.

    ``images_without_mark``: ``error``, or ``front`` for the mark in front of the first question.
    ``mark_without_images``: ``error``, or ``text`` for a mark that is learnt as the seven letters it is.
    """

    images_without_mark: str = "error"
    mark_without_images: str = "error"


STRICT = MarkRules()


@dataclass(frozen=True)
class UnnamedImage:
    """An image part without a path, at the JSON pointer ``at``."""

    at: str
    kind: str


def read_row(row: JsonValue, place: Place, rules: MarkRules = STRICT, unread: UnreadKeys | None = None) -> Conversation:
    """The conversation of a row in any of the known forms. DataError with the JSON pointer otherwise.

    A mark that ``rules`` put in front stands once for each image; of views, the caller keeps one.
    """
    unread = unread or UnreadKeys()
    row = checked_object(row, place, "conversations or messages")
    strange = unread.see(row, ROW_KEYS)
    messages, images = _turns(row, place, unread)
    if messages[-1].role != "assistant" and _has_preference(row):
        raise place.fault("", _PREFERENCE)  # the turns are the prompt: what they hold is not what should be learnt
    return completed(row, messages, images, place, rules, strange)


def checked_object(row: JsonValue, place: Place, holds: str) -> dict[str, Any]:
    """``row`` if it is an object without what no row may have; DataError names what it should hold."""
    if not isinstance(row, dict):
        raise place.fault("", f"{kind_of(row)}; expected an object with {holds}")
    if isinstance(row.get("id"), LongNumber):
        raise place.fault("/id", f"{kind_of(row['id'])}; write it as a text")
    return row


def completed(
    row: dict[str, Any],
    messages: list[Message],
    parts: list[str | UnnamedImage],
    place: Place,
    rules: MarkRules,
    strange: Iterable[str] = (),
) -> Conversation:
    """``messages`` with the row's system text, and the images of their ``parts`` or those beside them. DataError.

    ``strange`` are keys of the row that nothing reads, for a hint.
    """
    messages = _with_system(row, messages, place)
    frames = video_of(row, place)
    if frames:
        messages = [replace(message, text=message.text.replace(VIDEO_MARK, IMAGE_TOKEN)) for message in messages]
    listed = _listed_images(row, place)
    if frames and (parts or listed):
        raise place.fault("", "images and a video in one row; give the frames of the video as images, too")
    images = frames or _joined(parts, listed, place)
    marks = sum(message.text.count(IMAGE_TOKEN) for message in messages)
    if marks and not images and rules.mark_without_images == "error":
        raise place.fault("", _mark_alone(row, strange))
    if images and not marks:
        messages = _marked(messages, 1 if frames else len(images), place, rules)
    name = "" if row.get("id") is None else str(row["id"])
    return Conversation(tuple(messages), tuple(images), name, video=bool(frames))


def read_messages(
    turns: Sequence[Message | dict[str, Any]], images: Sequence[Any] = (), *, where: str = "messages"
) -> Conversation:
    """A conversation that a program or a client gives: OpenAI's messages, LLaVA's turns, or ``Message``s.

    ``images`` are those beside the turns (paths, addresses, bytes, PIL images), in the order of their ``<image>`` marks
    or of the image parts without a path; else the parts name them. DataError with ``where`` and the JSON pointer.
    """
    place, written = Place(where, ""), list(turns)
    if written and all(isinstance(turn, Message) for turn in written):
        return Conversation(tuple(written), tuple(images))
    if written and isinstance(written[0], dict) and "from" in written[0]:
        messages, parts = [_llava_turn(turn, place, f"/{i}", UnreadKeys()) for i, turn in enumerate(written)], []
    else:
        messages, parts = _chat(written, place, UnreadKeys(), at="")
    return Conversation(tuple(messages), tuple(_joined(parts, list(images), place)))


def read_turns(
    turns: JsonValue, place: Place, at: str, unread: UnreadKeys
) -> tuple[list[Message], list[str | UnnamedImage]]:
    """The turns at the JSON pointer ``at`` in LLaVA's form or OpenAI's, and the images of their content parts."""
    first = turns[0] if isinstance(turns, list) and turns else None
    if isinstance(first, list) or (isinstance(first, dict) and "from" in first):
        return _conversations(turns, place, unread, at), []
    return _chat(turns, place, unread, at)


_PREFERENCE = "an answer that is preferred; such rows are for paddlemix preference_tune (loss_type)"


def _has_preference(row: dict[str, Any]) -> bool:
    """Whether the row has an answer of preference data beside its turns (``preference_rows``)."""
    return any(not absent(row.get(key)) for key in ("chosen", "completion", "output_1"))


def _turns(row: dict[str, Any], place: Place, unread: UnreadKeys) -> tuple[list[Message], list[str | UnnamedImage]]:
    both = [name for name in ("messages", "conversations") if not absent(row.get(name))]
    if len(both) > 1:
        raise place.fault("", 'both "messages" and "conversations" are there; give one of them')
    if "messages" in row and (both == ["messages"] or "conversations" not in row):
        return _chat(row["messages"], place, unread)
    if "conversations" in row:
        return _conversations(row["conversations"], place, unread), []
    if _has_preference(row):
        raise place.fault("", _PREFERENCE)
    near = ((key, nearest(key.lower(), ("conversations", "messages"))) for key in row)
    hint = next((f'; "{key[:80]}" is not read{found}' for key, found in near if found), "")
    raise place.fault("", f'neither "conversations" nor "messages" is there{hint}')


def _joined(parts: list[str | UnnamedImage], listed: list[Any], place: Place) -> list[Any]:
    """The images of a row; image parts without a path of their own take those beside the messages in order."""
    named = [part for part in parts if isinstance(part, str)]
    unnamed = [part for part in parts if isinstance(part, UnnamedImage)]
    if named and listed:
        raise place.fault("", "images stand both in the messages and beside them; give them once")
    if unnamed and (named or not listed):
        first = unnamed[0]
        raise place.fault(first.at, f'the image is missing; expected "{first.kind}": path or {{"url": path}}')
    if unnamed and len(unnamed) != len(listed):
        raise place.fault("", f"{len(unnamed)} image parts without a path in the messages, but {len(listed)} images")
    return named or listed


def _with_system(row: dict[str, Any], messages: list[Message], place: Place) -> list[Message]:
    keys = [key for key in SYSTEM_KEYS if not absent(row.get(key))]
    if not keys:
        return messages
    text = read_text(row[keys[0]], place, f"/{keys[0]}")
    if len(keys) > 1:
        raise place.fault("", 'both "system" and "system_prompt" are there; give one of them')
    if messages and messages[0].role == "system":
        raise place.fault(f"/{keys[0]}", "a system text stands here and in the first turn; give it once")
    return [Message("system", text), *messages]


def _mark_alone(row: dict[str, Any], strange: Iterable[str]) -> str:
    empty = next((f'; "{key}" is {kind_of(row[key])}.' for key in IMAGE_KEYS if key in row), ".")
    near = next((f'; "{key}" is not read{nearest(key.lower(), IMAGE_KEYS)}' for key in strange
                 if nearest(key.lower(), IMAGE_KEYS)), "")  # fmt: skip
    return (
        f'"{IMAGE_TOKEN}" in the text, but the row has no image in "image" or "images"{near or empty} '
        'Correct the row, or set "mark_without_images" to "text" if the mark is nothing but text'
    )


def _marked(messages: list[Message], images: int, place: Place, rules: MarkRules) -> list[Message]:
    first = next((index for index, message in enumerate(messages) if message.role == "user"), None)
    if rules.images_without_mark == "error" or first is None:
        raise place.fault(
            "",
            f'0 "{IMAGE_TOKEN}" in the text but {images} images; each needs the other. Mark the places, or set '
            '"images_without_mark" to "front" to have the images in front of the first question',
        )
    text = f"{IMAGE_TOKEN}\n" * images + messages[first].text
    return [*messages[:first], replace(messages[first], text=text), *messages[first + 1 :]]


def _conversations(turns: JsonValue, place: Place, unread: UnreadKeys, at: str = "/conversations") -> list[Message]:
    if not isinstance(turns, list) or not turns:
        raise place.fault(at, f"{kind_of(turns)}; expected a list of turns that is not empty")
    if isinstance(turns[0], dict):
        return [_llava_turn(turn, place, f"{at}/{index}", unread) for index, turn in enumerate(turns)]
    messages = []
    for index, pair in enumerate(turns):
        here = f"{at}/{index}"
        if not isinstance(pair, list) or len(pair) != 2:
            raise place.fault(here, "expected a pair [user text, assistant text]")
        messages += [
            Message(role, read_text(part, place, f"{here}/{side}"))
            for side, (role, part) in enumerate(zip(("user", "assistant"), pair, strict=True))
        ]
    return messages


def _llava_turn(turn: JsonValue, place: Place, at: str, unread: UnreadKeys) -> Message:
    if not isinstance(turn, dict):
        raise place.fault(at, f'{kind_of(turn)}; expected {{"from": "human" or "gpt", "value": text}}')
    for name in ("from", "value"):
        if name not in turn:
            raise place.fault(at, f'"{name}" is missing')
    unread.see(turn, LLAVA_TURN_KEYS)
    role = turn["from"]
    if not isinstance(role, str) or role not in ROW_ROLES:
        raise place.fault(f"{at}/from", f"{role!r}; expected one of {', '.join(ROW_ROLES)}"[:200])
    return Message(ROW_ROLES[role], read_text(turn["value"], place, f"{at}/value"), _learns(turn, place, at))


def _learns(turn: dict[str, Any], place: Place, at: str) -> bool:
    """OpenAI's ``weight``, ms-swift's ``loss``, axolotl's ``train``: an answer of weight 0 is shown and not learnt."""
    said = {}
    for key in LEARN_KEYS:
        value = turn.get(key)
        if value is None:
            continue
        words = key != "weight"
        if not isinstance(value, int | float) or (isinstance(value, bool) and not words) or value not in (0, 1):
            written = kind_of(value) if isinstance(value, LongNumber) else f"{kind_of(value)} ({value!r:.80})"
            raise place.fault(f"{at}/{key}", f"{written}; expected {_LEARN[words]}")
        said[key] = bool(value)
    if len(set(said.values())) > 1:
        raise place.fault(at, f"{' and '.join(said)} say different things about whether this turn is learnt")
    return all(said.values())


def _chat(
    turns: JsonValue, place: Place, unread: UnreadKeys, at: str = "/messages"
) -> tuple[list[Message], list[str | UnnamedImage]]:
    if not isinstance(turns, list) or not turns:
        raise place.fault(at, f"{kind_of(turns)}; expected a list of messages that is not empty")
    messages: list[Message] = []
    images: list[str | UnnamedImage] = []
    for index, turn in enumerate(turns):
        here = f"{at}/{index}"
        if not isinstance(turn, dict) or "content" not in turn:
            raise place.fault(here, 'expected {"role": ..., "content": ...}')
        unread.see(turn, CHAT_TURN_KEYS)
        role = turn.get("role")
        if role not in CHAT_ROLES:
            raise place.fault(f"{here}/role", f"{role!r}; expected one of {', '.join(CHAT_ROLES)}"[:200])
        content = turn["content"]
        if isinstance(content, list):
            text, found = _parts(content, place, f"{here}/content", unread)
            images += found
        else:
            text = read_text(content, place, f"{here}/content")
        messages.append(Message(role, text, _learns(turn, place, here)))
    return messages, images


def _parts(parts: list[Any], place: Place, at: str, unread: UnreadKeys) -> tuple[str, list[str | UnnamedImage]]:
    """Text of a message made of parts: every image is an ``<image>`` on a line of its own, in its place."""
    text, images, after_image = "", [], False
    for index, part in enumerate(parts):
        here = f"{at}/{index}"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            piece = read_text(part.get("text"), place, f"{here}/text")
            text += f"\n{piece}" if after_image else piece
            after_image = False
        elif kind in ("image_url", "image"):
            images.append(_part_image(part, kind, place, here))
            text += f"\n{IMAGE_TOKEN}" if text else IMAGE_TOKEN
            after_image = True
        else:
            raise place.fault(here, 'expected a part of type "text", "image_url" or "image"')
        unread.see(part, PART_KEYS)
    return text, images


def _part_image(part: dict[str, Any], kind: str, place: Place, at: str) -> str | UnnamedImage:
    value = part.get(kind) or part.get("path")
    if isinstance(value, dict):
        value = value.get("url")
    if absent(value):
        return UnnamedImage(at, kind)
    if not isinstance(value, str):
        raise place.fault(at, f'the image is {kind_of(value)}; expected "{kind}": path or {{"url": path}}')
    return _path(value, place, at)


def _listed_images(row: dict[str, Any], place: Place) -> list[str]:
    keys = [key for key in IMAGE_KEYS if not absent(row.get(key))]
    if len(keys) > 1:
        raise place.fault("", 'both "image" and "images" are there; give one of them')
    if not keys:
        return []
    value = row[keys[0]]
    images = value if isinstance(value, list) else [value]
    for index, image in enumerate(images):
        if not isinstance(image, str) or not image:
            at = f"/{keys[0]}/{index}" if isinstance(value, list) else f"/{keys[0]}"
            raise place.fault(at, f"{kind_of(image)}; expected the path of an image")
    return [_path(image, place, f"/{keys[0]}") for image in images]


def video_of(row: dict[str, Any], place: Place) -> list[str]:
    """The video of a row: the paths of its frames, or that of one folder (or file) as the only one; [] without one.

    ``videos`` may hold one video: a path, or a list of frames. DataError for anything else.
    """
    keys = [key for key in VIDEO_KEYS if not absent(row.get(key))]
    if len(keys) > 1:
        raise place.fault("", 'both "video" and "videos" are there; give one of them')
    if not keys:
        return []
    at, value = f"/{keys[0]}", row[keys[0]]
    if keys[0] == "videos" and isinstance(value, list) and value and isinstance(value[0], list):
        if len(value) > 1:
            raise place.fault(at, f"{len(value)} videos; a row has one")
        at, value = f"{at}/0", value[0]
    frames = value if isinstance(value, list) else [value]
    for index, frame in enumerate(frames):
        if not isinstance(frame, str) or not frame:
            here = f"{at}/{index}" if isinstance(value, list) else at
            raise place.fault(here, f"{kind_of(frame)}; expected a folder of frames, or a list of images")
    return [_path(frame, place, at) for frame in frames]


def _path(value: str, place: Place, at: str) -> str:
    return read_text(value, place, at).removeprefix(FROM_SOURCE)


def read_text(value: JsonValue, place: Place, at: str) -> str:
    """The text at the JSON pointer ``at``; DataError for anything else, and for text that no file can hold."""
    if not isinstance(value, str):
        raise place.fault(at, f"{kind_of(value)}; expected a text")
    if "\0" in value:
        raise place.fault(at, f"NUL character at {value.index(chr(0))}; remove it")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise place.fault(at, f"lone surrogate at character {error.start}; the text is no valid Unicode") from error
    return value


def absent(value: JsonValue) -> bool:
    """Null, an empty text or an empty list: the key says that there is nothing."""
    return value is None or value in ("", [])
