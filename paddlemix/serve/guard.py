# SPDX-License-Identifier: Apache-2.0
"""What every request goes through: keys, bounds on bodies and numbers, errors in one form, one line of log."""

import asyncio
import contextlib
import json
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paddlemix.serve.access import Access
from paddlemix.serve.faults import RequestError, failed, overloaded, unavailable
from paddlemix.serve.limits import Limits
from paddlemix.utils.logging import get_logger


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


@dataclass
class Visit:
    """One request while it is here; ``facts`` go to the log."""

    id: str
    arrived: float
    status: int = 0
    begun: bool = False
    body_read: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    told: Callable[[RequestError], bytes] | None = None
    """How an error is written where OpenAI's form is not the one."""


class Gate:
    """How many requests are answered or wait, and how much memory their bodies take. Of one event loop."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.requests = self.held = 0
        self.draining = False

    def check(self) -> None:
        """RequestError when one more request could not be taken."""
        if self.draining:
            raise unavailable("the server is going down", "shutting_down")
        if self.requests >= self.limits.requests:
            raise overloaded(f"rate limit: {self.requests} requests are being answered or wait; try again later")

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place among the requests for the block."""
        self.check()
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    @contextlib.asynccontextmanager
    async def body(self, scope: Scope, receive: Receive, *, empty: bool = False) -> Any:
        """The body of a request, of which the memory counts until the block ends. ``empty``: there may be none."""
        chunks: list[bytes] = []
        try:
            try:
                await asyncio.wait_for(self._read(scope, receive, chunks, empty), self.limits.body_seconds)
            except asyncio.TimeoutError:
                raise RequestError(408, f"the body did not come within {self.limits.body_seconds:g} s") from None
            yield b"".join(chunks)
        finally:
            self.held -= sum(map(len, chunks))

    async def _read(self, scope: Scope, receive: Receive, chunks: list[bytes], empty: bool) -> None:
        most, headers = self.limits.body_bytes, dict(scope["headers"])
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json" and (kind or not empty):
            raise RequestError(415, "the body has to be JSON: Content-Type: application/json")
        if int(headers.get(b"content-length", b"0")) > most:
            raise _too_large(most)
        read, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            data, more = message.get("body", b""), message.get("more_body", False)
            read += len(data)
            if read > most:
                raise _too_large(most)
            if self.held + len(data) > self.limits.held_bytes:
                raise overloaded("rate limit: the requests that wait take all memory there is for them")
            self.held += len(data)
            chunks.append(data)
        scope["paddlemix.visit"].body_read = True


def _too_large(most: int) -> RequestError:
    return RequestError(413, f"the body has more than {most} bytes; send fewer or smaller images")


class Guard:
    """The outermost application."""

    def __init__(self, app: ASGIApp, access: Access, limits: Limits, count: Callable[[int], None]) -> None:
        self.app = app
        self.access = access
        self.limits = limits
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever happens."""
        if scope["type"] != "http":
            return
        visit = Visit(f"{int(time.time()):08x}{secrets.token_hex(8)}", time.monotonic())
        scope["paddlemix.visit"], scope["app"] = visit, self

        async def sender(message: Message) -> None:
            if message["type"] == "http.response.start":
                visit.status, visit.begun = message["status"], True
                own = [(b"x-request-id", visit.id.encode()), (b"x-content-type-options", b"nosniff")]
                message = {**message, "headers": [*message.get("headers", ()), *own]}
            await send(message)

        try:
            await self._answer(scope, receive, sender, visit)
        except ClientGoneError:
            visit.status = visit.status if visit.begun else 499
        finally:
            self._count(visit.status or 499)
            self._log(scope, visit)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, visit: Visit) -> None:
        try:
            self._check_head(scope)
            self.access.check(scope["headers"])
            await self.app(scope, receive, send)
            return
        except RequestError as caught:
            error = caught
        except HTTPException as caught:
            error = RequestError(caught.status_code, f"{caught.detail}: see docs/serving.md for the routes")
        except ClientGoneError:
            raise
        except Exception:  # noqa: BLE001 - one request must not end the server
            get_logger(__name__).exception(f"{visit.id} failed")
            error = failed(visit.id)
        visit.facts["error"] = error.message
        if not visit.begun:
            await self._refuse(scope, receive, send, error)

    def _check_head(self, scope: Scope) -> None:
        """The protocol's own bound holds only while a head is incomplete: one that comes at once passes it."""
        size = len(scope["raw_path"]) + len(scope["query_string"])
        size += sum(len(name) + len(value) for name, value in scope["headers"])
        if size > self.limits.header_bytes:
            raise RequestError(431, f"the head of the request has more than {self.limits.header_bytes} bytes")

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, error: RequestError) -> None:
        """Say what is wrong at once; a body that is still on its way is read for a moment, and dropped."""
        visit: Visit = scope["paddlemix.visit"]
        response = JSONResponse(error.body, error.status, error.headers)
        if visit.told is not None:
            response = Response(visit.told(error), error.status, error.headers, "application/octet-stream")
        if visit.body_read or scope["method"] in ("GET", "HEAD"):
            await response(scope, receive, send)
            return
        headers = [*response.raw_headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": error.status, "headers": headers})
        await send({"type": "http.response.body", "body": response.body, "more_body": True})
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_drop(receive), self.limits.linger_seconds)
        await send({"type": "http.response.body", "body": b""})

    def _log(self, scope: Scope, visit: Visit) -> None:
        """One line of JSON, in which nothing of a request can begin another line."""
        line = {
            "id": visit.id,
            "method": scope["method"],
            "path": scope["path"][:100],
            "status": visit.status,
            "seconds": round(time.monotonic() - visit.arrived, 3),
            **visit.facts,
        }
        sys.stderr.write(json.dumps(line) + "\n")
        sys.stderr.flush()


async def _drop(receive: Receive) -> None:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return
