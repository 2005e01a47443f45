# SPDX-License-Identifier: Apache-2.0
"""Rows, views, prompts and parameter groups of MV-LLaVA equal the original's (family k)."""

import pytest

from tests.conftest import golden_root
from tools.golden import mv_data

pytestmark = pytest.mark.golden


def test_the_data_side_of_mv_llava_equals_the_original():
    folder = golden_root() / "internvl_mv"
    if not folder.is_dir():
        pytest.fail(f"no golden data at {folder}: restore tests/data/golden, or set PADDLEMIX_GOLDEN", pytrace=False)
    cases = list(mv_data.run(folder))
    assert [case for case in cases if case.status == "fail"] == []
    assert sum(case.status == "ok" for case in cases) > 60


def test_a_folder_without_mv_llava_has_no_cases(tmp_path):
    assert list(mv_data.run(tmp_path)) == []
