# SPDX-License-Identifier: Apache-2.0
"""Serve a model over HTTP: OpenAI's chat completions and LLaVA's worker protocol.

    paddlemix serve --model-path FOLDER
    paddlemix serve --model-path FOLDER --host 0.0.0.0 --api-key-file KEYS

Without an API key only programs of this machine may ask. SIGTERM (or Ctrl-C) lets the answers on their way end; a
second one does not. docs/serving.md has the routes, fields and limits. Exit code 0; 2 when a flag or the model is
wrong.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run by its path: imports begin at the repository, not beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from paddlemix.utils.entry_point import run_command
from paddlemix.utils.errors import ConfigError
from paddlemix.utils.options import (
    FLAGS,
    command_parser,
    dashed,
    device_flags,
    load_bits,
    low_bit_flags,
    model_flags,
    opening,
    strict_config,
)
from paddlemix.utils.paths import expanded, path_at

if TYPE_CHECKING:
    from paddlemix.serve.limits import Limits

OPTIONS = replace(FLAGS, cards="--num-gpus", template="--conv-mode NAME")


def parser() -> argparse.ArgumentParser:
    """The flags of LLaVA's worker and ours; underscores work in place of the dashes."""
    found = command_parser(__doc__)

    def flag(name: str, **kind: str | int | float | Sequence[str] | Callable[[str], object] | None) -> None:
        found.add_argument(f"--{name}", **kind)

    flag("model-path", required=True, type=expanded, help="model or adapter folder, or a known name")
    model_flags(found, base=("base", "model-base"))
    flag("host", default="127.0.0.1", help="address to listen on (default 127.0.0.1; another one needs an API key)")
    flag("port", type=int, default=21002, help="port to listen on (default 21002; 0: any free one)")
    flag("model-names", metavar="A,B", help="what requests call the model (default: its folder's name)")
    flag("cards", metavar="I,J", help="a worker on each of these cards, behind one address (0,1,2,3)")
    flag("lora", action="append", default=[], metavar="NAME=PATH",
         help="an adapter over the model, asked for by NAME (may be given several times)")  # fmt: skip
    flag("conv-mode", help="conversation template instead of the model's own")
    device_flags(found)
    flag("dtype", choices=("float32", "float16", "bfloat16"), help="compute in this (default: the device's best)")
    flag("slots", type=int, default=8, help="answers that share a step of the model (default 8)")
    flag("limit-model-concurrency", type=int, default=128, metavar="N",
         help="requests that are answered or wait; one more gets 429 (default 128)")  # fmt: skip
    flag("max-images", type=int, default=16, help="images of one request (default 16)")
    flag("request-seconds", type=float, default=600.0, help="longest time for one request (default 600)")
    flag("drain-seconds", type=float, default=30.0, help="time for open answers after SIGTERM (default 30)")
    flag("api-key", action="append", default=[], help="key that requests need (others see it in ps; or --api-key-file)")
    flag("api-key-file", type=path_at, metavar="FILE", help="file with keys, one a line")
    flag("allow-image-hosts", metavar="A,B", help="hosts whose images are fetched (default: none)")
    flag("controller-address", metavar="URL", help="controller to register with (http://HOST:21001)")
    flag("controller-token-file", type=path_at, metavar="FILE", help="the controller's secret")
    flag("worker-address", metavar="URL", help="where the controller reaches this worker (default: where it listens)")
    flag("log-prompts", action="store_true", help="write questions and answers to the log")
    low_bit_flags(found)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal comes. Exit code 0; 2 when a flag or the model cannot be used."""
    return run_command(_run, argv, OPTIONS)


def _run(argv: list[str]) -> int:
    args = parser().parse_args(dashed(argv))
    _check(args)
    from paddlemix.serve.access import LOOPBACK, access_of, token_of
    from paddlemix.serve.cards import cards_of, serve_cards

    access = access_of(args.host, args.api_key, args.api_key_file)
    token = "" if args.controller_token_file is None else token_of(args.controller_token_file)
    _check_controller(args, LOOPBACK)
    if args.conv_mode is not None:
        from paddlemix.text import templates

        templates.get(args.conv_mode)
    how = {**opening(args), "conv_mode": args.conv_mode}
    how["dtype"] = args.dtype or how["dtype"]
    cards = cards_of(args)
    if cards:
        return serve_cards(cards, args, argv)
    from paddlemix.generation.load import load_predictor  # first: without paddle nothing else is of use
    from paddlemix.generation.predictor import Predictor
    from paddlemix.serve.running import Serving, serve
    from paddlemix.utils import device

    device.before_asking(args.device)
    names = names_of(args)
    adapters = adapters_of(args, names)
    if adapters and args.num_gpus > 1:
        raise ConfigError("--lora needs one card; leave out --num-gpus, or merge the adapter (paddlemix merge)")
    serving = Serving(args.host, args.port, names, limits_of(args), access, args.log_prompts,
                      args.controller_address, args.worker_address, token)  # fmt: skip
    if adapters:
        how["lora"] = "keep"

    def over(path: str) -> Callable[[Predictor], Predictor]:
        return lambda base: Predictor.load(path, **{**how, "base": args.model_path}, beside=base)

    with strict_config(args.strict_config):
        return serve(
            serving,
            lambda: load_predictor(args.model_path, **how),
            {name: over(path) for name, path in adapters.items()},
        )


def _check(args: argparse.Namespace) -> None:
    load_bits(args)
    if args.fp16 and args.dtype not in (None, "float16"):
        raise ConfigError(f"--fp16 and --dtype {args.dtype} are two answers to one question; give one of them")
    if not 0 <= args.port < 1 << 16:
        raise ConfigError(f"--port {args.port}: expected 0 to 65535")
    for name, low, high in (("slots", 1, 256), ("limit_model_concurrency", 1, 4096), ("max_images", 0, 256),
                            ("request_seconds", 1, 86400), ("drain_seconds", 0, 3600)):  # fmt: skip
        value = getattr(args, name)
        if not low <= value <= high:
            raise ConfigError(f"--{name.replace('_', '-')} {value:g}: expected {low} to {high}")


def _check_controller(args: argparse.Namespace, loopback: Sequence[str]) -> None:
    if args.controller_address is None:
        return
    from paddlemix.utils import addresses
    from paddlemix.utils.errors import DataError

    for name in ("controller_address", "worker_address"):
        try:
            addresses.parse(getattr(args, name) or "http://127.0.0.1")
        except DataError as error:
            raise ConfigError(f"--{name.replace('_', '-')}: {error}") from error
    if args.controller_token_file is None:
        raise ConfigError("--controller-address needs --controller-token-file FILE with the controller's secret")
    if args.worker_address is None and args.host not in loopback:
        raise ConfigError(f"--host {args.host} is no address for others; add --worker-address http://HOST:{args.port}")


def adapters_of(args: argparse.Namespace, names: Sequence[str]) -> dict[str, str]:
    """The folders of ``--lora`` by name; ConfigError for a name that stands twice or a folder that is no adapter."""
    from paddlemix.checkpoint.folders import is_adapter, resolve

    found: dict[str, str] = {}
    for given in args.lora:
        name, equals, path = given.partition("=")
        if not (equals and name.strip() and path.strip()):
            raise ConfigError(f"--lora {given}: expected NAME=PATH, the name that requests use and an adapter's folder")
        name = name.strip()
        if name in found or name in names:
            raise ConfigError(f"--lora {given}: the name {name} stands for another model already; choose another")
        folder = resolve(expanded(path.strip()), "the adapter")
        if not is_adapter(folder):
            raise ConfigError(f"--lora {given}: {folder} is no LoRA adapter; serve it with --model-path")
        found[name] = str(folder)
    if found and is_adapter(resolve(args.model_path, "the model")):
        raise ConfigError(
            f"--model-path {args.model_path} is an adapter itself; give the model below it, and this one as "
            "--lora NAME=PATH"
        )
    return found


def limits_of(args: argparse.Namespace) -> "Limits":
    """The limits that the flags ask for."""
    from paddlemix.serve.limits import Limits

    hosts = tuple(host.strip().lower() for host in (args.allow_image_hosts or "").split(",") if host.strip())
    return Limits(
        requests=args.limit_model_concurrency,
        slots=args.slots,
        images=args.max_images,
        request_seconds=args.request_seconds,
        drain_seconds=args.drain_seconds,
        image_hosts=hosts,
    )


def names_of(args: argparse.Namespace) -> tuple[str, ...]:
    """What the model is called: as the flag says, or the last part of its path (two for a checkpoint of a run)."""
    if args.model_names:
        found = tuple(name.strip() for name in args.model_names.split(",") if name.strip())
        if not found:
            raise ConfigError("--model-names holds no name; give one, or leave the flag out")
        return found
    parts = [part for part in str(args.model_path).replace("\\", "/").split("/") if part not in ("", ".")]
    return ("_".join(parts[-2:]) if parts[-1].startswith("checkpoint-") else parts[-1],)


if __name__ == "__main__":
    sys.exit(main())
