# SPDX-License-Identifier: Apache-2.0
"""Turns a case of c_multimodal, written in the original's calling convention, into rows and pixels for our plan.

    names = case_names(folder)                        # ["v15_mixed_right", ...]; model = name.split("_")[0]
    adapted = load_case(folder, "v16v_trunc", config) # config: LlavaConfig of that model's checkpoint
    plan = adapted.plan()                             # build_plan with the case's padding side and length
    pixels = adapted.pixels                           # float32 [N, 3, S, S] in plan order, None without images
    adapted.expected["logits_sub16"]                  # every out_* / logits* / loss array of the case

What the original does and we do not (llava-quirks 19 to 22): tokens with attention_mask 0 are removed before merging,
also in the middle; a row without an image place still consumes one image of the list, which is then never used; 4-D
images bypass the merge type, a list or 5-D images do not; a missing mask is all ones and missing labels are ignored.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from paddlemix.imaging.layout import Layout, layout_for, tile_grid
from paddlemix.settings.model import LlavaConfig
from paddlemix.splice.plan import Plan, PlanRow, build_plan
from paddlemix.utils.constants import IMAGE_TOKEN_INDEX

FOLDER = "c_multimodal"


@dataclass(frozen=True, eq=False)
class Adapted:
    """One case in our terms. ``config`` has the case's overrides applied; ``has`` says which inputs were given."""

    name: str
    config: LlavaConfig
    rows: list[PlanRow]
    pixels: np.ndarray | None
    max_length: int | None
    expected: dict[str, np.ndarray]
    info: dict[str, Any]

    def plan(self, **changes: Any) -> Plan:
        """The plan of the case; ``changes`` replace arguments of ``build_plan``."""
        arguments = {
            "tokens_per_tile": self.config.vision.tokens_per_tile,
            "max_length": self.max_length,
            "padding_side": self.config.padding_side,
        }
        return build_plan(self.rows, **{**arguments, **changes})


def case_names(folder: Path) -> list[str]:
    """Names of the multimodal cases under ``folder``, found by listing it."""
    return sorted(path.stem for path in (folder / FOLDER).glob("*.npz") if path.stem != "image_store")


def load_case(folder: Path, name: str, config: LlavaConfig) -> Adapted:
    """Read one case; ``config`` is the configuration of the checkpoint it was made with, without overrides."""
    info = json.loads((folder / FOLDER / "INFO.json").read_text(encoding="utf-8")).get(f"{FOLDER}/{name}.npz", {})
    with np.load(folder / FOLDER / f"{name}.npz") as data:
        arrays = {key: data[key] for key in data.files}
    given = {key[3:]: value for key, value in arrays.items() if key.startswith("in_")}
    expected = {key: value for key, value in arrays.items() if not key.startswith("in_")}
    overrides = info.get("config_overrides", {})
    config = _override(config, overrides)
    images, merged = _images(folder, given)
    layouts = _layouts(images, given.get("image_sizes"), config, merged)
    rows, used = plan_rows(given, layouts)
    pixels = np.concatenate([images[index] for index in used]) if used else None
    limit = overrides.get("tokenizer_model_max_length", config.model_max_length)
    if images is None or not len(images):
        limit = None  # Without images the original hands the ids on as they are.
    return Adapted(name, config, rows, pixels, limit, expected, info)


def plan_rows(given: Mapping[str, np.ndarray], layouts: list[Layout]) -> tuple[list[PlanRow], list[int]]:
    """Rows of a collated batch (``input_ids``, optional ``labels``, ``attention_mask``) and the images they use.

    ``layouts`` are those of all images of the batch; with none given every row must be text only.
    """
    mask = given.get("attention_mask", np.ones_like(given["input_ids"])).astype(bool)
    rows, used, following = [], [], 0
    for index, ids in enumerate(given["input_ids"]):
        keep = mask[index]
        labels = given["labels"][index][keep] if "labels" in given else None
        places = int((ids[keep] == IMAGE_TOKEN_INDEX).sum())
        own = list(range(following, following + places))
        following += max(places, 1)
        used += own
        rows.append(PlanRow(ids[keep], [layouts[number] for number in own], labels))
    return rows, used


def _override(config: LlavaConfig, overrides: Mapping[str, Any]) -> LlavaConfig:
    known = {"tokenizer_padding_side", "tokenizer_model_max_length", "mm_patch_merge_type"}
    if set(overrides) - known:
        raise ValueError(f"config overrides {sorted(set(overrides) - known)} are not known to the golden adapter")
    image = replace(config.image, merge=overrides.get("mm_patch_merge_type", config.image.merge))
    side = overrides.get("tokenizer_padding_side", config.padding_side)
    length = overrides.get("tokenizer_model_max_length", config.model_max_length)
    return config.with_changes(image=image, padding_side=side, model_max_length=length)


def _images(folder: Path, given: Mapping[str, np.ndarray]) -> tuple[list[np.ndarray], bool]:
    """The images as [tiles, 3, S, S] each, and whether the original merges them by its merge type."""
    if "image_keys" not in given:
        return [], False
    with np.load(folder / FOLDER / "image_store.npz") as store:
        images = [store[str(key)] for key in given["image_keys"]]
    kind = str(given["images_kind"])
    images = [image[None] if image.ndim == 3 else image for image in images]
    return images, kind in ("list", "tensor5d")


def _layouts(images: list[np.ndarray], sizes: np.ndarray | None, config: LlavaConfig, merged: bool) -> list[Layout]:
    image = config.image if merged else replace(config.image, aspect="square", merge="flat")
    layouts = []
    for index, tiles in enumerate(images):
        if len(tiles) == 1:
            # The original adds the newline of a lone tile by the merge type alone.
            alone = replace(image, aspect="anyres" if merged else "square")
            layouts.append(layout_for((1, 1), None, alone, config.vision))
        elif image.merge == "flat":
            layouts.append(layout_for((1, 1), (1, len(tiles) - 1), image, config.vision))
        else:
            size = (int(sizes[index][1]), int(sizes[index][0]))
            layouts.append(layout_for(size, tile_grid(size, image), image, config.vision))
    return layouts
