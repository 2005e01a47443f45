# SPDX-License-Identifier: Apache-2.0
"""What the running command calls the things that a caller may set, so that an error offers only what it accepts.

A library function that needs, say, the vision tower cannot know whether the person typed a flag, wrote a key into a
settings file or called it from Python. Each command says once what its own names are (``speaking``); errors and notes
ask ``current()``. Without a command they speak of the arguments of ``load_model``.
"""

import contextlib
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass

from paddlemix.utils.paths import expanded


@dataclass(frozen=True)
class Options:
    """How each setting is given, with a placeholder for its value: ``--base FOLDER``, ``"base": "FOLDER"``."""

    base: str
    """Language model below an adapter or a projector."""
    vision_tower: str
    projector: str
    device: str | None = None
    """How the CPU is chosen."""
    template: str | None = None
    """How a conversation template is named; None where none is used."""
    target: str | None = None
    """How another folder is chosen for what is written."""
    new_projector: str | None = None
    """How a new projector is asked for; None where nothing trains."""


PYTHON = Options(
    base="base=FOLDER",
    vision_tower="vision_tower=FOLDER",
    projector="projector=FILE",
    device='device="cpu"',
    template="conv_mode=NAME",
    target="another folder",
    new_projector='projector="init"',
)
"""The arguments of ``load_model`` and ``load_chat``."""

_CURRENT: ContextVar[Options] = ContextVar("options", default=PYTHON)


def model_flags(parser: ArgumentParser, *, base: Sequence[str] = ("base",), dash: str = "-") -> None:
    """Give a command the flags that every error about a model's parts may offer; the first of ``base`` is shown."""

    def flag(*names: str, text: str) -> None:
        parser.add_argument(*(f"--{name}" for name in names), type=expanded, metavar="FOLDER", help=text)

    flag(*base, text="base model, for an adapter or a projector whose config does not lead to it")
    flag(f"vision{dash}tower", text="folder of the vision tower (default: the one that the model names)")
    flag("projector", text="projector file or folder that replaces the model's own")


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
