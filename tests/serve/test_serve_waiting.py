# SPDX-License-Identifier: Apache-2.0
"""Work for a client that leaves: it ends, whatever it is in the middle of."""

import asyncio
from typing import Any

import pytest

from paddlemix.serve.guard import ClientGoneError
from paddlemix.serve.waiting import while_there


@pytest.mark.timeout(20)
def test_work_that_loses_a_cancellation_is_cancelled_again() -> None:
    """As ``asyncio.wait_for`` loses it up to Python 3.11 when what it waits for is done at the same moment."""
    ends: list[str] = []

    async def work() -> None:
        try:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ends.append("lost")
            await asyncio.sleep(60)
        finally:
            ends.append("cleaned up")

    async def gone() -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    with pytest.raises(ClientGoneError):
        asyncio.run(while_there(gone, work()))
    assert ends == ["lost", "cleaned up"]
