# SPDX-License-Identifier: Apache-2.0
"""Which conversation template a run trains with, and what its result is then asked with."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from paddlemix.settings.run.training import TrainingSettings
from paddlemix.text import chat_template, templates
from paddlemix.text.messages import ChatFormat
from paddlemix.text.model_template import CHAT_TEMPLATE, file_of, own_template, template_for
from paddlemix.utils.errors import ConfigError, PaddleMixError
from paddlemix.utils.shown import counted


def check_conversation(settings: TrainingSettings, folder: Path, *, first_stage: bool) -> None:
    """Raise for a template that does not exist, or that a fine-tune would learn wrong answers with; needs no paddle.

    ``folder`` is what the run begins with (the adapter's with ``lora_path``). A first training stage leaves a folder
    whose template is "plain", which trains on images and captions and drops every question: going on with it by
    chance is an error. Meant are ``first_stage`` (the pretraining command) and ``tune_mm_mlp_adapter`` beside the name.
    """
    given = settings.model.template
    if given is not None and given not in templates.TEMPLATES:
        try:
            templates.get(given)
        except ConfigError as error:
            raise ConfigError(f'"template": {error}') from error
    entries = list(_entries(settings))
    for entry in entries:
        if entry.get("chat_template"):
            chat_template.load(entry["chat_template"])
    own = own_template(folder)
    name = given or own
    if (
        first_stage
        or not settings.training.do_train
        or name not in templates.TEMPLATES
        or not templates.get(name, training=True).images_only
    ):
        return
    if all(entry.get("chat_template") for entry in entries) or (given and settings.model.tune_mm_mlp_adapter):
        return
    no_lora = ' with "lora": false' if settings.model.lora else ""
    why = "is given" if given else f"is what {folder} was trained with"
    raise ConfigError(
        f'"template": "{name}" {why}: it learns captions of images and drops the questions. For conversations write '
        f'"template": "{_suggested(folder)}"; to go on with the first stage write "template": "{name}" and '
        f'"tune_mm_mlp_adapter": true{no_lora}'
    )


def _entries(settings: TrainingSettings) -> Iterator[dict[str, Any]]:
    used = {"train": settings.training.do_train, "eval": settings.training.do_eval}
    for part, entries in (settings.data.dataset or {}).items():
        yield from entries or [] if used.get(part) else []


def _suggested(folder: Path) -> str:
    from paddlemix.settings.published.config import default_template, load_config

    try:
        found = default_template(load_config(folder).text)
    except PaddleMixError:
        return "v1"  # what is wrong with the folder is reported when it is opened
    return "v1" if found == "vicuna_v1" else found


def training_template(settings: TrainingSettings, folder: Path, own: str) -> ChatFormat:
    """The layout of rows that have none of their own: the settings' name, else what the model in ``folder`` has."""
    if settings.model.template is not None:
        return templates.get(settings.model.template, training=True)
    return template_for(folder, own, training=True)


def asked_with(
    layouts: Sequence[tuple[ChatFormat, int]], settings: TrainingSettings, folder: Path, own: str
) -> tuple[str, dict[str, Any] | None]:
    """(``template`` of the result's configuration, content of its chat_template.json or None): that of most rows.

    ``layouts`` are a data set's; without rows the model stays what it was.
    """
    if not layouts:
        return own, file_of(folder)
    layout = layouts[0][0]
    if isinstance(layout, chat_template.ChatTemplate):
        return CHAT_TEMPLATE, layout.data
    return settings.model.template or own, None


def notes(
    layouts: Sequence[tuple[ChatFormat, int]], settings: TrainingSettings, folder: Path, own: str
) -> Iterator[str]:
    """Lines about rows of several layouts, and about settings that name another template than the model's own."""
    if len(layouts) > 1:
        rows = ", ".join(f"{counted(count, 'row')} with {layout.name}" for layout, count in layouts)
        yield f"several conversation templates: {rows}; the result is asked with {layouts[0][0].name}"
    given = settings.model.template
    if given is None or all(isinstance(layout, chat_template.ChatTemplate) for layout, _ in layouts):
        return
    if own == CHAT_TEMPLATE and file_of(folder) is None:
        return
    before = template_for(folder, own)
    same = isinstance(before, templates.Template) and replace(before, name=given) == templates.get(given)
    caption = isinstance(before, templates.Template) and templates.for_training(before).images_only
    if not same and not caption:
        yield f'template "{given}", as the settings say; {folder} was trained with {Path(before.name).name}'
