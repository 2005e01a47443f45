# SPDX-License-Identifier: Apache-2.0
"""LLaVA's worker protocol: a prompt that the client has rendered, pictures as base64, chunks that end with NUL.

Each chunk is ``{"text": ..., "error_code": 0}`` and holds the prompt and all of the answer so far, as the original's
(llava/serve/model_worker.py). Errors have the code 1 and, unlike there, an HTTP status of their own.
"""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from paddlemix.generation.sampling import Decoding
from paddlemix.serve.app import Worker
from paddlemix.serve.bodies import Fields, read_object
from paddlemix.serve.chat_request import LONGEST
from paddlemix.serve.chunks import chunk, told
from paddlemix.serve.faults import refused
from paddlemix.serve.guard import Visit
from paddlemix.serve.limits import Limits
from paddlemix.serve.pictures import Place
from paddlemix.serve.question import Ended, Failed, Piece, Question, Started
from paddlemix.serve.ticket import Ticket, turn
from paddlemix.serve.waiting import while_there

DEFAULT_TOKENS = 256
"""``max_new_tokens`` of a request that names none, as in the original."""


def routes(worker: Worker) -> list[Route]:
    """The two routes that LLaVA's controller and clients use."""

    async def generate(request: Request) -> ASGIApp:
        async def respond(scope: Scope, receive: Receive, send: Send) -> None:
            visit: Visit = scope["paddlemix.visit"]
            visit.told = told
            worker.gate.check()
            async with worker.gate.body(scope, receive) as body:
                with worker.gate.place():
                    await while_there(receive, _answer(worker, body, visit, send))

        return respond

    async def status(request: Request) -> Response:
        return JSONResponse(status_of(worker))

    return [
        Route("/worker_generate_stream", generate, methods=["POST"]),
        Route("/worker_get_status", status, methods=["POST"]),
    ]


def status_of(worker: Worker) -> dict[str, Any]:
    """What a controller is told of the worker."""
    return {"model_names": list(worker.names), "speed": 1, "queue_length": worker.gate.requests}


def read_generate(body: dict[str, Any], limits: Limits) -> tuple[str | None, str, tuple[Place, ...], Decoding]:
    """Model, prompt, images and decoding of a request. RequestError names the field that cannot be."""
    fields = Fields(body)
    prompt = fields.text("prompt")
    if not prompt:
        raise refused("prompt has to be a text that is not empty", "prompt")
    if len(prompt) > limits.text_chars:
        raise refused(f"the prompt has more than {limits.text_chars} characters", "prompt")
    images = fields.get("images") or []
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise fields.wrong("images", "a list of pictures in base64")
    if len(images) > limits.images:
        raise refused(f"more than {limits.images} images in one request; this server takes no more", "images")
    # The prefix makes it certain that the text is never taken for an address.
    places = tuple(
        Place((f"data:image/any;base64,{image}",), f"images[{number}]") for number, image in enumerate(images)
    )
    decoding = Decoding(
        max_new_tokens=min(fields.whole("max_new_tokens", 1, default=DEFAULT_TOKENS) or 1, LONGEST),
        temperature=fields.number("temperature", 0, 2, 1.0),
        top_p=fields.number("top_p", 0, 1, 1.0, above=True),
        stop=fields.texts("stop", limits.stops, limits.stop_chars),
    )
    return fields.text("model"), prompt, places, decoding


async def _answer(worker: Worker, body: bytes, visit: Visit, send: Send) -> None:
    name, prompt, places, decoding = await worker.in_pool(
        lambda: read_generate(read_object(body, worker.limits), worker.limits)
    )
    adapter = worker.adapter_of(name)
    async with turn(worker.places, worker.left(visit)):
        await worker.check_length(prompt, adapter)
        images, counts = await worker.images(places, adapter)
        question = Question(visit.id, prompt, decoding, images, counts, adapter=adapter)
        async with Ticket(worker.engine, question, visit.arrived, worker.left(visit)) as ticket:
            await _stream(ticket, prompt, visit, send)


async def _stream(ticket: Ticket, prompt: str, visit: Visit, send: Send) -> None:
    text, more = prompt, True
    while more:
        data, new = b"", ""
        for event in await ticket.events():
            if isinstance(event, Failed):
                if not visit.begun:
                    raise event.error
                data, more = told(event.error), False
                break
            new += event.text if isinstance(event, Piece) else ""
            more = more and not isinstance(event, Ended)
            visit.facts |= _facts(event)
        text += new
        if not visit.begun:
            headers = [(b"content-type", b"application/octet-stream"), (b"x-accel-buffering", b"no")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        last = chunk(text) if new or not more else b""
        await send({"type": "http.response.body", "body": last + data, "more_body": more})


def _facts(event: Started | Piece | Ended) -> dict[str, Any]:
    if isinstance(event, Started):
        return {"prompt_tokens": event.prompt_tokens}
    if isinstance(event, Ended):
        return {"completion_tokens": event.tokens, "reused": event.reused, "finish": [event.finish]}
    return {}
