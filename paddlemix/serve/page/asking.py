# SPDX-License-Identifier: Apache-2.0
"""How the page asks: the models that a controller (or a lone worker) has, and an answer piece by piece."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

from paddlemix.serve.forwarding import BrokenError, Head, UnreachableError, answer_of
from paddlemix.utils.shown import readable

_LARGEST = 1 << 20
"""Bytes of an answer that is no stream, and of one event of a stream."""
_MODELS_SECONDS = 10.0


class AskError(Exception):
    """What a person is told: the worker's own words, or why there are none."""


@dataclass(frozen=True)
class Server:
    """Where the controller or the worker listens (http://HOST:PORT), and the key that it wants."""

    address: str
    key: str = ""

    async def models(self) -> list[str]:
        """The names of the models that can be asked; AskError when the server does not say."""
        try:
            status, body = await asyncio.wait_for(self._whole("/worker_get_status"), _MODELS_SECONDS)
        except asyncio.TimeoutError:
            raise AskError(f"{self.address} does not answer") from None
        names = _object(body).get("model_names")
        if status != 200 or not isinstance(names, list):
            raise AskError(_message(status, body))
        return [str(name) for name in names]

    async def answer(self, body: dict[str, Any]) -> AsyncGenerator[str, None]:
        """The answer to a request with ``stream``, piece by piece. Leaving the iterator ends it at the worker, too."""
        status, left, ended = 0, b"", False
        async with contextlib.aclosing(self._pieces("/v1/chat/completions", body)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Head):
                    status = piece.status
                    continue
                left += piece
                if len(left) > _LARGEST:
                    raise AskError(f"{self.address}: the answer is no stream of events")
                while status == 200 and b"\n\n" in left:
                    event, _, left = left.partition(b"\n\n")
                    ended = ended or event == b"data: [DONE]"
                    text = "" if ended else _text(event.removeprefix(b"data: "))
                    if text:
                        yield text
        if status != 200:
            raise AskError(_message(status, left))
        if not ended:
            raise AskError(f"the answer of {self.address} broke off")

    async def _whole(self, path: str) -> tuple[int, bytes]:
        status, found = 0, b""
        async with contextlib.aclosing(self._pieces(path, {})) as pieces:
            async for piece in pieces:
                if isinstance(piece, Head):
                    status = piece.status
                elif len(found) < _LARGEST:
                    found += piece
        return status, found

    async def _pieces(self, path: str, body: dict[str, Any]) -> AsyncGenerator[Head | bytes, None]:
        """What comes for a POST; AskError when nothing does."""
        try:
            async with contextlib.aclosing(
                answer_of(self.address, path, json.dumps(body).encode(), self.key or "none")
            ) as pieces:
                async for piece in pieces:
                    yield piece
        except UnreachableError as error:
            raise AskError(f"{self.address} cannot be reached") from error
        except BrokenError as error:
            raise AskError(f"the answer of {self.address} broke off") from error


async def until(stopped: asyncio.Event, pieces: AsyncGenerator[str, None]) -> AsyncIterator[str]:
    """The pieces that come before ``stopped`` is set, which also ends the wait for the next one."""
    ending = asyncio.ensure_future(stopped.wait())
    following: asyncio.Future[str] | None = None
    try:
        while not stopped.is_set():
            following = asyncio.ensure_future(anext(pieces))
            await asyncio.wait({following, ending}, return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                return
            try:
                piece = following.result()
            except StopAsyncIteration:
                return
            yield piece
    finally:
        ending.cancel()
        if following is not None and not following.done():
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        await pieces.aclose()


def _text(event: bytes) -> str:
    """The text that an event of a stream adds; AskError for one that tells of an error."""
    found = _object(event)
    if "error" in found:
        raise AskError(_message(500, event))
    choices = found.get("choices")
    delta = choices[0].get("delta") if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None
    text = delta.get("content") if isinstance(delta, dict) else None
    return text if isinstance(text, str) else ""


def _message(status: int, body: bytes) -> str:
    error = _object(body).get("error")
    message = error.get("message") if isinstance(error, dict) else None
    return readable(message) if isinstance(message, str) and message else f"the server answers {status}"


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
