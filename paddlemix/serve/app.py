# SPDX-License-Identifier: Apache-2.0
"""The routes of a worker: OpenAI's, health and numbers."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from paddlemix.serve.access import Access
from paddlemix.serve.bodies import read_object
from paddlemix.serve.chat_reply import DONE, Reply
from paddlemix.serve.chat_request import ChatRequest, read_chat
from paddlemix.serve.engine import Engine
from paddlemix.serve.faults import RequestError
from paddlemix.serve.guard import Gate, Guard, Visit
from paddlemix.serve.limits import Limits
from paddlemix.serve.pictures import Place, opened
from paddlemix.serve.question import Question, check_length
from paddlemix.serve.ticket import Ticket, turn
from paddlemix.serve.waiting import while_there
from paddlemix.text.messages import Message
from paddlemix.utils.shown import shown

AHEAD = 2
"""Questions beyond the slots whose images are prepared already."""
T = TypeVar("T")


class Worker:
    """One model with its adapters, and the routes. ``names`` are what requests call the model; adapters have theirs."""

    def __init__(self, engine: Engine, names: Sequence[str], limits: Limits, *, log_prompts: bool = False) -> None:
        self.engine = engine
        adapters = [name for name in engine.predictors if name]
        self.names = (*names, *adapters)
        self._adapters = frozenset(adapters)
        self.limits = limits
        self.log_prompts = log_prompts
        self.gate = Gate(limits)
        self.created = int(time.time())
        self.places = asyncio.Semaphore(limits.slots + AHEAD)
        self.pool = ThreadPoolExecutor(4, "paddlemix-images")
        engine.metrics.waiting.set_function(lambda: max(0, self.gate.requests - engine.running))

    def app(self, access: Access, more: Sequence[BaseRoute] = ()) -> ASGIApp:
        """All routes behind the guard."""
        routes = [
            Route("/v1/models", self._models, methods=["GET"]),
            Route("/v1/models/{name:path}", self._model, methods=["GET"]),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/health", self._health, methods=["GET"]),
            Route("/ready", self._ready, methods=["GET"]),
            Route("/metrics", self._metrics, methods=["GET"]),
            *more,
        ]
        return Guard(Router(routes, redirect_slashes=False), access, self.limits, self._count)

    def _count(self, status: int) -> None:
        self.engine.metrics.requests.labels(str(status)).inc()

    def adapter_of(self, name: str | None) -> str:
        """The adapter that a request means by the model's name, "" for none; RequestError for an unknown one."""
        if name not in (None, *self.names):
            raise self.unknown_model(name or "")
        return name if name in self._adapters else ""

    async def in_pool(self, work: Callable[[], T]) -> T:
        """``work`` in a thread, so that the event loop goes on."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, work)

    async def check_length(self, asked: Sequence[Message] | str, adapter: str) -> None:
        """RequestError for texts that are far too long, before they take any of the engine's time."""
        await self.in_pool(lambda: check_length(self.engine.predictors[adapter], asked))

    async def images(self, places: Sequence[Place], adapter: str) -> tuple[tuple[Any, ...], tuple[int, ...]]:
        """The images of all places, prepared for the model or the adapter, and how many each has."""
        if not places:
            return (), ()
        predictor = self.engine.predictors[adapter]
        found, counts = await self.in_pool(lambda: opened(places, predictor.image_processor, self.limits))
        return tuple(found), tuple(counts)

    def left(self, visit: Visit) -> float:
        """Seconds that a request still has."""
        return visit.arrived + self.limits.request_seconds - time.monotonic()

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._card(name) for name in self.names]})

    async def _model(self, request: Request) -> Response:
        return JSONResponse(self._card(request.path_params["name"]))

    def _card(self, name: str) -> dict[str, Any]:
        adapter = self.adapter_of(name)
        card = {"id": name, "object": "model", "created": self.created, "owned_by": "paddlemix",
                "max_model_len": self.engine.predictors[adapter].context}  # fmt: skip
        return {**card, "parent": self.names[0]} if adapter else card

    def unknown_model(self, name: str) -> RequestError:
        """The error for a model that is not here."""
        known = ", ".join(self.names)
        return RequestError(
            404, f"the model {shown(name)} is not served here; known are {known}", param="model", code="model_not_found"
        )

    async def _health(self, request: Request) -> Response:
        stuck = self.engine.stuck_seconds
        reason = self.engine.fault or (f"a step takes {stuck:.0f} s" if stuck > self.limits.stuck_seconds else None)
        return JSONResponse({"status": reason or "ok"}, 500 if reason else 200)

    async def _ready(self, request: Request) -> Response:
        try:
            self.gate.check()
        except RequestError as error:
            return JSONResponse({"status": error.message}, 503)
        if self.engine.fault or self.engine.stuck_seconds > self.limits.stuck_seconds:
            return JSONResponse({"status": "the model can no longer be asked"}, 503)
        return JSONResponse({"status": "ready"})

    async def _metrics(self, request: Request) -> Response:
        return Response(self.engine.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def _chat(self, request: Request) -> ASGIApp:
        self.gate.check()

        async def respond(scope: Scope, receive: Receive, send: Send) -> None:
            visit: Visit = scope["paddlemix.visit"]
            async with self.gate.body(scope, receive) as body:
                with self.gate.place():
                    await while_there(receive, self._answer(body, visit, send))

        return respond

    async def _answer(self, body: bytes, visit: Visit, send: Send) -> None:
        asked = await self.in_pool(lambda: read_chat(read_object(body, self.limits), self.limits))
        adapter = self.adapter_of(asked.model)
        async with turn(self.places, self.left(visit)):
            await self.check_length(asked.messages, adapter)
            images, counts = await self.images(asked.places, adapter)
            question = Question(visit.id, asked.messages, asked.decoding, images, counts, asked.choices, adapter)
            name, tokenizer = asked.model or self.names[0], self.engine.predictors[adapter].tokenizer
            reply = Reply(visit.id, name, asked.choices, tokenizer, logprobs=asked.decoding.logprobs is not None)
            try:
                async with Ticket(self.engine, question, visit.arrived, self.left(visit)) as ticket:
                    await (_stream(asked, ticket, reply, send, visit) if asked.stream else _whole(ticket, reply, send))
            finally:
                self._note(asked, reply, visit)

    def _note(self, asked: ChatRequest, reply: Reply, visit: Visit) -> None:
        """What the log says of an answer: numbers, and the texts only when the operator asked for them."""
        visit.facts |= {
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.answer_tokens,
            "reused": reply.reused,
            "images": len(asked.places),
            "finish": reply.finish,
        }
        if self.log_prompts:
            visit.facts |= {"messages": [[message.role, message.text] for message in asked.messages],
                            "answers": reply.texts}  # fmt: skip


async def _whole(ticket: Ticket, reply: Reply, send: Send) -> None:
    while not reply.complete:
        for event in await ticket.events():
            reply.put(event)
            if reply.failed is not None:
                raise reply.failed.error
    body = json.dumps(reply.whole(), ensure_ascii=False).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _stream(asked: ChatRequest, ticket: Ticket, reply: Reply, send: Send, visit: Visit) -> None:
    """Server-sent events, in ASCII: some clients take U+2028 and its like for the end of a line.

    An error before the first of them has a status of its own, a later one is an event.
    """
    while not reply.complete:
        chunks = []
        for event in await ticket.events():
            if not reply.complete:
                chunks += reply.put(event)
        if reply.failed is not None and not visit.begun:
            raise reply.failed.error
        if not visit.begun:
            await send({"type": "http.response.start", "status": 200, "headers": _EVENTS})
        if reply.complete and reply.failed is None and asked.include_usage:
            chunks.append(reply.usage_chunk())
        data = b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)
        if reply.complete and reply.failed is None:
            data += f"data: {DONE}\n\n".encode()
        await send({"type": "http.response.body", "body": data, "more_body": not reply.complete})


_EVENTS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
"""The last one keeps nginx from holding a stream back."""
