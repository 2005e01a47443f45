# SPDX-License-Identifier: Apache-2.0
"""A request handed on to a worker, and its answer piece by piece."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import h11

from paddlemix.utils.addresses import Address, parse

CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 120.0
"""A worker that says nothing for so long is taken for dead; the first step of a card that compiles takes a minute."""
_BLOCK = 1 << 16


class BrokenError(Exception):
    """The worker cannot be reached, or its answer broke off."""


async def answer_of(address: str, path: str, body: bytes, token: str) -> AsyncIterator[bytes | int]:
    """The status of the worker's answer to a POST, then pieces of its body; BrokenError when they do not come.

    Closing the iterator closes the connection, which ends the worker's answer.
    """
    target = parse(address)
    line = h11.Connection(h11.CLIENT)
    try:
        reader, writer = await asyncio.wait_for(
            asyncio.open_connection(target.host, target.port, limit=_BLOCK), CONNECT_SECONDS
        )
    except (OSError, asyncio.TimeoutError) as error:
        raise BrokenError(f"the worker {address} cannot be reached") from error
    try:
        writer.write(_request(line, target, path, body, token))
        await writer.drain()
        async for piece in _pieces(line, reader):
            yield piece
    except (OSError, asyncio.TimeoutError, h11.RemoteProtocolError) as error:
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


async def _pieces(line: h11.Connection, reader: asyncio.StreamReader) -> AsyncIterator[bytes | int]:
    while True:
        event = line.next_event()
        if event is h11.NEED_DATA:
            line.receive_data(await asyncio.wait_for(reader.read(_BLOCK), SILENCE_SECONDS))
        elif isinstance(event, h11.Response):
            yield event.status_code
        elif isinstance(event, h11.Data):
            yield bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            return
        elif isinstance(event, h11.ConnectionClosed):
            raise h11.RemoteProtocolError("closed")
