"""The original's three training runs, from published folders to final weights, through our own trainer."""

import pytest

pytestmark = pytest.mark.golden


def test_pretraining_fine_tuning_and_lora_equal_the_original(golden_llava):
    from tools.golden.d_e2e import run

    cases = list(run(golden_llava))
    assert {case.case.split("/")[1] for case in cases} >= {"e2e_pretrain", "e2e_finetune", "e2e_lora"}
    assert [case for case in cases if case.status != "ok"] == []
