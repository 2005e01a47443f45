# SPDX-License-Identifier: Apache-2.0
"""What the running command calls the things that a caller may set, so that an error offers only what it accepts.

A library function that needs, say, the vision tower cannot know whether the person typed a flag, wrote a key into a
settings file or called it from Python. Each command says once what its own names are (``speaking``); errors and notes
ask ``current()``. Without a command they speak of the arguments of ``load_model``.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """How each setting is given, with a placeholder for its value: ``--base FOLDER``, ``"base": "FOLDER"``."""

    base: str
    """Language model below an adapter or a projector."""
    vision_tower: str
    projector: str
    new_projector: str | None = None
    """How a new projector is asked for; None where nothing trains."""


PYTHON = Options("base=FOLDER", "vision_tower=FOLDER", "projector=FILE", 'projector="init"')
"""The arguments of ``checkpoint.load.load_model``."""

_CURRENT: ContextVar[Options] = ContextVar("options", default=PYTHON)


def current() -> Options:
    """The names that hold here."""
    return _CURRENT.get()


@contextlib.contextmanager
def speaking(options: Options) -> Iterator[None]:
    """Within the block errors and notes use ``options``."""
    token = _CURRENT.set(options)
    try:
        yield
    finally:
        _CURRENT.reset(token)
