# SPDX-License-Identifier: Apache-2.0
"""Where the supported versions of paddle keep what they do not all keep in one place.

The lowest is 3.0.0, the last with a plug-in for Ascend; CI runs it and the highest. Places are found by trying them and
not by a version number, which nightly builds share. Every other name that is used is held to the paddle that runs by
``tests/test_paddle_names.py``, so what moves next fails there.
"""

import contextlib
import ctypes
import functools
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paddle

from paddlemix.utils import env
from paddlemix.utils.addresses import free_ports

PLACES: dict[str, tuple[str, ...]] = {
    "swiglu": ("paddle.nn.functional", "paddle.incubate.nn.functional"),
}
"""By name: the modules that may hold it, the newest first."""


@functools.cache
def find(name: str) -> Any:
    """What this paddle has under ``name``, a key of ``PLACES``. AttributeError names the places that were tried."""
    for place in PLACES[name]:
        found = getattr(importlib.import_module(place), name, None)
        if found is not None:
            return found
    raise AttributeError(f"paddle {paddle.__version__} has no {name} in {', '.join(PLACES[name])}")


def peak_memory(device: str) -> int:
    """Largest number of bytes that were in use at once on ``device`` (``npu:1``) so far in this process.

    Paddle's counter itself: ``paddle.device.max_memory_allocated`` is missing in 3.0, and the one of
    ``paddle.device.cuda`` serves GPUs only.
    """
    _, _, number = device.partition(":")
    return paddle.base.core.device_memory_stat_peak_value("Allocated", int(number or 0))


@functools.cache
def sdpa_asks_its_kernels() -> bool:
    """Whether ``scaled_dot_product_attention`` looks for a kernel that can do what is asked.

    Up to 3.0 it hands every call without a mask to flash attention, which wants half precision and a GPU of compute
    capability 8, and one with a mask that flash attention cannot serve to a kernel that has no gradient. The version
    that asks is the one that got the argument ``scale``.
    """
    return "scale" in inspect.signature(paddle.nn.functional.scaled_dot_product_attention).parameters


@contextlib.contextmanager
def without_false_alarms() -> Iterator[None]:
    """Within the block paddle's C++ prints errors alone, where its log can be reached.

    Of 2026-11, paddle 3.3.1 and 3.0.0: tracing a comparison warns that it has no argument ``out``, which nobody gave.
    """
    level = _log_level()
    before = None if level is None else level.value
    log_errors_alone()
    try:
        yield
    finally:
        if level is not None:
            level.value = before


def log_errors_alone() -> None:
    """From now on paddle's C++ prints errors alone, where its log can be reached.

    Paddle Inference does so itself where it is told to be silent (``disable_glog_info``), but of 2026-11, paddle 3.3.1
    and 3.0.0, only after it has warned that custom operators are registered already: it registers them twice.
    """
    level = _log_level()
    if level is not None:
        level.value = max(level.value, 2)


@contextlib.contextmanager
def without_writing_weights() -> Iterator[None]:
    """Within the block ``paddle.jit.save`` writes the program of a graph alone, where that can be reached.

    Of 2026-11, paddle 3.3.1 and 3.0.0, it always writes the weights, too. Whoever calls this removes them if they came.
    """
    module = importlib.import_module("paddle.static.pir_io")
    write = getattr(module, "save_vars_pir", None)
    if write is None:
        yield
        return
    module.save_vars_pir = lambda *_, **__: None
    try:
        yield
    finally:
        module.save_vars_pir = write


def _log_level() -> ctypes.c_int | None:
    """The variable of glog that ``GLOG_minloglevel`` sets."""
    with contextlib.suppress(OSError, ValueError):
        library = ctypes.CDLL(str(Path(paddle.base.__file__).with_name("libpaddle.so")))
        return ctypes.c_int.in_dll(library, "_ZN3fLI17FLAGS_minloglevelE")
    return None


def gpu_capability() -> int:
    """First number of the compute capability of the current GPU (8 for an A100)."""
    return paddle.device.cuda.get_device_capability()[0]


@functools.cache
def keep_gloo_groups_apart() -> None:
    """Let every gloo group of this process from now on find its members through a store of its own (collective).

    2026-11, paddle 3.0 to 3.3: the members of a group connect twice, first by addresses that lie under the group's
    id in the one store of all processes, then (``CommContextManager``) by others under "0", "1", ..., whatever its id
    is. A process that is a little ahead there reads an address of the group before. It is refused ("connect ...:
    Connection refused") or both wait for each other ("TIMEOUT self_rank"): once in about 100 groups on busy
    processors, more often among three processes.
    """
    groups = paddle.base.core.ProcessGroupGloo
    create = groups.create

    def with_own_store(store: Any, rank: int, size: int, number: int = 0) -> Any:
        return create(store if size == 1 else _own_store(store, rank, f"paddlemix/gloo/{number}"), rank, size, number)

    groups.create = staticmethod(with_own_store)


def _own_store(common: Any, rank: int, key: str) -> Any:
    """A new store of the members of a group, whose first one holds it and tells the others where under ``key``."""
    stores = paddle.base.core.TCPStore
    seconds = 900  # as paddle waits for the common one
    if rank:
        host, _, port = common.get(key).decode().rpartition(":")
        return stores(host, int(port), False, 1, seconds)
    host = env.endpoint().rpartition(":")[0] or "127.0.0.1"
    port = free_ports(1)[0]
    own = stores(host, port, True, 1, seconds)
    common.set(key, f"{host}:{port}")
    return own
