# SPDX-License-Identifier: Apache-2.0
"""A web page for the models of a controller, or of a lone worker.

    python -m paddlemix.serve.gradio_web_server --controller-url http://127.0.0.1:21001
    python -m paddlemix.serve.gradio_web_server --controller-url http://127.0.0.1:21002

Without an API key only browsers of this machine may ask. The page needs gradio, in an environment of its own
(docs/serving.md); it needs neither paddle nor a model. Exit code 0; 2 when a flag is wrong.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

if not __package__:  # run by its path: imports begin at the repository, not beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from paddlemix.utils.entry_point import run_command
from paddlemix.utils.errors import ConfigError
from paddlemix.utils.options import command_parser, dashed
from paddlemix.utils.paths import path_at


def page_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that are about the page itself."""

    def flag(name: str, **kind: str | int | Sequence[str] | Callable[[str], object] | None) -> None:
        parser.add_argument(f"--{name}", **kind)

    flag("host", default="127.0.0.1", help="address to listen on (default 127.0.0.1; another one needs an API key)")
    flag("port", type=int, default=7860, help="port to listen on (default 7860; 0: any free one)")
    flag("api-key", action="append", default=[], help="key that browsers ask a person for (or --api-key-file)")
    flag("api-key-file", type=path_at, metavar="FILE", help="file with keys, one a line")
    flag("language", choices=("auto", "en", "zh"), default="auto", help="of the labels (default auto: the browser's)")
    flag("examples", type=path_at, metavar="FILE", help="examples as JSON lines (default: the drawn pictures)")
    flag("vote-log", type=path_at, metavar="FILE", help="show votes, and add them to this file (default: no votes)")
    flag("vote-log-texts", action="store_true", help="with the texts of their conversations")
    flag("share", action="store_true", help="make the page public through gradio's servers (needs an API key)")
    flag("moderate", action="store_true", help=argparse.SUPPRESS)


def parser() -> argparse.ArgumentParser:
    """The flags of LLaVA's page and ours; underscores work in place of the dashes."""
    found = command_parser(__doc__)
    found.add_argument("--controller-url", default="http://127.0.0.1:21001", metavar="URL",
                       help="controller or worker that is asked (default http://127.0.0.1:21001)")  # fmt: skip
    found.add_argument("--controller-key-file", type=path_at, metavar="FILE", help="file with the key that it wants")
    found.add_argument("--concurrency-count", type=int, default=16, metavar="N",
                       help="answers on their way at a time; more wait (default 16)")  # fmt: skip
    found.add_argument("--model-list-mode", choices=("once", "reload"), default="once",
                       help="ask for the models at the start, or whenever a page is opened (default once)")  # fmt: skip
    page_flags(found)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal comes."""
    return run_command(_run, argv)


def _run(argv: list[str]) -> int:
    args = parser().parse_args(dashed(argv))
    check_page(args)
    if not 1 <= args.concurrency_count <= 1024:
        raise ConfigError(f"--concurrency-count {args.concurrency_count}: expected 1 to 1024")
    from paddlemix.serve.access import access_of, token_of
    from paddlemix.serve.page.asking import AskError, Server
    from paddlemix.serve.page.examples import read_examples
    from paddlemix.serve.page.running import Listening, serve, upload_folder
    from paddlemix.serve.page.votes import Votes
    from paddlemix.utils import addresses
    from paddlemix.utils.errors import DataError

    listening = Listening(args.host, args.port, access_of(args.host, args.api_key, args.api_key_file), args.share)
    if args.share and not listening.access.keys:
        raise ConfigError("--share lets everybody ask; give --api-key-file FILE too, or leave --share out")
    try:
        if addresses.parse(args.controller_url).scheme != "http":
            raise DataError(f"{args.controller_url}: expected http://HOST:PORT")
    except DataError as error:
        raise ConfigError(f"--controller-url: {error}") from error
    key = "" if args.controller_key_file is None else token_of(args.controller_key_file)
    server = Server(args.controller_url.rstrip("/"), key)
    votes = None if args.vote_log is None else Votes(args.vote_log, texts=args.vote_log_texts)
    examples = read_examples(args.examples)
    with upload_folder() as folder:
        from paddlemix.serve.page.view import Page, View  # imports gradio, which is told of the folder before

        models = None
        if args.model_list_mode == "once":
            try:
                models = asyncio.run(server.models())
            except AskError as error:
                raise ConfigError(f"--controller-url {args.controller_url}: {error}; start it first, or give "
                                  "--model-list-mode reload") from error  # fmt: skip
        language = None if args.language == "auto" else args.language
        page = Page(server, folder, models, votes, examples, language, args.concurrency_count)
        return serve(listening, folder, lambda: View(page).built())


def check_page(args: argparse.Namespace) -> None:
    """ConfigError for a flag of ``page_flags`` that cannot be."""
    if args.moderate:
        raise ConfigError("--moderate: questions are not sent to OpenAI's moderation from here; leave the flag out")
    if not 0 <= args.port < 1 << 16:
        raise ConfigError(f"--port {args.port}: expected 0 to 65535")
    if args.vote_log_texts and args.vote_log is None:
        raise ConfigError("--vote-log-texts needs --vote-log FILE")


if __name__ == "__main__":
    sys.exit(main())
