# SPDX-License-Identifier: Apache-2.0
"""Write a model folder in another layout; nothing is lost and nothing is rounded unless --dtype says so.

    paddlemix convert --src FOLDER --dst NEW --to original|llava-hf|paddlemix|own|projector
    paddlemix convert --src FOLDER --dst NEW --to own --bits 8|4
    paddlemix convert --src FOLDER --dst NEW --to gguf --bits 32|16|8

own: ours, which loads fastest; with --bits for inference in 8 or 4 bits. original: LLaVA's. llava-hf: transformers'.
paddlemix: PaddleMIX's .pdparams. projector: mm_projector.bin alone. An adapter stays an adapter (original: peft's form
for LLaVA and Llama, llava-hf: peft's form for transformers' LLaVA; own and paddlemix: theirs). gguf: the files of
llama.cpp, the language model and the vision tower; --bits says how its matrices are held (8 rounds: q8_0).
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run by its path: imports begin at the repository, not beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from paddlemix.utils.entry_point import run_command
from paddlemix.utils.options import FLAGS, command_parser, model_flags, strict_config
from paddlemix.utils.paths import expanded

if TYPE_CHECKING:
    from paddlemix.checkpoint.convert.layouts import Converted

OPTIONS = replace(FLAGS, device=None, target="another --dst")


def parser() -> argparse.ArgumentParser:
    """The flags."""
    found = command_parser(__doc__)
    found.add_argument(
        "--src", required=True, type=expanded, help="model folder in any published layout, or a published name"
    )
    found.add_argument("--dst", required=True, type=expanded, help="new folder")
    found.add_argument("--to", required=True, choices=("original", "llava-hf", "paddlemix", "own", "projector", "gguf"))
    found.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), help="dtype of the weights (default: each one's own)"
    )
    found.add_argument("--bits", type=int, choices=(32, 16, 8, 4), help="own: 8 or 4; gguf: 32, 16 (default) or 8")
    found.add_argument("--shard-size", type=float, default=5.0, help="largest weight file in GB (default: 5)")
    model_flags(found)
    found.add_argument(
        "--delta-base", type=expanded, help="the weights are differences to this language model: add it to them"
    )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Convert and say what was written. Exit code 0; 2 when a folder is wrong or a layout cannot hold the model."""
    return run_command(_run, argv, OPTIONS)


def _run(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    from paddlemix.checkpoint.convert.layouts import convert
    from paddlemix.utils.errors import ConfigError

    if not 1e-6 <= args.shard_size <= 1e6:
        raise ConfigError(f"--shard-size {args.shard_size:g}: expected a size in GB above 0")
    _check_gguf(args)
    with strict_config(args.strict_config):
        result = (
            _to_gguf(args)
            if args.to == "gguf"
            else convert(
                args.src,
                args.dst,
                args.to,
                dtype=args.dtype,
                max_shard_bytes=int(args.shard_size * 1e9),
                base=args.base,
                vision_tower=args.vision_tower,
                projector=args.projector,
                delta_base=args.delta_base,
                bits=args.bits,
            )
        )
    for note in result.notes:
        print(f"note: {note}")
    size = f"{result.nbytes / 1e9:.2f} GB" if result.nbytes >= 1e8 else f"{result.nbytes / 1e6:.1f} MB"
    print(f"{result.tensors} tensors ({size}, {', '.join(result.dtypes)}) in the layout {result.to}: {result.folder}")
    return 0


def _check_gguf(args: argparse.Namespace) -> None:
    """ConfigError for a flag that the target has no use for."""
    from paddlemix.utils.errors import ConfigError

    taken = {"own": (8, 4), "gguf": (32, 16, 8)}.get(args.to)
    if args.bits is not None and taken is None:
        raise ConfigError(
            f"--bits {args.bits}: belongs to --to own and --to gguf; --dtype casts the weights for --to {args.to}"
        )
    if args.bits is not None and args.bits not in taken:
        other = "; --dtype casts to 32 and 16 bits" if args.to == "own" else ""
        raise ConfigError(f"--bits {args.bits}: --to {args.to} takes --bits {', '.join(map(str, taken))}{other}")
    if args.to == "gguf" and args.dtype is not None:
        raise ConfigError(f"--dtype {args.dtype}: --to gguf takes --bits 32, 16 or 8 instead")
    if args.to == "gguf" and args.delta_base is not None:
        raise ConfigError("--delta-base: write the sum with --to own first, and that with --to gguf")


def _to_gguf(args: argparse.Namespace) -> "Converted":
    from paddlemix.checkpoint.gguf.write import convert_to_gguf

    return convert_to_gguf(
        args.src,
        args.dst,
        16 if args.bits is None else args.bits,
        base=args.base,
        vision_tower=args.vision_tower,
        projector=args.projector,
    )


if __name__ == "__main__":
    sys.exit(main())
