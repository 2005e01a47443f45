# SPDX-License-Identifier: Apache-2.0
"""The merged batches of the original: labels, masks, positions, and which feature row stands where."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from paddlemix.settings.model import ImageConfig, LlavaConfig, TextConfig, VisionConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tools.golden.adapter import Adapted, case_names, load_case

pytestmark = pytest.mark.golden

MODELS = {"v15": "llava-v1.5-tiny", "v16v": "llava-v1.6-vicuna-tiny", "v16m": "llava-v1.6-mistral-tiny"}


def config_of(folder: Path, model: str) -> LlavaConfig:
    """The parts of the checkpoint's configuration that merging depends on."""
    found = json.loads((folder / "hub" / "liuhaotian" / MODELS[model] / "config.json").read_text())
    tower = json.loads((folder / "hub" / found["mm_vision_tower"] / "config.json").read_text())["vision_config"]
    vision = VisionConfig(1, 1, 1, 1, image_size=tower["image_size"], patch_size=tower["patch_size"])
    pinpoints = tuple(tuple(pair) for pair in found.get("image_grid_pinpoints", ()))
    side, merge = tower["image_size"], found.get("mm_patch_merge_type", "flat")
    image = ImageConfig(side, side, found["image_aspect_ratio"], merge, pinpoints)
    return LlavaConfig(TextConfig(found["vocab_size"], 1, 1, 1, 1, 1), vision, image)


def cases(folder: Path) -> list[Adapted]:
    return [load_case(folder, name, config_of(folder, name.split("_")[0])) for name in case_names(folder)]


def test_labels_masks_and_positions_equal_the_original(golden_llava: Path):
    compared = 0
    for case in cases(golden_llava):
        plan = case.plan()
        ours = {"out_labels": plan.labels, "out_attention_mask": plan.mask, "out_position_ids": plan.positions}
        for key in set(ours) & set(case.expected):
            assert np.array_equal(ours[key], case.expected[key]), f"{case.name}: {key}"
            compared += 1
        if "out_inputs_embeds" in case.expected:
            assert case.expected["out_inputs_embeds"].shape[:2] == plan.token_ids.shape, case.name
    assert compared


def test_equal_sources_have_equal_embeddings_and_padding_is_zero(golden_llava: Path):
    compared = 0
    for case in cases(golden_llava):
        if "out_inputs_embeds" not in case.expected:
            continue
        plan, rows = case.plan(), case.expected["out_inputs_embeds"]
        text = (plan.source < plan.token_ids.size) & plan.mask
        for token in np.unique(plan.token_ids[text]):
            same = rows[text & (plan.token_ids == token)]
            assert np.array_equal(same, np.broadcast_to(same[0], same.shape)), f"{case.name}: token {token}"
        features = plan.token_ids.size + plan.n_tiles * plan.tokens_per_tile
        assert (rows[plan.source == features] == 0).all(), case.name
        newline = rows[plan.source == features + 1]
        assert len(np.unique(newline, axis=0)) <= 1, case.name
        compared += 1
    assert compared


def test_features_of_the_flat_merge_rearranged_give_the_other_merges(golden_llava: Path):
    found = {case.name: case for case in cases(golden_llava)}
    flats = [name for name in found if name.endswith("_flat")]
    if not flats:
        pytest.skip("this folder has no case of the flat merge with several tiles")
    for name in flats:
        model = name.removesuffix("flat")
        compare_with_flat(found[name], [found[other] for other in sorted(found) if other.startswith(model)])


def compare_with_flat(flat: Adapted, others: list[Adapted]) -> None:
    plan, rows = flat.plan(), flat.expected["out_inputs_embeds"]
    is_feature = (plan.source >= plan.token_ids.size) & plan.mask
    numbers = plan.source[is_feature] - plan.token_ids.size
    features = np.zeros((plan.n_tiles * plan.tokens_per_tile, rows.shape[-1]), dtype=rows.dtype)
    features[numbers] = rows[is_feature]
    words = {int(token): rows[index] for index, token in np.ndenumerate(plan.token_ids) if not is_feature[index]}
    compared = 0
    for case in others:
        if case.name == flat.name or case.pixels is None or not np.array_equal(case.pixels, flat.pixels):
            continue
        plan, rows = case.plan(), case.expected["out_inputs_embeds"]
        lone = plan.token_ids.size + plan.n_tiles * plan.tokens_per_tile + 1
        newline = rows[plan.source == lone][:1] if (plan.source == lone).any() else np.zeros((1, rows.shape[-1]))
        text = np.stack([words[int(token)] for token in plan.token_ids.reshape(-1)])
        table = np.concatenate([text, features, np.zeros_like(newline), newline])
        assert np.abs(table[plan.source] - rows)[plan.mask].max() <= 2e-5, case.name
        compared += 1
    assert compared
