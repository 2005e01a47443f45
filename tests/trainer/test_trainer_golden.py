"""The original's three training runs, from published folders to final weights, through our own trainer."""

import pytest

pytestmark = pytest.mark.golden


def test_pretraining_fine_tuning_and_lora_equal_the_original(golden_llava):
    from tools.golden.runs import run

    cases = list(run(golden_llava))
    assert {case.case.split("/")[1] for case in cases} >= {"e2e_pretrain", "e2e_finetune", "e2e_lora"}
    assert [case for case in cases if case.status != "ok"] == []


def test_rates_and_decay_are_those_of_the_original(golden_llava, tmp_path):
    import json

    from paddlemix.checkpoint import keymap
    from paddlemix.models.llava import build_empty
    from paddlemix.settings.published.config import load_config
    from paddlemix.trainer.stages import plan_stage
    from tests.trainer.trainer_kit import settings

    files = sorted((golden_llava / "d_train").glob("*_trainer_groups.json"))
    if not files:
        pytest.skip("the small copy of the golden data holds no parameter groups")
    tower = next((golden_llava / "hub").glob("openai/*"))
    for file in files:
        facts = json.loads(file.read_text())
        config = load_config(golden_llava / "hub" / facts["model"], tower_folder=tower)
        run = settings(tmp_path, learning_rate=1e-3, mm_projector_lr=2e-4)
        plan = plan_stage(build_empty(config), run)
        expected = {
            keymap.ours(name, "llava").name: (group["lr"], group["weight_decay"] > 0)
            for group in facts["param_groups"]
            for name in group["names"]
        }
        assert {name: (rule.learning_rate, rule.decay) for name, rule in plan.rules.items()} == expected
