# SPDX-License-Identifier: Apache-2.0
"""Turn annotations of objects into training rows of MV-LLaVA, as its README asks for obj_descript_gpt_10k.json.

    python tools/mv_llava_convert_captions.py obj_descript_gpt_10k.json --output data/obj_instruct.json
    python tools/mv_llava_convert_captions.py obj_descript_gpt_10k.json --stage pretrain --output data/obj_pretrain.json

The rows have the form of Bootstrap3D's data/demo_obj_{instruct,pretrain}.json. What mv_llava_batch_infer_obj.py writes
is taken too. Objects without a description are left out and counted; so are questions without a known answer.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from paddlemix.annotate.caption_rows import SPELLINGS, convert
from paddlemix.utils.entry_point import run_command
from paddlemix.utils.errors import ConfigError
from paddlemix.utils.files import atomic_write


def parser() -> argparse.ArgumentParser:
    """The flags of the tool."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("input", type=Path, help="annotations: .json (a list, or an object by names) or .jsonl")
    found.add_argument("--output", type=Path, required=True, help="file of the rows")
    found.add_argument("--stage", choices=("sft", "pretrain"), default="sft", help="sft: four questions; pretrain: one")
    found.add_argument("--image-root", type=Path, help="folder of Cap3D_imgs_view0, 1, 4, 5: leave out what has none")
    found.add_argument("--key", action="append", default=[], metavar="WHAT=NAME",
                       help=f"how the file spells one of {', '.join(SPELLINGS)}; as often as needed")  # fmt: skip
    found.add_argument("--seed", type=int, default=0, help="draws one of the two questions for a description (0)")
    found.add_argument("--overwrite", action="store_true", help="replace an output that is there")
    found.add_argument("--debug", action="store_true", help="show where an error comes from")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool. Exit code 0; 2 when a flag or the input cannot be used."""
    return run_command(_run, argv)


def _run(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    if args.output.exists() and not args.overwrite:
        raise ConfigError(f"{args.output} is there already; --overwrite replaces it")
    keys = dict(part.partition("=")[::2] for part in args.key)
    wrong = [what for what, name in keys.items() if what not in SPELLINGS or not name]
    if wrong:
        raise ConfigError(f"--key {wrong[0]}: expected WHAT=NAME with WHAT one of {', '.join(SPELLINGS)}")
    done = convert(args.input, rounds=args.stage == "sft", seed=args.seed, keys=keys, root=args.image_root)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(args.output, json.dumps(done.rows, indent=1, ensure_ascii=False) + "\n")
    print("\n".join([f"{args.output}: {done.lines()[0]}", *done.lines()[1:]]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
