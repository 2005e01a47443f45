# SPDX-License-Identifier: Apache-2.0
"""Teach a tiny multi-view LLaVA what one view cannot tell, on the CPU from scratch: the colour of the side behind.

    python -m paddlemix.demo.multiview [--out demo_out/multiview] [--seed 0] [--quick]

Exit code 0, also when less is learnt than promised, which the last line says; 1 when the training fails, or when one
view tells what it cannot show.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from paddlemix.utils.entry_point import run_command
from paddlemix.utils.options import command_parser
from paddlemix.utils.paths import path_at


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit code."""
    return run_command(_run, argv)


def _run(argv: list[str]) -> int:
    found = command_parser(__doc__, prog="python -m paddlemix.demo.multiview")
    found.add_argument("--out", type=path_at, default=Path("demo_out/multiview"), help="folder for everything")
    found.add_argument("--seed", type=int, default=0, help="decides objects, questions and weights (default: 0)")
    found.add_argument("--quick", action="store_true", help="a few steps only: shows that every part runs")
    args = found.parse_args(argv)
    from paddlemix.demo.multiview_run import FULL, QUICK, Demo

    Demo(args.out.absolute(), args.seed, QUICK if args.quick else FULL).go()
    return 0


if __name__ == "__main__":
    sys.exit(main())
