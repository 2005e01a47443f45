# SPDX-License-Identifier: Apache-2.0
"""Many questions to a judge: what they will cost, which are answered already, and the rest several at a time.

Every answer is on the disk before the next one counts. The cache knows an answer by all of its question (address,
model, text, limits), so that a run goes on after a kill, and changed answers alone are judged again.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeGuard

from paddlemix.eval.judge.endpoint import Endpoint, Judged, RequestError, ask
from paddlemix.utils.errors import ConfigError, DataError
from paddlemix.utils.journal import Journal
from paddlemix.utils.progress import Progress

FORM = "paddlemix judge cache 1"
GIVEN_UP = 3
"""So many requests in a row without an answer end a run: the endpoint is down, or the settings do not fit it."""

Ask = Callable[[Endpoint, Mapping[str, Any], Callable[[float], object]], Judged]


@dataclass(frozen=True)
class Prices:
    """Per million tokens, in any currency; None where the person gave none."""

    prompt: float | None = None
    completion: float | None = None


@dataclass(frozen=True)
class Estimate:
    """What a run will ask: requests in all and from the cache, tokens of the prompts (about) and at most of answers."""

    requests: int
    cached: int
    prompt_tokens: int
    most_completion_tokens: int

    def cost(self, prices: Prices) -> float | None:
        """At most, in the currency of the prices; None without both of them."""
        if prices.prompt is None or prices.completion is None:
            return None
        return (self.prompt_tokens * prices.prompt + self.most_completion_tokens * prices.completion) / 1e6

    def line(self, prices: Prices) -> str:
        """The estimate in a sentence."""
        text = f"{self.requests} requests, {self.cached} of them answered in the cache; the others have about "
        text += f"{self.prompt_tokens} tokens of prompts and at most {self.most_completion_tokens} of answers"
        cost = self.cost(prices)
        return text + ("" if cost is None else f", at most about {cost:.2f} by the prices given")


def about_tokens(text: str) -> int:
    """How many tokens a text has, about: four letters of ASCII a token, one other letter a token."""
    plain = sum(letter.isascii() for letter in text)
    return -(-plain // 4) + len(text) - plain


def key_of(endpoint: Endpoint, body: Mapping[str, Any]) -> str:
    """The name of a request in the cache."""
    return hashlib.sha256(json.dumps([endpoint.url, body], sort_keys=True).encode()).hexdigest()


class Cache:
    """The answers of a judge on the disk, one process at a time. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._journal: Journal[dict[str, Any]] = Journal(
            path, {"form": FORM}, _fits, "wait for it, or give another --cache", "another --cache"
        )
        self._answers = {one["key"]: one for records in self._journal.done.values() for one in records}

    def __enter__(self) -> "Cache":
        return self

    def __exit__(self, *problem: object) -> None:
        self._journal.close()

    def get(self, key: str) -> Judged | None:
        """The answer of a request that was made before."""
        found = self._answers.get(key)
        return None if found is None else Judged(**{name: found[name] for name in Judged.__annotations__})

    def put(self, key: str, answer: Judged) -> None:
        """Keep an answer; it is on the disk when this returns."""
        record = {"key": key, **asdict(answer)}
        self._journal.add(len(self._journal.done), [record])
        self._answers[key] = record


def _fits(number: int, records: list[Any]) -> TypeGuard[list[dict[str, Any]]]:
    return len(records) == 1 and all(type(records[0].get(name)) is kind for name, kind in _KINDS.items())


_KINDS = {"key": str, "text": str, "model": str, "prompt_tokens": int, "completion_tokens": int}


def estimate(endpoint: Endpoint, bodies: Sequence[Mapping[str, Any]], cache: Cache) -> Estimate:
    """What asking ``bodies`` will take."""
    fresh = [body for body in bodies if cache.get(key_of(endpoint, body)) is None]
    prompts = sum(about_tokens(message["content"]) + 4 for body in fresh for message in body["messages"])
    most = sum(body.get("max_tokens", body.get("max_completion_tokens", 0)) for body in fresh)
    return Estimate(len(bodies), len(bodies) - len(fresh), prompts, most)


def ask_all(
    endpoint: Endpoint, bodies: Sequence[Mapping[str, Any]], cache: Cache, *, workers: int = 4, asking: Ask = ask
) -> list[Judged | RequestError]:
    """The answer to each body, in their order, or why it has none.

    Equal bodies are asked once. EndpointError when the endpoint takes none of our requests, DataError when several in a
    row get no answer: the same command goes on later.
    """
    if workers < 1:
        raise ConfigError(f"--workers {workers}: expected a number from 1")
    keys = [key_of(endpoint, body) for body in bodies]
    found: dict[str, Judged | RequestError] = {}
    for key in keys:
        known = cache.get(key)
        if known is not None:
            found[key] = known
    rest = {key: body for key, body in zip(keys, bodies, strict=True) if key not in found}
    if rest:
        _ask_rest(endpoint, rest, cache, workers, asking, found)
    _require_reached(list(found.values()), cache)
    return [found[key] for key in keys]


def _require_reached(found: Sequence[Judged | RequestError], cache: Cache) -> None:
    """DataError when requests got no answer that may get one later, or none got one: no score follows from that."""
    lost = [one for one in found if isinstance(one, RequestError)]
    open_still = [one for one in lost if not one.refused]
    if open_still or (lost and len(lost) == len(found)):
        first = (open_still or lost)[0]
        raise DataError(
            f"{first}; {len(open_still or lost)} of {len(found)} requests had no answer. What is answered stays in "
            f"{cache.path}, and the same command goes on"
        )


def _ask_rest(
    endpoint: Endpoint,
    rest: Mapping[str, Mapping[str, Any]],
    cache: Cache,
    workers: int,
    asking: Ask,
    found: dict[str, Judged | RequestError],
) -> None:
    """Ask several at a time, never more than ``workers``; an interrupt loses those on their way and no more."""
    waiting = list(rest.items())[::-1]
    running: dict[Future[Judged], str] = {}
    failures = row = 0
    answered = bool(found)
    pool, ended = ThreadPoolExecutor(workers), threading.Event()
    try:
        with Progress("judge", len(rest), "requests") as progress:
            while waiting or running:
                # The first one goes alone: what is wrong with all of them is paid for once.
                while waiting and len(running) < (workers if found else 1):
                    key, body = waiting.pop()
                    running[pool.submit(asking, endpoint, body, ended.wait)] = key
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    key = running.pop(future)
                    try:
                        found[key] = answer = future.result()
                        cache.put(key, answer)
                        answered, row = True, 0
                    except RequestError as error:
                        found[key] = error
                        failures, row = failures + 1, row + (not error.refused or not answered)
                        if row >= GIVEN_UP:
                            raise DataError(
                                f"{error}; {row} requests in a row had no answer, so that the run stops; what is "
                                f"answered stays in {cache.path}, and the same command goes on"
                            ) from error
                    progress.advance(1, f"{failures} failed" if failures else "")
    finally:
        ended.set()
        pool.shutdown(wait=False, cancel_futures=True)
