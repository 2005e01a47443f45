# SPDX-License-Identifier: Apache-2.0
"""The socket, connections that dawdle, and how the server stops: SIGTERM lets answers end, a second one does not."""

import asyncio
import contextlib
import json
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeAlias

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from paddlemix.serve.faults import RequestError
from paddlemix.serve.limits import Limits
from paddlemix.utils.errors import ConfigError

_TOLD = json.dumps(RequestError(408, "no whole request came in time").body).encode()
_LATE = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(_TOLD), _TOLD)
)


Listener: TypeAlias = socket.socket


def bound_socket(host: str, port: int) -> Listener:
    """A socket with the address, not listening yet: a port in use is found before a model is loaded. ConfigError."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(place)
    except OSError as error:
        raise ConfigError(f"--host {host} --port {port}: cannot be bound ({error.strerror}); choose others") from error
    return found


def address_of(listener: Listener) -> str:
    """``http://HOST:PORT`` of a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Connection(H11Protocol):
    """uvicorn's connection, closed when a request does not come, or its answer is not taken, in time."""

    limits: Limits

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for the first request; one connection too many is closed."""
        super().connection_made(transport)
        self._waits = self._writes = None
        if len(self.connections) > self.limits.connections:
            transport.abort()
            return
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Part of a request: its head has to be complete in time."""
        super().data_received(data)
        if self._answering():
            self._stop_waiting()
        elif not self.transport.is_closing():
            self._wait()

    def on_response_complete(self) -> None:
        """The next request may come."""
        self._stop_waiting()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client does not read: it has some seconds to begin again."""
        super().pause_writing()
        self._writes = self._writes or self.loop.call_later(self.limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        if self._writes is not None:
            self._writes.cancel()
            self._writes = None

    def connection_lost(self, exc: Exception | None) -> None:
        """No timer outlives its connection."""
        self._stop_waiting()
        if self._writes is not None:
            self._writes.cancel()
        super().connection_lost(exc)

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        # Not begun anew by each byte: the whole head has this time.
        self._waits = self._waits or self.loop.call_later(self.limits.header_seconds, self._late)

    def _stop_waiting(self) -> None:
        if self._waits is not None:
            self._waits.cancel()
            self._waits = None

    def _late(self) -> None:
        if not self.transport.is_closing() and not self._answering():
            self.transport.write(_LATE)
            self.transport.close()


class Server(uvicorn.Server):
    """``drain`` is called once, when the server is asked to stop; ``force_exit`` tells that it was asked twice."""

    def __init__(self, app: ASGIApp, limits: Limits, drain: Callable[[], None]) -> None:
        connection = type("Connection", (Connection,), {"limits": limits})
        super().__init__(
            uvicorn.Config(
                app,
                http=connection,
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                h11_max_incomplete_event_size=limits.header_bytes,
                timeout_keep_alive=limits.keep_alive_seconds,
                timeout_graceful_shutdown=limits.drain_seconds + 5,
            )
        )
        self.drain = drain
        logging.getLogger("uvicorn").setLevel(logging.ERROR)  # a line for each broken request would flood the log

    async def startup(self, sockets: list[Listener] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        for listener in sockets or ():
            sys.stderr.write(f"listening at {address_of(listener)}\n")
            sys.stderr.flush()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal lets what is being answered end; the next one does not wait."""
        if self.should_exit:
            self.force_exit = True
            return
        self.should_exit = True
        self.drain()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Both signals are handled here, and not raised again at the end: a drained server ends with 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
