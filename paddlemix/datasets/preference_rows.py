# SPDX-License-Identifier: Apache-2.0
"""The reader of rows for preference tuning: two answers to one prompt, or one answer and whether it is wanted.

| form | prompt | answers |
|---|---|---|
| RLAIF-V | ``question`` | ``chosen``, ``rejected``: texts |
| LLaVA-RLHF | ``conversations`` that end with a question | ``output_1``, ``output_2``, ``preference`` 1 or 2 |
| TRL, explicit | ``prompt``: a text or messages | ``chosen``, ``rejected``: texts, a message, or messages |
| TRL, implicit | what ``chosen`` and ``rejected`` have in common | the rest of each |
| ShareGPT | ``conversations`` or ``messages`` | ``chosen``, ``rejected``: one turn each |
| KTO | ``prompt`` (or one of the above) | ``completion``, ``label`` true or false |

Images stand beside them as in every other row (``image``, ``images``; RLAIF-V's ``image_path``), or in content parts.
"""

import itertools
import re
from dataclasses import dataclass, replace
from typing import Any

from paddlemix.datasets.records import Place, UnreadKeys
from paddlemix.datasets.rows import (
    IMAGE_KEYS,
    ROW_KEYS,
    STRICT,
    MarkRules,
    UnnamedImage,
    absent,
    checked_object,
    completed,
    read_text,
    read_turns,
)
from paddlemix.text.messages import Conversation, Message
from paddlemix.utils.constants import IMAGE_TOKEN
from paddlemix.utils.foreign import JsonValue

PATH_KEY = "image_path"
PROMPT_KEYS = ("prompt", "question", "conversations", "messages")
PAIR, OUTPUTS, SINGLE = ("chosen", "rejected"), ("output_1", "output_2", "preference"), ("completion", "label")
_KNOWN = (*ROW_KEYS, PATH_KEY, *PROMPT_KEYS, *PAIR, *OUTPUTS, *SINGLE)
_TURN = re.compile(r"\s*\n\n(Human|Assistant):[ ]?")

Parts = list[str | UnnamedImage]


@dataclass(frozen=True)
class PreferenceRow:
    """``talk`` ends with the chosen answer, the only one that is learnt; the other answer is ``rejected``.

    Without a pair (KTO) ``rejected`` is None and ``desirable`` says whether the answer is wanted.
    """

    talk: Conversation
    rejected: str | None = None
    desirable: bool | None = None


def read_preference(
    row: JsonValue, place: Place, rules: MarkRules = STRICT, unread: UnreadKeys | None = None, *, single: bool = False
) -> PreferenceRow:
    """The row in any of the forms above; ``single`` wants KTO's. DataError with the JSON pointer otherwise.

    A prompt that is no conversation of LLaVA's has no ``<image>`` marks in these forms: images then stand in front of
    the first question, as TRL puts them.
    """
    unread = unread or UnreadKeys()
    row = _with_image(checked_object(row, place, "a prompt and answers"))
    strange = unread.see(row, _KNOWN)
    if single:
        prompt, answer, parts, wanted = _single(row, place, unread)
        rejected = None
    else:
        prompt, answer, rejected, parts = _pair(row, place, unread)
        wanted = None
    if "conversations" not in row:
        rules = replace(rules, images_without_mark="front")
    said = [replace(message, learns=False) if message.role == "assistant" else message for message in prompt]
    talk = completed(row, [*said, Message("assistant", answer)], parts, place, rules, strange)
    return PreferenceRow(talk, rejected, wanted)


def _with_image(row: dict[str, Any]) -> dict[str, Any]:
    """RLAIF-V's parquet rows have the bytes as ``image`` and the file's name as ``image_path``."""
    none = all(absent(row.get(key)) or isinstance(row[key], dict) for key in IMAGE_KEYS)
    return {**row, "image": row[PATH_KEY]} if none and isinstance(row.get(PATH_KEY), str) else row


def _single(row: dict[str, Any], place: Place, unread: UnreadKeys) -> tuple[list[Message], str, Parts, bool]:
    missing = [name for name in SINGLE if row.get(name) is None]
    if missing:
        have = " (the row has a pair: take sigmoid, hinge, ipo, simpo or orpo)" if "chosen" in row else ""
        raise place.fault("", f'"{missing[0]}" is missing; "loss_type": "kto" takes prompt, completion and label{have}')
    label = row["label"]
    if label not in (True, False) or isinstance(label, float):
        raise place.fault("/label", f"{label!r:.80}; expected true or false")
    turns, more = _answer_turns(row["completion"], place, "completion", unread)
    prompt, parts = _prompt(row, place, unread)
    if prompt is None:
        raise place.fault("", f"no prompt; expected one of {', '.join(PROMPT_KEYS)}")
    before, answer = _split(turns, prompt, place, "completion")
    return before, answer, parts + more, bool(label)


def _pair(row: dict[str, Any], place: Place, unread: UnreadKeys) -> tuple[list[Message], str, str, Parts]:
    names = _names_of_answers(row, place)
    turns, parts = [], []
    for name in names:
        found, more = _answer_turns(row[name], place, name, unread)
        turns.append(found)
        parts.append(more)
    prompt, own = _prompt(row, place, unread)
    if prompt is None:
        turns = _implicit(turns, place) if not any(isinstance(row[name], list | dict) for name in names) else turns
    splits = [_split(found, prompt, place, name) for found, name in zip(turns, names, strict=True)]
    (before, chosen), (other, rejected) = splits
    if before != other:
        at = next((i for i, (a, b) in enumerate(zip(before, other, strict=False)) if a != b), min(map(len, splits[0])))
        raise place.fault("", f'"{names[0]}" and "{names[1]}" answer different prompts (message {at} differs)')
    if chosen.strip() == rejected.strip():
        raise place.fault("", f'"{names[0]}" and "{names[1]}" are the same text; there is nothing to prefer')
    return before, chosen, rejected, own + parts[0]


def _names_of_answers(row: dict[str, Any], place: Place) -> tuple[str, str]:
    """The keys of the chosen and of the rejected answer."""
    if any(name in row for name in OUTPUTS[:2]) and not any(name in row for name in PAIR):
        missing = [name for name in OUTPUTS if row.get(name) is None]
        if missing:
            raise place.fault("", f'"{missing[0]}" is missing; expected {", ".join(OUTPUTS)}')
        first = row["preference"]
        if first not in (1, 2) or isinstance(first, bool):
            raise place.fault("/preference", f"{first!r:.80}; expected 1 or 2, the output that is preferred")
        return ("output_1", "output_2") if first == 1 else ("output_2", "output_1")
    missing = [name for name in PAIR if row.get(name) is None]
    if missing:
        have = '; a row with completion and label is for "loss_type": "kto"' if "completion" in row else ""
        raise place.fault("", f'"{missing[0]}" is missing; expected a prompt, chosen and rejected{have}')
    return PAIR


def _prompt(row: dict[str, Any], place: Place, unread: UnreadKeys) -> tuple[list[Message] | None, Parts]:
    keys = [key for key in PROMPT_KEYS if not absent(row.get(key))]
    if len(keys) > 1:
        raise place.fault("", f'both "{keys[0]}" and "{keys[1]}" are there; give one of them')
    if not keys:
        return None, []
    at, value = f"/{keys[0]}", row[keys[0]]
    if isinstance(value, str):
        return [Message("user", read_text(value, place, at))], []
    return read_turns(value, place, at, unread)


def _answer_turns(value: JsonValue, place: Place, name: str, unread: UnreadKeys) -> tuple[list[Message], Parts]:
    """What stands under ``name`` as messages: a text is one answer."""
    if isinstance(value, str):
        return [Message("assistant", read_text(value, place, f"/{name}"))], []
    if isinstance(value, dict):
        value = [{"from": "gpt", **value, **({"from": "gpt"} if value.get("from") == "llava" else {})}
                 if "value" in value else value]  # fmt: skip
    return read_turns(value, place, f"/{name}", unread)


def _split(turns: list[Message], prompt: list[Message] | None, place: Place, name: str) -> tuple[list[Message], str]:
    """(prompt, answer) of ``turns``, which may hold the prompt once more (as UltraFeedback's rows do)."""
    *before, last = turns
    if last.role != "assistant":
        raise place.fault(f"/{name}", f'ends with a message of role "{last.role}"; expected the assistant\'s answer')
    if not last.text.strip():
        raise place.fault(f"/{name}", "the answer is empty")
    if IMAGE_TOKEN in last.text:
        raise place.fault(f"/{name}", f'"{IMAGE_TOKEN}" stands in the answer; images belong to the prompt')
    if before and prompt is not None and before != prompt and [before[-1]] != prompt:
        raise place.fault(f"/{name}", "holds more than one answer, and not the prompt of the row in front of it")
    if not before and prompt is None:
        raise place.fault("", f'no prompt; expected one of {", ".join(PROMPT_KEYS)}, or "{name}" as messages')
    return before or list(prompt or ()), last.text


def _implicit(turns: list[list[Message]], place: Place) -> list[list[Message]]:
    """Texts without a prompt of their own: turns after "Human:" and "Assistant:", else what they begin with alike."""
    texts = [found[-1].text for found in turns]
    if all(_TURN.match(f"\n\n{text.lstrip()}") for text in texts):
        return [_dialogue(text) for text in texts]
    alike = (a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=False)))
    prefix = "".join(alike)
    prefix = prefix[: prefix.rfind(" ") + 1]  # as TRL: a word is not divided
    if not prefix.strip():
        raise place.fault(
            "", f'no prompt: "chosen" and "rejected" begin differently; add {" or ".join(PROMPT_KEYS[:2])}'
        )
    return [[Message("user", prefix.strip()), Message("assistant", text[len(prefix) :])] for text in texts]


def _dialogue(text: str) -> list[Message]:
    """The turns of a text as hh-rlhf writes them."""
    pieces = _TURN.split(f"\n\n{text.lstrip()}")[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [Message(roles[who], said.strip()) for who, said in zip(pieces[::2], pieces[1::2], strict=True)]
