# SPDX-License-Identifier: Apache-2.0
"""Answers in the form of OpenAI's chat completions, whole or as a stream of chunks."""

import time
from collections.abc import Sequence
from typing import Any

from paddlemix.generation.sampling import TokenLogprob
from paddlemix.serve.question import Ended, Event, Failed, Piece, Started
from paddlemix.text.tokenizer import BYTES, Tokenizer

DONE = "[DONE]"
SPACE = "\u2581"
"""How sentencepiece writes a blank."""


class Reply:
    """What events add up to. ``put`` takes each of them; then ``whole`` is the answer. ``failed`` ends it early."""

    def __init__(self, request_id: str, model: str, choices: int, tokenizer: Tokenizer, *, logprobs: bool) -> None:
        self.id = f"chatcmpl-{request_id}"
        self.model = model
        self.created = int(time.time())
        self.prompt_tokens = self.image_tokens = self.answer_tokens = self.reused = 0
        self.failed: Failed | None = None
        self.finish: list[str | None] = [None] * choices
        self._tokenizer = tokenizer
        self._logprobs = logprobs
        self._texts: list[list[str]] = [[] for _ in range(choices)]
        self._entries: list[list[dict[str, Any]]] = [[] for _ in range(choices)]

    @property
    def texts(self) -> list[str]:
        """What each choice has said."""
        return ["".join(texts) for texts in self._texts]

    @property
    def complete(self) -> bool:
        """Whether every choice has ended, or all have failed."""
        return self.failed is not None or None not in self.finish

    def put(self, event: Event) -> list[dict[str, Any]]:
        """The chunks of a stream that an event gives."""
        if isinstance(event, Started):
            self.prompt_tokens, self.image_tokens = event.prompt_tokens, event.image_tokens
            return [self._chunk(number, {"role": "assistant", "content": ""}) for number in range(len(self.finish))]
        if isinstance(event, Piece):
            entries = [logprob_entry(self._tokenizer, found) for found in event.logprobs]
            self._texts[event.choice].append(event.text)
            self._entries[event.choice] += entries
            return [self._chunk(event.choice, {"content": event.text}, entries)]
        if isinstance(event, Ended):
            self.answer_tokens += event.tokens
            self.reused = max(self.reused, event.reused)
            self.finish[event.choice] = event.finish
            return [self._chunk(event.choice, {}, finish=event.finish)]
        self.failed = event
        return [event.error.body]

    def whole(self) -> dict[str, Any]:
        """The answer in one object."""
        choices = [
            {
                "index": number,
                "message": {"role": "assistant", "content": "".join(texts), "refusal": None},
                "logprobs": {"content": entries, "refusal": None} if self._logprobs else None,
                "finish_reason": finish,
            }
            for number, (texts, entries, finish) in enumerate(zip(self._texts, self._entries, self.finish, strict=True))
        ]
        return {**self._head("chat.completion"), "choices": choices, "usage": self.usage}

    @property
    def usage(self) -> dict[str, Any]:
        """Positions of the prompt, those of images included, and ids of all choices, their ending ids included."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.answer_tokens,
            "total_tokens": self.prompt_tokens + self.answer_tokens,
            "prompt_tokens_details": {"cached_tokens": self.reused, "image_tokens": self.image_tokens},
        }

    def usage_chunk(self) -> dict[str, Any]:
        """The last chunk of a stream with ``include_usage``: no choices."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": self.usage}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(
        self, number: int, delta: dict[str, str], entries: Sequence[dict[str, Any]] = (), finish: str | None = None
    ) -> dict[str, Any]:
        logprobs = {"content": list(entries), "refusal": None} if self._logprobs and entries else None
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}


def logprob_entry(tokenizer: Tokenizer, found: TokenLogprob) -> dict[str, Any]:
    """OpenAI's entry for one id: its text, log probability, bytes and the likeliest ids."""
    top = [_token(tokenizer, number, logprob) for number, logprob in found.top]
    return {**_token(tokenizer, found.id, found.logprob), "top_logprobs": top}


def _token(tokenizer: Tokenizer, number: int, logprob: float) -> dict[str, Any]:
    if number in tokenizer.special_ids or tokenizer.is_added(number):
        data = tokenizer.token(number).encode()
    elif tokenizer.kind == BYTES or tokenizer.is_byte(number):
        data = tokenizer.piece_bytes(number)
    else:
        data = tokenizer.token(number).replace(SPACE, " ").encode()
    # JSON has no infinity; OpenAI writes -9999 for what cannot be drawn.
    return {"token": data.decode("utf-8", "replace"), "logprob": max(logprob, -9999.0), "bytes": list(data)}
