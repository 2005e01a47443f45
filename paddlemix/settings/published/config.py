# SPDX-License-Identifier: Apache-2.0
"""Foreign config.json -> ``LlavaConfig``: LLaVA as published, llava-hf, PaddleMIX, a plain language model, our own.

Every key of a file is used here, ignored by name with a reason (``unused_keys.py``), or an error. What a model does
follows from what its config.json says, never from the name of its folder.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

from paddlemix.settings.decoders.table import DECODERS, decoders
from paddlemix.settings.dense_connector import CONNECTORS
from paddlemix.settings.model import ImageConfig, LlavaConfig, VisionConfig
from paddlemix.settings.published.common import (
    MAX_CANVAS as MAX_CANVAS,
)
from paddlemix.settings.published.common import (
    MAX_PINPOINTS as MAX_PINPOINTS,
)
from paddlemix.settings.published.common import TEMPLATE_KEY as TEMPLATE_KEY
from paddlemix.settings.published.common import checked, choice, image_config
from paddlemix.settings.published.common import default_template as default_template
from paddlemix.settings.published.grid import read_aspect, read_grid
from paddlemix.settings.published.llava_hf import HF_TYPES, is_llava_hf, read_llava_hf
from paddlemix.settings.published.reader import KeyReader
from paddlemix.settings.published.text import read_text
from paddlemix.settings.published.tower import (
    find_tower,
    known_tower,
    pixels_for,
    read_tower,
    refuse_model,
    with_feature,
)
from paddlemix.settings.published.unused_keys import ANYWHERE, LLAVA
from paddlemix.settings.towers.table import TOWERS
from paddlemix.utils import options
from paddlemix.utils.errors import CheckpointError, ConfigError
from paddlemix.utils.foreign import reading, refuse_special
from paddlemix.utils.paths import begins_at
from paddlemix.utils.registry import nearest

OWN_MODEL_TYPE = "paddlemix_llava"
FEW_BITS = "quantization_config"
"""Key of our config.json about weights of 8 or 4 bits."""
_PROJECTOR = re.compile(r"linear|identity|mlp[1-9]\d?x_gelu(\w*ln\w*)?")
_MERGES = ("flat", "spatial", "spatial_unpad")
_SELECTED = {"patch": "patch", "cls_patch": "cls_patch"}


def load_config(
    folder: str | Path,
    *,
    tower_folder: str | Path | None = None,
    overrides: dict[str, Any] | None = None,
    inside: VisionConfig | None = None,
) -> LlavaConfig:
    """The architecture of the model in ``folder``.

    ``tower_folder`` is the CLIP folder to use; without it the tower that config.json names is looked up
    (``tower.find_tower``). A language model without a tower gives ``vision=None, image=None`` unless
    ``tower_folder`` is given. ``inside`` is the tower that weights in the folder tell of, for one whose own folder is
    not on this machine. ``overrides`` are keys of ``OVERRIDES`` by LLaVA's names; None leaves a key as it is.

    CheckpointError names the file, the key, its value and what was expected. Nothing in the folder is executed.
    """
    root = Path(folder)
    if not root.is_dir():
        raise CheckpointError(f"{root}: no such folder; a model is a folder with a config.json{begins_at(root)}")
    given = Path(tower_folder) if tower_folder is not None else None
    for folder in (root, given):
        if folder is not None:
            refuse_special(folder, CheckpointError)
    with reading(f"{root / 'config.json'}: the configuration is", CheckpointError):
        config = _load(root, given, inside)
    return apply_overrides(config, overrides or {})


def _load(root: Path, given: Path | None, inside: VisionConfig | None) -> LlavaConfig:
    reader = KeyReader.of_file(root / "config.json")
    kind = reader.take("model_type", str, None)
    if kind == OWN_MODEL_TYPE:
        config = _with_tower(_own(reader), given)
    elif kind in HF_TYPES and is_llava_hf(reader):
        config = read_llava_hf(reader, root)
    elif kind in _original_types() or (kind in DECODERS and reader.data.get("mm_vision_tower")):
        config = _original(reader, root, given, inside)
    elif kind in DECODERS:
        config = _language_model(reader, given)
    else:
        known = (OWN_MODEL_TYPE, *_original_types(), *HF_TYPES[1:], *DECODERS)
        hint = nearest(str(kind), known)
        reader.wrong("model_type", kind, f"unknown{hint} (known: {', '.join(known)})")
    return config


def _original_types() -> dict[str, str]:
    """``model_type`` of LLaVA's own layout to that of the decoder."""
    return {name: decoder.kind for decoder in decoders() for name in decoder.original_types}


def _decoder_of(reader: KeyReader) -> str:
    """The decoder of a config.json in LLaVA's own layout."""
    declared = _original_types().get(reader.data["model_type"], reader.data["model_type"])
    if not DECODERS.get(declared).class_decides:
        return declared
    names = [str(name) for name in reader.data.get("architectures") or []]
    found = [
        item.kind for item in decoders() if any(name.endswith((item.hf_class, item.original_class)) for name in names)
    ]
    return found[-1] if found else declared


def _own(reader: KeyReader) -> LlavaConfig:
    left_out = ("model_type", "architectures", "format", FEW_BITS)
    data = {key: value for key, value in reader.data.items() if key not in left_out}
    _check_few_bits(reader)
    try:
        config = LlavaConfig.from_dict(data, str(reader.file))
        for key, part, table in (("text", config.text, DECODERS), ("vision", config.vision, TOWERS)):
            if part is not None and part.model_type not in table:
                known = f"unknown{nearest(part.model_type, list(table))} (known: {', '.join(table)})"
                reader.wrong(f"{key}/model_type", part.model_type, known)
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    return config


def _check_few_bits(reader: KeyReader) -> None:
    note = reader.data.get(FEW_BITS)
    known = {"quant_method": "paddlemix", "group_size": 32}
    if note is None or (isinstance(note, dict) and note.get("bits") in (8, 4) and note | known == note):
        return
    reader.wrong(FEW_BITS, note, f"expected bits 8 or 4 with {known}; convert the model again")


def _original(reader: KeyReader, root: Path, tower_folder: Path | None, inside: VisionConfig | None) -> LlavaConfig:
    """LLaVA's own layout: the keys of the language model and the mm_* keys side by side (PaddleMIX keeps them)."""
    refuse_model(reader)
    text = read_text(reader, _decoder_of(reader), complete=True)
    name = reader.take("mm_vision_tower", str, None) or reader.take("vision_tower", str, None)
    if name is None and tower_folder is None:
        raise CheckpointError(
            f'{reader.file}: "mm_vision_tower" is missing; name the tower with {options.current().vision_tower}'
        )
    tower = tower_folder or find_tower(root, name)
    vision = _selected(reader, _tower(tower, inside, name, root, reader))
    wide = reader.take("mm_hidden_size", int, vision.feature_width)
    if wide != vision.feature_width:
        reader.wrong("mm_hidden_size", wide, f"the vision tower {tower or name} has width {vision.feature_width}")
    pixels = pixels_for(vision, [tower, root] if tower else [root])
    merge = choice(reader, "mm_patch_merge_type", _MERGES, "flat")
    aspect, max_tiles = read_aspect(reader, "square")
    image = image_config(pixels, aspect, merge, read_grid(reader, pixels.crop_size))
    image = dataclasses.replace(image, max_tiles=max_tiles)
    side = choice(reader, "tokenizer_padding_side", ("right", "left"), "right")
    config = LlavaConfig(
        text=text,
        vision=vision,
        image=image,
        projector_type=_projector(reader, "linear"),
        has_image_newline="unpad" in merge,
        template=reader.take(TEMPLATE_KEY, str, default_template(text)),
        use_im_start_end=reader.take("mm_use_im_start_end", bool, False),
        use_im_patch_token=reader.take("mm_use_im_patch_token", bool, False),
        padding_side=side,
        model_max_length=_length(reader),
        vision_tower_name=name,
        dtype=reader.dtype() or "float32",
    )
    reader.expect("use_mm_proj", True, why="a model without a projector cannot see")
    reader.expect("mm_resampler_type", "identity", why="resamplers are not supported")
    reader.expect("s2", False, why="the multi-scale tower is not supported")
    reader.ignore(LLAVA, {"s2_scales": "belongs to s2"}, ANYWHERE)
    reader.finish()
    return checked(config, reader)


def _language_model(reader: KeyReader, tower_folder: Path | None) -> LlavaConfig:
    """A language model without a tower. With ``tower_folder`` it becomes a LLaVA that has still to be trained."""
    text = read_text(reader, reader.data["model_type"], complete=True)
    length = min(_length(reader, text.max_position_embeddings), text.max_position_embeddings)
    config = LlavaConfig(
        text=text,
        vision=None,
        image=None,
        template=reader.take(TEMPLATE_KEY, str, default_template(text)),
        model_max_length=length,
        dtype=reader.dtype() or "float32",
    )
    reader.ignore(ANYWHERE)
    reader.finish()
    return checked(_with_tower(config, tower_folder), reader)


def _with_tower(config: LlavaConfig, tower_folder: Path | None) -> LlavaConfig:
    """A language model with the tower of ``tower_folder``; any other model, and without a folder, as it is."""
    if config.vision is not None or tower_folder is None:
        return config
    vision = read_tower(tower_folder)
    image = image_config(pixels_for(vision, [tower_folder]), "square", "flat", ())
    return config.with_changes(vision=vision, image=image, vision_tower_name=str(tower_folder))


def _tower(
    folder: Path | None, inside: VisionConfig | None, name: str | None, root: Path, reader: KeyReader
) -> VisionConfig:
    if folder is not None:
        return read_tower(folder)
    known = inside or known_tower(name)
    if known is None:
        reader.wrong(
            "mm_vision_tower",
            name,
            f"no folder of that name (looked in the current folder, beside {root} and in the cache); "
            f"name it with {options.current().vision_tower}",
        )
    return known


def _selected(reader: KeyReader, vision: VisionConfig) -> VisionConfig:
    layer = reader.need("mm_vision_select_layer", int)
    feature = choice(reader, "mm_vision_select_feature", tuple(_SELECTED), "patch")
    return _connected(reader, with_feature(dataclasses.replace(vision, select_layer=layer), feature))


def _connected(reader: KeyReader, vision: VisionConfig) -> VisionConfig:
    kind = choice(reader, "mm_dense_connector_type", CONNECTORS, vision.dense_connector)
    return dataclasses.replace(vision, dense_connector=kind)


def _length(reader: KeyReader, default: int = 2048) -> int:
    longest = reader.take("max_sequence_length", int, None)
    trained = reader.take("tokenizer_model_max_length", int, None)
    length = trained or longest or default
    if length <= 0:
        reader.wrong("tokenizer_model_max_length", length, "expected a number above 0")
    return length


def _projector(reader: KeyReader, default: str) -> str:
    value = reader.take("mm_projector_type", str, default)
    if not _PROJECTOR.fullmatch(value):
        reader.wrong("mm_projector_type", value, "expected linear, identity or mlpNx_gelu (also with _ln)")
    return value


def _sized(reader: KeyReader, vision: VisionConfig, image: ImageConfig) -> tuple[VisionConfig, ImageConfig]:
    """Tower and tiles of ``mm_image_size`` pixels, for a tower whose position table is resized."""
    side = reader.take("mm_image_size", int, vision.image_size)
    if side == vision.image_size:
        return vision, image
    if TOWERS.get(vision.model_type).position_table is None:
        reader.wrong("mm_image_size", side, f"this vision tower takes {vision.image_size} pixels only")
    if side < vision.patch_size:
        reader.wrong("mm_image_size", side, f"smaller than one patch of {vision.patch_size} pixels")
    sized = dataclasses.replace(vision, image_size=side)
    return sized, dataclasses.replace(image, crop_size=side, resize_size=side)


def _tiled(reader: KeyReader, image: ImageConfig) -> ImageConfig:
    """Aspect, merge and grid as the settings say; ``anyres_max_N`` stays where they name no aspect."""
    merge = choice(reader, "mm_patch_merge_type", _MERGES, image.merge)
    aspect, most = read_aspect(reader, image.aspect)
    most = most if "image_aspect_ratio" in reader.data else image.max_tiles
    grid = read_grid(reader, image.crop_size) or image.grid_pinpoints
    return dataclasses.replace(image, merge=merge, aspect=aspect, max_tiles=most, grid_pinpoints=grid)


OVERRIDES = (
    "mm_vision_tower", "mm_projector_type", "mm_vision_select_layer", "mm_vision_select_feature",
    "mm_dense_connector_type", "mm_patch_merge_type", "mm_use_im_start_end", "mm_use_im_patch_token",
    "image_aspect_ratio", "image_grid_pinpoints", "mm_image_size", "tokenizer_model_max_length",
    "tokenizer_padding_side", "template", "dtype",
)  # fmt: skip
"""Keys that a caller may set over what a folder says, by LLaVA's names. ``mm_image_size`` is ours."""

_NEEDS_TOWER = {
    "mm_vision_select_layer",
    "mm_dense_connector_type",
    "image_aspect_ratio",
    "mm_patch_merge_type",
    "mm_image_size",
}


def apply_overrides(config: LlavaConfig, overrides: dict[str, Any]) -> LlavaConfig:
    """``config`` with the given keys of ``OVERRIDES`` replaced; None leaves a key as it is."""
    unknown = [name for name in overrides if name not in OVERRIDES]
    if unknown:
        raise ConfigError(f'unknown override "{unknown[0]}"{nearest(unknown[0], OVERRIDES)}')
    data = {name: value for name, value in overrides.items() if value is not None}
    if not data:
        return config
    if isinstance(data.get("image_grid_pinpoints"), tuple | list):
        data["image_grid_pinpoints"] = [list(pair) for pair in data["image_grid_pinpoints"]]
    reader = KeyReader(data, "settings")
    vision, image = config.vision, config.image
    if vision is not None:
        layer = reader.take("mm_vision_select_layer", int, vision.select_layer)
        feature = choice(reader, "mm_vision_select_feature", tuple(_SELECTED), vision.select_feature)
        vision = _connected(reader, with_feature(dataclasses.replace(vision, select_layer=layer), feature))
    merge = None
    if vision is not None and image is not None:
        vision, image = _sized(reader, vision, image)
        image = _tiled(reader, image)
        merge = image.merge
    changed = config.with_changes(
        vision=vision,
        image=image,
        projector_type=_projector(reader, config.projector_type),
        has_image_newline=config.has_image_newline or "unpad" in (merge or ""),
        template=reader.take("template", str, config.template),
        use_im_start_end=reader.take("mm_use_im_start_end", bool, config.use_im_start_end),
        use_im_patch_token=reader.take("mm_use_im_patch_token", bool, config.use_im_patch_token),
        padding_side=choice(reader, "tokenizer_padding_side", ("right", "left"), config.padding_side),
        model_max_length=reader.take("tokenizer_model_max_length", int, config.model_max_length),
        vision_tower_name=reader.take("mm_vision_tower", str, config.vision_tower_name),
        dtype=reader.dtype() or config.dtype,
    )
    if vision is None and set(data) & _NEEDS_TOWER:
        given = ", ".join(sorted(set(data) & _NEEDS_TOWER))
        way = options.current().vision_tower
        raise ConfigError(f"{given}: the model has no vision tower that it could belong to; name one with {way}")
    return checked(changed, reader)
