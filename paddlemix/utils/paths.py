# SPDX-License-Identifier: Apache-2.0
"""Paths as people write them: ``~`` and ``$NAME`` mean the same for every key and flag."""

import argparse
import os
import re
from pathlib import Path, PureWindowsPath

from paddlemix.utils import env
from paddlemix.utils.errors import ConfigError

_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))")


def expanded(name: str | os.PathLike[str]) -> str:
    """``name`` with a leading ``~`` and every ``$NAME`` or ``${NAME}`` replaced; addresses stay as they are.

    ConfigError for a variable that is not set: the text itself would become the name of a folder.
    """
    text = os.fspath(name)
    if "://" in text:
        return text

    def value(match: re.Match[str]) -> str:
        variable = match[1] or match[2]
        found = env.raw(variable)
        if found is None:
            raise ConfigError(f'"{text}": the environment variable {variable} is not set')
        return found

    return os.path.expanduser(_VARIABLE.sub(value, text))


def home(*parts: str) -> Path:
    """``$PPMIX_HOME`` (``~/.paddlemix``), where downloads and what is made once are kept, or a place below it."""
    return Path(expanded(env.get("PPMIX_HOME")), *parts)


def new_file(name: str) -> Path:
    """A file to be written at the end of long work, for flags: its folder has to be there at the start."""
    path = Path(expanded(name))
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.absolute().parent} to write {path.name} into")
    return path


def named(name: str) -> str:
    """``expanded``, for flags that must name something: an empty text would mean the current folder."""
    if not name.strip():
        raise argparse.ArgumentTypeError("the path is empty (a shell variable that is not set?)")
    return expanded(name)


def path_at(name: str) -> Path:
    """``expanded`` as a Path, for flags: ``type=path_at``."""
    return Path(expanded(name))


def machine_path(name: str | os.PathLike[str]) -> Path:
    """``expanded`` as a Path; an absolute one of Windows with the same parts below ``/``.

    So its last parts can be looked for here: ``D:\\models\\clip`` becomes ``/models/clip``.
    """
    text = os.fspath(name)
    windows = PureWindowsPath(text)
    if windows.is_absolute() and not text.startswith("/"):  # //server/share is absolute on both
        return Path("/", *windows.parts[1:])
    return path_at(text)


def begins_at(path: str | os.PathLike[str]) -> str:
    """What an error says behind a path that was not found: where a relative one begins; nothing for an absolute one."""
    if machine_path(path).is_absolute():
        return ""
    try:
        here = f", {os.getcwd()}"
    except FileNotFoundError:
        here = ", which was removed"
    return f" (relative paths begin at the current folder{here})"
