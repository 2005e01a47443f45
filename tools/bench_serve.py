# SPDX-License-Identifier: Apache-2.0
"""A worker under load and abuse, over real sockets: python tools/bench.py serve

Starts ``paddlemix serve`` with a small model on one core and asks it from others: many streams at once against the same
questions alone; how fast an overloaded worker refuses and says that it lives, seen by a client that does nothing else;
clients that leave; requests that would cost too much; and its end. One line a figure; exit code 1 when one is not met.
"""

import argparse
import asyncio
import base64
import contextlib
import io
import json
import multiprocessing
import os
import random
import re
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from paddlemix.utils import env

MODEL = ROOT / "tests/data/golden/llava/hub/liuhaotian/llava-v1.5-tiny"
PATH = "/v1/chat/completions"
FIGURES: list[bool] = []
TAKEN = 100
"""Requests that the worker takes at a time."""


def figure(name: str, value: str, good: bool) -> None:
    """Say one figure, and whether it is met."""
    FIGURES.append(good)
    print(f"{'ok ' if good else 'NOT'} {name}: {value}", flush=True)


def picture(kind: int) -> str:
    """A ``data:`` address of a small picture."""
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (40, 30), (60 * kind % 256, 200 - 40 * kind, 90)).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def question(number: int, tokens: int) -> bytes:
    """The body of one of 16 greedy requests, every fourth without a picture."""
    content: list[dict[str, Any]] = [{"type": "text", "text": f"what is shown in picture {number % 16}?"}]
    if number % 4:
        content.insert(0, {"type": "image_url", "image_url": {"url": picture(number % 4)}})
    messages = [{"role": "user", "content": content}]
    return json.dumps({"messages": messages, "temperature": 0, "max_tokens": tokens, "stream": True}).encode()


def head(path: str = PATH, length: int | None = None) -> bytes:
    """A request up to its body; a GET without a length."""
    lines = [f"{'GET' if length is None else 'POST'} {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close"]
    lines += [] if length is None else ["Content-Type: application/json", f"Content-Length: {length}"]
    return "\r\n".join([*lines, "", ""]).encode()


async def asked(port: int, body: bytes) -> tuple[int, str]:
    """Status and text of a stream."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    writer.write(head(length=len(body)) + body)
    said = await reader.read()
    writer.close()
    status = int(said.split(b" ", 2)[1])
    events = re.findall(rb"^data: (\{.*\})\s*$", said, re.M)
    pieces = [json.loads(event) for event in events]
    return status, "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces if piece.get("choices"))


def fetched(port: int, data: bytes, seconds: float = 30.0) -> tuple[int, float, bytes]:
    """Status, seconds to the first byte and the whole answer of one request that is sent as it is."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as line:
        began = time.perf_counter()
        with contextlib.suppress(OSError):  # an early answer may close what is still being sent
            line.sendall(data)
        first = line.recv(65536)
        took = time.perf_counter() - began
        said = first
        with contextlib.suppress(OSError):
            while part := line.recv(65536):
                said += part
    return int(said.split(b" ", 2)[1]), took, said.partition(b"\r\n\r\n")[2]


def metric(port: int, name: str) -> float:
    """A number of /metrics."""
    text = fetched(port, head("/metrics"))[2].decode()
    return float(next(line for line in text.splitlines() if line.startswith(f"{name} ")).split()[-1])


@contextlib.contextmanager
def worker(folder: Path, model: str, cores: set[int], *flags: str) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """A worker on some cores: its process and port."""
    log = folder / "log"
    words = [sys.executable, "-m", "paddlemix", "serve", "--model-path", model, "--device", "cpu", *flags]
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            [*words, "--port", "0"], stderr=stream, stdout=stream, cwd=ROOT, env=env.all_with({"OMP_NUM_THREADS": "1"}),
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )  # fmt: skip
    try:
        while not (found := re.search(r"listening at http://127.0.0.1:(\d+)", log.read_text())):
            if process.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.1)
        yield process, int(found[1])
    finally:
        process.kill()
        process.wait()


def rss(process: int) -> float:
    """Resident memory in MB."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def streams(port: int, count: int, tokens: int) -> None:
    """Many streams at once say what each says alone."""
    alone = [asyncio.run(asked(port, question(number, tokens)))[1] for number in range(16)]

    async def together() -> list[tuple[int, str]]:
        return await asyncio.gather(*(asked(port, question(number, tokens)) for number in range(count)))

    began = time.perf_counter()
    found = asyncio.run(together())
    equal = sum(answer == (200, alone[number % 16]) for number, answer in enumerate(found))
    took = time.perf_counter() - began
    figure(f"{count} streams at once", f"{equal} equal to those alone, in {took:.1f} s", equal == count)


def idle_client(port: int, core: int, until: Any, told: Any) -> None:
    """A client that asks now and then and has a core of its own."""
    os.sched_setaffinity(0, {core})
    body = question(0, 4)
    health, refused, others = [], [], 0
    while not until.is_set():
        status, took, _ = fetched(port, head("/health"))
        health.append(took)
        others += status != 200
        with contextlib.suppress(TimeoutError):  # a place became free, and it waits with the others
            status, took, _ = fetched(port, head(length=len(body)) + body, 1.0)
            if status == 429:
                refused.append(took)
            others += status not in (200, 429)
        time.sleep(0.02)
    told.put((health, refused, others))


def overload(port: int, count: int, tokens: int, cores: Sequence[int]) -> None:
    """More requests than the worker takes, for some seconds; an idle client times refusals and /health."""
    until, told = multiprocessing.Event(), multiprocessing.Queue()
    client = multiprocessing.Process(target=idle_client, args=(port, cores[-1], until, told))
    os.sched_setaffinity(0, {cores[0]})  # beside the worker, so that the idle client has the other core

    async def flood() -> list[int]:
        tasks = [asyncio.create_task(asked(port, question(number, tokens))) for number in range(count)]
        await asyncio.sleep(2)
        client.start()
        await asyncio.sleep(10)
        until.set()
        statuses = [task.result()[0] for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return statuses

    found = asyncio.run(flood())
    health, refused, others = told.get(timeout=60)
    client.join()
    p99 = statistics.quantiles(health, n=100)[98] if len(health) > 1 else float("inf")
    p50 = statistics.median(health)
    figure("/health under load", f"p50 {p50 * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms of {len(health)}",
           p99 < 0.1 and not others)  # fmt: skip
    worst = max(refused, default=float("inf"))
    figure("429 after", f"p50 {statistics.median(refused or [worst]) * 1e3:.1f} ms, at most {worst * 1e3:.1f} ms "
           f"of {len(refused)}", worst < 0.05)  # fmt: skip
    refusals = found.count(429)
    figure("the flood", f"{refusals} of {count} refused, the others taken", refusals >= count - TAKEN)


def leaving(port: int, process: int, count: int) -> None:
    """Clients that leave at any moment."""
    rng, before = random.Random(0), rss(process)

    async def one(number: int) -> None:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            body = question(number, 1500)
            data = head(length=len(body)) + body
            writer.write(data[: rng.randrange(len(data))] if rng.random() < 0.2 else data)
            await asyncio.sleep(rng.random() * 0.3)
            writer.transport.abort()

    async def all_of_them() -> None:
        for first in range(0, count, 50):
            await asyncio.gather(*(one(number) for number in range(first, min(count, first + 50))))

    asyncio.run(all_of_them())
    names = ("paddlemix_slots_busy", "paddlemix_waiting")
    time.sleep(5)  # what is still in the queue of the socket is seen first
    left = [metric(port, name) for name in names]
    told = f"{left[0]:.0f} slots busy, {left[1]:.0f} waiting; memory {before:.0f} MB, then {rss(process):.0f} MB"
    figure(f"{count} clients that left", told, left == [0, 0])


def huge_png() -> str:
    """The header of a picture of 50,000 x 50,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return "data:image/png;base64," + base64.b64encode(data + b"\0" * 64).decode()


def chat_of(parts: list[Any]) -> bytes:
    """A request with these parts."""
    body = json.dumps({"messages": [{"role": "user", "content": parts}], "max_tokens": 2}).encode()
    return head(length=len(body)) + body


def abuse(port: int, process: int) -> None:
    """What would cost too much is a 4xx within a second, and takes no memory."""
    before = rss(process)
    image = {"type": "image_url", "image_url": {"url": picture(1)}}
    cases = {
        "100 MB of body": head(length=100_000_000) + b"[" * 100_000_000,
        "a PNG of 50,000 x 50,000": chat_of([{"type": "image_url", "image_url": {"url": huge_png()}}]),
        "10,000 images": chat_of([image] * 10_000),
        "a million brackets": head(length=1_000_000) + b"[" * 1_000_000,
    }
    for name, data in cases.items():
        status, took, _ = fetched(port, data)
        figure(name, f"{status} in {took * 1e3:.0f} ms", 400 <= status < 500 and took < 1)
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
        data, sent, said = head(length=10), 0, b""
        line.settimeout(0.25)
        while not said and time.perf_counter() - began < 25:
            with contextlib.suppress(TimeoutError):
                line.sendall(data[sent : sent + 1])
                sent += 1
                said = line.recv(4096)
        took = time.perf_counter() - began
    status = said[9:12].decode()
    figure("a head that drips", f"{status} after {took:.1f} s (the bound is 5 s)", status == "408" and took < 6)
    figure("memory", f"{before:.0f} MB, then {rss(process):.0f} MB", rss(process) < before + 300)


def again(port: int) -> None:
    """The same picture and beginning are not computed again."""
    names = ('paddlemix_image_features_total{how="encoded"}', "paddlemix_prefix_positions_reused_total")
    asyncio.run(asked(port, question(3, 4)))
    before = [metric(port, name) for name in names]
    asyncio.run(asked(port, question(3, 4)))
    encoded, reused = (metric(port, name) - was for name, was in zip(names, before, strict=True))
    good = encoded == 0 and reused > 20
    figure("asked again", f"{encoded:.0f} pictures encoded, {reused:.0f} positions reused", good)


def ending(folder: Path, model: str, cores: set[int]) -> None:
    """SIGTERM lets an answer end; a second one does not wait."""
    for signals, code in ((1, 0), (2, 143)):
        with worker(folder, model, cores) as (process, port):

            async def stream(process: Any = process, port: int = port, signals: int = signals) -> bytes:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                body = question(0, 60 if signals == 1 else 1900)
                writer.write(head(length=len(body)) + body)
                said = await reader.read(200)
                for _ in range(signals):
                    process.send_signal(signal.SIGTERM)
                    await asyncio.sleep(0.3)
                with contextlib.suppress(OSError):
                    said += await reader.read()
                    said += await reader.read()
                return said

            began = time.perf_counter()
            said = asyncio.run(stream())
            found = process.wait(60)
            good = found == code and (b"[DONE]" in said or signals == 2)
            figure(f"SIGTERM x {signals}", f"exit code {found} after {time.perf_counter() - began:.1f} s", good)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and say; 1 when a figure is not met."""
    parser = argparse.ArgumentParser(prog="bench.py serve", description=__doc__)
    parser.add_argument("--model-path", default=str(MODEL), help="model folder (default: the tests' tiny one)")
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--leaving", type=int, default=1000)
    args = parser.parse_args(argv)
    cores = sorted(os.sched_getaffinity(0))
    own = {cores[0]}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with worker(folder, args.model_path, own, "--limit-model-concurrency", str(TAKEN)) as (process, port):
            streams(port, args.streams, 24)
            again(port)
            overload(port, 140, 1500, cores)
            leaving(port, process.pid, args.leaving)
            abuse(port, process.pid)
            streams(port, args.streams, 24)
        ending(folder, args.model_path, own)
    return 0 if all(FIGURES) else 1


if __name__ == "__main__":
    sys.exit(main())
