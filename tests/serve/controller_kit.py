# SPDX-License-Identifier: Apache-2.0
"""A controller in this process, on a port of 127.0.0.1 that the system chooses."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Sequence
from http.client import HTTPConnection
from typing import Any

from paddlemix.serve.access import access_of
from paddlemix.serve.controller_app import Controller
from paddlemix.serve.dispatch import SHORTEST_QUEUE, Workers
from paddlemix.serve.limits import Limits
from paddlemix.serve.listening import Server, bound_socket

TOKEN = "a-token-of-the-workers"


def post(port: int, path: str, body: Any, **headers: str) -> tuple[int, bytes]:
    with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        data = None if body is None else json.dumps(body)
        sent = {"content-type": "application/json", **headers} if body is not None else headers
        connection.request("POST", path, data, sent)
        answer = connection.getresponse()
        return answer.status, answer.read()


class Ruling:
    """A controller in this process."""

    def __init__(self, method: str = SHORTEST_QUEUE, beat: float = 15.0, keys: Sequence[str] = ()) -> None:
        self.workers = Workers(method, beat, time.monotonic)
        self.controller = Controller(self.workers, Limits(drain_seconds=2.0), TOKEN)
        self._keys = keys
        self._listener = bound_socket("127.0.0.1", 0)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        while not (hasattr(self, "server") and self.server.started):
            time.sleep(0.01)

    async def _serve(self) -> None:
        app = self.controller.app(access_of("127.0.0.1", self._keys, None).adding(TOKEN))
        self.server = Server(app, Limits(drain_seconds=2.0), lambda: None)
        await self.server.serve(sockets=[self._listener])

    def post(self, path: str, body: Any = None, token: str | None = None) -> tuple[int, Any]:
        status, said = post(self.port, path, body, **({"authorization": f"Bearer {token}"} if token else {}))
        return status, json.loads(said)

    def register(self, address: str, *models: str, queue: int = 0, token: str | None = TOKEN) -> int:
        status = {"model_names": list(models), "speed": 1, "queue_length": queue}
        body = {"worker_name": address, "check_heart_beat": True, "worker_status": status}
        return self.post("/register_worker", body, token)[0]

    def stop(self) -> None:
        self.server.handle_exit(15, None)
        self._thread.join(20)
        assert not self._thread.is_alive()
