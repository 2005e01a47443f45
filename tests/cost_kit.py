# SPDX-License-Identifier: Apache-2.0
"""What an action costs, measured in a process of its own: its peak of memory is its own, and it may be ended."""

import json
import os
import resource
import sys
import traceback
from collections.abc import Callable
from typing import Any

from paddlemix.utils.errors import PaddleMixError

CPU_SECONDS = 60
"""Where an action is given up; on an idle machine none takes two."""


def cost(use: Callable[..., object], *arguments: Any) -> dict[str, Any]:
    """``MB`` at the peak beyond what this process has, ``all MB`` with it, ``CPU`` seconds, and ``told``: the refusal.

    Call it in a small process that has all imports: the action runs in a fork of it.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, json.dumps(_measured(use, arguments)).encode())
        os._exit(0)
    os.close(write)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read()
    return json.loads(text) if text else {"MB": None, "told": f"ended with status {status}"}


def _measured(use: Callable[..., object], arguments: tuple[Any, ...]) -> dict[str, Any]:
    begun = resource.getrusage(resource.RUSAGE_SELF)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    told = ""
    try:
        use(*arguments)
    except PaddleMixError as error:
        told = str(error)
    finally:
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
            os._exit(1)
    done = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "MB": round((done.ru_maxrss - begun.ru_maxrss) * 1024 / 1e6),
        "all MB": round(done.ru_maxrss * 1024 / 1e6),
        "CPU": round(done.ru_utime + done.ru_stime, 2),
        "told": told,
    }
