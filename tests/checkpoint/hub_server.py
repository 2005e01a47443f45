# SPDX-License-Identifier: Apache-2.0
"""A model hub on 127.0.0.1 for tests, with every fault a network has."""

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from tests.local_server import LocalServer


class Hub:
    """Serves folders as ``/<name>/resolve/main/<file>`` with a list of files, and plain under ``/community``.

    ``faults`` maps a file name to a function of (handler, body, attempt) that answers in its own way and returns True.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.faults: dict[str, Callable] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.attempts: Counter = Counter()
        self.lists = True
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments) -> None:
                pass

            def do_GET(self) -> None:
                hub.answer(self)

        self.server = LocalServer(Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def rows(self, folder: Path) -> list[dict]:
        found = []
        for file in sorted(path for path in folder.iterdir() if path.is_file()):
            data = file.read_bytes()
            row = {"type": "file", "path": file.name, "size": len(data)}
            if file.suffix in (".json", ".md"):
                row["oid"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            else:
                row["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data)}
            found.append(row)
        return [*found, {"type": "directory", "path": "sub"}]

    def modelscope_rows(self, folder: Path) -> dict:
        """The list of modelscope.cn for ``?Revision=master&Recursive=true``."""
        files = [{"Path": "sub", "Type": "tree", "Size": 0, "Sha256": ""}]
        for file in sorted(path for path in folder.iterdir() if path.is_file()):
            data = file.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            files.append({"Path": file.name, "Name": file.name, "Type": "blob", "Size": len(data), "Sha256": digest})
        return {"Code": 200, "Data": {"Files": files}}

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.lstrip("/")
        if path.startswith("api/models/"):
            folder = self.root / path.removeprefix("api/models/").removesuffix("/tree/main")
            found = folder.is_dir() and self.lists
            self.send(handler, json.dumps(self.rows(folder) if found else {}).encode(), 200 if found else 404)
            return
        if path.startswith("api/v1/models/"):
            folder = self.root / path.removeprefix("api/v1/models/").partition("/repo/files?")[0]
            self.send(handler, json.dumps(self.modelscope_rows(folder)).encode())
            return
        path = path.removeprefix("models/").replace("resolve/master/", "")
        file = self.root / path.removeprefix("community/").replace("resolve/main/", "")
        self.asked.append((file.name, handler.headers.get("Range")))
        self.attempts[file.name] += 1
        if not file.is_file():
            self.send(handler, b"no such file", 404)
            return
        body = file.read_bytes()
        fault = self.faults.get(file.name)
        if fault is None or not fault(handler, body, self.attempts[file.name]):
            self.serve(handler, body)

    def serve(self, handler: BaseHTTPRequestHandler, body: bytes, *, stop: int | None = None) -> None:
        """The body, or the part that is asked for; ``stop``: only so many bytes, then the line goes dead."""
        begin = handler.headers.get("Range", "")
        tag = f'"{hashlib.md5(body).hexdigest()}"'
        same = handler.headers.get("If-Range", tag) == tag
        start = int(begin.removeprefix("bytes=").rstrip("-")) if begin and same else 0
        headers = {"ETag": tag}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        self.send(handler, body[start:], 206 if start else 200, headers, stop)

    def send(
        self, handler, body: bytes, status: int = 200, headers: dict | None = None, stop: int | None = None
    ) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body if stop is None else body[:stop])
        handler.wfile.flush()
        if stop is not None:
            handler.close_connection = True
            handler.connection.shutdown(2)


def cut(times: int, at: int) -> Callable:
    """The line goes dead after ``at`` bytes, the first ``times`` times."""

    def fault(handler, body, attempt):
        if attempt > times:
            return False
        handler.server_hub.serve(handler, body, stop=at)
        return True

    return fault


def stall(times: int, at: int, seconds: float = 3.0) -> Callable:
    """Nothing more comes after ``at`` bytes, the first ``times`` times."""

    def fault(handler, body, attempt):
        if attempt > times:
            return False
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.send_header("ETag", f'"{hashlib.md5(body).hexdigest()}"')
        handler.end_headers()
        handler.wfile.write(body[:at])
        handler.wfile.flush()
        time.sleep(seconds)
        handler.close_connection = True
        return True

    return fault


def status(times: int, number: int) -> Callable:
    """An error, the first ``times`` times."""

    def fault(handler, body, attempt):
        if attempt > times:
            return False
        handler.server_hub.send(handler, b"<html>busy</html>", number)
        return True

    return fault


def wrong(times: int) -> Callable:
    """Other bytes of the same number, the first ``times`` times."""

    def fault(handler, body, attempt):
        if attempt > times:
            return False
        handler.server_hub.send(handler, body.translate(bytes(value ^ 1 for value in range(256))))
        return True

    return fault
