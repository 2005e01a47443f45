# SPDX-License-Identifier: Apache-2.0
"""A judge on 127.0.0.1, and files as LLaVA and MM-Vet publish them."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from tests.eval.eval_kit import answer, write_json, write_lines
from tests.local_server import LocalServer

Say = Callable[[dict[str, Any], int], Any]
"""From a request's body and its number to a text, or to (status, body) or (status, body, headers)."""


class Judge(LocalServer):
    """Answers as OpenAI's chat completions do, and keeps what was asked."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self.seen: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        super().__init__(_Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server: Any = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.seen.append(body)
        server.headers.append({key.lower(): value for key, value in self.headers.items()})
        server.paths.append(self.path)
        said = server.say(body, len(server.seen))
        status, value, *rest = said if isinstance(said, tuple) else (200, completion(said))
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in (rest[0] if rest else {}).items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *parts: Any) -> None:
        pass


def completion(text: str | None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 10, "completion_tokens": 2}
    return {"model": "judge-1", "choices": [{"index": 0, "message": message}], "usage": usage}


@contextmanager
def judge(say: Say) -> Iterator[Judge]:
    server = Judge(say)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


CATEGORIES = ("conv", "detail", "complex")


def reviews(folder: Path, count: int = 4, *, bench: bool = True) -> list[str]:
    """Question, context, rule and answer files; the flags that name them."""
    prefix = "llava_bench_" if bench else ""
    questions = [
        {"question_id": n, "image": f"{n}.jpg", "text": f"What is {n}?", "category": CATEGORIES[n % 3]}
        for n in range(count)
    ]
    contexts = []
    for n in range(count):
        boxes = [{"category": "dog", "bbox": [0.1, 0.25, 0.5, 1.0]}]
        more = {"caption": [f"It is {n}."]} if bench else {"captions": ["A dog.", "A pet."], "instances": boxes}
        contexts.append({"id": n, "image": f"{n}.jpg", **more})
    rule = {f"{prefix}{name}": {"role": "Assistant", "prompt": f"Rate {name}."} for name in CATEGORIES}
    theirs = [{**answer(n, f"gpt {n}"), "answer_id": f"g{n}", "model_id": "gpt-4"} for n in range(count)]
    ours = [{**answer(n, f"ours {n}"), "answer_id": f"o{n}"} for n in range(count)]
    write_lines(folder / "q.jsonl", questions)
    write_lines(folder / "c.jsonl", contexts)
    write_json(folder / "rule.json", rule)
    write_lines(folder / "gpt.jsonl", theirs)
    write_lines(folder / "ours.jsonl", ours)
    return ["--question", f"{folder}/q.jsonl", "--context", f"{folder}/c.jsonl", "--answer-list",
            f"{folder}/gpt.jsonl", f"{folder}/ours.jsonl", "--rule", f"{folder}/rule.json"]  # fmt: skip


def mm_vet(folder: Path) -> Path:
    """Three questions of MM-Vet's metadata."""
    rows = [("x?", "-1<AND>-5", ["math", "ocr"]), ("y?", "a<OR>b", ["rec"]), ("z?", "c", ["ocr", "math"])]
    return write_json(
        folder / "mm-vet.json",
        {
            f"v1_{n}": {"imagename": f"v1_{n}.png", "question": q, "answer": a, "capability": c}
            for n, (q, a, c) in enumerate(rows)
        },
    )
