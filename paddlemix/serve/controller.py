# SPDX-License-Identifier: Apache-2.0
"""The controller of LLaVA's workers: knows who is there, and hands requests on.

    python -m paddlemix.serve.controller --token-file TOKEN
    paddlemix serve --model-path FOLDER --controller-address http://127.0.0.1:21001 --controller-token-file TOKEN

TOKEN is a file with a secret of 16 characters or more, which workers and controller show each other. Clients need an
API key as soon as the controller listens on another address than 127.0.0.1. Exit code 0; 2 when a flag is wrong.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

if not __package__:  # run by its path: imports begin at the repository, not beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from paddlemix.utils.entry_point import run_command
from paddlemix.utils.errors import ConfigError
from paddlemix.utils.options import command_parser, dashed
from paddlemix.utils.paths import path_at


def parser() -> argparse.ArgumentParser:
    """The flags of LLaVA's controller and ours; underscores work in place of the dashes."""
    found = command_parser(__doc__)
    found.add_argument("--host", default="127.0.0.1", help="address to listen on (another one needs an API key)")
    found.add_argument("--port", type=int, default=21001, help="port to listen on (default 21001; 0: any free one)")
    found.add_argument("--dispatch-method", choices=("lottery", "shortest_queue"), default="shortest_queue",
                       help="which worker gets a request (default shortest_queue)")  # fmt: skip
    found.add_argument("--token-file", type=path_at, required=True, metavar="FILE", help="the secret of the workers")
    found.add_argument("--heart-beat-seconds", type=float, default=15.0, metavar="S",
                       help="a worker not heard for twice as long is forgotten (default 15)")  # fmt: skip
    found.add_argument("--limit-model-concurrency", type=int, default=512, metavar="N",
                       help="requests on their way; one more gets 429 (default 512)")  # fmt: skip
    found.add_argument("--request-seconds", type=float, default=600.0, metavar="S",
                       help="longest time for one request, as the workers' (default 600)")  # fmt: skip
    found.add_argument("--drain-seconds", type=float, default=30.0, metavar="S",
                       help="time for open answers after SIGTERM (default 30)")  # fmt: skip
    found.add_argument("--api-key", action="append", default=[], help="key that clients need (or --api-key-file)")
    found.add_argument("--api-key-file", type=path_at, metavar="FILE", help="file with keys, one a line")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal comes."""
    return run_command(_run, argv)


def _run(argv: list[str]) -> int:
    args = parser().parse_args(dashed(argv))
    if not 0 <= args.port < 1 << 16:
        raise ConfigError(f"--port {args.port}: expected 0 to 65535")
    for name, low, high in (("heart_beat_seconds", 0.1, 3600), ("limit_model_concurrency", 1, 65536),
                            ("request_seconds", 1, 86400), ("drain_seconds", 0, 3600)):  # fmt: skip
        if not low <= getattr(args, name) <= high:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(args, name):g}: expected {low:g} to {high:g}")
    from paddlemix.serve.access import access_of, token_of

    token = token_of(args.token_file)
    access = access_of(args.host, args.api_key, args.api_key_file)
    from paddlemix.serve.controller_app import Controller
    from paddlemix.serve.dispatch import Workers
    from paddlemix.serve.limits import Limits
    from paddlemix.serve.listening import Server, bound_socket

    limits = replace(Limits(), requests=args.limit_model_concurrency, drain_seconds=args.drain_seconds,
                     request_seconds=args.request_seconds)  # fmt: skip
    controller = Controller(Workers(args.dispatch_method, args.heart_beat_seconds, time.monotonic), limits, token)
    listener = bound_socket(args.host, args.port)

    def drain() -> None:
        controller.gate.draining = True

    async def serve() -> None:
        await Server(controller.app(access.adding(token)), limits, drain).serve(sockets=[listener])

    asyncio.run(serve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
