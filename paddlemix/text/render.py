# SPDX-License-Identifier: Apache-2.0
"""Messages to ids and labels: one algorithm for training samples and for prompts.

The text is encoded as the original encodes it (in one call, cut only at ``<image>``), so the ids are the original's.
The labels come from where the characters of each token stand: a token is learnt if its first character is in a segment
that learns. Nothing is counted twice, so no row is lost to a "tokenization mismatch".

Rule: the ids of a training sample up to an answer equal those of the prompt for that answer. A vocabulary can join or
lose white space at the border between head and answer, so that the prompt ends some tokens before the border: then
what the prompt does not give is learnt as well. It can also join the last character of the head and the first of the
answer to one piece ("\\n\\n"), where the prompt has another id. The training ids are then still the original's, and
that token is not learnt, because no prompt could lead to it.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from paddlemix.text.messages import ChatFormat, Message, Segment
from paddlemix.text.tokenizer import Pieces, Span, Tokenizer
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
    template: ChatFormat,
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
    the original does; by default a written "</s>" stays four characters. ``images=False`` keeps ``<image>`` as text
    (rows without images).

    ConfigError when a sample is asked for with a template that the original trains in another layout.

    A sample in a small format, with a tokenizer that has the pieces "▁", "▁h", "▁x" and "▁hi". Learnt is the answer
    with its end mark; the ids of the prompt are the beginning of those of the sample:

        >>> template = Template("small", "", "", user=("h ", " "), answer=Answer("x", " ", "</s>"), stops=("</s>",))
        >>> talk = [Message("user", "<image> hi"), Message("assistant", "hi x")]
        >>> sample = render(template, talk, tokenizer, answer_open=False)
        >>> sample.text
        'h <image> hi x hi x</s>'
        >>> [number if number < 0 else tokenizer.token(number) for number in sample.ids]
        ['<s>', '▁h', '▁', -200, '▁', '▁hi', '▁x', '▁hi', '▁x', '</s>']
        >>> [None if number == IGNORE_INDEX else tokenizer.token(number) for number in sample.labels]
        [None, None, None, None, None, None, None, '▁hi', '▁x', '</s>']
        >>> prompt = render(template, talk[:1], tokenizer, answer_open=True)
        >>> prompt.ids == sample.ids[:7]
        True
    """
    if template.train_as and not answer_open:
        raise ConfigError(
            f'template "{template.name}" is for prompts; training uses "{template.train_as}": '
            f'take templates.get("{template.name}", training=True)'
        )
    segments = template.segments(messages, answer_open=answer_open)
    return render_segments(segments, tokenizer, specials=specials, images=images)


def render_segments(
    segments: Sequence[Segment], tokenizer: Tokenizer, *, specials: bool = False, images: bool = True
) -> Rendered:
    """Ids and labels of segments that stand one after the other; arguments as in ``render``.

    The tokenizer's bos stands in front unless the first segment is template text that writes it out.
    """
    text = "".join(part.text for part in segments)
    borders = _Borders(segments)
    plain = [] if specials else _quoted_spans(segments, text, images)
    ids = [tokenizer.bos_id] * (tokenizer.add_bos and not _writes_bos(segments, tokenizer))
    labels = [IGNORE_INDEX] * len(ids)
    at = 0
    for i, chunk in enumerate(text.split(IMAGE_TOKEN) if images else [text]):
        if i:
            ids.append(IMAGE_TOKEN_INDEX)
            labels.append(IGNORE_INDEX)
            at += len(IMAGE_TOKEN)
        inside = [(a - at, b - at) for a, b in plain if a < at + len(chunk) and at < b]
        found = tokenizer.pieces(chunk, plain=inside)
        learnt = borders.learnt(at, found.starts)
        for border in borders.inside(at, at + len(chunk)):
            _learn_from_prompt(found, learnt, border - at, chunk, inside, tokenizer)
        ids += found.ids
        labels += [number if learns else IGNORE_INDEX for number, learns in zip(found.ids, learnt, strict=True)]
        at += len(chunk)
    return Rendered(ids, labels, text, list(segments))


class _Borders:
    """Which characters are learnt, and where learning begins."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = segments
        self._ends: list[int] = []
        self._begins: list[int] = []
        at, before = 0, False
        for part in segments:
            if part.learns and not before and at:
                self._begins.append(at)
            before = part.learns
            at += len(part.text)
            self._ends.append(at)

    def learnt(self, at: int, starts: Sequence[int]) -> list[bool]:
        """Whether each of the characters ``at + start`` is learnt; ``starts`` rise."""
        found: list[bool] = []
        last = len(self._ends) - 1
        for number, (part, end) in enumerate(zip(self._segments, self._ends, strict=True)):
            stop = len(starts) if number == last else bisect_left(starts, end - at, len(found))
            found += [part.learns] * (stop - len(found))
        return found

    def inside(self, begin: int, end: int) -> list[int]:
        """Characters strictly inside a chunk at which learning begins."""
        return self._begins[bisect_right(self._begins, begin) : bisect_left(self._begins, end)]


def _learn_from_prompt(
    found: Pieces, learnt: list[bool], border: int, chunk: str, plain: Sequence[Span], tokenizer: Tokenizer
) -> None:
    """Learn from where the prompt for an answer ends, if a token stands across ``border`` or white space before it."""
    after = bisect_left(found.starts, border)
    begins_here = after < len(found.starts) and found.starts[after] == border
    if begins_here and not chunk[border - 1].isspace():
        return
    prompt = tokenizer.pieces(chunk[:border], plain=plain).ids
    if found.ids[: len(prompt)] == prompt:
        learnt[len(prompt) : after] = [True] * (after - len(prompt))


def _writes_bos(segments: Sequence[Segment], tokenizer: Tokenizer) -> bool:
    begin = tokenizer.token(tokenizer.bos_id)
    return bool(segments) and not segments[0].quoted and segments[0].text.startswith(begin)


def _quoted_spans(segments: Sequence[Segment], text: str, images: bool) -> list[Span]:
    """Characters that people wrote, without the marks around image places (those are ours)."""
    spans, at = [], 0
    for part in segments:
        if part.quoted:
            spans.append((at, at + len(part.text)))
        at += len(part.text)
    for match in _WRAPPED_IMAGE.finditer(text) if images else ():
        begin, end = match.span()
        spans = [piece for a, b in spans for piece in ((a, min(b, begin)), (max(a, end), b)) if piece[0] < piece[1]]
    return spans
