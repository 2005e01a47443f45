# SPDX-License-Identifier: Apache-2.0
"""Fold a LoRA adapter into its base model and write a complete model folder.

    paddlemix merge --lora_path ADAPTER [--model_name_or_path BASE] [--merge_model_path NEW]

The adapter folder is never written to. Without --model_name_or_path the base that the adapter names is taken.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

if not __package__:  # run by its path: imports begin at the repository, not beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from paddlemix.utils.commands import shown
from paddlemix.utils.entry_point import run_command
from paddlemix.utils.options import FLAGS, command_parser, model_flags, strict_config
from paddlemix.utils.paths import expanded

OPTIONS = replace(
    FLAGS,
    base="--model_name_or_path FOLDER",
    vision_tower="--vision_tower FOLDER",
    target="another --merge_model_path",
    strict_config="--strict_config",
)


def parser() -> argparse.ArgumentParser:
    """The flags of PaddleMIX's command, and --dtype."""
    found = command_parser(__doc__)
    found.add_argument("--lora_path", required=True, type=expanded, help="adapter folder (ours or peft's)")
    model_flags(found, base=("model_name_or_path",), dash="_")
    found.add_argument(
        "--merge_model_path", type=expanded, help="new folder for the result (default: <lora_path>-merged)"
    )
    found.add_argument("--device", default="cpu", help="cpu, gpu or npu, where the sums are made (default: cpu)")
    found.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "float16", "bfloat16"),
        help="dtype of the saved weights (default: float32, which keeps every digit; the others take half the space)",
    )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Merge and say where the result lies. Exit code 0; 2 when the folders do not fit together."""
    return run_command(_run, argv, OPTIONS)


def _run(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    from paddlemix.checkpoint.lora.read import merge_paths, read_adapter
    from paddlemix.utils import device

    # What is wrong with the folders is told before paddle is loaded, which takes seconds.
    source, _ = merge_paths(args.lora_path, args.merge_model_path)
    read_adapter(source).find_base(args.model_name_or_path)
    device.before_paddle(args.device)
    chosen = device.choose(args.device)
    import paddle

    from paddlemix.checkpoint.lora.merge import merge_adapter

    paddle.set_device(chosen.name)
    with strict_config(args.strict_config):
        result = merge_adapter(
            args.lora_path,
            args.merge_model_path,
            base=args.model_name_or_path,
            vision_tower=args.vision_tower,
            projector=args.projector,
            dtype=args.dtype,
        )
    size = f"{result.nbytes / 1e9:.2f} GB" if result.nbytes >= 1e8 else f"{result.nbytes / 1e6:.1f} MB"
    print(f"merged {result.layers} layers into {result.base}")
    print(f"the merged model lies in {result.folder} ({size}, {result.dtype})")
    print(f"talk with it:\n  {shown('chat', '--model-path', result.folder)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
