# SPDX-License-Identifier: Apache-2.0
"""InternVL-Chat and the MV-LLaVA model equal their originals: every array of the golden data that is theirs."""

import shutil

import numpy as np
import pytest

from tools.golden import internvl_model, internvl_vision, mv_models

pytestmark = pytest.mark.golden

FAMILIES = (internvl_vision, internvl_model, mv_models)
DEVIATIONS = {"i/conversations/plain", "i/loader/num_patches", "i/dataset/lengths", "i/train/finetune_posembed"}


def bad(cases):
    return [case for case in cases if case.status not in ("ok", "deviates")]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__.rpartition(".")[2])
def test_every_case_equals_the_original_or_deviates_on_purpose(golden_internvl, family):
    cases = list(family.run(golden_internvl))
    assert len(cases) > 50
    assert bad(cases) == []
    deviating = {case.case for case in cases if case.status == "deviates"}
    assert {name.removesuffix("/position_embedding") for name in deviating} <= DEVIATIONS


@pytest.mark.parametrize("backend", ["math", "sdpa"])
def test_towers_equal_the_original_with_each_attention(golden_internvl, monkeypatch, backend):
    monkeypatch.setenv("PADDLEMIX_ATTENTION", backend)
    assert bad(internvl_vision.run(golden_internvl)) == []


def test_a_changed_number_is_a_failure(golden_internvl, tmp_path):
    shutil.copytree(golden_internvl / "internvl", tmp_path / "internvl")
    shutil.copytree(golden_internvl / "images", tmp_path / "images")
    file = tmp_path / "internvl" / "vision_interp.npz"
    data = dict(np.load(file))
    data["interp_pos_embed"][0, 3, 1] += 1e-3
    np.savez(file, **data)
    failed = {case.case for case in internvl_vision.run(tmp_path) if case.status == "fail"}
    assert failed == {"i/vision_interp/interp_pos_embed"}


def test_the_families_are_silent_where_their_part_is_missing(tmp_path):
    assert [case for family in FAMILIES for case in family.run(tmp_path)] == []
