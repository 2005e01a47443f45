# SPDX-License-Identifier: Apache-2.0
"""Ids to text while they come: never half a character, never a part of a stop string."""

import codecs
from collections.abc import Sequence

from paddlemix.text.tokenizer import BYTES, FAST_KINDS, Tokenizer


class TextStream:
    """Text of a growing list of ids.

    What ``put`` and ``end`` return, joined, equals ``tokenizer.decode`` of all ids, cut in front of the stop string
    that is complete first. Special tokens give no text; one that is written like a stop string ends the stream too.
    ``stopped`` is True from then on, and later ids are ignored.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self.stopped = False
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self._tail: list[int] = []  # ids whose text can still change, behind the anchor
        self._anchored = False
        self._given = 0  # characters of the tail's text that have gone to the stops
        self._length = 0  # characters of the tail's text, certain or not
        self._held = ""  # text that may be the beginning of a stop string
        bytewise = tokenizer.kind == BYTES
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace") if bytewise else None
        self._sentinel = None if bytewise else _sentinel(tokenizer)
        self._sentinel_length = 0 if bytewise else len(tokenizer.decode([self._sentinel]))

    def put(self, number: int) -> str:
        """New text that one more id makes certain."""
        if self.stopped:
            return ""
        if number in self._tokenizer.special_ids:
            if self._tokenizer.token(number) not in self._stops:
                return ""
            text = self.end()
            self.stopped = True
            return text
        if self._bytes is not None:
            return self._release(self._bytes.decode(self._tokenizer.piece_bytes(number)))
        self._tail.append(number)
        text = self._text()
        certain = text[: len(text) - self._uncertain(text)]
        new, self._given = certain[self._given :], max(self._given, len(certain))
        plain = not self._tokenizer.is_byte(number) and not self._tokenizer.is_added(number)
        if plain and len(text) > self._length:
            # Behind a plain piece that gave text, nothing looks back further than that something was there.
            self._tail, self._given, self._length, self._anchored = [], 0, 0, True
        else:
            self._length = len(text)
        return self._release(new)

    def end(self) -> str:
        """The rest of the text, when no more ids come."""
        if self.stopped:
            return ""
        text = self._text()[self._given :] if self._bytes is None else self._bytes.decode(b"", True)
        self._tail, self._given = [], 0
        out = self._release(text)
        out, self._held = out + self._held, ""
        return out

    def _text(self) -> str:
        if not self._anchored:
            return self._tokenizer.decode(self._tail)
        return self._tokenizer.decode([self._sentinel, *self._tail])[self._sentinel_length :]

    def _uncertain(self, text: str) -> int:
        """Characters at the end of the tail's text that the next bytes could change."""
        run = bytearray()
        for number in reversed(self._tail):
            if not self._tokenizer.is_byte(number):
                break
            run += self._tokenizer.piece_bytes(number)
        run.reverse()
        if self._tokenizer.kind in FAST_KINDS:
            return min(len(text), len(run.decode("utf-8")) if _is_utf8(run) else len(run))
        return _open_bytes(run)

    def _release(self, text: str) -> str:
        self._held += text
        places = [(self._held.find(stop), len(stop)) for stop in self._stops]
        found = [(place + size, place) for place, size in places if place >= 0]
        if found:
            out, self._held, self.stopped = self._held[: min(found)[1]], "", True
            return out
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out


def keyword_stop(
    tokenizer: Tokenizer, keywords: Sequence[str], prompt_ids: Sequence[int], new_ids: Sequence[int]
) -> int | None:
    """After how many new ids the original's keyword criterion stops; None when it never does.

    It stops when the sequence ends with the ids of a keyword, or when a keyword stands in the text of as many of the
    last ids as the longest keyword has (llava/mm_utils.py, KeywordsStoppingCriteria).
    """
    wanted = [_keyword_ids(tokenizer, keyword) for keyword in keywords]
    longest = max((len(ids) for ids in wanted), default=0)
    for count in range(1, len(new_ids) + 1):
        ids = [*prompt_ids, *new_ids[:count]]
        text = tokenizer.decode(ids[-min(count, longest) :])
        if any(ids[-len(want) :] == want for want in wanted) or any(keyword in text for keyword in keywords):
            return count
    return None


def _keyword_ids(tokenizer: Tokenizer, keyword: str) -> list[int]:
    ids = tokenizer.encode(keyword)
    return ids[1:] if len(ids) > 1 and ids[0] == tokenizer.bos_id else ids


def _sentinel(tokenizer: Tokenizer) -> int:
    """A plain piece of letters: with it in front, the rules for the beginning of a text do not touch what follows."""
    for number in range(tokenizer.base_size):
        plain = not tokenizer.is_byte(number) and not tokenizer.is_added(number)
        if plain and tokenizer.token(number).isalpha():
            return number
    return tokenizer.unk_id


def _is_utf8(run: bytes) -> bool:
    try:
        run.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _open_bytes(run: bytes) -> int:
    """Bytes at the end of ``run`` that can become a character with more bytes behind them."""
    for size in range(1, min(3, len(run)) + 1):
        lead = run[-size]
        if lead >= 0xC0:
            want = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
            return size if size < want and lead < 0xF8 else 0
        if lead < 0x80:
            return 0
    return 0


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``stop``."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
