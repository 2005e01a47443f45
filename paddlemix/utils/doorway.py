# SPDX-License-Identifier: Apache-2.0
"""What every command does around its one library call: check flags, tell errors in one line, return an exit code."""

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence

from paddlemix.utils import env
from paddlemix.utils.errors import IN_USE, PaddleMixError
from paddlemix.utils.install import missing_package
from paddlemix.utils.options import Options, current, speaking

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells expect it (128 + SIGINT)."""

# 2026-11, paddle 3.3.1: said at import, about compiling custom operators, which no command here does.
_NOISE = ("No ccache found", "Setuptools is replacing distutils")


def run_doorway(
    main: Callable[[list[str]], int | None], argv: Sequence[str] | None = None, options: Options | None = None
) -> int:
    """Run ``main(argv)`` and return the exit code of the process. ``options``: what the command's flags are called.

    Environment flags are checked first, so that garbage stops before any work. A PaddleMixError becomes one line on
    stderr and its own exit code; ``--debug`` anywhere in ``argv`` adds the traceback. Errors that nobody foresaw keep
    their traceback: they are faults of the program, or of what ``IN_USE`` names.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _prepare_process()
    try:
        env.check_all()
        with speaking(options or current()):
            return main(arguments) or 0
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (RuntimeError, OSError, SystemError):
        if not IN_USE:
            raise
        # An operator of a plug-in that fails in the backward pass raises in paddle, without a line of ours.
        traceback.print_exc()
        sys.stderr.write("".join(f"note: {line}\n" for line in IN_USE))
        return 1


def _prepare_process() -> None:
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller, as some schedulers do
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - lives as long as the process
    for said in _NOISE:
        warnings.filterwarnings("ignore", message=said)
