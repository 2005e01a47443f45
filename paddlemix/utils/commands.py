# SPDX-License-Identifier: Apache-2.0
"""The commands of the project by name, and how to write one down so that it runs where its reader stands."""

import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

PROGRAM = "paddlemix"
ROOT = Path(__file__).resolve().parents[2]
"""The checkout, or the folder of installed packages."""


@dataclass(frozen=True)
class Command:
    """``module`` holds the command's ``main``; its file is also a script, under the path that PaddleMIX gave it."""

    module: str
    meaning: str

    @property
    def script(self) -> Path:
        """The file of ``module``."""
        return ROOT.joinpath(*self.module.split(".")).with_suffix(".py")


COMMANDS = {
    "chat": Command("paddlemix.examples.llava.run_predict_multiround", "talk with a model, about images or without"),
    "multiview": Command("paddlemix.examples.mv_llava.run_predict_multiview", "talk about one object seen from sides"),
    "sft": Command("paddlemix.tools.supervised_finetune", "fine-tune a model, whole or with LoRA"),
    "preference_tune": Command("paddlemix.tools.preference_tune", "train a model to prefer one answer to another"),
    "validate": Command("paddlemix.tools.validate_data", "look at every row and image of a training run, before it"),
    "pretrain": Command("paddlemix.examples.llava.pretrain", "first stage: train the projector"),
    "merge": Command("paddlemix.tools.merge_lora_params", "fold an adapter into its base model"),
    "convert": Command("paddlemix.tools.convert_weights", "write a model folder in another layout"),
    "eval": Command("paddlemix.eval.__main__", "run a benchmark, score answers, compare two runs"),
    "predict": Command("paddlemix.tools.batch_predict", "ask about all pictures of a folder, or all rows of a file"),
    "serve": Command("paddlemix.serve.model_worker", "answer over HTTP: OpenAI's chat completions, LLaVA's worker"),
    "page": Command("paddlemix.examples.mv_llava.app", "a web page with a model behind it, in one command"),
    "doctor": Command("paddlemix.tools.doctor", "say whether this machine, or a model folder, is in order"),
    "demo": Command("paddlemix.demo.__main__", "train a tiny model on drawn images and talk with it"),
}
"""What follows ``paddlemix`` on the command line."""


def shown(verb: str, *parts: str | Path | float) -> str:
    """The command line for ``paddlemix VERB PARTS`` as it can be typed in the current folder, in one line.

    Without ``paddlemix`` on the PATH the line begins with the one beside the running interpreter, and without that
    with the interpreter and the command's file. A ``Path`` below the current folder is written relative to it.
    """
    return shlex.join([*_program(verb), *(near(part) if isinstance(part, Path) else str(part) for part in parts)])


def near(path: Path) -> str:
    """``path`` relative to the current folder when it lies below it, else absolute (a relative one as it is)."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_absolute() and path.is_relative_to(here) else str(path)


def interpreter() -> str:
    """The running interpreter as a word of a command line: its name when the PATH leads to it, else its path."""
    running = Path(sys.executable)
    for name in ("python", "python3"):
        if _leads_to(name, running.parent):
            return name
    return near(running)


def _program(verb: str) -> list[str]:
    installed = Path(sys.executable).parent / PROGRAM
    if not installed.is_file():
        return [interpreter(), near(COMMANDS[verb].script)]
    return [PROGRAM if _leads_to(PROGRAM, installed.parent) else near(installed), verb]


def _leads_to(name: str, folder: Path) -> bool:
    """Whether the shell takes the program ``name`` from ``folder``."""
    found = shutil.which(name)
    return found is not None and Path(found).parent.absolute() == folder.absolute()
