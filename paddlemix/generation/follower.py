# SPDX-License-Identifier: Apache-2.0
"""The process of one of the cards that share a model (``group`` starts it; it is not for a person).

Commands come through standard input, signs of life go through standard output. It ends when the first process ends, and
after it: that one serves the connections of all.
"""

import contextlib
import os
import pickle
import queue
import signal
import sys
import threading
import time
from typing import Any

from paddlemix.utils import options


def main() -> int:
    """Open this card's share of the model and follow."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the first process says when it is over
        signal.signal(number, signal.SIG_IGN)
    alive = os.dup(1)
    os.dup2(2, 1)  # what libraries print belongs to the messages
    start = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the process that started this one
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(messages, start["leader"]), name="commands", daemon=True).start()
    threading.Thread(target=_beat, args=(alive,), name="signs of life", daemon=True).start()
    with options.speaking(start["options"]), options.strict_config(start["strict_config"]):
        _follow(start, messages, alive)
    return 0


def _follow(start: dict[str, Any], messages: "queue.SimpleQueue[Any]", alive: int) -> None:
    from paddlemix.utils import device

    device.before_paddle(start["kind"])
    from paddlemix.generation.group import READY, joined
    from paddlemix.generation.lockstep import Follower, name_of
    from paddlemix.generation.predictor import Predictor
    from paddlemix.utils import env

    places = (env.raw("PADDLE_TRAINER_ENDPOINTS") or "").split(",")
    parallel = joined(start["kind"], start["card"], places)
    device_name = name_of(start["kind"], start["card"])
    predictor = Predictor.load(start["path"], parallel=parallel, device=device_name, **start["opening"])
    os.write(alive, READY)
    Follower(predictor, messages.get).run()


def _read(messages: "queue.SimpleQueue[Any]", leader: int) -> None:
    with contextlib.suppress(EOFError, pickle.UnpicklingError):
        while True:
            messages.put(pickle.load(sys.stdin.buffer))  # noqa: S301 - as above
    until = time.monotonic() + 20.0
    while time.monotonic() < until and os.getppid() == leader:
        time.sleep(0.05)
    os._exit(0)


def _beat(alive: int) -> None:
    from paddlemix.generation.group import EVERY

    while True:
        with contextlib.suppress(BrokenPipeError):
            os.write(alive, b".")
        time.sleep(EVERY)


if __name__ == "__main__":
    sys.exit(main())
