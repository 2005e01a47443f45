# SPDX-License-Identifier: Apache-2.0
"""Towers, projectors, merged batches, logits, losses and training steps equal the original's."""

import json
import shutil

import numpy as np
import pytest

from tools.golden import models, training

pytestmark = pytest.mark.golden


def bad(cases):
    return [case for case in cases if case.status not in ("ok", "deviates", "skipped")]


@pytest.mark.parametrize("backend", ["auto", "math"])
def test_features_embeddings_logits_and_losses_equal_the_original(golden_llava, monkeypatch, backend):
    monkeypatch.setenv("PADDLEMIX_ATTENTION", backend)
    cases = list(models.run(golden_llava))
    assert bad(cases) == []
    compared = {case.case.rpartition("/")[2] for case in cases if case.status == "ok"}
    assert {"embeds", "loss", "logits_lse", "encode_images", "mlp2x_gelu"} <= compared
    deviating = [case for case in cases if case.status == "deviates"]
    assert {case.case.rpartition("/")[2] for case in deviating} <= {"loss"}, "only that of a batch without labels"
    assert all("NaN" in case.reason for case in deviating)


def test_training_steps_equal_the_original(golden_llava):
    assert bad(training.run(golden_llava)) == []


def test_a_changed_number_is_a_failure(golden_llava, tmp_path):
    (tmp_path / "hub").symlink_to(golden_llava / "hub")
    shutil.copytree(golden_llava / "c_multimodal", tmp_path / "c_multimodal")
    file = tmp_path / "c_multimodal" / "v15_mixed_right.npz"
    data = dict(np.load(file))
    data["out_inputs_embeds"][0, 3, 1] += 1e-3
    data["loss"] = data["loss"] * 1.001
    np.savez(file, **data)
    failed = {case.case for case in models.run(tmp_path) if case.status == "fail"}
    assert failed == {"c_multimodal/v15_mixed_right/embeds", "c_multimodal/v15_mixed_right/loss"}


def test_a_checkpoint_that_is_named_and_not_there_is_a_failure_with_its_name(golden_llava, tmp_path):
    shutil.copytree(golden_llava / "c_multimodal", tmp_path / "c_multimodal")
    (tmp_path / "hub").mkdir()
    (tmp_path / "d_train").mkdir()
    facts = {"model": "liuhaotian/none"}
    (tmp_path / "d_train" / "v15_all_plain.json").write_text(json.dumps(facts), encoding="utf-8")
    models.model_of.cache_clear()
    cases = [*models.run(tmp_path), *training.run(tmp_path)]
    assert cases
    assert {case.status for case in cases} == {"fail"}
    assert all("is not on this machine" in case.reason or "no original checkpoint" in case.reason for case in cases)
