# SPDX-License-Identifier: Apache-2.0
"""The processes that hold one model over several cards: started, told what to do, watched, and named when one is lost.

The process that a person starts is the first card's. It starts one for each other card (``follower``) and sends it
commands through its standard input, so that those who wait for work wait for no collective operation. A process that
ends or stops is told within ``SILENT`` seconds, and all end: nothing can be finished without it.
"""

import contextlib
import os
import pickle
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paddlemix.generation.sampling import Decoding
from paddlemix.imaging.layout import Layout
from paddlemix.ops.parallel import TensorParallel
from paddlemix.utils import addresses, env, options
from paddlemix.utils.errors import ConfigError, PaddleMixError

SILENT = 25.0
"""Seconds without a sign of life after which a process counts as stopped."""
STARTING = 600.0
"""The same until a process has its part of the model: loading paddle from a slow disk stops all of its threads."""
READY = b"r"
"""What a process writes in place of a sign of life when it has."""
EVERY = 1.0
"""Seconds between two signs of life."""
Shown = tuple[Sequence[int], str, list[tuple[bytes, Layout, int]]]
"""A prompt as the others get it: ids, text, and of each image its key, its layout and the number of its features."""
Value = str | int | np.ndarray | Sequence[int] | Decoding | Shown | Sequence[Shown] | None
"""What a command of the first card is made of."""
_ROOT = Path(__file__).resolve().parents[2]
_HIGHEST = pickle.HIGHEST_PROTOCOL
_STARTED = threading.Event()


class GroupLostError(PaddleMixError):
    """The processes of a model are no longer in step, so none of them can go on."""


class Group:
    """The followers of this process. ``send`` may be called by the one thread that uses the model."""

    def __init__(self, kind: str, cards: int, start: dict[str, Any]) -> None:
        if _STARTED.is_set():
            raise ConfigError("this process has opened a model over several cards already; it can open one only")
        _STARTED.set()
        self.cards = cards
        self._places = [f"127.0.0.1:{port}" for port in addresses.free_ports(cards)]
        self._kind = kind
        self._over = False
        self._told = threading.Lock()
        self._ready = [threading.Event() for _ in range(1, cards)]
        self._followers = [self._started(card, start) for card in range(1, cards)]
        for card, process in enumerate(self._followers, start=1):
            for watch in (self._watch, self._hand_on):
                threading.Thread(target=watch, args=(card, process), name=f"card {card}", daemon=True).start()

    def _started(self, card: int, start: dict[str, Any]) -> "subprocess.Popen[bytes]":
        path = os.pathsep.join(part for part in (str(_ROOT), env.raw("PYTHONPATH")) if part)
        quiet = {"PADDLEMIX_LOG_LEVEL": "WARNING", "GLOG_minloglevel": env.raw("GLOG_minloglevel") or "2"}
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "paddlemix.generation.follower"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env.all_with({**variables_of(self._kind, card, self._places), "PYTHONPATH": path, **quiet}),
            start_new_session=True,  # Ctrl-C in the terminal is for the process that was started there
        )
        _write(process, {**start, "card": card, "cards": self.cards, "kind": self._kind, "leader": os.getpid(),
                         "strict_config": options.is_strict(), "options": options.current()})  # fmt: skip
        return process

    def join(self) -> TensorParallel:
        """Meet the followers; this process's place among the cards."""
        return joined(self._kind, 0, self._places)

    def wait(self) -> None:
        """Return when all followers have their part of the model."""
        for ready in self._ready:
            ready.wait()

    def send(self, *message: Value) -> None:
        """Tell all followers. GroupLostError when one is not there any more."""
        data = pickle.dumps(message, _HIGHEST)
        for card, process in enumerate(self._followers, start=1):
            try:
                process.stdin.write(data)
                process.stdin.flush()
            except (OSError, ValueError) as error:
                self.lost()
                raise GroupLostError(f"card {card} cannot be told what to do ({error})") from error

    def close(self) -> None:
        """Let the followers end. They do so by themselves when this process ends, whatever way."""
        self._over = True
        for process in self._followers:
            with contextlib.suppress(OSError):
                process.stdin.close()

    def lost(self) -> None:
        """After a failure: end this process with the name of the follower that has ended, if one has."""
        until = time.monotonic() + 5.0
        while time.monotonic() < until:
            for card, process in enumerate(self._followers, start=1):
                if process.poll() is not None:
                    self._end(card, process, f"has ended with exit code {process.returncode}")
            time.sleep(0.05)

    def _watch(self, card: int, process: "subprocess.Popen[bytes]") -> None:
        """Signs of life are bytes on the follower's standard output."""
        limit = STARTING
        while not self._over:
            ready, _, _ = select.select([process.stdout], [], [], limit)
            if self._over:
                return
            if not ready:
                process.kill()
                self._end(card, process, f"gives no sign of life for {limit:g} s")
            said = os.read(process.stdout.fileno(), 4096)
            if READY in said:
                limit = SILENT
                self._ready[card - 1].set()
            if not said:
                process.wait()
                self._end(card, process, f"has ended with exit code {process.returncode}")

    def _end(self, card: int, process: "subprocess.Popen[bytes]", why: str) -> None:
        with self._told:  # the first one that is lost: the others end because of it
            if self._over:
                return
            self._over = True
            time.sleep(0.2)  # for its last words
            sys.stderr.write(
                f"error: card {card} (process {process.pid}) {why}; a model over {self.cards} cards cannot go on "
                "without one of them\n"
            )
            sys.stderr.flush()
            os._exit(1)

    def _hand_on(self, card: int, process: "subprocess.Popen[bytes]") -> None:
        """What the follower says, line by line, with its name."""
        for line in process.stderr:
            sys.stderr.write(f"card {card}: {line.decode('utf-8', 'replace')}")
            sys.stderr.flush()


def variables_of(kind: str, card: int, places: list[str]) -> dict[str, str]:
    """What paddle's launcher would set for one of the processes on this machine's cards of a kind."""
    backend = {"cpu": "gloo", "gpu": "nccl", "npu": "xccl"}[kind]
    found = {
        "PADDLE_TRAINER_ID": str(card),
        "PADDLE_TRAINERS_NUM": str(len(places)),
        "PADDLE_TRAINER_ENDPOINTS": ",".join(places),
        "PADDLE_CURRENT_ENDPOINT": places[card],
        "PADDLE_RANK_IN_NODE": str(card),
        "PADDLE_DISTRI_BACKEND": backend,
    }
    if kind != "cpu":
        found[f"FLAGS_selected_{kind}s"] = str(card)
    if kind == "npu":
        found["PADDLE_XCCL_BACKEND"] = "npu"
    return found


def joined(kind: str, card: int, places: list[str]) -> TensorParallel:
    """Meet the other processes (collective); this one's place among them."""
    import paddle

    with env.within(variables_of(kind, card, places)):
        paddle.distributed.init_parallel_env()
    return TensorParallel(card, len(places), name=options.current().cards)


@contextlib.contextmanager
def in_step() -> Iterator[None]:
    """Ctrl-C within the block comes at its end: half a step would leave the others waiting in the middle of theirs."""
    import signal

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = []
    before = signal.signal(signal.SIGINT, lambda *_: asked.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if asked:
            signal.raise_signal(signal.SIGINT)


def _write(process: "subprocess.Popen[bytes]", message: Mapping[str, Any]) -> None:
    process.stdin.write(pickle.dumps(message, _HIGHEST))
    process.stdin.flush()
