# SPDX-License-Identifier: Apache-2.0
"""What a model folder says about asking it: template, image processor, ending ids, and how much it holds."""

from pathlib import Path

from paddlemix.imaging.layout import tokens_told
from paddlemix.imaging.processor import ImageProcessor
from paddlemix.settings.model import LlavaConfig, TextConfig
from paddlemix.text import model_template, templates
from paddlemix.text.chat_template import ChatTemplate
from paddlemix.text.templates import Template


def template_for(folder: Path, config: LlavaConfig, conv_mode: str | None = None) -> Template | ChatTemplate:
    """The template of a model folder.

    transformers' file of the name ``chat_template.json`` holds one jinja program, which nothing here runs; llava-hf
    folders are known by their configuration.
    """
    if conv_mode is not None:
        return templates.get(conv_mode)
    return model_template.template_for(folder, config.template)


def processor_for(config: LlavaConfig) -> ImageProcessor | None:
    """The processor of a model, or None for one without a vision tower."""
    if config.vision is None or config.image is None:
        return None
    return ImageProcessor(config.image, config.vision)


def picture_tokens(config: LlavaConfig) -> str:
    """``576 tokens an image (pad)``, with the range where it depends on the image's size."""
    if config.vision is None or config.image is None:
        return "no vision tower"
    return f"{tokens_told(config.image, config.vision)} tokens an image ({config.image.aspect})"


def context_of(text: TextConfig) -> int:
    """Positions that a decoder can hold: its embeddings' number, times the factor of a scaling that stretches them.

    ``linear`` and ``dynamic`` scaling leave ``max_position_embeddings`` at the unscaled number; the others
    (``llama3``, ``yarn``, ``longrope``) write the scaled one. A sliding window is the limit where it is smaller.
    """
    scaling = text.rope_scaling or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    stretched = kind in {"linear", "dynamic"}
    positions = int(text.max_position_embeddings * (float(scaling.get("factor", 1.0)) if stretched else 1.0))
    return min(positions, text.sliding_window or positions)
