# SPDX-License-Identifier: Apache-2.0
"""A conversation on a terminal or through pipes: questions from stdin, answers to stdout, all the rest to stderr.

Where a person sits at both ends, questions and answers have labels. Piped, stdout holds the answers and nothing else.
Paddle is not imported here, so that flags are checked before it loads.
"""

import argparse
import contextlib
import importlib
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from paddlemix.utils.errors import ConfigError, DataError, PaddleMixError
from paddlemix.utils.logging import fit, quiet
from paddlemix.utils.paths import expanded
from paddlemix.utils.registry import nearest
from paddlemix.utils.shown import escaped

if TYPE_CHECKING:
    from PIL.Image import Image

    from paddlemix.generation.sampling import Decoding
    from paddlemix.generation.session import ChatSession
    from paddlemix.imaging.processor import Frames

USER, ASSISTANT = "USER: ", "ASSISTANT: "

HELP = {
    "/help": "this list",
    "/image PATH": 'one more image with the next question: /image "an image.png", several, or addresses',
    "/reset": "begin a new conversation",
    "/exit": "end; so do /quit, an empty line, Ctrl-D and Ctrl-C; in an answer Ctrl-C stops that answer",
}
COMMANDS = ("/help", "/image", "/reset", "/exit", "/quit")

DEFAULT_TEMPERATURE = 0.2
"""Of a chat without beams, as LLaVA's commands have it."""

STARTING = ("utils.device", "checkpoint.load", "ops")
"""Loggers whose remarks stand between a question and its answer, or are of use to a developer only."""


def asked(text: str) -> str:
    """``text`` as the question of a flag (``type=asked``); an empty one ends the command before anything is loaded."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the question is empty; write one, or leave the flag out to be asked for it")
    return whole(text)


def whole(text: str) -> str:
    """An argument as a text for a model: bytes that the locale cannot read (``LC_ALL=C``) are taken as UTF-8."""
    if not any("\udc80" <= letter <= "\udcff" for letter in text):  # what such bytes become, by PEP 383
        return text
    return os.fsencode(text).decode("utf-8", "replace")


def decoding_of(args: argparse.Namespace) -> "Decoding":
    """What ``options.answer_flags``, ``options.sampling_flags`` and ``--stop`` say; ConfigError for a bad value."""
    from paddlemix.generation.sampling import Decoding

    temperature = args.temperature
    if temperature is None:
        temperature = DEFAULT_TEMPERATURE if args.num_beams == 1 else 0.0
    return Decoding(
        max_new_tokens=args.max_new_tokens,
        temperature=temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        num_beams=args.num_beams,
        seed=args.seed,
        repetition_penalty=args.repetition_penalty,
        min_p=args.min_p,
        frequency_penalty=args.frequency_penalty,
        presence_penalty=args.presence_penalty,
        stop=tuple(args.stop),
    )


class Terminal:
    """Standard input and output of a chat."""

    def __init__(self) -> None:
        self.person = _is_terminal(sys.stdin)
        self.labels = self.person and _is_terminal(sys.stdout)

    def question(self) -> str | None:
        """The next line without the blanks around it; None at the end of the input and after Ctrl-C."""
        try:
            return self._line().strip()
        except (EOFError, KeyboardInterrupt):
            if self.person:
                (_out if self.labels else _note)("\n")
            return None
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"questions cannot be read from the standard input ({error}); give --query TEXT"
            ) from error

    def _line(self) -> str:
        if self.labels:
            return input(USER)  # with line editing where readline is loaded
        if self.person:
            _note(USER)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line

    def answer(self, pieces: Iterator[str]) -> bool:
        """Stream one answer and end its line. False when nothing was said. Ctrl-C stops the answer."""
        label = ASSISTANT if self.labels else ""
        said = False
        try:
            for piece in pieces:
                _out(label * (not said) + (escaped(piece) if self.labels else piece))
                said = True
            _out("\n" if said else f"{label}\n")
            return True
        except KeyboardInterrupt:
            pieces.close()
            _out("\n")
            self.say("(stopped)")
            return said

    def say(self, line: str) -> None:
        """A remark for the person."""
        _note(f"{fit(line)}\n")


class Chat:
    """Rounds of a conversation. ``pictures`` wait for the next question; ``open_picture`` reads a path or address."""

    def __init__(
        self,
        session: "ChatSession",
        pictures: Sequence["Image | Frames"],
        open_picture: Callable[[str], "Image"],
        *,
        debug: bool = False,
    ) -> None:
        self.session = session
        self.pictures = list(pictures)
        self.open_picture = open_picture
        self.debug = debug
        self.terminal = Terminal()

    def ask(self, questions: Sequence[str]) -> int:
        """One round for each question, then the end. Exit code 0; DataError for a question that cannot be asked."""
        for question in questions:
            self._round(question)
        return 0

    def talk(self) -> int:
        """Rounds until the input ends. Exit code 0."""
        if self.terminal.person:
            self.terminal.say("/help shows what can be typed; an empty line or /exit ends the chat")
        while line := self.terminal.question():
            word = line.split()[0]
            if word in ("/exit", "/quit"):
                break
            try:
                if word in COMMANDS:
                    self._command(word, line.removeprefix(word).strip())
                elif word.startswith("/") and (hint := nearest(word, list(COMMANDS))):
                    self.terminal.say(f"error: unknown command {word}{hint}")
                else:
                    self._round(line)
            except PaddleMixError as error:
                _note(f"error: {error}\n")
        return 0

    def _command(self, word: str, rest: str) -> None:
        if word == "/help":
            for line, meaning in HELP.items():
                _note(f"  {line:<12} {meaning}\n")
        elif word == "/reset":
            self.session.reset()
            self.terminal.say("(a new conversation)")
        elif not rest:
            raise DataError('/image needs the path or the address of an image: /image "an image.png"')
        else:
            found = [self.open_picture(name) for name in picture_names(rest)]
            self.pictures += found
            self.terminal.say(f"({len(self.pictures)} image(s) go with the next question)")

    def _round(self, question: str) -> None:
        """One question; the images are kept for another one when nothing was said to it."""
        if self.terminal.answer(self.session.ask(question, self.pictures)):
            self.pictures = []
            if self.debug:
                self._show()

    def _show(self) -> None:
        stats = self.session.stats
        shown = {"prompt": stats.prompt, "outputs": self.session.turns[-1].answer}
        _note(
            f"{shown}\nprompt tokens {stats.prompt_rows}, of which reused {stats.reused_rows}; images encoded "
            f"{stats.encoded_pictures}; tokens generated {len(stats.answer_ids)}\n"
        )


def picture_names(typed: str) -> list[str]:
    """The names after ``/image``: quoted as in a shell, or one that stands there as it is, blanks included."""
    if os.path.isfile(expanded(typed)):
        return [typed]
    try:
        return shlex.split(typed)
    except ValueError as error:
        raise DataError(f"/image {typed}: {error}") from error


def split_names(name: str, separator: str = ",") -> list[str]:
    """LLaVA's ``a.png,b.png`` as two names. A file whose name holds the separator, and an address, stay whole.

    Addresses are separated where the next one begins.
    """
    if "://" in name:
        starts = name.split(f"{separator}http")
        return [starts[0], *(f"http{part}" for part in starts[1:])]
    if not separator or os.path.isfile(expanded(name)):  # also for a name that no file can have
        return [name]
    return [part for part in name.split(separator) if part] or [name]


def prepare_streams(*, debug: bool, reads: bool = True) -> None:
    """Set up the streams and the log of a chat.

    ``reads`` says that questions come from stdin: ConfigError when it is closed. Without ``debug`` the log keeps to
    warnings about loading, and to downloads.
    """
    if reads and sys.stdin is None:
        raise ConfigError("the standard input is closed, so nobody can ask; give --query TEXT, or pipe questions in")
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    if not debug:
        quiet(*STARTING)
    if _is_terminal(sys.stdin):
        # Its import alone gives input() line editing and a history; not every platform has it.
        with contextlib.suppress(ImportError):
            importlib.import_module("readline")


def _out(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _note(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _is_terminal(stream: object) -> bool:
    check = getattr(stream, "isatty", None)
    return bool(check and check())
