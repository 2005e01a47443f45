# SPDX-License-Identifier: Apache-2.0
"""Talk with an exported model through Paddle Inference: rounds, any number of images, or a benchmark.

    python deploy/llava/run_static_predict.py --first_model_path OUT/encode_image/clip \\
        --second_model_path OUT/encode_text/llama --image_file picture.jpg

OUT is what deploy/llava/export_model.py wrote. Questions come from stdin, or from --query; an empty line or /exit
ends, /help lists what else can be typed. Answers go to stdout, the rest to stderr.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run by its path: imports begin at the repository, not beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from paddlemix.generation.terminal import Chat, asked, decoding_of, prepare_streams, split_names, whole
from paddlemix.utils.entry_point import run_command
from paddlemix.utils.logging import fit
from paddlemix.utils.options import FLAGS, answer_flags, command_parser, dashed, device_flags, sampling_flags
from paddlemix.utils.paths import expanded, named

if TYPE_CHECKING:
    from PIL.Image import Image

OPTIONS = replace(
    FLAGS, template="--conv_mode NAME", vision_graph="--first_model_path", text_graph="--second_model_path"
)


def parser() -> argparse.ArgumentParser:
    """The flags of PaddleMIX's command and those of our chat; dashes and underscores are the same."""
    found = command_parser(__doc__, debug="show each prompt and answer as they are, and what was reused")
    found.add_argument("--first-model-path", type=named, help="tower and projector; leave out to ask without images")
    found.add_argument("--second-model-path", required=True, type=named, help="decoder")
    found.add_argument("--model-name-or-path", help="accepted for PaddleMIX's commands; the export holds all of it")
    found.add_argument("--image-file", action="append", nargs="+", default=[], metavar="FILE",
                       help="path or URL; several may follow")  # fmt: skip
    found.add_argument("--query", type=asked, action="append", default=[], metavar="TEXT",
                       help="ask this and end (several times: one round each)")  # fmt: skip
    found.add_argument("--conv-mode", help="conversation template instead of the model's own")
    found.add_argument("--system", type=whole, help="system prompt instead of the template's")
    found.add_argument("--benchmark", action="store_true", help="measure answers of --max-new-tokens, and end")
    found.add_argument("--allow-private-hosts", action="store_true", help="let URLs lead into private networks")
    found.add_argument("--stop", type=whole, action="append", default=[], metavar="TEXT",
                       help="end the answer in front of this text")  # fmt: skip
    answer_flags(found, temperature=None)
    sampling_flags(found)
    device_flags(found, graphs=True)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Ask until the input ends. Exit code 0; 2 when a flag, an image or the export cannot be used."""
    return run_command(_run, argv, OPTIONS)


def _run(argv: list[str]) -> int:
    args = parser().parse_args(dashed(argv))
    prepare_streams(debug=args.debug, reads=not (args.query or args.benchmark))
    decoding = decoding_of(args)
    pictures = [_open(name, args) for group in args.image_file for word in group for name in split_names(word)]
    from paddlemix.utils import device
    from paddlemix.utils.errors import ConfigError

    if pictures and args.first_model_path is None:
        raise ConfigError("--image_file: images need the vision graph; give --first_model_path OUT/encode_image/clip")
    if args.model_name_or_path is not None:
        _note(f"--model_name_or_path {args.model_name_or_path} is not read: the export holds tokenizer and template")
    device.require_installed(args.device)
    device.before_asking(args.device)
    from paddlemix.export.opening import open_static
    from paddlemix.generation.session import ChatSession

    predictor = open_static(
        args.second_model_path,
        args.first_model_path,
        device=args.device,
        dtype="float16" if args.fp16 else None,
        conv_mode=args.conv_mode,
    )
    _note(fit(predictor.about))
    if args.benchmark:
        from paddlemix.export.benchmark import QUESTION, measure

        for line in measure(predictor, pictures, args.query[0] if args.query else QUESTION, decoding):
            print(line)
        return 0
    session = ChatSession(predictor, decoding=decoding, system=args.system, note=lambda line: _note(f"({line})"))
    chat = Chat(session, pictures, lambda name: _open(name, args), debug=args.debug)
    return chat.ask(args.query) if args.query else chat.talk()


def _open(name: str, args: argparse.Namespace) -> "Image":
    from paddlemix.imaging.load import OWN_LIMITS, load_image

    return load_image(expanded(name), replace(OWN_LIMITS, private_hosts=args.allow_private_hosts))


def _note(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
