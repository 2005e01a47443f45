# SPDX-License-Identifier: Apache-2.0
"""What every command does around its one library call: check flags, report errors in one line, return an exit code."""

import contextlib
import errno
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import TextIO

from paddlemix.utils import env
from paddlemix.utils.errors import IN_USE, PaddleMixError
from paddlemix.utils.install import missing_package
from paddlemix.utils.options import Options, current, speaking
from paddlemix.utils.shown import shown

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells expect it (128 + SIGINT)."""

_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.ENXIO)

# 2026-11, paddle 3.3.1: said at import, about compiling custom operators, which ccache would not hasten here.
_NOISE = ("No ccache found", "Setuptools is replacing distutils")


def run_command(
    main: Callable[[list[str]], int | None], argv: Sequence[str] | None = None, options: Options | None = None
) -> int:
    """Run ``main(argv)`` and return the exit code of the process. ``options``: what the command's flags are called.

    Environment flags are checked first, so that garbage stops before any work. A PaddleMixError becomes one line on
    stderr and its own exit code; ``--debug`` anywhere in ``argv`` adds the traceback. Errors that nobody foresaw keep
    their traceback: they are faults of the program, or of what ``IN_USE`` names. A stream that cannot be written and a
    file that the system refuses are no faults of the program: they are reported in one line, too.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    IN_USE.clear()  # of an earlier command of this process
    _prepare_process()
    try:
        try:
            env.check_all()
            with speaking(options or current()):
                return main(arguments) or 0
        finally:
            sys.stdout.flush()  # here, where what cannot be written is still reported
    except PaddleMixError as error:
        if "--debug" in arguments:
            traceback.print_exc()
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except ImportError as error:
        line = missing_package(error)
        if line is None or "--debug" in arguments:
            raise
        sys.stderr.write(f"error: {line}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (for example `| head`): nothing is wrong, and nothing more can be said.
        _give_up(sys.stdout)
        return 0
    except (RuntimeError, OSError, SystemError) as error:
        line = _reason(error) if isinstance(error, OSError) and "--debug" not in arguments else None
        if line is not None:
            with contextlib.suppress(OSError):
                sys.stderr.write(f"error: {line}\n")
                sys.stderr.flush()
            return 1 if error.errno in _UNWRITABLE and error.filename is None else 2
        if not IN_USE:
            raise
        # An operator of a plug-in that fails in the backward pass raises in paddle, without a line of ours.
        traceback.print_exc()
        sys.stderr.write("".join(f"note: {line}\n" for line in IN_USE))
        return 1


def _reason(error: OSError) -> str | None:
    """What the system refuses, in a line; None when nothing but the program can know."""
    if isinstance(error.filename, str | bytes) and error.strerror:
        return f"{shown(os.fsdecode(error.filename))}: {error.strerror}; check the path and its permissions"
    if isinstance(error, FileNotFoundError) and not _stands():
        return "the current folder is gone; change to another one"
    for name, stream in (("output", sys.stdout), ("error output", sys.stderr)) if error.errno in _UNWRITABLE else ():
        try:
            stream.write("\n")  # the error of a write names no file: does this stream refuse another one?
            stream.flush()
        except OSError as cause:
            _give_up(stream)
            return f"the standard {name} cannot be written ({cause.strerror}); send it somewhere else"
    return None


def _stands() -> bool:
    """Whether the current folder still has a place in the file system."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _give_up(stream: TextIO) -> None:
    """Send what is still said to a stream nowhere, so that the interpreter does not fail at it when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _prepare_process() -> None:
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller, as some schedulers do
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - lives as long as the process
    for said in _NOISE:
        warnings.filterwarnings("ignore", message=said)
