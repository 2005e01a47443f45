# SPDX-License-Identifier: Apache-2.0
"""The routes of a controller, by LLaVA's names: workers register and beat, clients ask for models and answers."""

import asyncio
import time
from collections.abc import Awaitable, Callable
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
from paddlemix.serve.forwarding import BrokenError, answer_of
from paddlemix.serve.guard import Gate, Guard, Visit
from paddlemix.serve.limits import Limits
from paddlemix.serve.waiting import while_there
from paddlemix.utils import addresses
from paddlemix.utils.errors import DataError

BROKEN, NO_WORKER = 3, 2
"""Error codes of LLaVA's clients: the worker does not answer, there is none."""
_NAMES = 64


class Controller:
    """The workers and the routes. ``token`` is what workers show, and what the controller shows them."""

    def __init__(self, workers: Workers, limits: Limits, token: str) -> None:
        self.workers = workers
        self.limits = limits
        self.gate = Gate(limits)
        self._token = token
        self._workers_only = Access.of([token])

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
        routes += [
            Route("/worker_generate_stream", self._generate, methods=["POST"]),
            Route("/health", self._health, methods=["GET"]),
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
        return {}

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

    async def _generate(self, request: Request) -> ASGIApp:
        async def respond(scope: Scope, receive: Receive, send: Send) -> None:
            visit: Visit = scope["paddlemix.visit"]
            visit.told = _told
            self.gate.check()
            async with self.gate.body(scope, receive) as body:
                with self.gate.place():
                    await while_there(receive, self._forward(body, visit, send))

        return respond

    async def _forward(self, body: bytes, visit: Visit, send: Send) -> None:
        loop = asyncio.get_running_loop()
        asked = await loop.run_in_executor(None, read_object, body, self.limits)
        address = self.workers.pick(Fields(asked).text("model") or "")
        visit.facts["worker"] = address
        try:
            await asyncio.wait_for(self._relay(address, body, send), visit.arrived + self.limits.request_seconds
                                   - time.monotonic())  # fmt: skip
        except (BrokenError, asyncio.TimeoutError) as error:
            if isinstance(error, BrokenError):
                self.workers.remove(address)  # its next heart-beat brings it back
            message = str(error) or "the answer was not complete in time"
            visit.facts["error"] = message
            if not visit.begun:
                raise RequestError(502, message, code="worker_failed") from None
            await send({"type": "http.response.body", "body": chunk(message, BROKEN)})

    async def _relay(self, address: str, body: bytes, send: Send) -> None:
        answer = answer_of(address, "/worker_generate_stream", body, self._token)
        try:
            async for piece in answer:
                if isinstance(piece, int):
                    headers = [(b"content-type", b"application/octet-stream"), (b"x-accel-buffering", b"no")]
                    await send({"type": "http.response.start", "status": piece, "headers": headers})
                else:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await answer.aclose()


def _told(error: RequestError) -> bytes:
    """An error as a chunk, with the code of LLaVA's clients."""
    codes = {"no_worker": NO_WORKER, "worker_failed": BROKEN}
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
