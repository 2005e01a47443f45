# SPDX-License-Identifier: Apache-2.0
"""A worker with a tiny model in this process, on a port of 127.0.0.1 that the system chooses."""

import asyncio
import base64
import contextlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from http.client import HTTPConnection
from typing import Any

from paddlemix.generation.predictor import Predictor
from paddlemix.imaging.processor import ImageProcessor
from paddlemix.serve.access import Access, access_of
from paddlemix.serve.app import Worker
from paddlemix.serve.engine import Engine
from paddlemix.serve.limits import Limits
from paddlemix.serve.listening import Server, bound_socket
from paddlemix.serve.llava_protocol import routes
from paddlemix.serve.metrics import Metrics
from paddlemix.serve.running import drain
from paddlemix.text import templates
from paddlemix.text.tokenizer import load_tokenizer
from tests.tiny import tiny_image, tiny_model, tiny_tokenizer_folder

NAME = "tiny"
LIMITS = Limits(slots=4, drain_seconds=5.0)


def tiny_predictor(**changes: Any) -> Predictor:
    """The predictor of a tiny model with random weights; it answers gibberish up to its limit."""
    model = tiny_model(seed=2, **changes)
    tokenizer = load_tokenizer(tiny_tokenizer_folder())
    processor = ImageProcessor(model.config.image, model.config.vision)
    return Predictor(model, tokenizer, processor, templates.get("vicuna_v1"))


class Running:
    """A server that runs: its address, and what it is made of."""

    def __init__(
        self,
        limits: Limits,
        access: Access,
        *,
        log_prompts: bool = False,
        load: Callable[[], Predictor] | None = None,
        adapters: Mapping[str, Callable[[Predictor], Predictor]] | None = None,
        **changes: Any,
    ) -> None:
        load = load or (lambda: tiny_predictor(**changes))
        self.engine = Engine(load, slots=limits.slots, metrics=Metrics(), adapters=adapters)
        self.predictor = self.engine.start()
        self.listener = bound_socket("127.0.0.1", 0)
        self.port = self.listener.getsockname()[1]
        self._limits, self._access, self._log_prompts = limits, access, log_prompts
        self._begun = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._begun.wait(10)
        while not self.server.started:
            time.sleep(0.01)

    async def _serve(self) -> None:
        self.worker = Worker(self.engine, (NAME,), self._limits, log_prompts=self._log_prompts)
        self.server = Server(
            self.worker.app(self._access, routes(self.worker)), self._limits, lambda: drain(self.worker)
        )
        self._begun.set()
        await self.server.serve(sockets=[self.listener])

    def stop(self) -> None:
        """As a signal does; returns when the server has ended."""
        if not self.server.should_exit:
            self.server.handle_exit(15, None)
        self._thread.join(20)
        assert not self._thread.is_alive()
        self.engine.stop()
        assert self.engine.join(20)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, body: Any, path: str = "/v1/chat/completions", **headers: str) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON and headers of a POST (or of a GET when the body is None)."""
        with contextlib.closing(HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            sent = {"content-type": "application/json", **headers} if body is not None else headers
            connection.request("GET" if body is None else "POST", path, data, sent)
            answer = connection.getresponse()
            text = answer.read()
            found = {name.lower(): value for name, value in answer.getheaders()}
            is_json = found.get("content-type", "").startswith("application/json")
            return answer.status, json.loads(text) if is_json and text else text.decode(), found

    def events(self, body: dict[str, Any]) -> list[Any]:
        """The events of a stream, the last one ``[DONE]``."""
        status, text, _ = self.ask({**body, "stream": True})
        assert status == 200, text
        lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]

    def number(self, name: str) -> float:
        """A number of /metrics."""
        _, text, _ = self.ask(None, "/metrics")
        return float(next(line for line in text.splitlines() if line.startswith(f"{name} ")).rpartition(" ")[2])


@contextlib.contextmanager
def running(
    access: Access | None = None, limits: Limits = LIMITS, *, log_prompts: bool = False, **changes: Any
) -> Iterator[Running]:
    """A server for the block. ``changes`` are those of the limits, the model (``model_...``) and the engine."""
    model = {name.removeprefix("model_"): changes.pop(name) for name in list(changes) if name.startswith("model_")}
    access = access or access_of("127.0.0.1", [], None)
    opened = {name: changes.pop(name) for name in ("load", "adapters") if name in changes}
    found = Running(replace(limits, **changes), access, log_prompts=log_prompts, **opened, **model)
    try:
        yield found
    finally:
        found.stop()


def address(kind: int = 0, form: str = "PNG", size: tuple[int, int] = (40, 30)) -> str:
    """A ``data:`` address of a tiny image."""
    stream = io.BytesIO()
    tiny_image(kind, size).save(stream, form)
    return f"data:image/{form.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def image(kind: int = 0) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": address(kind)}}


def words(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def chat(content: Any, **fields: Any) -> dict[str, Any]:
    """The body of a greedy request with one message."""
    return {"model": NAME, "messages": [{"role": "user", "content": content}], "temperature": 0, **fields}


def head(*more: str, path: str = "/v1/chat/completions") -> bytes:
    """The head of a POST, with more headers."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", *more, "", ""]
    return "\r\n".join(lines).encode()


def idle(server: Running) -> bool:
    """Whether every slot is free and nobody waits, within a few seconds."""
    for _ in range(500):
        if not (server.engine.running or server.engine.waiting or server.worker.gate.requests):
            state = server.engine.call(
                lambda _: (any(lane.batch.busy for lane in server.engine._lanes.values()), len(server.engine._jobs))
            ).result(10)
            return state == (False, 0) and server.worker.gate.held == 0
        time.sleep(0.01)
    return False
