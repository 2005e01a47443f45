# SPDX-License-Identifier: Apache-2.0
"""What a child process does when the one that started it is killed."""

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with_parent() -> None:
    """For ``preexec_fn``: the child gets SIGTERM when the thread that started it ends, however it does (Linux only)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
