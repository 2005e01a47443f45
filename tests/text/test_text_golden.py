# SPDX-License-Identifier: Apache-2.0
"""Text against the originals: every case of family b."""

import pytest

from tools.golden import prompts


@pytest.fixture(scope="module")
def cases(golden_llava):
    return list(prompts.run(golden_llava))


@pytest.mark.golden
def test_no_text_case_differs_from_the_original_without_a_known_reason(cases):
    assert [case for case in cases if case.status == "fail"] == []
    assert sum(case.status == "ok" for case in cases) > 100


@pytest.mark.golden
def test_a_case_deviates_only_where_the_original_raises_loses_the_row_or_slides(cases):
    reasons = {case.reason for case in cases if case.status == "deviates"}
    assert all(r in (prompts.LOST, prompts.SLID) or r.startswith("the original raises") for r in reasons)


@pytest.mark.golden
def test_a_comparison_notices_a_wrong_rendering(golden_llava, monkeypatch):
    wrong = prompts.render
    monkeypatch.setattr(prompts, "render", lambda *a, **k: wrong(*a, **(k | {"images": False})))
    assert any(case.status == "fail" for case in prompts.run(golden_llava) if "preprocess_train" in case.case)
