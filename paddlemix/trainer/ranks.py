# SPDX-License-Identifier: Apache-2.0
"""Processes that train together: a lost or stopped one is named, and the others end instead of waiting for it.

A collective operation waits for the slowest process, on some devices for half an hour, and then fails with the address
of a socket (or, in the backward pass, with an abort of the whole process). So every process leaves a sign of life in a
file of the output folder, and reads those of the others. Processes on machines that do not share the folder see their
own machine's only. They also compare, before anything heavy, what they were started with.
"""

import atexit
import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddlemix.utils.errors import ConfigError, PaddleMixError
from paddlemix.utils.files import write_small
from paddlemix.utils.leftovers import TEMPORARY_PREFIX
from paddlemix.utils.shown import shown

FOLDER = f"{TEMPORARY_PREFIX}ranks"
"""Below the output folder; what a killed run leaves of it is removed with the other temporaries."""

EVERY = 1.0
"""Seconds between two signs of life of a process, and between two looks at the others."""
_SOON = 0.1
"""Seconds between two looks at the processes of this machine alone, which cost nothing on a disk that is shared."""
SILENT = 10.0
"""After so many seconds without a sign a process of this machine counts as stopped. With what paddle's launcher takes
to end the rest (4 s, and up to 18 for its way with gloo) all is over within 30. Gloo gives up after 30 by itself."""
SILENT_ELSEWHERE = 20.0
"""The same for a process of another machine, whose signs a shared disk may show late."""

_FIRST_SPEAKS = 2.0
"""Seconds that the other processes leave to the first one for the error that all of them end with."""


LEAVING = 20.0
"""Seconds that the other processes wait at most for the first one to end before them."""


@dataclass
class _Seen:
    """The last sign of a process, and for how many seconds this one has looked at it and seen no other."""

    sign: dict[str, int | str]
    silent: float = 0.0


LOCAL = frozenset((
    "model_name_or_path", "base", "text_model_name_or_path", "lora_path", "vision_tower", "pretrain_mm_mlp_adapter",
    "output_dir", "logging_dir", "metrics_output_path", "data_path", "image_folder", "dataset", "chat_template",
    "device", "resume_from_checkpoint", "dataloader_num_workers", "dataloader_timeout", "disable_tqdm",
    "log_on_each_node",
))  # fmt: skip
"""Settings that say where things lie, or change no number. Data and weights are compared by what they hold."""


def require_alike(facts: dict[str, Any], world: int) -> None:
    """Called by every process with what it was started with. ConfigError on all of them names what differs, and where.

    ``facts`` are plain values by name; values of names in ``LOCAL`` may differ.
    """
    if world == 1:
        return
    import paddle

    everywhere: list[dict[str, Any]] = []
    paddle.distributed.all_gather_object(everywhere, {name: facts[name] for name in facts if name not in LOCAL})
    first = everywhere[0]
    for rank, other in enumerate(everywhere[1:], start=1):
        for name in sorted({*first, *other}):
            if first.get(name) != other.get(name):
                raise ConfigError(
                    f"the processes of this run were started with different things: {name} is "
                    f"{shown(json.dumps(first.get(name)))} on rank 0 and {shown(json.dumps(other.get(name)))} on rank "
                    f"{rank}. Start all of them with the same settings, data and weights"
                )


def raise_together(problem: PaddleMixError | None, world: int) -> None:
    """Called by every process with what it ran into, or None: raises the first problem of all on those without one.

    Processes look at parts of the data of their own, a launcher ends all when one ends, and its console shows what the
    first process says. So that one names the problem, whosever it is, before the others end.
    """
    if world == 1:
        if problem is not None:
            raise problem
        return
    import paddle

    everywhere: list[PaddleMixError | None] = []
    paddle.distributed.all_gather_object(everywhere, problem)
    found = next(((rank, error) for rank, error in enumerate(everywhere) if error is not None), None)
    if found is None:
        return
    if paddle.distributed.get_rank() != 0:
        time.sleep(_FIRST_SPEAKS)
    rank, error = found
    raise problem or type(error)(f"rank {rank}: {error}")


def versions() -> dict[str, str]:
    """The version of what computes, as ``require_alike`` compares them."""
    import paddle

    return {"the version of paddle": paddle.__version__}


def leave_in_order(world: int, limit: float = LEAVING) -> None:
    """Called by every process at the end of a run: all have come so far, and the first one ends before the others.

    2026-11, paddle 3.3: the first process serves the connections of all (TCPStore). When another one ends while the
    first still cleans up after itself, its connection may be reset instead of closed; the thread that reads it
    (LibUVClient::readCallback) takes that for a fatal error and aborts the process, exit code -6, after its result was
    written: one run in 15 on a busy machine. So the others hold their connections until the first one is gone, at most
    ``limit`` seconds. The wait is at their very end (``atexit``): a caller that goes on after a run is not held up.
    """
    if world == 1:
        return
    import paddle

    places: list[tuple[str, int]] = []
    paddle.distributed.all_gather_object(places, (os.uname().nodename, os.getpid()))
    paddle.distributed.barrier()
    if paddle.distributed.get_rank() != 0:
        atexit.register(_outlive, *places[0], limit)


def _outlive(host: str, process: int, limit: float) -> None:
    """Return when a process has ended, or after a while: it may go on, or be on another machine."""
    here = host == os.uname().nodename
    until = time.monotonic() + (limit if here else min(limit, _FIRST_SPEAKS))
    while time.monotonic() < until and not (here and not _alive(process)):
        time.sleep(0.05)


class RankWatch:
    """Signs of life of this process and a look at the others', from a thread that ends with the training.

    ``step`` tells how many steps this process has done. When another one is lost, what is known of it goes to stderr
    and this process ends with exit code 1: nothing can be finished without the other, and the checkpoints are whole.
    """

    def __init__(self, output: Path, rank: int, world: int, step: Callable[[], int] = lambda: 0) -> None:
        self.folder = output / FOLDER
        self.rank = rank
        self.world = world
        self._step = step
        self._host = os.uname().nodename
        self._beats = 0
        self._seen: dict[int, _Seen] = {}
        self._looked: float | None = None
        self._over = threading.Event()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Watch while the body runs; alone there is nobody to watch."""
        if self.world == 1:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._leave_sign()
        thread = threading.Thread(target=self._watch, name="rank watch", daemon=True)
        thread.start()
        try:
            with _at_cpp_terminate(self._connection_broke):
                yield
        except RuntimeError:
            self._name_the_lost()  # a broken connection, where paddle raises
            raise
        finally:
            self._over.set()
            thread.join()
            self._file(self.rank).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.folder.rmdir()  # the last one

    def _file(self, rank: int) -> Path:
        return self.folder / f"rank-{rank:05d}.json"

    def _leave_sign(self) -> None:
        self._beats += 1
        sign = {"process": os.getpid(), "host": self._host, "step": self._step(), "beat": self._beats}
        write_small(self._file(self.rank), json.dumps(sign))

    def _watch(self) -> None:
        while not self._rests():
            with contextlib.suppress(OSError):
                self._leave_sign()
            lost = self.lost()
            if lost and not self._over.is_set():
                self._end(lost)

    def _rests(self) -> bool:
        """Wait for the next look; whether the training is over.

        Less when a process on this machine ends: the launcher ends the others then, and they are to say why before.
        """
        until = time.monotonic() + EVERY
        while (left := until - time.monotonic()) > 0:
            if self._over.wait(min(left, _SOON)):
                return True
            signs = [seen.sign for seen in self._seen.values()]
            if any(sign["host"] == self._host and not _alive(int(sign["process"])) for sign in signs):
                break
        return self._over.is_set()

    def _name_the_lost(self) -> None:
        """End this process with the name of the one that is lost, if one is."""
        until = time.monotonic() + 5.0
        while not (lost := self.lost()) and time.monotonic() < until:
            time.sleep(0.1)
        if lost:
            self._end(lost)

    def _connection_broke(self) -> None:
        self._name_the_lost()
        sys.stderr.write(
            f"error: step {self._step() + 1}: the connection to the other processes broke; see their logs\n"
        )
        os._exit(1)

    def lost(self) -> dict[int, str]:
        """What is known of the processes that are gone or silent, by rank."""
        now = time.monotonic()
        # Only the time in which this process itself ran: after a pause of all of them none has been silent.
        passed = 0.0 if self._looked is None else min(now - self._looked, 2 * EVERY)
        self._looked = now
        found = {}
        for rank in range(self.world):
            if rank == self.rank:
                continue
            sign = self._read(rank)
            if sign is None:  # not begun, finished, or on a machine without this folder
                self._seen.pop(rank, None)
                continue
            seen = self._seen.get(rank)
            if seen is None or seen.sign != sign:
                self._seen[rank] = seen = _Seen(sign)
            else:
                seen.silent += passed
            what = self._what_is_wrong(seen)
            if what:
                found[rank] = what
        return found

    def _read(self, rank: int) -> dict[str, int | str] | None:
        try:
            sign = json.loads(self._file(rank).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return sign if isinstance(sign, dict) and {"process", "host", "step"} <= set(sign) else None

    def _what_is_wrong(self, seen: _Seen) -> str | None:
        sign = seen.sign
        who = f"process {sign['process']} on {sign['host']}, last seen at step {sign['step']}"
        here = sign["host"] == self._host
        if here and not _alive(int(sign["process"])):
            return f"has ended ({who})"
        if seen.silent > (SILENT if here else SILENT_ELSEWHERE):
            return f"gives no sign of life for {seen.silent:.0f} s ({who})"
        return None

    def _end(self, lost: dict[int, str]) -> None:
        lines = "; ".join(f"rank {rank} {what}" for rank, what in sorted(lost.items()))
        sys.stderr.write(
            f"error: step {self._step() + 1}: {lines}. The other processes cannot go on without it; its own log "
            "says why. The same command goes on from the last checkpoint\n"
        )
        sys.stderr.flush()
        for rank in lost:
            sign = self._seen[rank].sign
            if sign["host"] == self._host and _alive(int(sign["process"])):
                os.kill(int(sign["process"]), signal.SIGKILL)  # stopped: the launcher would wait for it
        os._exit(1)


@contextlib.contextmanager
def _at_cpp_terminate(call: Callable[[], None]) -> Iterator[None]:
    """Inside, ``call`` comes in place of the abort when C++ code meets an exception that nobody catches.

    2026-11, paddle 3.0 and 3.3: gloo's exceptions are thrown in the hooks of the backward pass, where nothing of Python
    can catch them; a killed process then shows in the others as an abort with a socket's address.
    """
    try:
        set_terminate = ctypes.CDLL("libstdc++.so.6")._ZSt13set_terminatePFvvE
    except (OSError, AttributeError):
        yield
        return
    kind = ctypes.CFUNCTYPE(None)
    set_terminate.restype, set_terminate.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
    handler = kind(call)
    before = set_terminate(ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        set_terminate(before)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return True
    return state not in ("Z", "X")
