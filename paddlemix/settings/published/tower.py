# SPDX-License-Identifier: Apache-2.0
"""The vision tower of a foreign checkpoint: where its folder is, its architecture, and how it wants its images."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paddlemix.settings.model import VisionConfig
from paddlemix.settings.places import places
from paddlemix.settings.published.reader import KeyReader
from paddlemix.settings.published.unused_keys import ANYWHERE, PREPROCESSOR, VISION
from paddlemix.settings.strict_json import read_object
from paddlemix.settings.towers.base import Tower
from paddlemix.settings.towers.table import LLAVA_TOWER, TOWERS, towers
from paddlemix.utils.errors import CheckpointError
from paddlemix.utils.paths import expanded, machine_path

_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
_LARGEST = {"hidden_size": 1 << 16, "intermediate_size": 1 << 18, "num_hidden_layers": 512, "image_size": 1 << 14}


@dataclass(frozen=True)
class Pixels:
    """How a tile is made of an image: sizes in pixels, mean and deviation of the normalised channels.

    ``stretch``: both sides are resized to the tile, and nothing is cut off.
    """

    crop_size: int
    resize_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pads: bool = False
    stretch: bool = False


def find_tower(folder: str | Path, name: str) -> Path | None:
    """Folder of the tower ``name`` for the checkpoint ``folder``, or None.

    Looked up in the places of ``settings.places``.
    """
    if not name.isprintable() or max(map(len, name.split("/"))) > 255:
        return None  # no name of a folder, and asking for it would be an error of the system
    found = places(name, [Path(expanded(folder))], published_twins(name))
    return next((place for place in found if (place / "config.json").is_file()), None)


def read_tower(folder: Path) -> VisionConfig:
    """The tower of a folder, alone or as the ``vision_config`` of a whole model."""
    built_in = [tower.type_in_file for tower in towers() if tower.has_code]
    return vision_of(KeyReader.of_file(folder / "config.json", built_in=built_in))


def vision_of(reader: KeyReader) -> VisionConfig:
    """``VisionConfig`` from the object of a tower's config.json.

    A whole model (CLIP) holds ``vision_config`` and, in files of old versions, also ``vision_config_dict``; where both
    say something, the second wins (transformers' CLIPConfig does so).
    """
    kind = reader.take("model_type", str, LLAVA_TOWER.type_in_file)
    whole = next((tower for tower in towers() if tower.whole_type == kind), None)
    if whole is not None:
        reader.ignore(VISION, ANYWHERE)
        part = reader.child("vision_config", {})
        newer = reader.take("vision_config_dict", dict, None) or {}
        reader.dtype()
        found = vision_of(part.updated({"model_type": part.data.get("model_type", whole.type_in_file), **newer}))
        reader.finish()
        return found
    return _read(reader, _tower_of(reader, kind))


def _tower_of(reader: KeyReader, kind: str) -> Tower:
    """The description that an object of this ``model_type`` belongs to."""
    for refused in (item for tower in towers() for item in tower.refused):
        if kind.startswith(refused.type_prefix) or refused.key in reader.data:
            reader.wrong("model_type", kind, refused.why)
    found = [tower for tower in towers() if tower.type_in_file == kind]
    if not found:
        known = ", ".join(dict.fromkeys(tower.type_in_file for tower in towers()))
        reader.wrong("model_type", kind, f"a vision tower of this kind is not supported (known: {known})")
    special = [tower for tower in found if tower.known_by_extra and any(key in reader.data for key in tower.extra)]
    return special[0] if special else next(tower for tower in found if not tower.known_by_extra)


def refuse_model(reader: KeyReader) -> None:
    """CheckpointError for a chat model on a tower that is not supported, before that tower is looked for."""
    kind = reader.data.get("mm_projector_type")
    name = str(reader.data.get("mm_vision_tower"))
    for refused in (item for tower in towers() for item in tower.refused):
        if kind in refused.projectors:
            reader.wrong("mm_projector_type", kind, refused.why)
        if name.rpartition("/")[2] in refused.names:
            reader.wrong("mm_vision_tower", name, refused.why)


def _read(reader: KeyReader, tower: Tower) -> VisionConfig:
    values: dict[str, Any] = {}
    for name, default in tower.defaults.items():
        values[name] = reader.take(name, type(default), default)
    reader.expect("num_channels", 3, why="images have 3 channels")
    for name, (accepted, why) in tower.expected.items():
        reader.expect(name, accepted, why=why)
    reader.positive(values, *_SIZES, "layer_norm_eps")
    reader.at_most(values, _LARGEST)
    heads = values["num_attention_heads"]
    if values["hidden_size"] % heads:
        reader.wrong("num_attention_heads", heads, f"hidden_size {values['hidden_size']} is no multiple")
    if values["image_size"] < values["patch_size"]:
        reader.wrong("patch_size", values["patch_size"], f"larger than image_size {values['image_size']}")
    if values["hidden_act"] not in tower.activations:
        reader.wrong("hidden_act", values["hidden_act"], f"expected {' or '.join(tower.activations)}")
    extra = {name: reader.take(name, bool, default) for name, default in tower.extra.items()}
    reader.ignore(tower.ignored, VISION, ANYWHERE)
    reader.dtype()
    reader.finish()
    return _config(tower, values, extra)


def _config(tower: Tower, values: Mapping[str, Any], extra: Mapping[str, Any]) -> VisionConfig:
    """The tower with the tiles that chat models give it."""
    side = values["image_size"]
    kept = dict(extra)
    if tower.position_table is not None:
        kept["position_grid"] = side // values["patch_size"]
    sized = {**values, "image_size": tower.tile_sides.get(side, side)}
    return VisionConfig(model_type=tower.kind, extra=kept, **sized)


def _published(tower: Tower, facts: Mapping[str, Any]) -> VisionConfig:
    return _config(tower, {**tower.defaults, **facts}, tower.extra)


def known_tower(name: str | None) -> VisionConfig | None:
    """Architecture of a published tower by its exact name, or by a path that ends in its last part."""
    if not name:
        return None
    for tower in towers():
        for known in (name, *published_twins(name)):
            if known in tower.published:
                return _published(tower, tower.published[known])
    return None


def is_published(name: str) -> bool:
    """Whether every program knows the tower that is called so."""
    return any(name in tower.published for tower in towers() if not tower.known_by_last_part)


def published_twins(name: str) -> list[str]:
    """Published towers that a path of another machine ends in; another owner's name is another model.

    A tower that is ``known_by_last_part`` is the same whatever stands before it.
    """
    path = machine_path(name)
    is_path = len(path.parts) > 2 or path.is_absolute()
    names = (known for tower in towers() if is_path or tower.known_by_last_part for known in tower.published)
    return [known for known in names if Path(known).name == path.name and known != name]


def tower_like(sizes: Mapping[str, int], tower: Tower = LLAVA_TOWER) -> VisionConfig | None:
    """The published ``tower`` of these sizes (fields of ``VisionConfig`` but the heads), which weights show.

    The number of heads is in no shape, so a tower that nobody published is not guessed.
    """
    for facts in tower.published.values():
        known = {**tower.defaults, **facts}
        if all(known[key] == size for key, size in sizes.items()):
            return _published(tower, facts)
    return None


def with_feature(vision: VisionConfig, feature: str) -> VisionConfig:
    """``patch`` or ``cls_patch``; without a class token both are the same, and it is called ``patch``."""
    return replace(vision, select_feature=feature if TOWERS.get(vision.model_type).class_token else "patch")


def pixels_for(vision: VisionConfig, folders: list[Path]) -> Pixels:
    """How the images of a tower are made; ``folders`` may hold a file that tells it (``read_pixels``)."""
    tower = TOWERS.get(vision.model_type)
    plain = Pixels(vision.image_size, vision.image_size, tower.mean, tower.std, stretch=tower.stretches)
    return read_pixels(folders, plain) if tower.reads_preprocessor else plain


def read_pixels(folders: list[Path], plain: Pixels) -> Pixels:
    """What the first of ``folders`` that holds a file about images says, or ``plain``: what the tower itself says.

    transformers 5 writes it into processor_config.json, which it prefers, and no preprocessor_config.json.
    """
    for folder in folders:
        reader = _preprocessor(folder)
        if reader is not None:
            pixels = _pixels_of(reader, plain)
            if pixels.crop_size != plain.crop_size:
                raise CheckpointError(
                    f'{reader.file}: "crop_size" is {pixels.crop_size}, but the vision tower takes '
                    f"{plain.crop_size} pixels"
                )
            return pixels
    return plain


def _preprocessor(folder: Path) -> KeyReader | None:
    file = folder / "processor_config.json"
    inside = read_object(file, CheckpointError).get("image_processor") if file.is_file() else None
    if isinstance(inside, dict):
        return KeyReader(inside, file, "image_processor/")
    file = folder / "preprocessor_config.json"
    return KeyReader.of_file(file) if file.is_file() else None


def _pixels_of(reader: KeyReader, plain: Pixels) -> Pixels:
    kind = reader.data.get("image_processor_type", "")
    pads = str(kind).startswith("LlavaImageProcessor") and bool(reader.data.get("do_pad", False))
    stretch = plain.stretch and not reader.data.get("do_center_crop")
    for name in ("do_resize", "do_center_crop", "do_normalize", "do_rescale"):
        if reader.take(name, bool, True) is not True and not (stretch and name == "do_center_crop"):
            reader.wrong(name, False, "images are always resized, cropped, scaled and normalised")
    if reader.take("resample", int, 3) != 3:
        reader.wrong("resample", reader.data["resample"], "only 3 (bicubic) is supported")
    factor = reader.take("rescale_factor", float, 1 / 255)
    if abs(factor * 255 - 1) > 1e-6:
        reader.wrong("rescale_factor", factor, "expected 1/255")
    crop = _side(reader, "crop_size", plain.crop_size)
    resize = _side(reader, "size", crop)
    if stretch and resize != crop:
        reader.wrong("size", reader.data.get("size"), f"a tile has {crop} pixels, and nothing is cut off")
    mean, std = reader.triple("image_mean", plain.mean), reader.triple("image_std", plain.std)
    if min(std) <= 0:
        reader.wrong("image_std", std, "expected numbers above 0")
    reader.ignore(PREPROCESSOR, ANYWHERE)
    reader.finish()
    return Pixels(crop, resize, mean, std, pads, stretch)


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
