# SPDX-License-Identifier: Apache-2.0
"""The multi-view model before its first step: four tokens a view, sixteen an object."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from paddlemix.checkpoint.save import save_model
from paddlemix.demo.model import draw_start, tiny_config, write_tokenizer
from paddlemix.demo.solids import SIDE
from paddlemix.models.llava import build_empty
from paddlemix.settings.model import ImageConfig, LlavaConfig
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.utils.files import publish_folder

PATCH = 16


def config_of(vocabulary: int) -> LlavaConfig:
    """The demo's tiny LLaVA on views of another size: a colour fills half of a view."""
    config = tiny_config(vocabulary)
    vision = replace(config.vision, image_size=SIDE, patch_size=PATCH)
    # Images of solids are bright: CLIP's own mean and deviation suit them.
    return config.with_changes(vision=vision, image=ImageConfig(crop_size=SIDE, resize_size=SIDE))


def write_start(folder: Path, sentences: Iterable[str], seed: int) -> int:
    """The model folder that training starts from; returns the number of parameters."""
    with publish_folder(folder.with_name(f"{folder.name}-tokenizer"), replace=True) as staging:
        write_tokenizer(staging, sentences, short=False)
        tokenizer = load_tokenizer(staging)
    config = config_of(tokenizer.vocab_size)
    model = build_empty(config)
    draw_start(model, seed)
    save_model(folder, model, config, tokenizer, replace=True)
    return sum(int(parameter.size) for parameter in model.parameters())
