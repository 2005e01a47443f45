# SPDX-License-Identifier: Apache-2.0
"""What every request of a browser goes through before gradio sees it: who may ask, which routes there are, how much.

gradio has more routes than this page needs (a proxy, a fetcher of addresses, an editor of its own source). Those that
the page does not use are not there, and files are read below one folder only.
"""

import base64
import binascii
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paddlemix.serve.access import Access
from paddlemix.serve.faults import RequestError, refused, unavailable
from paddlemix.utils.files import MIB
from paddlemix.utils.logging import get_logger

API = "/gradio_api"
FILE = f"{API}/file="
JOIN = f"{API}/queue/join"
UPLOAD = f"{API}/upload"
_READ = re.compile(
    r"/|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt|/(static|assets)/.+"
    rf"|{API}/(startup-events|queue/data|upload_progress|heartbeat/\w+)"
)
_WRITE = re.compile(rf"{JOIN}|{UPLOAD}|{API}/(run/predict|cancel|reset)/?")
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' data: blob:; worker-src 'self' blob:; "
    "connect-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
"""A browser loads nothing from elsewhere, whatever gradio or the answer of a model names."""
_OWN = [
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
]
BODY_BYTES = MIB
"""Of a request that is no upload."""
UPLOAD_BYTES = 128 * MIB
HELD_BYTES = 2048 * MIB
"""Of all uploads that are kept at a time."""


class PageGuard:
    """The outermost application. ``folder`` holds what browsers have sent, and nothing else is read or named."""

    def __init__(self, app: ASGIApp, access: Access, folder: Path) -> None:
        self.app = app
        self.access = access
        self.folder = folder.resolve()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] != "http":
            return
        begun = False

        async def sender(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message = {**message, "headers": [*message.get("headers", ()), *_OWN]}
            await send(message)

        try:
            self.access.check(_with_bearer(scope["headers"]))
            self._check_route(scope)
            await self.app(scope, await self._bounded(scope, receive), sender)
            return
        except RequestError as caught:
            error = caught
        except Exception:  # noqa: BLE001 - one request must not end the server
            get_logger(__name__).exception("a request of the page failed")
            error = RequestError(500, "the page failed; its log has the reason")
        if not begun:
            headers = error.headers | ({"www-authenticate": 'Basic realm="paddlemix"'} if error.status == 401 else {})
            await PlainTextResponse(error.message, error.status, headers)(scope, receive, sender)

    def _check_route(self, scope: Scope) -> None:
        path, method = scope["path"], scope["method"]
        if method in ("GET", "HEAD") and path.startswith(FILE):
            self._check_file(path.removeprefix(FILE))
        elif not (_READ if method in ("GET", "HEAD") else _WRITE).fullmatch(path) or method not in (
            "GET", "HEAD", "POST",
        ):  # fmt: skip
            raise RequestError(404, "there is no such page")

    def _check_file(self, name: str) -> None:
        """RequestError unless ``name`` is a file below the folder, also when it is unquoted once more."""
        for path in (name, unquote(name)):
            if "\0" in path or not Path(path).is_absolute() or not Path(path).resolve().is_relative_to(self.folder):
                raise RequestError(404, "there is no such file")

    async def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """The body as the application may have it: a JSON body is read and checked first, an upload is counted."""
        if scope["path"] == UPLOAD:
            if _size(self.folder) > HELD_BYTES:
                raise unavailable("there is no room for more pictures now; try again later", "full", retry_after=600)
            return _counted(scope, receive, UPLOAD_BYTES)
        if scope["method"] != "POST":
            return receive
        body = await _whole(_counted(scope, receive, BODY_BYTES))
        self._check_paths(body)
        sent = False

        async def again() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        return again

    def _check_paths(self, body: bytes) -> None:
        """A file that a browser names is one that it has sent: gradio would fetch an address."""
        try:
            found: list[Any] = [json.loads(body or b"{}")]
        except (ValueError, RecursionError):
            raise refused("the body is not JSON") from None
        while found:
            value = found.pop()
            if isinstance(value, list):
                found += value
            elif isinstance(value, dict):
                if isinstance(value.get("path"), str):
                    self._check_file(value["path"])
                found += value.values()


def _with_bearer(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """A browser asks for a name and a password: the password is the key, any name will do."""
    found = []
    for name, value in headers:
        scheme, _, given = value.partition(b" ")
        if name == b"authorization" and scheme.lower() == b"basic":
            try:
                value = b"Bearer " + base64.b64decode(given.strip(), validate=True).partition(b":")[2]
            except (binascii.Error, ValueError):
                value = b""
        found.append((name, value))
    return found


def _counted(scope: Scope, receive: Receive, most: int) -> Receive:
    told = dict(scope["headers"]).get(b"content-length", b"0")
    if not told.isdigit() or int(told) > most:
        raise RequestError(413, f"more than {most} bytes; send smaller pictures")
    read = 0

    async def counted() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > most:
            raise RequestError(413, f"more than {most} bytes; send smaller pictures")
        return message

    return counted


async def _whole(receive: Receive) -> bytes:
    chunks, more = [], True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise refused("the body broke off")
        chunks.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(chunks)


def _size(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except FileNotFoundError:
                continue
    return total
