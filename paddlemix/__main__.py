# SPDX-License-Identifier: Apache-2.0
"""The one command ``paddlemix VERB ...``, also as ``python -m paddlemix VERB ...``."""

import importlib
import sys
from collections.abc import Sequence

from paddlemix.utils.commands import COMMANDS, PROGRAM
from paddlemix.utils.entry_point import run_command
from paddlemix.utils.errors import ConfigError
from paddlemix.utils.registry import nearest

SYNONYMS = {
    **dict.fromkeys(("finetune", "train", "lora", "supervisedfinetune"), "sft"),
    **dict.fromkeys(("infer", "inference", "generate", "cli", "ask"), "chat"),
    "check": "doctor",
    **dict.fromkeys(("server", "worker", "modelworker", "api"), "serve"),
    **dict.fromkeys(("app", "web", "ui", "gradio", "gradiowebserver", "webui"), "page"),
    **dict.fromkeys(("evaluate", "evaluation", "score", "benchmark"), "eval"),
}
"""What other projects call our commands, without hyphens."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first word names with the words after it, and return its exit code."""
    return run_command(_run, argv)


def help_text() -> str:
    """What ``paddlemix --help`` prints."""
    lines = [f"usage: {PROGRAM} VERB [...]", "", "LLaVA-type vision-language models in PaddlePaddle.", ""]
    lines += [f"  {verb:<10} {command.meaning}" for verb, command in COMMANDS.items()]
    return "\n".join([*lines, "", f"{PROGRAM} VERB --help shows the flags of a command.", ""])


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        (sys.stdout if argv else sys.stderr).write(help_text())
        return 0 if argv else 2
    verb, *rest = argv
    if verb not in COMMANDS:
        other = SYNONYMS.get(verb.lower().replace("-", "").replace("_", ""))
        hint = f', did you mean "{other}"?' if other else nearest(verb, list(COMMANDS))
        raise ConfigError(f'unknown command "{verb}"{hint}; {PROGRAM} --help lists all of them')
    sys.argv[0] = f"{PROGRAM} {verb}"  # what argparse calls the program
    return importlib.import_module(COMMANDS[verb].module).main(rest)


if __name__ == "__main__":
    sys.exit(main())
