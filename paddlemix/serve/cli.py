# SPDX-License-Identifier: Apache-2.0
"""LLaVA's name of the chat: ``python -m paddlemix.serve.cli`` is ``paddlemix chat``, with all flags of LLaVA's."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run by its path: imports begin at the repository, not beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from paddlemix.utils.commands import COMMANDS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the chat and return its exit code."""
    return importlib.import_module(COMMANDS["chat"].module).main(argv)


if __name__ == "__main__":
    sys.exit(main())
