# SPDX-License-Identifier: Apache-2.0
"""What the server counts, in Prometheus' text form. Any thread may count."""

import time
from collections import deque
from collections.abc import Collection

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from paddlemix.generation.predictor import Predictor

_FIRST = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120)
_BETWEEN = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_WINDOW = 10.0
"""Seconds over which the speed is taken."""


class Metrics:
    """One server's numbers; every name begins with ``paddlemix_``."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "requests by the status they were answered with", "status")
        self.tokens = self._counter("tokens", "positions of prompts and ids of answers", "kind")
        self.features = self._counter("image_features", "images by how their features were had", "how")
        self.reused = self._counter("prefix_positions_reused", "positions of prompts that were not run again")
        self.run = self._counter("prefix_positions_run", "positions of prompts that were run")
        self.cancelled = self._counter("cancelled", "answers that nobody waited for any more")
        self.waiting = Gauge("paddlemix_waiting", "requests that wait for a slot", registry=self.registry)
        self.slots = Gauge("paddlemix_slots", "answers that can share a step", registry=self.registry)
        self.busy = Gauge("paddlemix_slots_busy", "answers that share a step now", registry=self.registry)
        self.speed = Gauge("paddlemix_tokens_per_second", "ids of answers, last 10 s", registry=self.registry)
        self.first_token = Histogram(
            "paddlemix_first_token_seconds", "arrival to first id", buckets=_FIRST, registry=self.registry
        )
        self.between = Histogram(
            "paddlemix_inter_token_seconds", "one id to the next", buckets=_BETWEEN, registry=self.registry
        )
        self.speed.set_function(self._per_second)
        self._recent: deque[tuple[float, int]] = deque()
        self._seen = [0, 0]

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"paddlemix_{name}", meaning, labels, registry=self.registry)

    def step(self, ids: int) -> None:
        """A step of the model gave so many ids."""
        self.tokens.labels("answer").inc(ids)
        now = time.monotonic()
        self._recent.append((now, ids))
        while self._recent and self._recent[0][0] < now - _WINDOW:
            self._recent.popleft()

    def pictures(self, predictors: Collection[Predictor]) -> None:
        """Take over what the caches of features have counted."""
        counts = [sum(getattr(each.features, kind) for each in predictors) for kind in ("encoded", "reused")]
        for how, new, old in zip(("encoded", "reused"), counts, self._seen, strict=True):
            self.features.labels(how).inc(new - old)
        self._seen = counts

    def _per_second(self) -> float:
        since = time.monotonic() - _WINDOW
        return sum(ids for when, ids in list(self._recent) if when >= since) / _WINDOW

    def text(self) -> bytes:
        """All numbers in the text form."""
        return generate_latest(self.registry)
