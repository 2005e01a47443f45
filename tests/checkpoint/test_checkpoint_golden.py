# SPDX-License-Identifier: Apache-2.0
"""Checkpoints as published: every golden folder loads, adapters and projectors give the original's numbers."""

import numpy as np
import pytest

from paddlemix.checkpoint.folders import kind_of
from paddlemix.checkpoint.load import load_model
from tools.golden import lora

pytestmark = pytest.mark.golden


def test_adapters_projectors_and_new_rows_equal_the_original(golden_llava):
    cases = list(lora.run(golden_llava))
    assert cases
    assert [case for case in cases if case.status != "ok"] == []


def test_every_published_folder_loads(golden_llava):
    folders = [path.parent for path in sorted(golden_llava.glob("hub/*/*/config.json"))]
    loaded = 0
    for folder in folders:
        if folder.parent.name in ("openai", "lmsys"):
            continue
        report = load_model(folder).report
        assert report.problems() == []
        assert report.not_finite == []
        loaded += 1
    assert loaded
    assert {kind_of(folder) for folder in folders} >= {"full"}


def test_the_same_weights_in_fp32_fp16_and_hf_layout_are_the_same_model(golden_llava):
    hub = golden_llava / "hub"
    for first, second in (("liuhaotian/llava-v1.5-tiny", "liuhaotian/llava-v1.5-tiny-fp16"),):
        if not (hub / first).is_dir() or not (hub / second).is_dir():
            pytest.skip(f"no {first} and {second} in this golden folder")
        ours = dict(load_model(hub / first).model.named_parameters())
        for name, parameter in load_model(hub / second).model.named_parameters():
            np.testing.assert_array_equal(parameter.numpy(), ours[name].numpy(), err_msg=name)
