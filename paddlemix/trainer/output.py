# SPDX-License-Identifier: Apache-2.0
"""The output folder of a run: held while it runs, without leftovers, and gone again when nothing came of the run."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from paddlemix.settings.run.loader import settings_to_json
from paddlemix.settings.run.training import TrainingSettings
from paddlemix.trainer import checkpointing
from paddlemix.trainer.folder_lock import LOCK_FILE, lock
from paddlemix.utils import early_stop, env, files
from paddlemix.utils.logging import forget_library_logs, held_stream, hold_library_logs, redirect_library_logs

LOG_FILE = "train.log"
SETTINGS_FILE = "training_settings.json"


def library_log(output: Path) -> Path:
    """Where the libraries of this process speak: ``train.log``, beside it ``train.rank1.log`` of the second one."""
    return output / (LOG_FILE if is_main() else f"train.rank{env.rank()}.log")


def is_main() -> bool:
    """Whether this is the process that prints and writes."""
    return env.rank() == 0


@contextlib.contextmanager
def held_output(output: Path, began: Callable[[], bool]) -> Iterator[None]:
    """Hold the folder and remove what killed runs left in it. Only the first process does anything.

    A run that ends before it ``began`` leaves nothing of its start behind.
    """
    if not is_main():
        yield
        return
    before = set(os.listdir(output)) if output.is_dir() else None
    with lock(output):
        try:
            files.remove_leftovers(output)
            yield
        except BaseException:
            if not began():
                with early_stop.on_the_way_out():
                    _leave_nothing(output, before)
            raise


def _leave_nothing(output: Path, before: set[str] | None) -> None:
    """Remove the files of every start that were not there ``before`` (None: nor was the folder)."""
    forget_library_logs(output / LOG_FILE)
    for name in {LOCK_FILE, LOG_FILE} - (before or set()):
        (output / name).unlink(missing_ok=True)
    if before is None:
        with contextlib.suppress(OSError):  # not empty: a list of bad rows, which the error names
            output.rmdir()


def begin(output: Path, settings: TrainingSettings, *, anew: bool) -> None:
    """Everything is read and fits: write the settings, and remove the checkpoints of an earlier run (``anew``)."""
    if not is_main():
        redirect_library_logs(library_log(output))
        return
    if anew:
        checkpointing.clear_output(output)
    files.atomic_write(output / SETTINGS_FILE, json.dumps(settings_to_json(settings), indent=2) + "\n")


@contextlib.contextmanager
def library_output(output: Path) -> Iterator[None]:
    """What paddle and paddlenlp say while they are imported and set up goes to a file (``library_log``)."""
    if not is_main():
        # Only the first process cleans up after a run that does not begin, so the others write nothing before.
        opened: contextlib.AbstractContextManager[TextIO] = contextlib.nullcontext(held_stream())
    else:
        opened = open(library_log(output), "a", encoding="utf-8")  # noqa: SIM115 - closed below
    catch_library_logs(output)
    with opened as stream, _loud_imports(stream):
        import paddlemix.trainer.library  # noqa: F401 - imported here for its words
    catch_library_logs(output)
    yield


def catch_library_logs(output: Path) -> None:
    """The loggers that came since the imports speak there, too."""
    if is_main():
        redirect_library_logs(library_log(output))
    else:
        hold_library_logs()


@contextlib.contextmanager
def _loud_imports(stream: TextIO) -> Iterator[None]:
    """What is said on stderr goes to ``stream``."""
    loud = sys.stderr
    with early_stop.held_back(), contextlib.redirect_stderr(stream):
        yield
    sys.stderr = loud


def write_metrics(name: str, metrics: dict[str, Any], output: Path, copies: str | None) -> None:
    """``metrics`` as the file ``name`` in ``output``, and in the folder ``copies`` when there is one."""
    if not is_main() or not metrics:
        return
    for folder in (output, *([Path(copies)] if copies else [])):
        folder.mkdir(parents=True, exist_ok=True)
        files.atomic_write(folder / name, json.dumps(metrics, indent=2, sort_keys=True) + "\n")
