# SPDX-License-Identifier: Apache-2.0
"""A controller and one worker for each card of this machine, as children of one process that watches them.

What ends by itself is started again, later each time; but a worker that never got as far as to answer has a wrong flag
or model, and ends all. SIGTERM goes to all and lets open answers end; a second one does not wait. Nothing here needs
paddle.
"""

import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from paddlemix.serve.access import keys_of
from paddlemix.serve.parent import end_with_parent
from paddlemix.utils.addresses import free_ports
from paddlemix.utils.errors import ConfigError
from paddlemix.utils.npu_environment import count_cards

EARLIEST, LATEST = 1.0, 60.0
"""Seconds until what ended is started again: doubled each time, from the first to the last."""
STEADY = 300.0
"""After so many seconds of work the waiting begins anew."""
LISTENING = re.compile(r"listening at (http://\S+)")
_LOOK = 0.1
_HARD = 143


@dataclass
class Child:
    """One process: what it is called in the log, its command, and how often it was started."""

    name: str
    command: Sequence[str]
    process: "subprocess.Popen[str] | None" = None
    address: str | None = None
    """Where it listens, once it has said so."""
    was_ready: bool = False
    began: float = 0.0
    wait: float = field(default_factory=lambda: EARLIEST)
    next_start: float | None = None

    def start(self) -> None:
        """Start it (on the main thread: the child gets SIGTERM when that thread ends, however it does)."""
        self.address, self.next_start, self.began = None, None, time.monotonic()
        self.process = subprocess.Popen(  # noqa: S603 - our own command
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C in the terminal is for the process that was started there
            preexec_fn=end_with_parent,
        )
        threading.Thread(target=self._hand_on, args=(self.process,), name=self.name, daemon=True).start()

    def _hand_on(self, process: "subprocess.Popen[str]") -> None:
        for line in process.stdout or ():
            say(self.name, line.rstrip("\n"))
            found = LISTENING.search(line)
            if found:
                self.address, self.was_ready = found[1], True

    def ended(self) -> int | None:
        """Its exit code when it has ended and is not to be started again yet."""
        return None if self.process is None or self.next_start is not None else self.process.poll()

    def again(self, code: int) -> None:
        """Plan the next start."""
        if time.monotonic() - self.began > STEADY:
            self.wait = EARLIEST
        say(self.name, f"has ended with exit code {code}; it is started again in {self.wait:g} s")
        self.next_start = time.monotonic() + self.wait
        self.wait = min(2 * self.wait, LATEST)

    def tell(self, number: int) -> None:
        """Send it a signal, if it is there."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)


class Cards:
    """The children and the signals. ``workers`` makes the commands of the workers from the controller's address."""

    def __init__(self, controller: Sequence[str], workers: Callable[[str], dict[str, Sequence[str]]]) -> None:
        self._controller = Child("controller", controller)
        self._commands = workers
        self._workers: list[Child] = []
        self._signals = 0

    def run(self) -> int:
        """Serve until a signal comes; the exit code. On the main thread."""
        before = {number: signal.signal(number, self._signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            return self._run()
        finally:
            for child in self._children:
                child.tell(signal.SIGKILL)
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def _children(self) -> list[Child]:
        return [self._controller, *self._workers]

    def _signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        for child in self._children:
            child.tell(signal.SIGTERM)

    def _run(self) -> int:
        self._controller.start()
        while not self._signals:
            code = self._look()
            if code is not None:
                return self._end(code)
            time.sleep(_LOOK)
        return self._end(0)

    def _look(self) -> int | None:
        """Start what is to be started; an exit code when all has to end."""
        if self._controller.address and not self._workers:
            self._workers = [Child(name, words) for name, words in self._commands(self._controller.address).items()]
            for child in self._workers:
                child.start()
        for child in self._children:
            code = child.ended()
            if code is not None and not child.was_ready:
                say(child.name, f"has ended with exit code {code} before it could answer; all end")
                self._signal(signal.SIGTERM, None)
                return code if code > 0 else 1
            if code is not None:
                child.again(code)
            if child.next_start is not None and time.monotonic() >= child.next_start:
                child.start()
        return None

    def _end(self, code: int) -> int:
        """Wait for all, as long as they take: each has a time of its own for open answers."""
        while any(child.process is not None and child.process.poll() is None for child in self._children):
            time.sleep(_LOOK)
        return _HARD if self._signals > 1 else code


def say(name: str, text: str) -> None:
    """A line of the log, with the name of whose it is."""
    sys.stderr.write(f"{name}: {text}\n")
    sys.stderr.flush()


def serve_cards(cards: Sequence[str], args: Namespace, argv: Sequence[str]) -> int:
    """Serve what the arguments of ``paddlemix serve`` say on each of the cards, behind one address; the exit code.

    The controller listens where one worker would, the workers behind it on this machine, at the ports that follow.
    """
    kind = args.device or ("npu" if count_cards() else "gpu")
    port = args.port or free_ports(1)[0]
    with tempfile.TemporaryDirectory(prefix="paddlemix-cards-") as folder:
        token = _secret(Path(folder) / "token", [secrets.token_hex(32)])
        keys = [*args.api_key, *(() if args.api_key_file is None else keys_of(args.api_key_file))]
        access = ["--api-key-file", _secret(Path(folder) / "keys", keys)] if keys else []
        python = [sys.executable, "-m"]
        controller = [*python, "paddlemix.serve.controller", "--host", args.host, "--port", str(port), *access,
                      "--token-file", token, "--drain-seconds", str(args.drain_seconds),
                      "--request-seconds", str(args.request_seconds), "--limit-model-concurrency",
                      str(min(65536, args.limit_model_concurrency * len(cards)))]  # fmt: skip

        def workers(address: str) -> dict[str, Sequence[str]]:
            reached = address.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
            # The last one of a flag counts.
            own = ["--cards=", "--host", "127.0.0.1", "--controller-address", reached, "--controller-token-file", token]
            ports = range(port + 1, 1 << 16) if args.port else free_ports(len(cards))
            return {
                f"card {card}": [*python, "paddlemix.serve.model_worker", *argv, *own, *access, "--port", str(place),
                                 "--device", kind if kind == "cpu" else f"{kind}:{card}"]
                for card, place in zip(cards, ports, strict=False)
            }  # fmt: skip

        return Cards(controller, workers).run()


def cards_of(args: Namespace) -> list[str]:
    """The numbers of ``--cards``; ConfigError for what is none, or does not go with the other flags."""
    cards = [card.strip() for card in (args.cards or "").split(",") if card.strip()]
    for card in cards:
        if not (card.isascii() and card.isdigit() and len(card) < 4):
            raise ConfigError(f"--cards {args.cards}: expected numbers of cards, as 0,1,2,3")
    if len(set(cards)) < len(cards):
        raise ConfigError(f"--cards {args.cards}: a card stands there twice; one worker serves a card")
    if not cards:
        return []
    if ":" in (args.device or ""):
        raise ConfigError(
            f"--device {args.device} and --cards {args.cards}: give the kind, {args.device.split(':')[0]}"
        )
    if args.num_gpus > 1:
        raise ConfigError("--cards has one worker a card, --num-gpus one over several cards; leave one of them out")
    if args.controller_address is not None or args.worker_address is not None:
        raise ConfigError("--cards has a controller of its own; leave out --controller-address and --worker-address")
    if args.port and args.port + len(cards) >= 1 << 16:
        raise ConfigError(f"--port {args.port}: the workers take the {len(cards)} ports that follow; give a lower one")
    return cards


def _secret(file: Path, lines: Sequence[str]) -> str:
    """A file that nobody else reads."""
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
        stream.write("\n".join(lines) + "\n")
    return str(file)
