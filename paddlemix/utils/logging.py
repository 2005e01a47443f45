# SPDX-License-Identifier: Apache-2.0
"""The console of a person: what they need goes to the terminal, what the libraries print goes to a file."""

import functools
import io
import logging
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from paddlemix.utils import env
from paddlemix.utils.shown import escaped

if TYPE_CHECKING:
    from rich.console import Console

ROOT = "paddlemix"

COLUMNS = 100
"""Width of tables where no terminal says its own; log lines keep within it too."""

_LIBRARIES = ("paddle", "paddlenlp", "fleet", "visualdl", "py.warnings", "root")
"""First parts of the names of the loggers whose output is of no use on the terminal."""


class _ConsoleHandler(logging.Handler):
    """Log records as plain lines on stderr; warnings and errors begin with their level."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record. stderr is looked up each time, so that a replaced stream is respected."""
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        sys.stderr.write(fit(f"{level}{self.format(record)}") + "\n")
        sys.stderr.flush()


@functools.cache
def _root_logger() -> logging.Logger:
    logger = logging.getLogger(ROOT)
    logger.addHandler(_ConsoleHandler())
    logger.setLevel(env.get("PADDLEMIX_LOG_LEVEL"))
    logger.propagate = False
    return logger


def get_logger(name: str = ROOT) -> logging.Logger:
    """Logger of a module (``get_logger(__name__)``). The first call sets up the console, so call it inside functions.

    Lines go to stderr: stdout belongs to the answers of the chat and to results.
    """
    root = _root_logger()
    return root if name == ROOT else root.getChild(name.removeprefix(f"{ROOT}."))


@functools.cache
def console() -> "Console":
    """The rich console on stdout for tables, progress and results. Plain text when stdout is not a terminal."""
    from rich.console import Console  # here, so that commands start without it and can say what is missing

    terminal = sys.stdout.isatty()
    return Console(highlight=False, soft_wrap=not terminal, width=None if terminal else COLUMNS)


def quiet(*names: str) -> None:
    """Keep the loggers of these rooms or files of the package to warnings, unless the environment sets a level."""
    if not env.is_set("PADDLEMIX_LOG_LEVEL"):
        for name in names:
            get_logger(f"{ROOT}.{name}").setLevel(logging.WARNING)


def fit(text: str) -> str:
    """``text`` in lines of at most ``COLUMNS`` characters, broken at blanks only: a path or a variable stays whole.

    Control characters, which may come from a file of somebody else, are shown as escapes.
    """
    return "\n".join(
        textwrap.fill(
            line, COLUMNS, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False,
            drop_whitespace=True, replace_whitespace=False,
        )
        for line in escaped(text).split("\n")
    )  # fmt: skip


def say(line: str) -> None:
    """Print a remark on the console, in lines that fit."""
    console().print(fit(line), markup=False, soft_wrap=True)


def say_command(line: str) -> None:
    """Print a command line that a person is to copy: in one piece on the console, however narrow the terminal is."""
    console().print(f"  {line}", markup=False, soft_wrap=True)


def redirect_library_logs(path: str | Path) -> None:
    """Send the log lines of paddle, paddlenlp and Python warnings to the file ``path`` instead of the terminal.

    Call it after the libraries are imported, since they install their handlers then. A second call with another path
    moves the lines there; with the same path it only catches loggers that came since.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    logging.captureWarnings(True)
    held = held_stream().getvalue()
    if held:
        with open(target, "a", encoding="utf-8") as stream:
            stream.write(held)
        held_stream().seek(0)
        held_stream().truncate()
    _redirect(_file_handler(str(target.resolve())))


def hold_library_logs() -> None:
    """Keep those lines in memory until ``redirect_library_logs`` names a file, which then gets them; it is made then.

    For a process that may not write yet. A second call catches loggers that came since.
    """
    logging.captureWarnings(True)
    _redirect(_held_lines())


def held_stream() -> io.StringIO:
    """What the lines in memory lie in; stderr of libraries may go there, too."""
    return _held_lines().stream


def forget_library_logs(path: str | Path) -> None:
    """Send those lines nowhere, because the file ``path`` is about to be removed; nothing changes for other files."""
    handler = _file_handler(str(Path(path).resolve()))
    handler.close()
    if handler in logging.root.handlers:
        _redirect(logging.NullHandler())


def _redirect(handler: logging.Handler) -> None:
    names = ["PaddleNLP", "py.warnings", *logging.root.manager.loggerDict]
    for logger in (logging.root, *(logging.getLogger(name) for name in names)):
        if logger.name.split(".")[0].lower() in _LIBRARIES:
            _move(logger, handler)


class _LibraryFile(logging.FileHandler):
    """A file of ours for what the libraries say."""


class _HeldLines(logging.StreamHandler):
    """Memory of ours for what the libraries say."""


_FORM = "%(asctime)s %(name)s %(levelname)s %(message)s"


@functools.cache
def _held_lines() -> _HeldLines:
    handler = _HeldLines(io.StringIO())
    handler.setFormatter(logging.Formatter(_FORM))
    return handler


@functools.cache
def _file_handler(path: str) -> logging.FileHandler:
    handler = _LibraryFile(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter(_FORM))
    return handler


def _move(logger: logging.Logger, handler: logging.Handler) -> None:
    if logger is logging.root:
        # Only terminal handlers of the root logger and ours are replaced; a test runner's own handlers stay.
        replaced = (logging.StreamHandler, logging.NullHandler, _LibraryFile, _HeldLines)
        kept = [old for old in logger.handlers if type(old) not in replaced]
    else:
        kept = []
        logger.propagate = False
    logger.handlers = [*kept, handler]
