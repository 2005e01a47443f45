# SPDX-License-Identifier: Apache-2.0
"""Messages to ids and labels: one algorithm for training samples and for prompts.

The text is encoded as the original encodes it (in one call, cut only at ``<image>``), so the ids are the original's.
The labels come from where the characters of each token stand: a token is learnt if its first character is in a segment
that learns. Nothing is counted twice, so no row is lost to a "tokenization mismatch".

Law: the ids of a training sample up to an answer equal those of the prompt for that answer. It holds whenever no token
of the sample crosses the border between head and answer. Where a vocabulary has such a token (a head that ends in "\\n"
before an answer that begins with "\\n", and a piece "\\n\\n"), the training ids are the original's, and the token is not
learnt: no prompt could lead to it.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from paddlemix.text.messages import Layout, Message, Segment
from paddlemix.text.tokenizer import Span, Tokenizer
from paddlemix.utils.constants import (
    IGNORE_INDEX,
    IMAGE_END_TOKEN,
    IMAGE_START_TOKEN,
    IMAGE_TOKEN,
    IMAGE_TOKEN_INDEX,
)
from paddlemix.utils.errors import ConfigError

_WRAPPED_IMAGE = re.compile(re.escape(f"{IMAGE_START_TOKEN}{IMAGE_TOKEN}{IMAGE_END_TOKEN}"))


@dataclass(frozen=True)
class Rendered:
    """``ids`` hold IMAGE_TOKEN_INDEX at image places; ``labels`` are the ids that are learnt, else IGNORE_INDEX."""

    ids: list[int]
    labels: list[int]
    text: str
    segments: list[Segment]


def render(
    template: Layout,
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    answer_open: bool,
    specials: bool = False,
    images: bool = True,
) -> Rendered:
    """Ids and labels of a conversation.

    ``answer_open=True`` ends where the next answer begins (a prompt; the last message is the user's);
    ``answer_open=False`` is a training sample. ``specials=True`` parses special tokens that stand in the messages, as
    the original does; by default a written "</s>" stays five characters. ``images=False`` keeps ``<image>`` as text
    (rows without pictures).

    ConfigError when a sample is asked for with a template that the original trains in another layout.
    """
    if template.train_as and not answer_open:
        raise ConfigError(
            f'template "{template.name}" is for prompts; training uses "{template.train_as}": '
            f'take templates.get("{template.name}", training=True)'
        )
    return render_segments(
        template.segments(messages, answer_open=answer_open), tokenizer, specials=specials, images=images
    )


def render_segments(
    segments: Sequence[Segment], tokenizer: Tokenizer, *, specials: bool = False, images: bool = True
) -> Rendered:
    """Ids and labels of segments that stand one after the other; arguments as in ``render``."""
    text = "".join(part.text for part in segments)
    ends, at = [], 0
    for part in segments:
        at += len(part.text)
        ends.append(at)
    plain = [] if specials else _quoted_spans(segments, ends, text, images)
    ids = [tokenizer.bos_id] if tokenizer.add_bos else []
    labels = [IGNORE_INDEX] * len(ids)
    at = 0
    for i, chunk in enumerate(text.split(IMAGE_TOKEN) if images else [text]):
        if i:
            ids.append(IMAGE_TOKEN_INDEX)
            labels.append(IGNORE_INDEX)
            at += len(IMAGE_TOKEN)
        inside = [(a - at, b - at) for a, b in plain if a < at + len(chunk) and at < b]
        found = tokenizer.pieces(chunk, plain=inside)
        ids += found.ids
        for number, start in zip(found.ids, found.starts, strict=True):
            owner = segments[min(bisect_right(ends, at + start), len(segments) - 1)]
            labels.append(number if owner.learns else IGNORE_INDEX)
        at += len(chunk)
    return Rendered(ids, labels, text, list(segments))


def _quoted_spans(segments: Sequence[Segment], ends: Sequence[int], text: str, images: bool) -> list[Span]:
    """Characters that people wrote, without the marks around image places (those are ours)."""
    spans = [(end - len(part.text), end) for part, end in zip(segments, ends, strict=True) if part.quoted]
    for match in _WRAPPED_IMAGE.finditer(text) if images else ():
        begin, end = match.span()
        spans = [piece for a, b in spans for piece in ((a, min(b, begin)), (max(a, end), b)) if piece[0] < piece[1]]
    return spans
