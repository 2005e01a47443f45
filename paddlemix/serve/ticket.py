# SPDX-License-Identifier: Apache-2.0
"""A question in the engine as a coroutine sees it, and the places near the engine."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from typing import Any

from paddlemix.serve.engine import Engine
from paddlemix.serve.faults import unavailable
from paddlemix.serve.question import Event, Failed, Question


class Ticket:
    """Events of one question in the order in which they come, several at once when the reader is slow.

        async with Ticket(engine, question, arrived, seconds) as ticket:
            while ...: events = await ticket.events()

    Leaving the block ends the answer, however it is left. After ``seconds`` from now it fails.
    """

    def __init__(self, engine: Engine, question: Question, arrived: float, seconds: float) -> None:
        self._engine = engine
        self._found: list[Event] = []
        self._more = asyncio.Event()
        loop = asyncio.get_running_loop()

        def deliver(events: list[Event]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody is there to be told
                loop.call_soon_threadsafe(self._take, events)

        late = Failed(unavailable("the answer was not complete in time", "timeout"))
        self._timer = loop.call_later(max(0.0, seconds), self._take, [late])
        self._job = engine.submit(question, deliver, arrived)

    def _take(self, events: list[Event]) -> None:
        self._found += events
        self._more.set()

    async def events(self) -> list[Event]:
        """What has come since the last call; waits for at least one event."""
        await self._more.wait()
        self._more.clear()
        found, self._found = self._found, []
        return found

    async def __aenter__(self) -> "Ticket":
        return self

    async def __aexit__(self, *error: object) -> None:
        self._timer.cancel()
        self._engine.cancel(self._job)


@contextlib.asynccontextmanager
async def turn(places: asyncio.Semaphore, seconds: float) -> AsyncIterator[None]:
    """One of the places near the engine, in the order of asking; RequestError when none is free in time."""
    try:
        await asyncio.wait_for(_taken(places), max(0.0, seconds))
    except asyncio.TimeoutError:
        raise unavailable("no slot was free in time", "timeout") from None
    try:
        yield
    finally:
        places.release()


def _taken(places: asyncio.Semaphore) -> Awaitable[Any]:
    return places.acquire()
