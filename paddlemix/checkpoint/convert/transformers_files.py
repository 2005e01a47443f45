# SPDX-License-Identifier: Apache-2.0
"""What a llava-hf folder needs besides weights: a tokenizer and a chat template for transformers, and a model card."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from paddlemix.checkpoint.convert.config import hf_family
from paddlemix.checkpoint.folders import read_json, read_optional
from paddlemix.checkpoint.save_files import TRAINING_SETTINGS, write_json
from paddlemix.settings.model import LlavaConfig
from paddlemix.text.chat_template import ChatTemplate
from paddlemix.text.jinja_export import chat_jinja
from paddlemix.text.model_template import CHAT_TEMPLATE
from paddlemix.text.spm_export import tokenizer_json
from paddlemix.text.templates import Template
from paddlemix.text.tokenizer import BYTES, load_tokenizer
from paddlemix.text.tokenizer_files import JSON_FILE
from paddlemix.utils.errors import CheckpointError, DataError

JINJA = "chat_template.jinja"
CARD = "README.md"
_TOKENIZER_CONFIG = "tokenizer_config.json"

_SHOWN = (
    "learning_rate", "mm_projector_lr", "vision_tower_lr", "lr_scheduler_type", "warmup_ratio", "warmup_steps",
    "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "max_length",
    "lora", "lora_rank", "lora_alpha", "lora_dropout", "tune_mm_mlp_adapter", "tune_entire_model", "tune_vision_tower",
    "image_aspect_ratio", "template", "bf16", "fp16", "seed",
)  # fmt: skip
"""Settings of a training that a card tells; paths and names of machines are none of a reader's business."""


def write_for_transformers(
    folder: Path, source: Path, layout: Template | ChatTemplate, config: LlavaConfig, notes: list[str]
) -> None:
    """Complete the llava-hf ``folder``, which holds config.json and the tokenizer's files already.

    ``source`` is the folder that it was made of, ``layout`` the template that the model was trained with. What cannot
    be written is named in ``notes``.
    """
    _write_tokenizer(folder, notes)
    program = _write_template(folder, layout, config, notes)
    (folder / CARD).write_text(_card(source, config, layout, program), encoding="utf-8")


def _write_tokenizer(folder: Path, notes: list[str]) -> None:
    """tokenizer.json, and the same marks of the added tokens in tokenizer_config.json, which transformers 4 prefers."""
    tokenizer = load_tokenizer(folder)
    if tokenizer.kind == BYTES:
        return  # it was written as it is
    try:
        data, added, lost = tokenizer_json(tokenizer)
    except CheckpointError as error:
        notes.append(f"{error}; transformers may split prompts in another way than the model was trained with")
        return
    notes += [lost] if lost else []
    (folder / JSON_FILE).write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    settings = read_json(folder / _TOKENIZER_CONFIG)
    rows = {str(token.id): token.normalized for token in added}
    for number, row in settings["added_tokens_decoder"].items():
        row["normalized"] = rows[number]
    write_json(folder / _TOKENIZER_CONFIG, settings)


def _write_template(folder: Path, layout: Template | ChatTemplate, config: LlavaConfig, notes: list[str]) -> str | None:
    """The program in the three places where versions of transformers look for it; None when there is no form of it."""
    try:
        program = chat_jinja(layout, use_im_start_end=config.use_im_start_end)
    except DataError as error:
        notes.append(f"{error}; the new folder has no {JINJA}")
        return None
    (folder / JINJA).write_text(program, encoding="utf-8")
    write_json(folder / CHAT_TEMPLATE, {"chat_template": program})
    settings = read_json(folder / _TOKENIZER_CONFIG)
    write_json(folder / _TOKENIZER_CONFIG, {**settings, "chat_template": program})
    return program


# ---- the model card ------------------------------------------------------------------------------------------------


def _card(source: Path, config: LlavaConfig, layout: Template | ChatTemplate, program: str | None) -> str:
    settings = read_optional(source / TRAINING_SETTINGS)
    base = _published(str(settings.get("model_name_or_path") or _former_name(source)))
    head = ["library_name: transformers", "pipeline_tag: image-text-to-text", "tags:", "- llava", "- paddlemix"]
    if "/" in base:
        head.append(f"base_model: {base}")
    lines = ["---", *head, "---", "", f"# {source.name}", "", *_model_lines(config, base)]
    lines += ["", "## Use", "", *_use_lines(config, program), "", "## Training", "", *_training_lines(settings)]
    lines += [
        "",
        f"Conversation template: `{Path(layout.name).name}`. Licence and limits are those of the base model and",
    ]
    return "\n".join([*lines, "of the data; nothing about them is known to the program that wrote this card.", ""])


def _former_name(source: Path) -> str:
    name = read_json(source / "config.json").get("_name_or_path")
    return name if isinstance(name, str) else ""


def _published(name: str) -> str:
    """``owner/model`` as it is; of a path only the last part."""
    parts = Path(name).parts
    return name if len(parts) == 2 and not name.startswith((".", "/", "~")) else (parts[-1] if parts else "")


def _model_lines(config: LlavaConfig, base: str) -> Iterator[str]:
    text, vision = config.text, config.vision
    yield f"A LLaVA model in the layout of HF transformers{f', made from {base}' if base else ''}."
    yield f"{text.model_type} with {text.num_hidden_layers} layers of width {text.hidden_size}, a vision tower of"
    yield f"{vision.image_size} pixels, images as `{config.image.aspect}`. Converted by PaddleMIX-LLaVA."


def _use_lines(config: LlavaConfig, program: str | None) -> list[str]:
    kind, _ = hf_family(config.image)
    asked = [
        'turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is shown?"}]}',
        "prompt = processor.apply_chat_template([turn], add_generation_prompt=True)",
    ]
    if program is None:
        asked = ['prompt = "..."  # this folder has no chat template']
    return [
        "```python",
        "from PIL import Image",
        f"from transformers import AutoProcessor, {kind}ForConditionalGeneration",
        "",
        'processor = AutoProcessor.from_pretrained("FOLDER")',
        f'model = {kind}ForConditionalGeneration.from_pretrained("FOLDER")',
        *asked,
        'inputs = processor(images=Image.open("image.jpg"), text=prompt, return_tensors="pt")',
        "print(processor.decode(model.generate(**inputs, max_new_tokens=100)[0], skip_special_tokens=True))",
        "```",
    ]


def _training_lines(settings: Mapping[str, Any]) -> list[str]:
    if not settings:
        return ["The folder that this one was made of says nothing about its training."]
    files = [Path(str(name)).name for name in _data_files(settings)]
    given = [f"| `{key}` | `{json.dumps(settings[key])}` |" for key in _SHOWN if settings.get(key) not in (None, False)]
    return [f"Data: {', '.join(files) or 'not named'}.", "", "| setting | value |", "|---|---|", *given]


def _data_files(settings: Mapping[str, Any]) -> Iterator[Any]:
    dataset = settings.get("dataset")
    for entry in (dataset.get("train") or []) if isinstance(dataset, dict) else []:
        found = entry.get("data_files") if isinstance(entry, dict) else None
        yield from found if isinstance(found, list) else [found] * (found is not None)
