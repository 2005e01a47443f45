# SPDX-License-Identifier: Apache-2.0
"""How fast the device multiplies matrices and moves memory, in a second or two."""

import time
from collections.abc import Callable

import paddle

from paddlemix.doctor.findings import Finding, ok

LONG_ENOUGH = 0.05
"""Seconds that one measured round has to take; sizes double until it does."""

MATRIX_SIDES = (256, 512, 1024, 2048, 4096, 8192)
COPY_MILLIONS = (1, 4, 16, 64, 256)
ROUNDS = 3


def findings(device: str, dtype: str) -> list[Finding]:
    """One line each: Tflop/s of a square matrix product, GB/s of reading and writing."""
    side, flops = _grown(MATRIX_SIDES, lambda side: _multiply(side, dtype), lambda side: 2.0 * side**3, device)
    size, moved = _grown(
        COPY_MILLIONS, lambda size: _add(size, dtype), lambda size: 2.0 * size * 10**6 * _bytes(dtype), device
    )
    return [
        ok("matmul", f"{flops / 1e12:.3g} Tflop/s ({side} x {side}, {dtype})", tflops=flops / 1e12, side=side),
        ok("memory", f"{moved / 1e9:.3g} GB/s (x + 1 over {size} million {dtype})", gb_per_s=moved / 1e9),
    ]


def _grown(
    sizes: tuple[int, ...], prepare: Callable[[int], Callable[[], None]], work: Callable[[int], float], device: str
) -> tuple[int, float]:
    """The best rate at the first size whose round takes long enough (or at the last one)."""
    for size in sizes:
        step = prepare(size)
        step()
        _wait(device)
        seconds = min(_timed(step, device) for _ in range(ROUNDS))
        if seconds >= LONG_ENOUGH:
            break
    return size, work(size) / seconds


def _timed(step: Callable[[], None], device: str) -> float:
    start = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if not device.startswith("cpu"):
        paddle.device.synchronize(device)


def _multiply(side: int, dtype: str) -> Callable[[], None]:
    one = paddle.full([side, side], 0.01, dtype="float32").astype(dtype)
    return lambda: paddle.matmul(one, one)


def _add(millions: int, dtype: str) -> Callable[[], None]:
    one = paddle.full([millions * 10**6], 0.01, dtype="float32").astype(dtype)
    return lambda: one + 1.0


def _bytes(dtype: str) -> int:
    return 4 if dtype == "float32" else 2
