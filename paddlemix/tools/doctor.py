# SPDX-License-Identifier: Apache-2.0
"""What is right and wrong with this machine, or with a model folder.

    paddlemix doctor                      the device: versions, flags, fused operators, speed
    paddlemix doctor FOLDER               a checkpoint: what it is, what is missing
    paddlemix doctor --verify FOLDER      a checkpoint: every file against its SHA-256
    paddlemix doctor --preflight --device npu --cards 8    before a start: cards, memory, master

Exit code 0: ready. 1: something is marked FAIL (with --device npu: no usable npu; the lines say what is missing).
2: a flag or a variable is wrong. Without --device the best device of this machine is looked at, so a machine without
a card is ready with its CPU, and the report says what it lacks for an npu.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run by its path: imports begin at the repository, not beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from paddlemix.utils import device
from paddlemix.utils.entry_point import run_command
from paddlemix.utils.errors import ConfigError
from paddlemix.utils.options import FLAGS, command_parser, model_flags, strict_config
from paddlemix.utils.paths import expanded
from paddlemix.utils.shown import readable

OPTIONS = FLAGS


def parser() -> argparse.ArgumentParser:
    """The flags of both reports."""
    found = command_parser(__doc__)
    found.add_argument(
        "folder", nargs="?", type=expanded, help="model or adapter folder; without it the device is looked at"
    )
    model_flags(found)
    found.add_argument("--verify", action="store_true", help="read every file of the folder and compare the checksums")
    found.add_argument("--device", help="cpu, gpu, npu, or one of them with :N (default: the best there is)")
    found.add_argument("--dtype", help="float32, float16 or bfloat16 for the self-check (default: the device's)")
    found.add_argument("--quick", action="store_true", help="no self-check of the operators, no speed")
    found.add_argument(
        "--preflight", action="store_true", help="before a start: cards healthy and unused; self-check, no speed"
    )
    found.add_argument("--cards", type=int, default=0, help="cards that this machine has to offer")
    found.add_argument("--master", help="host:port of machine 0, for several machines")
    found.add_argument("--rank", type=int, default=0, help="number of this machine (default 0)")
    found.add_argument("--json", action="store_true", help="print JSON")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Look, print, and return the exit code."""
    return run_command(_run, argv, OPTIONS)


def _run(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    if args.folder is not None:
        return _folder(args)
    if args.verify:
        raise ConfigError("--verify needs the folder whose files are to be compared")
    if args.cards < 0 or args.rank < 0:
        name, value = ("--cards", args.cards) if args.cards < 0 else ("--rank", args.rank)
        raise ConfigError(f"{name} {value}: expected a number from 0")
    from paddlemix.doctor.report import Wanted, examine

    wanted = Wanted(
        device=args.device,
        dtype=args.dtype,
        quick=args.quick,
        cards=args.cards,
        idle=args.preflight,
        master=args.master,
        rank=args.rank,
        set_here=tuple(device.before_paddle(args.device)),
    )
    report = examine(wanted)
    print(json.dumps(report.as_json(), indent=2) if args.json else "\n".join(map(readable, report.as_lines())))
    return report.exit_code


def _folder(args: argparse.Namespace) -> int:
    from paddlemix.checkpoint.describe import describe, verify

    if args.verify:
        problems, compared = verify(args.folder)
        print("\n".join([*(f"FAIL {readable(line)}" for line in problems), compared]))
        return 1 if problems else 0
    with strict_config(args.strict_config):
        found = describe(args.folder, base=args.base, vision_tower=args.vision_tower, projector=args.projector)
    print(json.dumps(found.as_json(), indent=2) if args.json else "\n".join(map(readable, found.as_lines())))
    return found.exit_code


if __name__ == "__main__":
    sys.exit(main())
