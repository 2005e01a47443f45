# SPDX-License-Identifier: Apache-2.0
"""Chat with an MV-LLaVA model about one object, seen from several sides.

    paddlemix multiview --model-path FOLDER --image-file 0.png 1.png 4.png 5.png
    paddlemix multiview --model-path FOLDER --sheet square.png --grid 2

The views go with the first question, in the order in which they are given; a sheet is cut in the order of the training
(top left, bottom left, bottom right, top right). A lone image is shown four times, as in the training.
An empty line, the end of the input or Ctrl-C at the prompt ends the chat. Answers go to stdout, the rest to stderr.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run by its path: imports begin at the repository, not beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[3])

from paddlemix.generation.terminal import Terminal, asked, prepare_streams
from paddlemix.utils.constants import IMAGE_TOKEN
from paddlemix.utils.entry_point import run_command
from paddlemix.utils.errors import ConfigError, DataError
from paddlemix.utils.logging import fit
from paddlemix.utils.options import (
    FLAGS,
    answer_flags,
    command_parser,
    dashed,
    device_flags,
    model_flags,
    opening,
    strict_config,
)
from paddlemix.utils.paths import expanded

if TYPE_CHECKING:
    from PIL.Image import Image

    from paddlemix.generation.session import ChatSession

REPEAT = 4

OPTIONS = replace(FLAGS, cards="--num-gpus", template="--conv-mode NAME")


def parser() -> argparse.ArgumentParser:
    """The flags of the command; underscores work in place of the dashes."""
    found = command_parser(__doc__)

    def flag(*names: str, **kind: str | float | Sequence[str] | Callable[[str], object] | None) -> None:
        found.add_argument(*(f"--{name}" for name in names), **kind)

    flag("model-path", required=True, type=expanded, help="model or adapter folder, or a known name")
    model_flags(found)
    flag("image-file", type=expanded, nargs="+", default=[], metavar="FILE", help="the views in order, path or URL")
    flag("sheet", type=expanded, metavar="FILE", help="one square image of grid x grid views, in place of --image-file")
    flag("grid", type=int, help="views along a side of the sheet (default 2)")
    flag("sheet-order", choices=("training", "reading"), help="order of its views (default: training for 2 x 2)")
    flag("repeat", type=int, help=f"how often a lone image is shown (default {REPEAT}, as trained)")
    flag("question", "query", type=asked, action="append", default=[],
         help="ask this and end (several times: one round each)")  # fmt: skip
    flag("exif-rotation", action="store_true", help="turn images as their EXIF data say (default: as the original)")
    flag("conv-mode", help="conversation template instead of the model's own")
    answer_flags(found, top_p=0.7)
    device_flags(found)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Chat until the input ends. Exit code 0; 2 when a flag, an image or the model cannot be used."""
    return run_command(_run, argv, OPTIONS)


def _run(argv: list[str]) -> int:
    args = parser().parse_args(dashed(argv))
    prepare_streams(debug=args.debug, reads=not args.question)
    views = views_of(args)
    session = start(args)
    terminal = Terminal()
    place = IMAGE_TOKEN * len(views) + "\n"
    for question in args.question or iter(terminal.question, None):
        if not question:
            break
        try:
            terminal.answer(session.ask(place + question.replace(IMAGE_TOKEN, ""), views))
        except DataError as error:
            if args.question:
                raise
            print(f"error: {error}", file=sys.stderr)
        if session.turns:
            place, views = "", []
    return 0


def views_of(args: argparse.Namespace) -> list["Image"]:
    """The views in order. ConfigError when neither or both of the two ways to give them are used."""
    from paddlemix.imaging.load import OWN_LIMITS, load_image
    from paddlemix.imaging.views import split_sheet

    if bool(args.sheet) == bool(args.image_file):
        raise ConfigError("give the views as --image-file V0 V1 ..., or one square image of them as --sheet")
    if args.sheet and args.repeat is not None:
        raise ConfigError("--repeat is for a lone --image-file, not for a --sheet")
    if not args.sheet and (args.grid, args.sheet_order) != (None, None):
        raise ConfigError("--grid and --sheet-order are for a --sheet; with --image-file every file is one view")
    opened = partial(load_image, limits=OWN_LIMITS, transpose_exif=args.exif_rotation)
    if args.sheet:
        try:
            return split_sheet(opened(args.sheet), 2 if args.grid is None else args.grid, args.sheet_order)
        except DataError as error:
            raise error if args.sheet in str(error) else DataError(f"{args.sheet}: {error}") from error
    repeat = REPEAT if args.repeat is None else args.repeat
    if repeat < 1 or (len(args.image_file) > 1 and args.repeat is not None):
        raise ConfigError(f"--repeat is {repeat}: expected a whole number from 1, and one --image-file")
    views = [opened(name) for name in args.image_file]
    return views * repeat if len(views) == 1 else views


def start(args: argparse.Namespace) -> "ChatSession":
    """The session. Flags are checked before paddle loads."""
    from paddlemix.generation.sampling import Decoding
    from paddlemix.text import templates
    from paddlemix.utils import device

    decoding = Decoding(
        max_new_tokens=args.max_new_tokens, temperature=args.temperature, top_p=args.top_p, seed=args.seed
    )
    if args.conv_mode is not None:
        templates.get(args.conv_mode)
    device.before_asking(args.device)
    from paddlemix.generation.load import load_chat

    with strict_config(args.strict_config):
        session = load_chat(
            args.model_path,
            **opening(args),
            conv_mode=args.conv_mode,
            decoding=decoding,
            note=lambda sentence: print(f"({sentence})", file=sys.stderr),
        )
    print(fit(session.about), file=sys.stderr)
    return session


if __name__ == "__main__":
    sys.exit(main())
