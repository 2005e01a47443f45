# SPDX-License-Identifier: Apache-2.0
"""Write a model as static graphs for Paddle Inference.

    python deploy/llava/export_model.py --model_name_or_path FOLDER --save_path OUT

OUT/encode_image gets tower and projector, OUT/encode_text the decoder with tokenizer and template; with one of
--encode_image and --encode_text only that part is written. Ask them with deploy/llava/run_static_predict.py.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

if not __package__:  # run by its path: imports begin at the repository, not beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from paddlemix.utils.entry_point import run_command
from paddlemix.utils.options import FLAGS, command_parser, dashed, device_flags, model_flags, strict_config
from paddlemix.utils.paths import named

OPTIONS = replace(FLAGS, base="--model-base FOLDER", target="another --save-path")


def parser() -> argparse.ArgumentParser:
    """The flags of PaddleMIX's command, and ours; dashes and underscores are the same."""
    found = command_parser(__doc__)
    found.add_argument(
        "--model-name-or-path", required=True, type=named, help="model or adapter folder, or a known name"
    )
    found.add_argument("--save-path", required=True, type=named, help="folder that the parts are written into")
    found.add_argument("--encode-image", action="store_true", help="only tower and projector")
    found.add_argument("--encode-text", action="store_true", help="only the decoder")
    found.add_argument("--onnx", action="store_true", help="tower and projector also as ONNX (extra onnx)")
    model_flags(found, base=("model-base",))
    device_flags(found, graphs=True)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Export and say what was written. Exit code 0; 2 when the model or a flag cannot be used."""
    return run_command(_run, argv, OPTIONS)


def _run(argv: list[str]) -> int:
    args = parser().parse_args(dashed(argv))
    from paddlemix.utils import device
    from paddlemix.utils.errors import ConfigError

    both = args.encode_image == args.encode_text
    parts = ["encode_image", "encode_text"] if both else ["encode_image" if args.encode_image else "encode_text"]
    if args.onnx and "encode_image" not in parts:
        raise ConfigError("--onnx: is about tower and projector; leave --encode_text out, or add --encode_image")
    device.require_installed(args.device)
    device.before_asking(args.device)
    from paddlemix.export.write import export_model

    with strict_config(args.strict_config):
        done = export_model(
            args.model_name_or_path,
            args.save_path,
            parts,
            device=args.device,
            dtype="float16" if args.fp16 else None,
            base=args.model_base,
            vision_tower=args.vision_tower,
            projector=args.projector,
            onnx=args.onnx,
        )
    for one in done:
        size = f"{one.nbytes / 1e9:.2f} GB" if one.nbytes >= 1e8 else f"{one.nbytes / 1e6:.1f} MB"
        print(f"{one.folder}: {size}, {one.dtype}, for {one.device}")
        if one.onnx_difference is not None:
            print(f"  clip.onnx: its features differ by {one.onnx_difference:.1e} in onnxruntime")
    return 0


if __name__ == "__main__":
    sys.exit(main())
