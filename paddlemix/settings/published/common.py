# SPDX-License-Identifier: Apache-2.0
"""What the readers of the published layouts share: choices, image settings, the template, and checks of the whole."""

from paddlemix.settings.decoders.table import DECODERS
from paddlemix.settings.dense_connector import NO_CONNECTOR, joined_layers
from paddlemix.settings.model import ImageConfig, LlavaConfig, TextConfig, VisionConfig
from paddlemix.settings.published.reader import KeyReader
from paddlemix.settings.published.tower import Pixels
from paddlemix.settings.towers.table import TOWERS
from paddlemix.utils.errors import CheckpointError
from paddlemix.utils.registry import nearest

TEMPLATE_KEY = "paddlemix_template"
"""Key of a config.json in another layout for the template of a model, where it is not ``default_template``."""


MAX_PINPOINTS = 1024
MAX_CANVAS = 1 << 24
"""Pixels of an image's tiles together: 148 tiles of 336 pixels, four times those of any published model."""


def default_template(text: TextConfig) -> str:
    """Name of the conversation template a model was trained with, from facts about its architecture."""
    return DECODERS.get(text.model_type).template_for(text.vocab_size)


def image_config(pixels: Pixels, aspect: str, merge: str, grid: tuple[tuple[int, int], ...]) -> ImageConfig:
    """Image settings of one tower's tiles; ``grid`` as in ``ImageConfig``."""
    return ImageConfig(
        crop_size=pixels.crop_size,
        resize_size=pixels.resize_size,
        aspect=aspect,
        merge=merge,
        grid_pinpoints=grid,
        mean=pixels.mean,
        std=pixels.std,
        stretch=pixels.stretch,
    )


def choice(reader: KeyReader, name: str, accepted: tuple[str, ...], default: str) -> str:
    """The text under ``name``, one of ``accepted``; ``default`` when it is absent."""
    value = reader.take(name, str, default)
    if value not in accepted:
        reader.wrong(name, value, f"expected one of {', '.join(accepted)}{nearest(value, accepted)}")
    return value


def checked(config: LlavaConfig, reader: KeyReader) -> LlavaConfig:
    """``config`` when its parts fit together; CheckpointError that names the keys of ``reader``'s file otherwise."""
    vision, image = config.vision, config.image
    if vision is not None:
        depth = vision.num_hidden_layers
        if not -depth - 1 <= vision.select_layer <= depth:
            raise CheckpointError(f"{reader.file}: layer {vision.select_layer} of a vision tower with {depth} layers")
        if vision.dense_connector != NO_CONNECTOR:
            _check_connector(vision, image, reader)
    if image is not None and image.aspect == "anyres" and not image.grid_pinpoints:
        raise CheckpointError(
            f'{reader.file}: "image_aspect_ratio" is anyres, but "image_grid_pinpoints" is empty; '
            'write it beside, such as "(1x1),...,(6x6)"'
        )
    if image is not None and len(image.grid_pinpoints) > MAX_PINPOINTS:
        count = len(image.grid_pinpoints)
        raise CheckpointError(
            f'{reader.file}: "image_grid_pinpoints" has {count} sizes, at most {MAX_PINPOINTS} are read'
        )
    for width, height in image.grid_pinpoints if image is not None else ():
        if width * height > MAX_CANVAS:
            raise CheckpointError(
                f'{reader.file}: "image_grid_pinpoints" has {width} x {height} pixels; expected at most {MAX_CANVAS}'
            )
    return config


def _check_connector(vision: VisionConfig, image: ImageConfig | None, reader: KeyReader) -> None:
    """CheckpointError for a Dense Connector that this tower or these tiles cannot have."""
    kind, depth = vision.dense_connector, vision.num_hidden_layers
    highest = max(layer for group in joined_layers(kind, depth) for layer in group)
    why = None
    if not TOWERS.get(vision.model_type).joins_layers:
        why = f"is made for CLIP and SigLIP towers, and this one is a {vision.model_type}"
    elif vision.select_feature != "patch":
        why = f'joins patches, so "mm_vision_select_feature" has to be patch, and it is {vision.select_feature}'
    elif highest > vision.feature_layer:
        why = (
            f"takes features up to layer {highest}, but the tower runs to layer {vision.feature_layer} of {depth}; "
            'choose a higher "mm_vision_select_layer"'
        )
    elif kind == "sti" and image is not None and image.merge != "flat":
        why = f'gives rows that belong to no place, so "mm_patch_merge_type" has to be flat, and it is {image.merge}'
    if why is not None:
        raise CheckpointError(f'{reader.file}: "mm_dense_connector_type" is {kind}, which {why}')
