# SPDX-License-Identifier: Apache-2.0
"""What the demos do between their steps: say something, and run the project's own commands as a user would."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from paddlemix.utils.commands import COMMANDS, near, shown
from paddlemix.utils.errors import ConfigError, TrainingError
from paddlemix.utils.logging import console

MARK = "made_by_the_demo.txt"
"""File beside the folders of a demo: these may be replaced."""


def clear(out: Path, made: Sequence[Path]) -> None:
    """Take away the folders ``made`` of an earlier demo. ConfigError for folders of these names that no demo made."""
    old = [path for path in made if path.exists()]
    if old and not (out / MARK).is_file():
        raise ConfigError(f"{old[0]} is there already, and no demo made it; name another folder with --out")
    for folder in old:
        shutil.rmtree(folder)
    out.mkdir(parents=True, exist_ok=True)
    names = ", ".join(path.name for path in made)
    (out / MARK).write_text(f"The demo made the folders {names}, and the next demo replaces them.\n")


def say(line: str) -> None:
    """A line for the person; rich's markup counts."""
    console().print(line)


def say_command(command: str, style: str | None = None) -> None:
    """Print a command: in one line, whatever brackets its paths have."""
    console().print(command, style=style, markup=False, soft_wrap=True)


def title(number: str, text: str, seconds: float) -> None:
    """The line over a step; ``seconds`` since the demo began."""
    console().print()
    console().rule(f"[bold]{number}  {text}[/bold]  [dim]{seconds:.0f} s[/dim]", align="left")


def run(verb: str, *parts: Path | str | float) -> None:
    """Run ``paddlemix VERB PARTS`` on the same terminal. TrainingError when it fails; its message stands above."""
    script = COMMANDS[verb].script
    say_command(f"$ {shown(verb, *parts)}", "dim")
    done = subprocess.run([sys.executable, str(script), *map(str, parts)], check=False)  # noqa: S603 - our own, no shell
    if done.returncode:
        raise TrainingError(f"{near(script)} ended with exit code {done.returncode}; its message stands above")
