# SPDX-License-Identifier: Apache-2.0
"""The conversation template of a folder of llava-hf, from the chat template that lies in it. Nothing of it is run."""

import re
from pathlib import Path

from paddlemix.settings.published.common import TEMPLATE_KEY
from paddlemix.settings.published.unknown_keys import warn_once
from paddlemix.settings.strict_json import MAX_BYTES, read_object
from paddlemix.utils import options
from paddlemix.utils.errors import CheckpointError
from paddlemix.utils.foreign import read_text

_KINDS: dict[str, dict[str, str]] = {
    "<|im_start|>": {
        "Answer the questions.": "chatml_direct",
        "SmolLM": "smollm2",
        "": "qwen_1_5",
    },
    "<|start_header_id|>": {"language and vision assistant": "llava_llama_3", "": "llama_3"},
    "[INST]": {"<<SYS>>": "llava_llama_2", "": "mistral_instruct"},
    "USER": {"": "vicuna_v1"},
    ".upper()": {"": "vicuna_v1"},  # llava-hf writes the name of a role in capitals
}
"""By a mark of the turns: what else stands in the program, and the template of that kind; the last fits any.

What begins with a letter is a system text, which the program writes in front of every question.
"""
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)


def folder_template(root: Path, usual: str) -> str:
    """The template for the folder: ``usual``, unless the folder's chat template begins its turns in another way.

    A warning names a template that is not ``usual``, and how another is chosen; so does one about a chat template of
    no known form. CheckpointError for a broken file.
    """
    file, program = _program(root)
    program = _COMMENT.sub("", program)
    if not program.strip():
        return usual
    named = next((names for mark, names in _KINDS.items() if mark in program), None)
    found, why = usual, f"because it is the usual one of its decoder: the form of turns in {file} is not known here"
    if named is not None:
        words = next(words for words in named if words in program)
        if named[words] == usual or (usual in named.values() and not words[:1].isalpha()):
            return usual
        found, why = named[words], f'because {file} writes turns in that way (without that file: "{usual}")'
    way = options.current().template
    warn_once(
        f'{root}: taken as trained with the template "{found}", {why}. '
        f'Choose another with {f"{way} or " if way else ""}"{TEMPLATE_KEY}" in {root / "config.json"}'
    )
    return found


def _program(root: Path) -> tuple[str, str]:
    """The file that transformers takes the chat template of a processor from, and its program; empty without one.

    transformers 5.24 prefers the files in this order, whatever their ages. The tokenizer's own comes last: processors
    of today do without it. PaddleNLP's ``chat_template.json`` is no program but what a model is asked with.
    """
    for name in ("processor_config.json", "chat_template.json", "chat_template.jinja", "tokenizer_config.json"):
        path = root / name
        if not path.is_file():
            continue
        if path.suffix == ".jinja":
            return name, read_text(path, CheckpointError, MAX_BYTES)
        data = read_object(path, CheckpointError)
        if "conversation" in data:
            return "", ""
        found = data.get("chat_template")
        if isinstance(found, list):  # several programs with names
            found = {row.get("name"): row.get("template") for row in found if isinstance(row, dict)}
        if isinstance(found, dict):
            found = found.get("default")
        if isinstance(found, str):
            return name, found
    return "", ""
