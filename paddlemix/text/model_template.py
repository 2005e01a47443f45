# SPDX-License-Identifier: Apache-2.0
"""The conversation template of a model folder: the file that lies in it, or the name in its configuration."""

from pathlib import Path
from typing import Any

from paddlemix.settings.published.config import OWN_MODEL_TYPE, TEMPLATE_KEY
from paddlemix.settings.strict_json import read_object
from paddlemix.text import templates
from paddlemix.text.chat_template import ChatTemplate
from paddlemix.text.templates import Template
from paddlemix.utils import options
from paddlemix.utils.errors import CheckpointError, ConfigError

CHAT_TEMPLATE = "chat_template.json"
"""PaddleNLP's file. As the ``template`` of a configuration: the model was trained with the file of this name."""

CONVERSION = "conversion.json"
"""What a converted folder keeps of its source. A llava-hf folder keeps PaddleNLP's template there, under the key
``chat_template``: transformers reads a ``chat_template.json`` of its own form and fails at any other."""


def file_of(folder: Path) -> dict[str, Any] | None:
    """The content of PaddleNLP's template in ``folder``; None when it has none.

    transformers' file of the same name holds a program, which nothing here runs: it does not count.
    """
    path = folder / CHAT_TEMPLATE
    data = read_object(path, CheckpointError) if path.is_file() else {}
    if "conversation" not in data and (folder / CONVERSION).is_file():
        data = read_object(folder / CONVERSION, CheckpointError).get("chat_template") or {}
    return data if isinstance(data, dict) and "conversation" in data else None


def own_template(folder: Path) -> str | None:
    """The template that the configuration in ``folder`` names in so many words; None where it follows from the rest.

    No other key of the file is looked at.
    """
    path = folder / "config.json"
    data = read_object(path, CheckpointError) if path.is_file() else {}
    name = data.get("template" if data.get("model_type") == OWN_MODEL_TYPE else TEMPLATE_KEY)
    return name if isinstance(name, str) else None


def template_for(folder: Path, name: str, *, training: bool = False) -> Template | ChatTemplate:
    """The template of the model in ``folder``, whose configuration says ``name``; ``training``: see ``templates.get``.

    CheckpointError when the configuration means a file that is not there.
    """
    data = file_of(folder)
    if data is not None:
        return ChatTemplate(data, str(folder / CHAT_TEMPLATE))
    if name == CHAT_TEMPLATE:
        way = options.current().template
        raise CheckpointError(
            f"{folder}: the model was trained with a {CHAT_TEMPLATE}, which is not in the folder; put it back"
            + (f", or name a template with {way}" if way else "")
        )
    try:
        return templates.get(name, training=training)
    except ConfigError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error
