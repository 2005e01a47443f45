# SPDX-License-Identifier: Apache-2.0
"""A request handed on to a worker, and its answer piece by piece."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import h11

from paddlemix.utils.addresses import Address, parse
from paddlemix.utils.exchange import notice_loss

CONNECT_SECONDS = 5.0
LOST_SECONDS = 30
"""A machine whose system answers nothing for so long is taken for lost. The worker itself may say nothing for much
longer: a request waits in its queue, and a whole answer comes at its end."""
_BLOCK = 1 << 16


_KEPT = (b"content-type", b"retry-after", b"cache-control", b"x-accel-buffering", b"www-authenticate")


class BrokenError(Exception):
    """The worker's answer broke off."""


class UnreachableError(BrokenError):
    """The worker cannot be reached, so it has not seen the request."""


@dataclass(frozen=True)
class Head:
    """Status and headers of a worker's answer, those that its reader needs."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]

    @property
    def streams(self) -> bool:
        """Whether pieces of the body are worth sending on before the rest is there."""
        kind = dict(self.headers).get(b"content-type", b"")
        return self.status == 200 and not kind.startswith(b"application/json")


async def answer_of(address: str, path: str, body: bytes, token: str) -> AsyncIterator[bytes | Head]:
    """The head of the worker's answer to a POST, then pieces of its body; BrokenError when they do not come.

    Closing the iterator closes the connection, which ends the worker's answer.
    """
    target = parse(address)
    line = h11.Connection(h11.CLIENT)
    try:
        reader, writer = await asyncio.wait_for(
            asyncio.open_connection(target.host, target.port, limit=_BLOCK), CONNECT_SECONDS
        )
    except (OSError, asyncio.TimeoutError) as error:
        raise UnreachableError(f"the worker {address} cannot be reached") from error
    try:
        notice_loss(writer.get_extra_info("socket"), LOST_SECONDS)
        writer.write(_request(line, target, path, body, token))
        await writer.drain()
        async for piece in _pieces(line, reader):
            yield piece
    except (OSError, h11.RemoteProtocolError) as error:
        raise BrokenError(f"the answer of the worker {address} broke off") from error
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _request(line: h11.Connection, target: Address, path: str, body: bytes, token: str) -> bytes:
    headers = [
        ("Host", target.host_header),
        ("Content-Type", "application/json"),
        ("Authorization", f"Bearer {token}"),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
    ]
    request = line.send(h11.Request(method="POST", target=path, headers=headers)) or b""
    return request + (line.send(h11.Data(data=body)) or b"") + (line.send(h11.EndOfMessage()) or b"")


async def _pieces(line: h11.Connection, reader: asyncio.StreamReader) -> AsyncIterator[bytes | Head]:
    while True:
        event = line.next_event()
        if event is h11.NEED_DATA:
            line.receive_data(await reader.read(_BLOCK))
        elif isinstance(event, h11.Response):
            yield Head(event.status_code, tuple((name, value) for name, value in event.headers if name in _KEPT))
        elif isinstance(event, h11.Data):
            yield bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            return
        elif isinstance(event, h11.ConnectionClosed):
            raise h11.RemoteProtocolError("closed")
