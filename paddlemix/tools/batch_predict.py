# SPDX-License-Identifier: Apache-2.0
"""Ask a model about all pictures of a folder, or all rows of a file, and write the answers as JSON lines.

    paddlemix predict --model-path MODEL --data pictures --output out.jsonl --prompt "What is this?"
    paddlemix predict --model-path MODEL --data rows.jsonl --output out.jsonl

A row has a question (or prompt, query, text) and image or images, or messages or conversations as in training data,
whose last answer is the label. After a kill the same command goes on where it stopped. Exit code 0; 1 when rows could
not be asked (error says why); 2 when a flag or a file is wrong.
"""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

if not __package__:  # run by its path: imports begin at the repository, not beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from paddlemix.utils.entry_point import run_command
from paddlemix.utils.options import FLAGS, command_parser, dashed, device_flags, model_flags, opening, strict_config
from paddlemix.utils.paths import expanded, path_at
from paddlemix.utils.shown import counted, readable

OPTIONS = replace(FLAGS, cards="--num-gpus", template="--conv-mode NAME")
NAMED = 5


def parser() -> ArgumentParser:
    """The flags; underscores work in place of the dashes."""
    found = command_parser(__doc__)
    found.add_argument("--model-path", required=True, type=expanded, help="model or adapter folder, or a known name")
    model_flags(found, base=("base", "model-base"))
    found.add_argument("--data", required=True, type=path_at, help="folder of images, or .jsonl or .json file of rows")
    found.add_argument("--output", required=True, type=path_at, metavar="FILE.jsonl", help="where the answers go")
    found.add_argument("--prompt", help="the question of a folder's images, and of rows that have none")
    found.add_argument(
        "--image-folder", type=path_at, metavar="DIR", help="where the images are (default: beside the rows)"
    )
    found.add_argument("--batch-size", type=int, default=8, help="rows that are asked at once (default 8)")
    found.add_argument("--max-new-tokens", type=int, default=512, help="longest answer in tokens (default 512)")
    found.add_argument("--conv-mode", help="conversation template instead of the model's own")
    found.add_argument("--num-chunks", type=int, default=1, metavar="N", help="parts of the rows (default 1)")
    found.add_argument("--chunk-idx", type=int, default=0, metavar="I", help="the part of this process, from 0")
    found.add_argument("--restart", action="store_true", help="forget what an earlier run has done")
    device_flags(found)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Predict and return the exit code."""
    return run_command(_run, argv, OPTIONS)


def _run(argv: list[str]) -> int:
    args = parser().parse_args(dashed(argv))
    with strict_config(args.strict_config):
        return _predict(args)


def _predict(args: Namespace) -> int:
    from paddlemix.eval import predicting
    from paddlemix.eval.asked import part_of
    from paddlemix.eval.models import Model
    from paddlemix.text import templates

    if args.conv_mode is not None:
        templates.get(args.conv_mode)
    part_of((), args.num_chunks, args.chunk_idx)
    model = Model(args.model_path, {**opening(args), "conv_mode": args.conv_mode})
    job, missing = predicting.planned(
        predicting.Asking(args.data, args.output, model, args.prompt, args.image_folder, args.max_new_tokens,
                          args.batch_size, args.num_chunks, args.chunk_idx)
    )  # fmt: skip
    if missing:
        sys.stderr.write(f"note: {counted(len(missing), 'missing image')}: {readable(', '.join(missing[:NAMED]))}\n")
    path = predicting.predict(job, model, args.max_new_tokens, restart=args.restart)
    if path is None:
        sys.stdout.write(f"{job.own_path}: written; the other parts are not there yet, the last one joins them\n")
        return 1 if predicting.failures(job.own_path) else 0
    failed = predicting.failures(path)
    sys.stdout.write(f"{path}: {counted(len(job.items), 'row')}, {len(failed)} failed\n")
    for number, reason in failed[:NAMED]:
        sys.stdout.write(f"  line {number}: {readable(reason)}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
