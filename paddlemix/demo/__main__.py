# SPDX-License-Identifier: Apache-2.0
"""Train a tiny LLaVA on the CPU from scratch, test it, teach it a second task, and talk with it.

    paddlemix demo [--out demo_out] [--seed 0] [--quick] [--no-lora] [--no-chat]

Exit code 0, also when less is learnt than promised, which the last line says; 1 when a training fails or the merged
model differs from the adapter; 2 when something is wrong with the flags.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from paddlemix.utils.entry_point import run_command
from paddlemix.utils.options import command_parser
from paddlemix.utils.paths import path_at


def parser() -> argparse.ArgumentParser:
    """The flags of the demo."""
    found = command_parser(__doc__, prog="paddlemix demo")
    found.add_argument(
        "--out", type=path_at, default=Path("demo_out"), help="folder for everything (default: demo_out)"
    )
    found.add_argument("--seed", type=int, default=0, help="decides images, questions and weights (default: 0)")
    found.add_argument("--quick", action="store_true", help="a few steps only: shows that every part runs")
    found.add_argument("--no-lora", action="store_true", help="leave out the second task")
    found.add_argument("--no-chat", action="store_true", help="end without the chat")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit code."""
    return run_command(_run, argv)


def _run(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    from paddlemix.demo.run import FULL, QUICK, run_demo

    size = dataclasses.replace(QUICK if args.quick else FULL, second=not args.no_lora)
    run_demo(args.out, args.seed, size, chat=not args.no_chat)
    return 0


if __name__ == "__main__":
    sys.exit(main())
