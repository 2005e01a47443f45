# SPDX-License-Identifier: Apache-2.0
"""Chat with a LLaVA model in the terminal, about images or without.

    paddlemix chat --model-path FOLDER --image-file picture.jpg

An empty line, /exit, the end of the input or Ctrl-C at the prompt ends the chat; Ctrl-C during an answer stops the
answer. /help lists the other commands: /image PATH sends one more image with the next question, /reset begins a new
conversation. --query TEXT asks one question (or several, in order) and ends. Answers go to stdout, the rest to stderr.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run by its path: imports begin at the repository, not beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[3])

from paddlemix.generation.terminal import Chat, asked, decoding_of, prepare_streams, split_names, whole
from paddlemix.utils.entry_point import run_command
from paddlemix.utils.errors import ConfigError
from paddlemix.utils.logging import fit
from paddlemix.utils.options import (
    FLAGS,
    answer_flags,
    command_parser,
    dashed,
    device_flags,
    load_bits,
    low_bit_flags,
    model_flags,
    opening,
    sampling_flags,
    strict_config,
)
from paddlemix.utils.paths import expanded

if TYPE_CHECKING:
    from PIL.Image import Image

    from paddlemix.generation.session import ChatSession
    from paddlemix.imaging.processor import Frames

DEFAULT_MODEL = "paddlemix/llava/llava-v1.5-7b"
DEFAULT_SIZE = "about 14 GB"
"""13.5 GB of weights in 16 bits and the small files."""
OPTIONS = replace(FLAGS, cards="--num-gpus", template="--conv-mode NAME")


def parser() -> argparse.ArgumentParser:
    """The flags of PaddleMIX's and LLaVA's chat commands, and ours; underscores work in place of the dashes."""
    found = command_parser(__doc__, debug="show each prompt and answer as they are, and what was reused")

    def flag(*names: str, **kind: str | float | Sequence[str] | Callable[[str], object] | None) -> None:
        found.add_argument(*(f"--{name}" for name in names), **kind)

    # "--model" was enough for the one before "--model-base" came, and stays so.
    flag("model-path", "model", type=expanded, help=f"model or adapter folder, or a known name ({DEFAULT_MODEL})")
    model_flags(found, base=("base", "model-base"))
    flag("image-file", action="append", nargs="+", default=[], metavar="FILE",
         help="path or URL; several may follow, or stand in one word: a.png,b.png")  # fmt: skip
    flag("video-frames", nargs="+", default=[], metavar="FILE",
         help="frames of a video in their order, behind the images (LLaVA-OneVision)")  # fmt: skip
    flag("sep", default=",", help="what separates names in one word of --image-file (default: a comma)")
    flag("query", type=asked, action="append", default=[], metavar="TEXT",
         help="ask this and end (several times: one round each)")  # fmt: skip
    flag("allow-private-hosts", action="store_true", help="let URLs lead to this machine and to private networks")
    flag("exif-rotation", action="store_true", help="turn images as their EXIF data say (default: as the original)")
    flag("conv-mode", help="conversation template instead of the model's own")
    flag("system", type=whole, help="system prompt instead of the template's")
    answer_flags(found, temperature=None)
    device_flags(found)
    sampling_flags(found)
    flag("stop", type=whole, action="append", default=[], metavar="TEXT", help="end the answer in front of this text")
    low_bit_flags(found)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Chat until the input ends. Exit code 0; 2 when a flag, an image or the model cannot be used."""
    return run_command(_run, argv, OPTIONS)


def _run(argv: list[str]) -> int:
    args = parser().parse_args(dashed(argv))
    prepare_streams(debug=args.debug, reads=not args.query)
    session, pictures = start(args)
    chat = Chat(session, pictures, lambda name: _open(name, args), debug=args.debug)
    return chat.ask(args.query) if args.query else chat.talk()


def start(args: argparse.Namespace) -> tuple["ChatSession", list["Image | Frames"]]:
    """The session and the first images. Everything that can be wrong with the flags is found before paddle loads."""
    from paddlemix.utils import device

    load_bits(args)
    decoding = decoding_of(args)
    names = [name for group in args.image_file for word in group for name in split_names(word, args.sep)]
    pictures = [_open(name, args) for name in names]
    frames = [_open(name, args) for name in args.video_frames]
    if args.conv_mode is not None:
        from paddlemix.text import templates

        templates.get(args.conv_mode)
    model = args.model_path or _default_model()
    device.before_asking(args.device)
    from paddlemix.generation.load import load_chat

    with strict_config(args.strict_config):
        session = load_chat(
            model,
            **opening(args),
            conv_mode=args.conv_mode,
            system=args.system,
            decoding=decoding,
            note=lambda sentence: print(f"({sentence})", file=sys.stderr),
        )
    if frames:
        from paddlemix.imaging.processor import Frames

        pictures.append(Frames(frames))
    if pictures and session.predictor.processor is None:
        raise ConfigError(f"{model} has no vision tower; leave --image-file out or give a model that has one")
    print(fit(session.about), file=sys.stderr)
    return session, pictures


def _default_model() -> str:
    """The model of a chat that names none. What is not on this machine is downloaded only after a yes."""
    from paddlemix.checkpoint.folders import find
    from paddlemix.settings.places import cache

    if find(DEFAULT_MODEL, weights=True) is not None:
        return DEFAULT_MODEL
    told = f"no --model-path is given, and the default {DEFAULT_MODEL} is not on this machine"
    way = f"give --model-path FOLDER, or --model-path {DEFAULT_MODEL} to download it ({DEFAULT_SIZE})"
    if sys.stdin is None or not sys.stdin.isatty():
        raise ConfigError(f"{told}; {way}")
    print(f"{told}.\nDownload {DEFAULT_SIZE} to {cache() / DEFAULT_MODEL}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise ConfigError(f"nothing is downloaded; {way}")
    return DEFAULT_MODEL


def _open(name: str, args: argparse.Namespace) -> "Image":
    from paddlemix.imaging.load import OWN_LIMITS, load_image

    return load_image(
        expanded(name), replace(OWN_LIMITS, private_hosts=args.allow_private_hosts), transpose_exif=args.exif_rotation
    )


if __name__ == "__main__":
    sys.exit(main())
