# SPDX-License-Identifier: Apache-2.0
"""Whether anybody still waits for an answer."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from paddlemix.serve.guard import ClientGoneError

T = TypeVar("T")
_AGAIN = 0.05
"""Seconds that a task has to end before it is cancelled once more."""


async def while_there(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled when the client goes away (ClientGoneError). The body is read."""
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        for one in (task, watch):
            await _ended(one)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _ended(task: "asyncio.Future[Any]") -> None:
    """Cancel a task and wait until it has cleaned up; its result is of no interest here.

    2026-11, up to Python 3.11: ``asyncio.wait_for`` swallows a cancellation that comes when what it waits for is done,
    and the task goes on for nobody. So it is cancelled until it has ended.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_AGAIN)
    if not task.cancelled():
        task.exception()  # looked at, so that it is not reported as forgotten
