# SPDX-License-Identifier: Apache-2.0
"""The keys of the programs we stay compatible with: PaddleNLP's TrainingArguments and PaddleMIX's recipes for LLaVA."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from paddlemix.settings.run import loader
from paddlemix.settings.run.loader import load_settings
from paddlemix.settings.run.training import ALIASES, KNOWN, OWN_TRAINING_KEYS
from paddlemix.utils.errors import ConfigError

# Facts about the recipes that PaddleMIX publishes: which keys they hold, and with which values.
_DATA = {
    "train": [{"name": "chatml_dataset", "data_files": "train.json", "chat_template": "chat_template.json"}],
    "eval": [{"name": "chatml_dataset", "data_files": "val.json", "chat_template": "chat_template.json"}],
}
_BOTH = {
    "model_name_or_path": "paddlemix/llava/llava-v1.5-7b",
    "dataset": _DATA,
    "mixtoken": False,
    "output_dir": "./checkpoints/llava_sft_ckpts",
    "overwrite_output_dir": True,
    "recompute": True,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "per_device_eval_batch_size": 1,
    "eval_accumulation_steps": 16,
    "num_train_epochs": 1,
    "warmup_ratio": 0.03,
    "lr_scheduler_type": "cosine",
    "logging_steps": 1,
    "save_steps": 100,
    "evaluation_strategy": "epoch",
    "save_strategy": "epoch",
    "max_length": 2048,
    "fp16_opt_level": "O1",
    "do_train": True,
    "do_eval": False,
    "disable_tqdm": True,
    "save_total_limit": 1,
}
_SFT = _BOTH | {"learning_rate": 2e-05, "fp16": False, "group_by_modality_length": False}
_LORA = _BOTH | {
    "learning_rate": 2e-04,
    "mm_projector_lr": 2e-5,
    "weight_decay": 0.0,
    "bf16": False,
    "load_best_model_at_end": False,
    "eval_with_do_generation": False,
    "skip_memory_metrics": False,
    "benchmark": False,
    "lora": True,
    "lora_rank": 128,
    "lora_alpha": 256,
    "lora_dropout": 0.0,
    "lora_target_modules": [f"llama.layer.*{name}_proj.*" for name in ("q", "k", "v", "gate", "up", "down", "o")],
}
_STAGE2 = {"sharding": "stage2", "tensor_parallel_degree": 1, "sharding_parallel_degree": 8}
_MEASURED = {
    "dataset": {"train": _DATA["train"]},
    "evaluation_strategy": "no",
    "save_strategy": "no",
    "bf16": True,
    "fp16_opt_level": "O2",
    "amp_master_grad": 1,
    "benchmark": True,
}
_FREEZE = {"freeze_include": ["*llama*", "*lm_head*"], "freeze_exclude": ["*llama.mm_projector*"]}
_PRETRAIN = _SFT | {"learning_rate": 1e-3, "evaluation_strategy": "steps", "save_strategy": "steps", "eval_steps": 120}
PADDLEMIX = {
    "sft_argument": _SFT,
    "lora_sft_argument": _LORA,
    "lora_sft_argument_stage2": _LORA | _STAGE2,
    "pretrain with a version": _PRETRAIN | {"version": "plain"},
    "pretrain with freeze lists": _PRETRAIN | _FREEZE,
    "pretrain_7b_benchmark": _PRETRAIN | _FREEZE | _STAGE2 | _MEASURED | {"skip_memory_metrics": False},
    "lora_sft_7b_argument_benchmark": _LORA | _STAGE2 | _MEASURED,
}


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", PADDLEMIX)
def test_a_recipe_of_paddlemix_loads_unchanged(name, tmp_path):
    (tmp_path / "c.json").write_text(json.dumps(PADDLEMIX[name]))
    settings = load_settings(["c.json"])
    for key, value in PADDLEMIX[name].items():
        if key != "evaluation_strategy":  # off, because do_eval is false there
            known = KNOWN[ALIASES.get(key, key)]
            held = getattr(getattr(settings, known.group), known.name)
            assert (list(held) if isinstance(held, tuple) else held) == value


def test_a_recipe_that_splits_the_model_is_read_or_refused_with_the_reason(tmp_path):
    def load(**keys):
        (tmp_path / "c.json").write_text(json.dumps(_LORA | keys))
        return load_settings(["c.json"])

    assert load(sharding="stage2", tensor_parallel_degree=4).training.tensor_parallel_degree == 4
    with pytest.raises(ConfigError, match='"tensor_parallel_degree" = 8 and "sharding" = "stage3" do not go together'):
        load(sharding="stage3", tensor_parallel_degree=8)
    with pytest.raises(ConfigError, match='"/tensor_parallel_degree".* 0.*expected -1, or a number of devices'):
        load(tensor_parallel_degree=0)
    with pytest.raises(
        ConfigError, match='"/pipeline_parallel_degree" is 8, but only -1 is accepted: only tensor_para'
    ):
        load(pipeline_parallel_degree=8)


def test_every_training_argument_of_paddlenlp_is_known_with_its_default():
    paddlenlp = pytest.importorskip("paddlenlp.trainer")
    differing = {"device", "release_grads"}  # ours are null: the first of npu, gpu, cpu; wherever nothing divides them
    for item in dataclasses.fields(paddlenlp.TrainingArguments):
        known = KNOWN.get(item.name)
        assert known is not None, f"{item.name} is not in the table"
        assert known.group == "training"
        if item.default is not dataclasses.MISSING and item.name not in differing:
            default = getattr(item.default, "value", item.default)
            assert known.default == default, item.name


def test_our_training_keys_are_those_of_paddlenlp_and_the_named_ones_of_our_own():
    paddlenlp = pytest.importorskip("paddlenlp.trainer")
    theirs = {item.name for item in dataclasses.fields(paddlenlp.TrainingArguments)}
    ours = {name for name, known in KNOWN.items() if known.group == "training"}
    assert ours - theirs == set(OWN_TRAINING_KEYS)


PADDLEMIX_KEYS = {
    "model": {
        "model_name_or_path": None, "use_flash_attention": False, "freeze_include": None, "freeze_exclude": None,
        "lora": False, "lora_path": None, "lora_rank": 8, "lora_alpha": 16, "lora_dropout": 0.05,
        "lora_target_modules": None, "prefix_tuning": False, "num_prefix_tokens": 128, "from_aistudio": False,
        "save_to_aistudio": False, "aistudio_repo_id": None, "aistudio_repo_private": True,
        "aistudio_repo_license": "Apache License 2.0", "aistudio_token": None, "neftune": False,
        "neftune_noise_alpha": 5.0, "text_model_name_or_path": None,
    },
    "data": {
        "dataset": None, "task_name": None, "mixtoken": False, "src_length": 1024, "max_length": 2048,
        "eval_with_do_generation": False, "save_generation_output": False, "lazy": False, "chat_template": None,
        "splits": None,
    },
    "generate": {"top_k": 1, "top_p": 1.0},
    "training": {
        "benchmark": False, "profiler_options": None, "warmup_start_lr": 1e-6, "eta_min": 1e-5,
        "lr_scheduler_name": "CosineDecayWithWarmup", "group_by_modality_length": False, "mm_projector_lr": None,
    },
}  # fmt: skip


@pytest.mark.parametrize("group", PADDLEMIX_KEYS)
def test_every_key_of_paddlemix_is_known_with_its_default(group):
    for name, default in PADDLEMIX_KEYS[group].items():
        assert (KNOWN[name].group, KNOWN[name].default) == (group, default)


def test_every_key_that_acts_is_read_by_a_room_or_handed_to_paddlenlp():
    rooms = Path(loader.__file__).parents[1]
    text = "\n".join(path.read_text(encoding="utf-8") for path in rooms.rglob("*.py") if path.parent.name != "settings")
    turned_into_dataset = {"data_path"}
    for name, known in KNOWN.items():
        ours = known.group != "training" or name in OWN_TRAINING_KEYS
        if ours and not known.facts.fixed and name not in turned_into_dataset:
            assert re.search(rf"\b{name}\b", text), f"{name} is accepted, but no room reads it"
