# SPDX-License-Identifier: Apache-2.0
"""The conversation template of a folder of llava-hf, from the chat template that lies in it. Nothing of it is run."""

from pathlib import Path

from paddlemix.settings.published.common import TEMPLATE_KEY
from paddlemix.settings.published.unknown_keys import warn_once
from paddlemix.settings.strict_json import read_object
from paddlemix.utils import options
from paddlemix.utils.errors import CheckpointError

_KINDS: dict[str, dict[str, str]] = {
    "<|im_start|>": {
        "Answer the questions.": "chatml_direct",
        "SmolLM": "smollm2",
        "": "qwen_1_5",
    },
    "<|start_header_id|>": {"": "llava_llama_3"},
    "[INST]": {"<<SYS>>": "llava_llama_2", "": "mistral_instruct"},
    "USER": {"": "vicuna_v1"},
    ".upper()": {"": "vicuna_v1"},  # llava-hf writes the name of a role in capitals
}
"""By a mark of the turns: what else stands in the program, and the template of that kind; the last fits any."""


def folder_template(root: Path, usual: str) -> str:
    """The template for the folder: ``usual``, unless the folder's chat template begins its turns in another way.

    A warning names a template that is not ``usual``, and how another is chosen. CheckpointError for a broken file.
    """
    file, program = _program(root)
    named = next((names for mark, names in _KINDS.items() if mark in program), None)
    if named is None or usual in named.values():
        return usual
    found = next(name for words, name in named.items() if words in program)
    way = options.current().template
    warn_once(
        f'{root}: taken as trained with the template "{found}", because {file} writes turns in that way (without that '
        f'file: "{usual}"). Choose another with {f"{way} or " if way else ""}"{TEMPLATE_KEY}" in {root / "config.json"}'
    )
    return found


def _program(root: Path) -> tuple[str, str]:
    """The file that transformers takes the chat template of a processor from, and its program; empty without one."""
    path = root / "chat_template.jinja"
    if path.is_file():
        try:
            return path.name, path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from error
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        found = read_object(root / name, CheckpointError).get("chat_template") if (root / name).is_file() else None
        if isinstance(found, list):  # several programs with names
            programs = {row.get("name"): row.get("template") for row in found if isinstance(row, dict)}
            found = programs.get("default")
        if isinstance(found, str):
            return name, found
    return "", ""
