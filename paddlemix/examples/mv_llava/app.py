# SPDX-License-Identifier: Apache-2.0
"""A web page with a model behind it, in one command: MV-LLaVA's ``python app.py``, for any model of the chat.

    paddlemix page --model-path FOLDER --web-python .venv-web/bin/python

It starts a worker on this machine, and the page in front of it at http://127.0.0.1:7860. Several views of one object,
or a sheet of them, go with a question; the examples show drawn solids from four sides. The page is drawn by gradio,
which has an environment of its own (docs/serving.md). Exit code 0; 2 when a flag or the model is wrong.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

if not __package__:  # run by its path: imports begin at the repository, not beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[3])

from paddlemix.serve.gradio_web_server import check_page, page_flags
from paddlemix.serve.together import check_web, run_together, words_of
from paddlemix.utils.entry_point import run_command
from paddlemix.utils.options import (
    FLAGS,
    command_parser,
    dashed,
    device_flags,
    load_bits,
    low_bit_flags,
    model_flags,
)
from paddlemix.utils.paths import expanded, path_at

OPTIONS = replace(FLAGS, template="--conv-mode NAME")
SIDE = 112
"""Pixels of a drawn view."""
_OF_PAGE = ("host", "port", "api_key_file", "language", "vote_log")
_OF_WORKER = ("base", "vision_tower", "projector", "conv_mode", "device", "load_bits")


def parser() -> argparse.ArgumentParser:
    """The flags of the model, and those of the page; underscores work in place of the dashes."""
    found = command_parser(__doc__)
    found.add_argument("--model-path", required=True, type=expanded, help="model or adapter folder, or a known name")
    model_flags(found, base=("base", "model-base"))
    found.add_argument("--conv-mode", help="conversation template instead of the model's own")
    device_flags(found)
    found.add_argument("--web-python", type=path_at, default=Path(sys.executable), metavar="PYTHON",
                       help="interpreter with gradio (default: this one)")  # fmt: skip
    page_flags(found)
    low_bit_flags(found)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal comes."""
    return run_command(_run, argv, OPTIONS)


def _run(argv: list[str]) -> int:
    args = parser().parse_args(dashed(argv))
    args.load_bits = load_bits(args)
    check_page(args)
    from paddlemix.serve.access import access_of

    access_of(args.host, args.api_key, args.api_key_file)
    with tempfile.TemporaryDirectory(prefix="paddlemix-examples-") as folder:
        examples = args.examples or drawn_examples(Path(folder))
        check_web(args.web_python)
        worker = [*words_of("paddlemix.serve.model_worker"), "--model-path", args.model_path, "--port", "0",
                  *_given(args, _OF_WORKER, ("fp16", "strict_config"))]  # fmt: skip
        page = [*words_of("paddlemix.serve.gradio_web_server", args.web_python), "--examples", str(examples),
                *_given(args, _OF_PAGE, ("vote_log_texts", "share"))]  # fmt: skip
        return run_together(worker, page + [word for key in args.api_key for word in ("--api-key", key)])


def drawn_examples(folder: Path) -> Path:
    """Examples of a solid, as four views and as a sheet of them, written into ``folder``; their file."""
    from PIL import Image

    from paddlemix.demo.solids import draw_scenes, views

    rows = []
    for number, scene in zip(range(2), draw_scenes(0, "page", unseen=True), strict=False):
        seen = views(scene, SIDE)
        names = [f"{number}{letter}.png" for letter in "abcd"]
        for name, view in zip(names, seen, strict=True):
            view.save(folder / name)
        sheet = Image.new("RGB", (2 * SIDE, 2 * SIDE))
        # The order of the training: top left, bottom left, bottom right, top right.
        for view, place in zip(seen, ((0, 0), (0, SIDE), (SIDE, SIDE), (SIDE, 0)), strict=True):
            sheet.paste(view, place)
        sheet.save(folder / f"{number}.png")
        rows.append({"question": "Describe this object.", "image": names, "arrangement": "views"})
        rows.append({"question": "What colour is the back?", "image": f"{number}.png", "arrangement": "sheet"})
    file = folder / "examples.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def _given(args: argparse.Namespace, valued: Sequence[str], switches: Sequence[str]) -> list[str]:
    """The flags of another command that were given here."""
    found = []
    for name in valued:
        if getattr(args, name) is not None:
            found += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    return found + [f"--{name.replace('_', '-')}" for name in switches if getattr(args, name)]


if __name__ == "__main__":
    sys.exit(main())
