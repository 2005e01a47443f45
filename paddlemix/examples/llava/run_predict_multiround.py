# SPDX-License-Identifier: Apache-2.0
"""Chat with a LLaVA model in the terminal, about pictures or without.

    paddlemix chat --model-path FOLDER --image-file picture.jpg

An empty line, the end of the input or Ctrl-C at the prompt ends the chat; Ctrl-C during an answer stops the answer.
A line "/image PATH_OR_URL" sends one more picture with the next question; "/reset" begins a new conversation.
Answers go to stdout, everything else to stderr.
"""

import argparse
import contextlib
import importlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run by its path: imports begin at the repository, not beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[3])

from paddlemix.utils.doorway import run_doorway
from paddlemix.utils.errors import ConfigError, DataError, PaddleMixError

if TYPE_CHECKING:
    from PIL.Image import Image

    from paddlemix.generation.session import ChatSession

USER, ASSISTANT = "USER: ", "ASSISTANT: "
DEFAULT_TEMPERATURE = 0.2


def parser() -> argparse.ArgumentParser:
    """The flags of PaddleMIX's and LLaVA's chat commands, and ours; underscores work in place of the dashes."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def flag(name: str, **kind: Any) -> None:
        found.add_argument(f"--{name}", **kind)

    flag("model-path", default="paddlemix/llava/llava-v1.5-7b", help="model or adapter folder, or a known name")
    flag("base", help="folder of the base model, for an adapter or a projector whose config does not lead to it")
    flag("image-file", action="append", nargs="+", default=[], metavar="FILE", help="path or URL; several may follow")
    flag("allow-private-hosts", action="store_true", help="let URLs lead to this machine and to private networks")
    flag("conv-mode", help="conversation template instead of the model's own")
    flag("system", help="system prompt instead of the template's")
    flag("temperature", type=float, help=f"0 is greedy (default {DEFAULT_TEMPERATURE:g}, with --num-beams 0)")
    flag("top-p", type=float, default=1.0, help="draw from the likeliest tokens that sum to this (default 1: off)")
    flag("top-k", type=int, default=0, help="draw from this many likeliest tokens (default 0: off)")
    flag("num-beams", type=int, default=1, help="beams of a beam search (default 1)")
    flag("repetition-penalty", type=float, default=1.0, help="above 1 holds generated tokens back (default 1: off)")
    flag("max-new-tokens", type=int, default=512, help="longest answer in tokens (default 512)")
    flag("seed", type=int, help="makes random answers repeatable")
    flag("device", help="cpu, gpu, npu, or one of them with :N (default: the best there is)")
    flag("fp16", action="store_true", help="compute in float16 (default: bfloat16 where the device has it)")
    flag("debug", action="store_true", help="show each prompt and answer as they are, and what was reused")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Chat until the input ends. Exit code 0; 2 when a flag, a picture or the model cannot be used."""
    return run_doorway(_run, argv)


def _run(argv: list[str]) -> int:
    # Two spellings of one flag would make its abbreviations ambiguous, so the underscores go before argparse looks.
    args = parser().parse_args([_dashed(part) if part.startswith("--") else part for part in argv])
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    if sys.stdin is not None and sys.stdin.isatty():
        # Its import alone gives input() line editing and a history; not every platform has it.
        with contextlib.suppress(ImportError):
            importlib.import_module("readline")
    session, pictures = start(args)
    return chat(session, pictures, debug=args.debug, private_hosts=args.allow_private_hosts)


def _dashed(part: str) -> str:
    name, equals, value = part.partition("=")
    return name.replace("_", "-") + equals + value


def start(args: argparse.Namespace) -> tuple["ChatSession", list["Image"]]:
    """The session and the first pictures. Everything that can be wrong with the flags is found before paddle loads."""
    from paddlemix.generation.sampling import Decoding
    from paddlemix.utils import device

    temperature = args.temperature
    if temperature is None:
        temperature = DEFAULT_TEMPERATURE if args.num_beams == 1 else 0.0
    decoding = Decoding(
        max_new_tokens=args.max_new_tokens,
        temperature=temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        num_beams=args.num_beams,
        seed=args.seed,
        repetition_penalty=args.repetition_penalty,
    )
    pictures = [_open(name, args.allow_private_hosts) for group in args.image_file for name in group]
    if args.conv_mode is not None:
        from paddlemix.text import templates

        templates.get(args.conv_mode)
    device.before_paddle(args.device)
    if (args.device or "cpu") == "cpu":
        device.tune_cpu()
    from paddlemix.generation.load import load_chat

    session = load_chat(
        args.model_path,
        base=args.base,
        device=args.device,
        dtype="float16" if args.fp16 else None,
        conv_mode=args.conv_mode,
        system=args.system,
        decoding=decoding,
        note=lambda sentence: print(f"({sentence})", file=sys.stderr),
    )
    if pictures and session.predictor.processor is None:
        raise ConfigError(f"{args.model_path} has no vision tower; leave --image-file out or give a model that has one")
    print(session.about, file=sys.stderr)
    return session, pictures


def _open(name: str, private_hosts: bool) -> "Image":
    from paddlemix.imaging.load import LIMITS, load_image

    return load_image(name, replace(LIMITS, private_hosts=private_hosts))


def chat(session: "ChatSession", pictures: list["Image"], *, debug: bool = False, private_hosts: bool = False) -> int:
    """Read questions from stdin and stream the answers. ``pictures`` go with the first question."""
    while True:
        try:
            line = input(USER).strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return 0
        if not line:
            return 0
        if line == "/reset":
            session.reset()
        elif line.startswith("/image "):
            pictures += _attach(line.removeprefix("/image ").strip(), private_hosts)
        elif _answered(session, line, pictures, debug):
            pictures = []


def _attach(name: str, private_hosts: bool) -> list["Image"]:
    try:
        return [_open(name, private_hosts)]
    except PaddleMixError as error:
        print(f"error: {error}", file=sys.stderr)
        return []


def _answered(session: "ChatSession", question: str, pictures: list["Image"], debug: bool) -> bool:
    """Stream one answer. False when nothing was said, so that the pictures wait for the next question."""
    pieces = session.ask(question, pictures)
    said = False
    try:
        for piece in pieces:
            print(piece if said else ASSISTANT + piece, end="", flush=True)
            said = True
        print("" if said else ASSISTANT, flush=True)
        said = True
    except KeyboardInterrupt:
        pieces.close()
        print(flush=True)
        print("(stopped)", file=sys.stderr)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
    if debug and said:
        _show(session)
    return said


def _show(session: "ChatSession") -> None:
    stats = session.stats
    print({"prompt": stats.prompt, "outputs": session.turns[-1].answer}, file=sys.stderr)
    print(
        f"prompt tokens {stats.prompt_rows}, of which reused {stats.reused_rows}; pictures encoded "
        f"{stats.encoded_pictures}; tokens generated {len(stats.answer_ids)}",
        file=sys.stderr,
    )


if __name__ == "__main__":
    sys.exit(main())
