# SPDX-License-Identifier: Apache-2.0
"""A folder or a known name in, a conversation out: model, tokenizer, processor, template and device put together."""

from collections.abc import Callable
from pathlib import Path

import paddle

from paddlemix.checkpoint.folders import read_json
from paddlemix.checkpoint.load import load_model
from paddlemix.generation.sampling import Decoding
from paddlemix.generation.session import ChatSession
from paddlemix.imaging.processor import ImageProcessor
from paddlemix.settings.model import LlavaConfig
from paddlemix.text import chat_template, templates
from paddlemix.text.chat_template import ChatTemplate
from paddlemix.text.templates import Template
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.utils import device as devices


def load_chat(
    path: str,
    *,
    base: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    conv_mode: str | None = None,
    vision_tower: str | None = None,
    projector: str | None = None,
    decoding: Decoding | None = None,
    system: str | None = None,
    context: int | None = None,
    note: Callable[[str], None] | None = None,
) -> ChatSession:
    """A session with the model in ``path``: an original, llava-hf or own folder, a LoRA adapter, or a projector.

    ``base`` is needed only where the folder does not say (or no longer finds) what it belongs to. ``device`` and
    ``dtype`` None take the best there is (``utils.device.choose``). ``conv_mode`` replaces the folder's template;
    without it a PaddleNLP ``chat_template.json`` in the folder counts, else the name in its configuration.
    Sampling is what ``decoding`` says: a folder's ``generation_config.json`` is not applied.
    """
    chosen = devices.choose(device, dtype)
    paddle.set_device(chosen.name)
    loaded = load_model(path, base=base, vision_tower=vision_tower, projector=projector, dtype=chosen.dtype)
    loaded.model.prepare_inference()
    config = loaded.config
    template = template_for(loaded.folder, config, conv_mode)
    about = f"{path}: {chosen.reason}; template {template.name}; {picture_tokens(config)}"
    return ChatSession(
        loaded.model,
        load_tokenizer(loaded.tokenizer_folder),
        processor_for(config),
        template,
        decoding=decoding,
        system=system,
        context=context,
        note=note,
        about=about,
    )


def template_for(folder: Path, config: LlavaConfig, conv_mode: str | None = None) -> Template | ChatTemplate:
    """The template of a model folder.

    transformers' file of the name ``chat_template.json`` holds one jinja program, which nothing here runs; llava-hf
    folders are known by their configuration.
    """
    if conv_mode is not None:
        return templates.get(conv_mode)
    path = folder / "chat_template.json"
    if path.is_file() and "conversation" in read_json(path):
        return chat_template.load(path)
    return templates.get(config.template)


def processor_for(config: LlavaConfig) -> ImageProcessor | None:
    """The processor of a model, or None for one without a vision tower."""
    if config.vision is None or config.image is None:
        return None
    return ImageProcessor(config.image, config.vision)


def picture_tokens(config: LlavaConfig) -> str:
    """``576 tokens a picture (pad)``, with the range where it depends on the picture's size."""
    processor = processor_for(config)
    if processor is None:
        return "no vision tower"
    side = config.image.crop_size
    sizes = [(side, side), *((height, width) for width, height in config.image.grid_pinpoints)]
    counts = sorted({len(processor.layout(size).order) for size in sizes})
    number = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{number} tokens a picture ({config.image.aspect})"
