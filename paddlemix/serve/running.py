# SPDX-License-Identifier: Apache-2.0
"""A worker from its socket to its end."""

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import FrameType

from paddlemix.generation.predictor import Predictor
from paddlemix.serve.access import Access
from paddlemix.serve.app import Worker
from paddlemix.serve.engine import Engine
from paddlemix.serve.limits import Limits
from paddlemix.serve.listening import Listener, Server, address_of, bound_socket
from paddlemix.serve.llava_protocol import routes, status_of
from paddlemix.serve.metrics import Metrics
from paddlemix.serve.registering import HeartBeat, Registration
from paddlemix.utils.logging import fit

HARD = 143
"""Exit code after a second signal, as shells expect it (128 + SIGTERM)."""


@dataclass(frozen=True)
class Serving:
    """Where a worker listens, under which names, within which limits, and for whom."""

    host: str
    port: int
    names: tuple[str, ...]
    limits: Limits
    access: Access
    log_prompts: bool = False
    controller: str | None = None
    """Address of a controller that is told of the worker, which it reaches at ``worker_address`` with ``token``."""
    worker_address: str | None = None
    token: str = ""


def serve(
    serving: Serving,
    load: Callable[[], Predictor],
    adapters: Mapping[str, Callable[[Predictor], Predictor]] | None = None,
) -> int:
    """Load the model with ``load`` and serve it until a signal comes; the exit code. On the main thread.

    ``adapters`` open what is served beside it, by name.
    """
    listener = bound_socket(serving.host, serving.port)
    # How long the engine's thread may keep the interpreter while a request waits for the event loop (default: 5 ms).
    sys.setswitchinterval(0.001)
    engine = Engine(load, slots=serving.limits.slots, metrics=Metrics(), adapters=adapters)
    with _leaving_at_once():
        engine.start()
    for predictor in engine.predictors.values():
        sys.stderr.write(fit(predictor.about) + "\n")
    sys.stderr.write(f"model names: {', '.join((*serving.names, *(adapters or ())))}\n")
    server = asyncio.run(_serve(serving, engine, listener))
    if engine.fault is not None:
        sys.stderr.write(f"error: the engine has ended ({engine.fault}); the log above has the reason\n")
        return 1
    engine.stop()
    if server.force_exit or not engine.join(10):
        # A step of the model, or a thread with a large image, would hold the process for as long as it takes.
        sys.stderr.write("stopped without waiting for open answers\n")
        sys.stderr.flush()
        os._exit(HARD)
    return 0


@contextlib.contextmanager
def _leaving_at_once() -> Iterator[None]:
    """SIGTERM ends the process while the model is loaded.

    It would anyhow, but not in a container: the kernel drops a signal that the first process there does not handle.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        sys.stderr.write("stopped before the model was loaded\n")
        sys.stderr.flush()
        os._exit(HARD)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


async def _serve(serving: Serving, engine: Engine, listener: Listener) -> Server:
    worker = Worker(engine, serving.names, serving.limits, log_prompts=serving.log_prompts)
    access = serving.access.adding(serving.token) if serving.token else serving.access
    beat: HeartBeat | None = None

    def stopping() -> None:
        if beat is not None:
            beat.stop()
        drain(worker)

    server = Server(worker.app(access, routes(worker)), serving.limits, stopping)
    loop = asyncio.get_running_loop()
    # Nothing can be answered without the engine: whoever watches the process starts it again.
    engine.at_fault = lambda: loop.call_soon_threadsafe(server.handle_exit, signal.SIGTERM, None)
    if serving.controller is not None:
        own = serving.worker_address or address_of(listener)
        beat = HeartBeat(Registration(serving.controller, own, serving.token), lambda: status_of(worker))
    await server.serve(sockets=[listener])
    worker.pool.shutdown(wait=False, cancel_futures=True)
    return server


def drain(worker: Worker) -> None:
    """No new request from here on; what is open after the time for that fails."""
    worker.gate.draining = True
    timer = threading.Timer(worker.limits.drain_seconds, worker.engine.stop)
    timer.daemon = True
    timer.start()
