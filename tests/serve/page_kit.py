# SPDX-License-Identifier: Apache-2.0
"""A worker for the page's tests that says what it was asked, in the routes and forms of the real one. No paddle."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODELS = ["llava-drawn", "mv-llava-drawn"]
BUSY = "rate limit: 128 requests are being answered or wait; try again later"
BROKEN = "a step of the *model* <image> failed; the server's log has the reason under __12ab__"
MARKDOWN = """### A drawing

The picture shows **two** things:

| thing | colour |
|---|---|
| star | red |
| cross | blue |

1. The star is at the top. 星星在上方，十字在下方。
2. `code` and a formula: $a^2 + b^2$

```python
print("hello")
```

![elsewhere](http://203.0.113.7/picture.png) <image> <b>bold?</b>
"""


class StubWorker:
    """``asked`` are the bodies of all questions; ``left`` counts the clients that went away in the middle."""

    def __init__(self, key: str = "") -> None:
        self.asked: list[dict[str, Any]] = []
        self.left = 0
        self.models = list(MODELS)
        self.key = key
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                stub._answer(self)

            def log_message(self, *_: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers["content-length"])))
        if self.key and request.headers["authorization"] != f"Bearer {self.key}":
            self._json(request, 401, _error("an API key is needed: Authorization: Bearer KEY"))
        elif request.path == "/worker_get_status":
            self._json(request, 200, {"model_names": self.models, "speed": 1, "queue_length": 0})
        elif request.path != "/v1/chat/completions":
            self._json(request, 404, _error("Not Found: see docs/serving.md for the routes"))
        else:
            self.asked.append(body)
            self._chat(request, body)

    def _chat(self, request: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        content = body["messages"][-1]["content"]
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        text = parts[-1]["text"]
        if text == "busy":
            self._json(request, 429, _error(BUSY))
            return
        request.send_response(200)
        request.send_header("content-type", "text/event-stream")
        request.end_headers()
        words = [f"{word} " for word in f"seen: {_described(parts)} turns {len(body['messages'])} by".split()]
        words += [body["model"]]
        if text == "markdown":
            words = [MARKDOWN[place : place + 20] for place in range(0, len(MARKDOWN), 20)]
        if text in ("slow", "broken", "silent"):
            words = [f"word{number} " for number in range(400 if text == "slow" else 4)]
        try:
            for word in words:
                _event(request, {"choices": [{"index": 0, "delta": {"content": word}}]})
                time.sleep(0.03)
            if text == "broken":
                _event(request, _error(BROKEN))
            elif text != "silent":
                request.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.left += 1

    def _json(self, request: BaseHTTPRequestHandler, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        request.send_response(status)
        request.send_header("content-length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)


def _event(request: BaseHTTPRequestHandler, body: Any) -> None:
    request.wfile.write(f"data: {json.dumps(body)}\n\n".encode())
    request.wfile.flush()


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "server_error", "param": None, "code": None}}


def _described(parts: list[dict[str, Any]]) -> str:
    found = []
    for part in parts[:-1]:
        views = part.get("image_views")
        found.append("picture" if views is None else f"views {len(views['urls'])} grid {views.get('grid', 1)}")
    return ", ".join(found) or "nothing"


@contextlib.contextmanager
def stub_worker(key: str = "") -> Iterator[StubWorker]:
    found = StubWorker(key)
    try:
        yield found
    finally:
        found.stop()


if __name__ == "__main__":  # to look at the page by hand: python -m tests.serve.page_kit
    with stub_worker() as served:
        print(served.url, flush=True)
        time.sleep(1e6)
