# SPDX-License-Identifier: Apache-2.0
"""The vision tower of a foreign checkpoint: where its folder is, its architecture, and how it wants its images."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddlemix.settings.model import CLIP_MEAN, CLIP_STD, VisionConfig
from paddlemix.settings.places import places
from paddlemix.settings.published.intern import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    INTERN_VIT_TYPE,
    eva_of,
    intern_vit_of,
    is_eva,
    known_intern_vit,
    refuse_14b,
)
from paddlemix.settings.published.reader import KeyReader
from paddlemix.settings.published.unused_keys import ANYWHERE, PREPROCESSOR, VISION
from paddlemix.utils.errors import CheckpointError
from paddlemix.utils.paths import expanded

# Defaults of transformers' CLIPVisionConfig for the keys that a file leaves out.
_CLIP_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}

_LARGEST = {"hidden_size": 1 << 16, "intermediate_size": 1 << 18, "num_hidden_layers": 512, "image_size": 1 << 14}

# CLIP ViT-L/14: the tower that a llava-hf config means when it has no vision_config.
CLIP_LARGE_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}

WELL_KNOWN = {
    "openai/clip-vit-large-patch14-336": CLIP_LARGE_336,
    "openai/clip-vit-large-patch14": {**CLIP_LARGE_336, "image_size": 224},
    # What MV-LLaVA and ShareGPT4V name: CLIP's towers, tuned.
    "Zery/MV-LLaVA-7B_Pretrained_vit-large224-l4": {**CLIP_LARGE_336, "image_size": 224},
    "Lin-Chen/ShareGPT4V-7B_Pretrained_vit-large336-l12": CLIP_LARGE_336,
    "Lin-Chen/ShareGPT4V-13B_Pretrained_vit-large336-l12": CLIP_LARGE_336,
}
"""Architecture of published towers, for checkpoints that hold the tower's weights but not its config.json.

The weights decide in the end: a tower of another shape does not load.
"""


@dataclass(frozen=True)
class Pixels:
    """How a tile is made of an image: sizes in pixels, mean and deviation of the normalised channels."""

    crop_size: int
    resize_size: int
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    pads: bool = False


def find_tower(folder: str | Path, name: str) -> Path | None:
    """Folder of the tower ``name`` for the checkpoint ``folder``, or None.

    Looked up in the places of ``settings.places``.
    """
    if not name.isprintable() or max(map(len, name.split("/"))) > 255:
        return None  # no name of a folder, and asking for it would be an error of the system
    found = places(name, [Path(expanded(folder))], published_twins(name))
    return next((place for place in found if (place / "config.json").is_file()), None)


def read_tower(folder: Path) -> VisionConfig:
    """The tower of a folder: CLIP (the whole model or its vision part), EVA-CLIP or InternViT."""
    return vision_of(KeyReader.of_file(folder / "config.json", built_in=(INTERN_VIT_TYPE,)))


def vision_of(reader: KeyReader) -> VisionConfig:
    """``VisionConfig`` from the object of a tower's config.json.

    A whole CLIP model holds ``vision_config`` and, in files of old versions, also ``vision_config_dict``; where both
    say something, the second wins (transformers' CLIPConfig does so).
    """
    kind = reader.take("model_type", str, "clip_vision_model")
    if kind == "clip":
        reader.ignore(VISION, ANYWHERE)
        part = reader.child("vision_config", {})
        newer = reader.take("vision_config_dict", dict, None) or {}
        reader.dtype()
        reader.finish()
        return vision_of(part.updated(newer))
    if kind == INTERN_VIT_TYPE:
        return intern_vit_of(reader)
    refuse_14b(reader, kind)
    if kind != "clip_vision_model":
        known = f"clip_vision_model, {INTERN_VIT_TYPE}"
        reader.wrong("model_type", kind, f"a vision tower of this kind is not supported (known: {known})")
    return eva_of(reader, _CLIP_DEFAULTS) if is_eva(reader) else _clip_of(reader)


def _clip_of(reader: KeyReader) -> VisionConfig:
    values: dict[str, Any] = {}
    for name, default in _CLIP_DEFAULTS.items():
        values[name] = reader.take(name, type(default), default)
    if reader.take("num_channels", int, 3) != 3:
        reader.wrong("num_channels", reader.data["num_channels"], "images have 3 channels")
    reader.positive(values, "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    reader.positive(values, "image_size", "patch_size", "layer_norm_eps")
    reader.at_most(values, _LARGEST)
    if values["hidden_size"] % values["num_attention_heads"]:
        reader.wrong(
            "num_attention_heads", values["num_attention_heads"], f"hidden_size {values['hidden_size']} is no multiple"
        )
    if values["image_size"] < values["patch_size"]:
        reader.wrong("patch_size", values["patch_size"], f"larger than image_size {values['image_size']}")
    if values["hidden_act"] not in ("quick_gelu", "gelu"):
        reader.wrong("hidden_act", values["hidden_act"], "expected quick_gelu or gelu")
    reader.ignore(VISION, ANYWHERE)
    reader.dtype()
    reader.finish()
    return VisionConfig(**values)


def known_tower(name: str | None) -> VisionConfig | None:
    """Architecture of a published tower by its exact name, or by a path that ends in its last part."""
    name = name or ""
    found = [known for known in (name, *published_twins(name)) if known in WELL_KNOWN]
    return VisionConfig(**{**_CLIP_DEFAULTS, **WELL_KNOWN[found[0]]}) if found else known_intern_vit(name)


def published_twins(name: str) -> list[str]:
    """Published towers that a path of another machine ends in; another owner's name is another model."""
    path = Path(name)
    if len(path.parts) < 3 and not path.is_absolute():
        return []
    return [known for known in WELL_KNOWN if Path(known).name == path.name]


def tower_like(sizes: Mapping[str, int]) -> VisionConfig | None:
    """The published tower of these sizes (keys of ``CLIP_LARGE_336`` but the heads), which weights tell by themselves.

    The number of heads is in no shape, so a tower that nobody published is not guessed.
    """
    known = (facts for facts in WELL_KNOWN.values() if all(facts[key] == size for key, size in sizes.items()))
    return next((VisionConfig(**{**_CLIP_DEFAULTS, **facts}) for facts in known), None)


def pixels_for(vision: VisionConfig, folders: list[Path]) -> Pixels:
    """How the images of a tower are made; ``folders`` may hold a preprocessor_config.json.

    InternVL-Chat does not read that file for InternViT (it says 224 for the tower that is used at 336): the side is
    the tile's, mean and deviation are ImageNet's.
    """
    if vision.model_type == INTERN_VIT_TYPE:
        return Pixels(vision.image_size, vision.image_size, IMAGENET_MEAN, IMAGENET_STD)
    return read_pixels(folders, vision.image_size)


def read_pixels(folders: list[Path], image_size: int) -> Pixels:
    """The first preprocessor_config.json in ``folders``, or CLIP's own numbers for tiles of ``image_size``."""
    for folder in folders:
        file = folder / "preprocessor_config.json"
        if file.is_file():
            pixels = _pixels_of(KeyReader.of_file(file), image_size)
            if pixels.crop_size != image_size:
                raise CheckpointError(
                    f'{file}: "crop_size" is {pixels.crop_size}, but the vision tower takes {image_size} pixels'
                )
            return pixels
    return Pixels(image_size, image_size)


def _pixels_of(reader: KeyReader, image_size: int) -> Pixels:
    kind = reader.data.get("image_processor_type", "")
    pads = str(kind).startswith("LlavaImageProcessor") and bool(reader.data.get("do_pad", False))
    for name in ("do_resize", "do_center_crop", "do_normalize", "do_rescale"):
        if reader.take(name, bool, True) is not True:
            reader.wrong(name, False, "images are always resized, cropped, scaled and normalised")
    if reader.take("resample", int, 3) != 3:
        reader.wrong("resample", reader.data["resample"], "only 3 (bicubic) is supported")
    factor = reader.take("rescale_factor", float, 1 / 255)
    if abs(factor * 255 - 1) > 1e-6:
        reader.wrong("rescale_factor", factor, "expected 1/255")
    crop = _side(reader, "crop_size", image_size)
    resize = _side(reader, "size", crop)
    mean, std = reader.triple("image_mean", CLIP_MEAN), reader.triple("image_std", CLIP_STD)
    if min(std) <= 0:
        reader.wrong("image_std", std, "expected numbers above 0")
    reader.ignore(PREPROCESSOR, ANYWHERE)
    reader.finish()
    return Pixels(crop, resize, mean, std, pads)


def _side(reader: KeyReader, name: str, default: int) -> int:
    """A side in pixels from an int (old files), {"height", "width"} or {"shortest_edge"} (new files)."""
    value = reader.take(name, (int, dict), default)
    if isinstance(value, dict):
        sides = [side for key, side in value.items() if key in ("height", "width", "shortest_edge")]
        if len(sides) != len(value) or not sides or len({*map(str, sides)}) != 1:
            reader.wrong(name, value, 'expected {"shortest_edge": N} or equal "height" and "width"')
        value = sides[0]
    if type(value) is not int or not 0 < value <= 1 << 14:
        reader.wrong(name, value, "expected a side in pixels")
    return value
