# SPDX-License-Identifier: Apache-2.0
"""A worker makes itself known to a controller, and says every few seconds that it is still there."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from paddlemix.utils.errors import DataError
from paddlemix.utils.files import post
from paddlemix.utils.logging import get_logger

HEART_BEAT = 15.0
"""Seconds between two heart-beats, as in LLaVA; a controller forgets a worker after two of them."""
_WAIT = 5.0


@dataclass(frozen=True)
class Registration:
    """``controller`` and ``worker`` are addresses (http://HOST:PORT); ``token`` is the controller's."""

    controller: str
    worker: str
    token: str
    seconds: float = HEART_BEAT


class HeartBeat:
    """A thread that registers, beats, and registers again when the controller does not know the worker."""

    def __init__(self, registration: Registration, status: Callable[[], dict[str, Any]]) -> None:
        self._registration = registration
        self._status = status
        self._seconds = registration.seconds
        self._ended = threading.Event()
        self._known = False
        self._told = ""
        self._thread = threading.Thread(target=self._run, name="paddlemix-heart-beat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No more heart-beats."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self._beat()
                self._told = ""
            except (DataError, ValueError) as error:
                self._known = False
                if str(error) != self._told:  # once, and not at every beat
                    self._told = str(error)
                    get_logger(__name__).warning(f"the controller cannot be told of this worker: {error}")
            self._ended.wait(self._seconds)

    def _beat(self) -> None:
        name, status = self._registration.worker, self._status()
        if self._known:
            beat = {"worker_name": name, "queue_length": status["queue_length"]}
            self._known = bool(self._post("/receive_heart_beat", beat).get("exist"))
        if not self._known:
            body = {"worker_name": name, "check_heart_beat": True, "worker_status": status}
            self._seconds = self._told_seconds(self._post("/register_worker", body))
            self._known = True

    def _told_seconds(self, answer: dict[str, Any]) -> float:
        """How often the controller wants to hear of its workers. LLaVA's does not say."""
        told, own = answer.get("heart_beat_seconds"), self._registration.seconds
        return min(own, max(0.1, told)) if type(told) in (int, float) else own

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._registration.token}"}
        address = self._registration.controller.rstrip("/") + path
        reply = post(address, json.dumps(body).encode(), headers, _WAIT, 1 << 16)
        if reply.status != 200:
            raise DataError(f"{address} answers {reply.status}; check --controller-token-file")
        found = json.loads(reply.body or b"null")
        return found if isinstance(found, dict) else {}
