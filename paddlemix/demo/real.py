# SPDX-License-Identifier: Apache-2.0
"""LLaVA's two stages in miniature on a language model that was really trained: it learns to see, and goes on talking.

    python tools/fetch_smollm2.py demo_out/smollm2
    python -m paddlemix.demo.real [--language-model demo_out/smollm2] [--out demo_out/real] [--seed 0]
        [--tower demo_out/model] [--quick] [--no-chat]

Exit code 0, also when less is learnt than promised, which the last line says; 1 when a training fails; 2 when the
language model is not there.
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
    found = command_parser(__doc__, prog="python -m paddlemix.demo.real")
    found.add_argument(
        "--language-model",
        type=path_at,
        default=Path("demo_out/smollm2"),
        help="folder that tools/fetch_smollm2.py made (default: demo_out/smollm2)",
    )
    found.add_argument(
        "--tower", type=path_at, help="folder of a model that paddlemix demo trained (default: train one)"
    )
    found.add_argument("--out", type=path_at, default=Path("demo_out/real"), help="folder for everything")
    found.add_argument("--seed", type=int, default=0, help="decides images, questions and weights (default: 0)")
    found.add_argument("--quick", action="store_true", help="a few steps only: shows that every part runs")
    found.add_argument("--no-chat", action="store_true", help="end without the chat")
    args = found.parse_args(argv)
    from paddlemix.demo.real_run import FULL, QUICK, Demo

    size = QUICK if args.quick else FULL
    Demo(args.out, args.language_model, args.tower, args.seed, size).go(chat=not args.no_chat)
    return 0


if __name__ == "__main__":
    sys.exit(main())
