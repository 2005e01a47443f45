# SPDX-License-Identifier: Apache-2.0
"""Answers that share steps against the same ones one after the other; a step of 4 and of 1 rows (bench.py batch)."""

import time
from collections.abc import Callable
from typing import Any

REQUESTS, ANSWER, ROWS = 8, 32, 4
"""Requests at a time, tokens of each answer, and rows of the step that is measured."""
SHORT = 32
"""Positions of a short prompt, in which hardly anything but decoding is left."""


def batch(model: Any, spec: dict[str, Any]) -> Callable[[], dict[str, float]]:
    """Seconds of 8 answers behind short prompts, together and one by one, and of a step behind long ones."""
    import numpy as np

    from paddlemix.generation.prompt import Prompt

    draw = np.random.default_rng(0)

    def prompts(count: int, length: int) -> list[Prompt]:
        rows = draw.integers(3, spec["vocab"], (count, length))
        return [Prompt(tuple(int(token) for token in row), "", ()) for row in rows]

    short, long = prompts(REQUESTS, SHORT), prompts(ROWS, spec["prompt"])
    answers(model, short, REQUESTS)  # warm up

    def run() -> dict[str, float]:
        return {
            "8 together": answers(model, short, REQUESTS),
            "8 alone": answers(model, short, 1),
            "step of 4": step(model, long, spec["tokens"]),
            "step of 1": step(model, long[:1], spec["tokens"]),
        }

    return run


def answers(model: Any, prompts: list[Any], slots: int) -> float:
    """CPU seconds until all are answered, at most ``slots`` sharing a step."""
    from paddlemix.generation.continuous import ContinuousBatch
    from paddlemix.generation.sampling import Decoding

    rows = ContinuousBatch(model, slots)
    for prompt in prompts:
        rows.submit(prompt, Decoding(max_new_tokens=ANSWER))
    begun = time.process_time()
    while rows.busy:
        rows.step()
    return time.process_time() - begun


def step(model: Any, prompts: list[Any], tokens: int) -> float:
    """CPU seconds of one step of so many rows, each behind its prompt."""
    from paddlemix.generation.continuous import ContinuousBatch
    from paddlemix.generation.sampling import Decoding

    rows = ContinuousBatch(model, len(prompts))
    for prompt in prompts:
        rows.submit(prompt, Decoding(max_new_tokens=tokens + len(prompts) + 1))
    while rows.running < len(prompts):
        rows.step()
    begun = time.process_time()
    for _ in range(tokens):
        rows.step()
    return (time.process_time() - begun) / tokens
