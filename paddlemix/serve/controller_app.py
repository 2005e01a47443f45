# SPDX-License-Identifier: Apache-2.0
"""The routes of a controller: workers register and beat, clients ask by LLaVA's protocol or OpenAI's."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from paddlemix.serve.access import Access
from paddlemix.serve.bodies import Fields, read_object
from paddlemix.serve.chunks import chunk, told
from paddlemix.serve.dispatch import Workers
from paddlemix.serve.faults import RequestError, refused
from paddlemix.serve.forwarding import BrokenError, Head, UnreachableError, answer_of
from paddlemix.serve.guard import Gate, Guard, Visit
from paddlemix.serve.limits import Limits
from paddlemix.serve.waiting import while_there
from paddlemix.utils import addresses
from paddlemix.utils.errors import DataError

BROKEN, NO_WORKER = 3, 2
"""Error codes of LLaVA's clients: the worker does not answer, there is none."""
_NAMES = 64


@dataclass(frozen=True)
class _Way:
    """A route that is handed on. ``end`` ends a piece of its streams.

    ``told`` is an error in place of an answer (None: OpenAI's form), ``within`` one in the middle of a stream.
    """

    path: str
    end: bytes
    told: Callable[[RequestError], bytes] | None
    within: Callable[[RequestError], bytes]


class Controller:
    """The workers and the routes. ``token`` is what workers show, and what the controller shows them."""

    def __init__(self, workers: Workers, limits: Limits, token: str) -> None:
        self.workers = workers
        self.limits = limits
        self.gate = Gate(limits)
        self._token = token
        self._workers_only = Access.of([token])
        self._created = int(time.time())

    def app(self, access: Access) -> ASGIApp:
        """All routes behind the guard."""
        simple: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "/list_models": lambda _: {"models": self.workers.models()},
            "/get_worker_address": self._address,
            "/worker_get_status": self._status,
            "/refresh_all_workers": lambda _: {"workers": len(self.workers.alive())},
        }
        own = {"/register_worker": self._register, "/receive_heart_beat": self._beat}
        routes = [Route(path, self._route(work), methods=["POST"]) for path, work in simple.items()]
        routes += [Route(path, self._route(work, workers_only=True), methods=["POST"]) for path, work in own.items()]
        routes += [Route(way.path, self._handed_on(way), methods=["POST"]) for way in (LLAVA, OPENAI)]
        routes += [
            Route("/v1/models", self._models, methods=["GET"]),
            Route("/v1/models/{name:path}", self._model, methods=["GET"]),
            Route("/health", self._health, methods=["GET"]),
            Route("/ready", self._ready, methods=["GET"]),
        ]
        return Guard(Router(routes, redirect_slashes=False), access, self.limits, lambda _: None)

    def _route(
        self, work: Callable[[dict[str, Any]], dict[str, Any]], *, workers_only: bool = False
    ) -> Callable[[Request], Awaitable[ASGIApp]]:
        async def handler(request: Request) -> ASGIApp:
            async def respond(scope: Scope, receive: Receive, send: Send) -> None:
                if workers_only:
                    self._workers_only.check_key(scope["headers"])
                async with self.gate.body(scope, receive, empty=True) as body:
                    found = JSONResponse(work(read_object(body or b"{}", self.limits)))
                await found(scope, receive, send)

            return respond

        return handler

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "workers": len(self.workers.alive())})

    async def _ready(self, request: Request) -> Response:
        ready = bool(self.workers.alive()) and not self.gate.draining
        return JSONResponse({"status": "ready" if ready else "no worker is there"}, 200 if ready else 503)

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._card(name) for name in self.workers.models()]})

    async def _model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self.workers.models():
            raise self.workers.missing(name)
        return JSONResponse(self._card(name))

    def _card(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": "paddlemix"}

    def _register(self, body: dict[str, Any]) -> dict[str, Any]:
        status = body.get("worker_status")
        if not isinstance(status, dict):
            raise refused("worker_status has to be an object", "worker_status")
        names = status.get("model_names")
        if not isinstance(names, list) or not names or len(names) > _NAMES or not all(
            isinstance(name, str) for name in names
        ):  # fmt: skip
            raise refused(f"worker_status.model_names has to be a list of 1 to {_NAMES} texts", "worker_status")
        fields = Fields(status, "worker_status.")
        self.workers.register(
            _worker_name(body),
            tuple(names),
            fields.number("speed", 0, 1e6, 1.0),
            fields.whole("queue_length", 0, 1 << 31, 0) or 0,
            beats=body.get("check_heart_beat") is not False,
        )
        return {"heart_beat_seconds": self.workers.expires / 2}

    def _beat(self, body: dict[str, Any]) -> dict[str, Any]:
        queue = Fields(body).whole("queue_length", 0, 1 << 31, 0) or 0
        return {"exist": self.workers.beat(_worker_name(body), queue)}

    def _address(self, body: dict[str, Any]) -> dict[str, Any]:
        """As LLaVA's: an empty address when there is no worker."""
        try:
            return {"address": self.workers.pick(Fields(body).text("model") or "")}
        except RequestError:
            return {"address": ""}

    def _status(self, body: dict[str, Any]) -> dict[str, Any]:
        known = self.workers.alive().values()
        return {
            "model_names": self.workers.models(),
            "speed": sum(worker.speed for worker in known),
            "queue_length": sum(worker.queue for worker in known),
        }

    def _handed_on(self, way: _Way) -> Callable[[Request], Awaitable[ASGIApp]]:
        async def handler(request: Request) -> ASGIApp:
            async def respond(scope: Scope, receive: Receive, send: Send) -> None:
                visit: Visit = scope["paddlemix.visit"]
                visit.told = way.told
                self.gate.check()
                async with self.gate.body(scope, receive) as body:
                    with self.gate.place():
                        await while_there(receive, self._forward(way, body, visit, send))

            return respond

        return handler

    async def _forward(self, way: _Way, body: bytes, visit: Visit, send: Send) -> None:
        loop = asyncio.get_running_loop()
        asked = await loop.run_in_executor(None, read_object, body, self.limits)
        model = Fields(asked).text("model") or self.workers.only_model()
        left = visit.arrived + self.limits.request_seconds - time.monotonic()
        try:
            await asyncio.wait_for(self._answer(way, model, body, visit, send), left)
        except (BrokenError, asyncio.TimeoutError) as error:
            failed = RequestError(502, str(error) or "the answer was not complete in time", code="worker_failed")
            visit.facts["error"] = failed.message
            if not visit.begun:
                raise failed from None
            await send({"type": "http.response.body", "body": way.within(failed)})

    async def _answer(self, way: _Way, model: str, body: bytes, visit: Visit, send: Send) -> None:
        """The answer of one worker; a worker that never got the request is passed over for another one."""
        while True:
            address = self.workers.pick(model)
            visit.facts["worker"] = address
            try:
                await self._relay(way, address, body, send)
                return
            except BrokenError as error:
                self.workers.remove(address)  # its next heart-beat brings it back
                if not (isinstance(error, UnreachableError) and model in self.workers.models()):
                    raise

    async def _relay(self, way: _Way, address: str, body: bytes, send: Send) -> None:
        """A stream goes on in whole pieces, so that an error can follow any of them; other answers go when complete."""
        answer = answer_of(address, way.path, body, self._token)
        head, held, begun = Head(502, ()), b"", False
        try:
            async for piece in answer:
                if isinstance(piece, Head):
                    head = piece
                    continue
                whole, end, held = (held + piece).rpartition(way.end) if head.streams else (b"", b"", held + piece)
                if whole:
                    await _send(send, None if begun else head, whole + end, more=True)
                    begun = True
            await _send(send, None if begun else head, held, more=False)
        finally:
            await answer.aclose()


async def _send(send: Send, head: Head | None, body: bytes, *, more: bool) -> None:
    """A piece of an answer, behind its head when it is the first."""
    if head is not None:
        await send({"type": "http.response.start", "status": head.status, "headers": list(head.headers)})
    await send({"type": "http.response.body", "body": body, "more_body": more})


def _told(error: RequestError) -> bytes:
    """An error as a chunk, with the code of LLaVA's clients."""
    codes = {"no_worker": NO_WORKER, "model_not_found": NO_WORKER, "worker_failed": BROKEN}
    return chunk(error.message, codes[error.code]) if error.code in codes else told(error)


def _worker_name(body: dict[str, Any]) -> str:
    """The address of a worker, as it names itself."""
    name = Fields(body).text("worker_name") or ""
    try:
        address = addresses.parse(name)
    except DataError as error:
        raise refused(str(error), "worker_name") from None
    if address.scheme != "http" or address.target != "/":
        raise refused("worker_name has to be http://HOST:PORT", "worker_name")
    return name.rstrip("/")


def _event(error: RequestError) -> bytes:
    """An error as a server-sent event, in OpenAI's form."""
    return b"data: " + json.dumps(error.body).encode() + b"\n\n"


LLAVA = _Way("/worker_generate_stream", b"\0", _told, _told)
OPENAI = _Way("/v1/chat/completions", b"\n\n", None, _event)
