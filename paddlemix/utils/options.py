# SPDX-License-Identifier: Apache-2.0
"""The flags that commands share, and what the running command calls the things that a caller may set.

So an error offers only what its command accepts.

A library function that needs, say, the vision tower cannot know whether the person typed a flag, wrote a key into a
settings file or called it from Python. Each command says once what its own names are (``speaking``); errors and notes
ask ``current()``. Without a command they speak of the arguments of ``load_model``.
"""

import contextlib
from argparse import (
    SUPPRESS,
    ArgumentParser,
    ArgumentTypeError,
    Namespace,
    RawDescriptionHelpFormatter,
    _SubParsersAction,
)
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NoReturn

from paddlemix.utils.errors import ConfigError
from paddlemix.utils.paths import expanded
from paddlemix.utils.registry import nearest


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
    cards: str = "cards"
    """How the number of cards that share a model is given."""
    vision_graph: str = "vision"
    """How the exported tower is given."""
    text_graph: str = "text"
    """How the exported decoder is given."""
    strict_config: str = "paddlemix.utils.options.strict_config"
    """How unknown keys of a model's config.json are made errors."""


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

FLAGS = Options(
    base="--base FOLDER",
    vision_tower="--vision-tower FOLDER",
    projector="--projector FILE",
    device="--device cpu",
    strict_config="--strict-config",
)
"""The flags of ``model_flags`` and ``device_flags``."""

_CURRENT: ContextVar[Options] = ContextVar("options", default=PYTHON)
_STRICT: ContextVar[bool] = ContextVar("strict_config", default=False)


class CommandParser(ArgumentParser):
    """One that names the nearest of its flags for a flag that it does not have."""

    _asked = False

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: Namespace | None = None
    ) -> tuple[Namespace, list[str]]:
        """As argparse does."""
        self._asked = True
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Exit code 2, with ``message``."""
        unknown = message.partition("unrecognized arguments: ")[2].split()
        flags = [word.partition("=")[0] for word in unknown if word.startswith("--")]
        super().error(message + "".join([nearest(flag, self._flags()) for flag in flags][:1]))

    def _flags(self) -> list[str]:
        """With those of the verb that was given: what it does not know is told by the parser above it."""
        own = [name for name in self._option_string_actions if name.startswith("--")]
        verbs = [one.choices.values() for one in self._actions if isinstance(one, _SubParsersAction)]
        return own + [flag for group in verbs for verb in group if verb._asked for flag in verb._flags()]


def command_parser(
    about: str, *, debug: str = "show the traceback of an error", prog: str | None = None
) -> ArgumentParser:
    """A parser whose help is ``about`` as it is written, with the flag ``--debug`` that every command has."""
    found = CommandParser(prog=prog, description=about, formatter_class=RawDescriptionHelpFormatter)
    found.add_argument("--debug", action="store_true", help=debug)
    return found


def at_least_one(text: str) -> int:
    """For flags that count something: ``type=at_least_one``."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def model_flags(parser: ArgumentParser, *, base: Sequence[str] = ("base",), dash: str = "-") -> None:
    """Give a command the flags that every error about a model's parts may offer; the first of ``base`` is shown."""

    def flag(*names: str, text: str) -> None:
        parser.add_argument(*(f"--{name}" for name in names), type=expanded, metavar="FOLDER", help=text)

    flag(*base, text="base model, for an adapter or a projector whose config does not lead to it")
    flag(f"vision{dash}tower", text="folder of the vision tower (default: the one that the model names)")
    flag("projector", text="projector file or folder that replaces the model's own")
    strict = "unknown keys of the model's config.json are errors (default: one warning names them)"
    parser.add_argument(f"--strict{dash}config", action="store_true", help=strict)


def device_flags(parser: ArgumentParser, *, graphs: bool = False) -> None:
    """Where a model computes, and in float16 or not; but for static ``graphs`` on how many cards and in few bits."""
    best = "cpu, gpu, npu, or one of them with :N (default: the best there is)"
    parser.add_argument("--device", help=best)
    if not graphs:
        share = "cards that share the model, which are then the first of their kind (default 1)"
        parser.add_argument("--num-gpus", type=int, default=1, metavar="N", help=share)
        few = "hold the weights in 8 or 4 bits (a folder that has them needs no flag)"
        parser.add_argument("--load-bits", type=int, choices=(8, 4), help=few)
    half = "compute in float16 (default: bfloat16 where the device has it)"
    parser.add_argument("--fp16", action="store_true", help=half)


def answer_flags(
    parser: ArgumentParser, *, temperature: float | None = 0.2, top_p: float = 1.0, seed: int | None = None
) -> None:
    """How answers are drawn. ``temperature`` None: the command says its own default."""
    off = ": off" if top_p == 1.0 else ""
    drawn = f"draw from the likeliest tokens that sum to this (default {top_p:g}{off})"
    text = "0 is greedy (default 0.2" + (")" if temperature is not None else ", with --num-beams 0)")
    parser.add_argument("--temperature", type=float, default=temperature, help=text)
    parser.add_argument("--top-p", type=float, default=top_p, help=drawn)
    parser.add_argument("--max-new-tokens", type=int, default=512, help="longest answer in tokens (default 512)")
    again = (
        "makes random answers repeatable" if seed is None else f"with the same seed the same answers (default {seed})"
    )
    parser.add_argument("--seed", type=int, default=seed, help=again)


def sampling_flags(parser: ArgumentParser) -> None:
    """What ``answer_flags`` leaves out of how answers are drawn; ``generation.terminal.decoding_of`` reads both."""
    number = {"type": float, "default": 0.0}
    parser.add_argument("--top-k", type=int, default=0, help="draw from this many likeliest tokens (default 0: off)")
    parser.add_argument("--num-beams", type=int, default=1, help="beams of a beam search (default 1)")
    repeats = "above 1 holds generated tokens back (default 1: off)"
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help=repeats)
    rare = "leave out tokens below this share of the likeliest (default 0: off)"
    parser.add_argument("--min-p", **number, help=rare)
    each, once = "taken off a token's score for each time it was generated", "taken off the score of generated tokens"
    parser.add_argument("--frequency-penalty", **number, help=each)
    parser.add_argument("--presence-penalty", **number, help=once)


def low_bit_flags(parser: ArgumentParser) -> None:
    """LLaVA's names of ``--load-bits 8`` and ``--load-bits 4``; no help shows them."""
    for bits in (8, 4):
        parser.add_argument(f"--load-{bits}bit", action="store_true", help=SUPPRESS)


def load_bits(args: Namespace) -> int | None:
    """The bits that ``device_flags`` and ``low_bit_flags`` ask for. ConfigError for two answers to one question."""
    asked = {f"--load-{bits}bit": bits for bits in (8, 4) if getattr(args, f"load_{bits}bit", False)}
    if args.load_bits is not None:
        asked[f"--load-bits {args.load_bits}"] = args.load_bits
    if len(set(asked.values())) > 1:
        raise ConfigError(f"{' and '.join(asked)} are two answers to one question; give one of them")
    return next(iter(asked.values()), None)


def opening(args: Namespace) -> dict[str, Any]:
    """The arguments of ``Predictor.load`` that ``model_flags`` and ``device_flags`` were given."""
    if not 1 <= args.num_gpus <= 64:
        raise ConfigError(f"--num-gpus {args.num_gpus}: expected 1 to 64, the cards that share the model")
    bits = load_bits(args)
    if bits is not None and args.num_gpus > 1:
        raise ConfigError(f"--num-gpus {args.num_gpus}: weights of {bits} bits are not divided; use one card for them")
    return {
        **({"cards": args.num_gpus} if args.num_gpus > 1 else {}),
        "base": args.base,
        "vision_tower": args.vision_tower,
        "projector": args.projector,
        "device": args.device,
        "dtype": "float16" if args.fp16 else None,
        "bits": bits,
    }


def dashed(arguments: Sequence[str]) -> list[str]:
    """Arguments with dashes in the names of flags where a person typed underscores.

    Two spellings of one flag would make its abbreviations ambiguous, so this happens before argparse looks.
    """
    found = []
    for part in arguments:
        name, equals, value = part.partition("=")
        found.append(name.replace("_", "-") + equals + value if part.startswith("--") else part)
    return found


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


def is_strict() -> bool:
    """Whether unknown keys of a model's config.json are errors here."""
    return _STRICT.get()


@contextlib.contextmanager
def strict_config(wanted: bool = True) -> Iterator[None]:
    """Within the block unknown keys of a model's config.json are errors; ``wanted`` False: a warning, as outside."""
    token = _STRICT.set(wanted)
    try:
        yield
    finally:
        _STRICT.reset(token)
