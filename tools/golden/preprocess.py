# SPDX-License-Identifier: Apache-2.0
"""Family a: images to pixels in square, pad and anyres mode, their uint8 stages, and the integer tables."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from paddlemix.imaging.layout import choose_resolution, layout_of, tile_grid, token_count, unpad_window
from paddlemix.imaging.load import OWN_LIMITS, load_image
from paddlemix.imaging.preprocess import background_colour, expand_to_square, preprocess, resize_and_pad
from paddlemix.settings.model import ImageConfig, VisionConfig
from tools.golden.case import Case, guarded

FOLDER = "a_preprocess"
PIXELS = 1e-5
LIMITS = replace(OWN_LIMITS, max_aspect=float("inf"))


def run(folder: Path) -> Iterator[Case]:
    """Every case of ``folder/a_preprocess``."""
    if not (folder / FOLDER).is_dir():
        return
    facts = json.loads((folder / FOLDER / "images.json").read_text(encoding="utf-8"))
    pictures = Pictures(folder, facts)
    arrays = _folder_of_this_pillow(folder)
    for path in sorted(arrays.glob("process_images_*.npz")):
        yield from guarded(f"a/{path.stem}", _pixels, path, pictures, facts)
    stages, tables, windows = (
        arrays / "intermediates_uint8.npz",
        folder / FOLDER / "anyres_tables.json",
        folder / FOLDER / "unpad_table.json",
    )
    if stages.is_file():
        yield from guarded("a/intermediates", _stages, stages, pictures, facts)
    if tables.is_file():
        yield from guarded("a/anyres_tables", _tables, tables)
    if windows.is_file():
        yield from guarded("a/unpad_table", _unpad, windows)


class Pictures:
    """The images that ``images.json`` names, each read when a case needs it."""

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self.files = {item["name"]: folder / item["file"] for item in facts["images"]}

    def __getitem__(self, name: str) -> Any:
        return load_image(self.files[name], LIMITS)


def image_config(facts: dict[str, Any], aspect: str) -> ImageConfig:
    """The settings that ``images.json`` names."""
    processor = facts["processor"]
    return ImageConfig(
        crop_size=_side(processor["crop_size"], "height"),
        resize_size=_side(processor["size"], "shortest_edge"),
        aspect=aspect,
        grid_pinpoints=tuple(tuple(pair) for pair in facts["grid"]),
        mean=tuple(processor["image_mean"]),
        std=tuple(processor["image_std"]),
    )


def _side(value: Any, key: str) -> int:
    return value[key] if isinstance(value, dict) else value


def _folder_of_this_pillow(folder: Path) -> Path:
    # Pillow 13 changed Image.resize for tall images; the reference exists for both sides of that change.
    newer = folder / f"{FOLDER}_pillow13"
    return newer if int(PIL.__version__.split(".")[0]) >= 13 and newer.is_dir() else folder / FOLDER


def _pixels(path: Path, pictures: Pictures, facts: dict[str, Any]) -> Iterator[Case]:
    aspect = path.stem.removeprefix("process_images_")
    config = image_config(facts, aspect)
    modes = {item["name"]: item["mode"] for item in facts["images"]}
    with np.load(path) as expected:
        for name in expected.files:
            label = f"a/{aspect}/{name}"
            yield from guarded(label, _picture, label, pictures, name, modes, config, expected)
        for name in sorted(set(pictures.files) - set(expected.files)):
            yield from guarded(f"a/{aspect}/{name}", _only_ours, f"a/{aspect}/{name}", pictures, name, config)


def _picture(
    label: str, pictures: Pictures, name: str, modes: dict[str, str], config: ImageConfig, expected: Any
) -> Case:
    picture = pictures[name]
    theirs = expected[name][0] if config.aspect == "anyres" else expected[name]
    case = _near(label, preprocess(picture, config), theirs)
    reason = _why_different(picture, modes[name], config.aspect)
    return replace(case, status="deviates", reason=reason) if case.status == "fail" and reason else case


def _only_ours(label: str, pictures: Pictures, name: str, config: ImageConfig) -> Case:
    works = bool(np.isfinite(preprocess(pictures[name], config)).all())
    status = "deviates" if works else "fail"
    return Case(label, 0.0, PIXELS, status, "the original fails on this image, ours reads it")


def _why_different(picture: Any, mode: str, aspect: str) -> str:
    """Where the original is wrong on purpose of ours (docs/imaging.md); empty for every ordinary image."""
    if mode.startswith("I"):
        return "16-bit grey: the original clips at 255, ours takes the high byte"
    high = {"square": picture.height, "pad": max(picture.size)}.get(aspect, 0)
    if high in (1, 3):
        return "the original reads an image of 1 or 3 rows as channels first"
    return ""


def _stages(path: Path, pictures: Pictures, facts: dict[str, Any]) -> Iterator[Case]:
    config = image_config(facts, "anyres")
    with np.load(path) as expected:
        for key in expected.files:
            if not expected[key].size:
                continue
            name, stage = key.split("__")
            yield from guarded(f"a/{stage}/{name}", _stage, pictures, name, stage, config, expected[key])


def _stage(pictures: Pictures, name: str, stage: str, config: ImageConfig, expected: np.ndarray) -> Case:
    picture = pictures[name]
    if stage == "expand2square":
        ours = expand_to_square(picture, background_colour(config))
    else:
        target = choose_resolution((picture.height, picture.width), config.grid_pinpoints)
        ours = resize_and_pad(picture, target)
    return _near(f"a/{stage}/{name}", np.asarray(ours), expected, 0.0)


def _tables(path: Path) -> Iterator[Case]:
    table = json.loads(path.read_text(encoding="utf-8"))
    for grid in sorted({key for row in table["rows"] for key in row} - {"size"}):
        side = table.get(f"{grid}_patch", 336)
        config = ImageConfig(side, side, "anyres", grid_pinpoints=tuple(tuple(pair) for pair in table[grid]))
        wrong, raised = [], 0
        for row in table["rows"]:
            if "best" not in row[grid]:
                raised += 1
                continue
            size = (row["size"][1], row["size"][0])
            best, shape = choose_resolution(size, config.grid_pinpoints), tile_grid(size, config)
            if list(best) != row[grid]["best"] or [shape[1], shape[0]] != row[grid]["grid_shape"]:
                wrong.append(row["size"])
        yield _exact(f"a/anyres_tables/{grid}", wrong, len(table["rows"]) - raised)


def _unpad(path: Path) -> Iterator[Case]:
    vision = VisionConfig(64, 64, 1, 1, image_size=336, patch_size=14)
    wrong = {"window": [], "token_count": []}
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    for row in rows:
        size, (high, wide) = (row["size"][1], row["size"][0]), row["current"]
        top, bottom, left, right = unpad_window(size, (high, wide))
        same = [bottom - top, right - left] == row["shape"]
        if not same or (top, left) != (row.get("top", top), row.get("left", left)):
            wrong["window"].append(row["size"])
        if "n_tokens_336" in row:
            pinpoint = ((wide * 14, high * 14),)
            config = ImageConfig(336, 336, "anyres", "spatial_unpad", pinpoint)
            counts = {token_count(size, config, vision), len(layout_of(size, config, vision).order)}
            if counts != {row["n_tokens_336"]}:
                wrong["token_count"].append(row["size"])
    for what, sizes in wrong.items():
        yield _exact(f"a/unpad_table/{what}", sizes, len(rows))


def _near(name: str, ours: np.ndarray, theirs: np.ndarray, tolerance: float = PIXELS) -> Case:
    if ours.shape != theirs.shape:
        return Case(name, float("inf"), tolerance, "fail", f"shape {ours.shape}, expected {theirs.shape}")
    difference = float(np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max())
    return Case(name, difference, tolerance, "ok" if difference <= tolerance else "fail")


def _exact(name: str, wrong: list[Any], count: int) -> Case:
    reason = f"{len(wrong)} of {count} rows differ, first {wrong[0]}" if wrong else f"{count} rows"
    return Case(name, float(len(wrong)), 0.0, "fail" if wrong else "ok", reason)
