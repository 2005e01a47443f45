# SPDX-License-Identifier: Apache-2.0
"""Look at every row and every image of a training run before cards are booked, without paddle.

    paddlemix validate CONFIG.json [--key value ...] [--jobs N] [--decode] [--write-clean FILE] [--report FOLDER]

CONFIG.json and --key are those of the training. Writes bad_rows.jsonl, summary.json and lengths.png into the report
folder (default: data_report). After a kill the same command goes on where it stopped. Exit code 0; 3 when there are
rows that cannot be used; 2 when the settings, a file or a folder are wrong.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run by its path: imports begin at the repository, not beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from paddlemix.settings.run.loader import load_settings
from paddlemix.utils.entry_point import run_command
from paddlemix.utils.errors import ConfigError
from paddlemix.utils.options import speaking, strict_config
from paddlemix.utils.paths import expanded


def main(argv: Sequence[str] | None = None) -> int:
    """Read the settings, then look."""
    return run_command(_run, argv)


def parser() -> argparse.ArgumentParser:
    """The flags of this command beside those of the training."""
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        usage="%(prog)s CONFIG.json [--key value ...] [flags]", add_help=False,
    )  # fmt: skip
    found.add_argument("--jobs", type=_positive, default=os.cpu_count() or 1, help="processes (default: one a core)")
    found.add_argument("--decode", action="store_true", help="decode every image (default: read its header)")
    found.add_argument("--write-clean", metavar="FILE", help="write the training rows that can be used (.json, .jsonl)")
    found.add_argument("--report", metavar="FOLDER", default="data_report", help="where the findings go")
    found.add_argument("--processes", type=_positive, default=1, help="processes of the planned training (default: 1)")
    found.add_argument("--first-stage", action="store_true", help="the rows are those of a pretraining")
    return found


def _positive(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 1024")
    return int(text)


def _run(argv: list[str]) -> int:
    flags = parser()
    if not argv or "--help" in argv or "-h" in argv:
        flags.print_help(sys.stdout if argv else sys.stderr)
        raise SystemExit(0 if argv else 2)
    own, rest = flags.parse_known_args(argv)
    settings = load_settings(rest)
    from paddlemix.trainer.arguments import names_of_keys
    from paddlemix.validate.run import Options, validate

    if own.first_stage:
        settings = settings.with_changes(template=settings.model.template or "plain")
    if settings.data.dataset is None:
        raise ConfigError('no rows to look at: set "data_path" or "dataset"')
    clean = None if own.write_clean is None else Path(expanded(own.write_clean))
    options = Options(Path(expanded(own.report)), own.jobs, own.decode, own.processes, clean)
    with speaking(names_of_keys(settings)), strict_config(settings.model.strict_config):
        return validate(settings, options, first_stage=own.first_stage)


if __name__ == "__main__":
    sys.exit(main())
