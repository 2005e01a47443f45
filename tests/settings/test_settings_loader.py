# SPDX-License-Identifier: Apache-2.0
"""The settings loader: what is accepted, and what is said about everything that is not."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from paddlemix.settings import strict_json
from paddlemix.settings.run.loader import differences_from_default, help_text, load_settings, settings_to_json
from paddlemix.settings.run.training import ALIASES, FOREIGN, KNOWN
from paddlemix.settings.run.without_effect import IDLE
from paddlemix.utils.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "paddlemix" / "config" / "llava").rglob("*.json"))
LEAST = {
    "model_name_or_path": "model",
    "output_dir": "out",
    "do_train": True,
    "dataset": {"train": [{"name": "chatml_dataset", "data_files": "train.json"}]},
}


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def load(*flags, **keys):
    Path("c.json").write_text(json.dumps(LEAST | keys), encoding="utf-8")
    return load_settings(["c.json", *flags])


def told(call) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def told_of_bytes(data: bytes) -> str:
    Path("c.json").write_bytes(data)
    return told(lambda: load_settings(["c.json"]))


def test_defaults_are_those_of_the_table():
    settings = load()
    assert settings.training.learning_rate == 5e-5
    assert settings.data.max_length == 2048
    assert set(differences_from_default(settings)) == set(LEAST)


def test_command_line_wins_over_the_file():
    settings = load("--learning_rate", "1e-4", "--lora=true", "--lora_target_modules", "a", "b", learning_rate=1.0)
    assert settings.training.learning_rate == 1e-4
    assert settings.model.lora_target_modules == ("a", "b")


def test_flags_alone_are_enough():
    settings = load_settings(["--model_name_or_path", "m", "--data-path", "d.json", "--output_dir", "o", "--do_train"])
    assert settings.data.dataset == {"train": [{"data_files": "d.json"}]}


def test_null_on_the_command_line_sets_the_default_back():
    assert load("--max_length", "null", max_length=7).data.max_length == 2048


def test_names_of_llava_are_names_of_ours():
    settings = load("--lora_enable", "True", "--lora_r", "4", version="plain", model_max_length=99)
    assert (settings.model.lora, settings.model.lora_rank) == (True, 4)
    assert (settings.model.template, settings.data.max_length) == ("plain", 99)


def test_what_was_resolved_can_be_run_again():
    settings = load(chat_template="t.json", evaluation_strategy="epoch", do_eval=False, lora=True, lora_rank=4)
    Path("again.json").write_text(json.dumps(settings_to_json(settings)), encoding="utf-8")
    again = load_settings(["again.json"])
    assert settings_to_json(again) == settings_to_json(settings)


def test_a_secret_is_neither_saved_nor_shown():
    settings = load(wandb_api_key="s3cret")
    assert "s3cret" not in json.dumps(settings_to_json(settings)) + str(differences_from_default(settings))
    assert settings.training.wandb_api_key == "s3cret"


def test_one_chat_template_serves_every_data_set_without_its_own():
    data = {"train": [{"data_files": "a"}, {"data_files": "b", "chat_template": "own"}]}
    entries = load(chat_template="common", dataset=data).data.dataset["train"]
    assert [entry["chat_template"] for entry in entries] == ["common", "own"]


def test_do_eval_false_in_the_file_switches_evaluation_off_and_says_so():
    settings = load(do_eval=False, evaluation_strategy="epoch")
    assert settings.training.evaluation_strategy == "no"
    assert any("evaluation_strategy" in note for note in settings.notes)


def test_an_evaluation_strategy_switches_evaluation_on():
    both = LEAST["dataset"] | {"eval": [{"data_files": "val.json"}]}
    assert load(dataset=both, evaluation_strategy="epoch").training.do_eval is True


def test_a_key_that_does_nothing_beside_the_others_is_noted():
    notes = " | ".join(load(save_strategy="epoch", save_steps=100, lora_rank=4).notes)
    assert "save_steps has no effect" in notes
    assert "lora_rank has no effect: without lora" in notes


EFFECTS = {
    # key: (value, keys beside it that leave it idle, keys that make it work)
    "num_cycles": (1.5, {}, {"lr_scheduler_type": "cosine"}),
    "lr_end": (1e-6, {"lr_scheduler_type": "cosine"}, {"lr_scheduler_type": "polynomial"}),
    "power": (2.0, {}, {"lr_scheduler_type": "polynomial"}),
    "warmup_steps": (3, {"lr_scheduler_type": "constant"}, {"lr_scheduler_type": "constant_with_warmup"}),
    "warmup_ratio": (0.1, {"warmup_steps": 3}, {}),
    "num_train_epochs": (2.0, {"max_steps": 5}, {}),
    "logging_steps": (3, {"logging_strategy": "epoch"}, {}),
    "save_steps": (3, {"save_strategy": "no"}, {}),
    "eval_steps": (3, {}, {"do_eval": True}),
    "minimum_eval_times": (3, {"do_eval": True, "evaluation_strategy": "epoch"}, {"do_eval": True}),
    "per_device_eval_batch_size": (3, {}, {"do_eval": True}),
    "eval_benchmarks": ([{"name": "pope", "data": "eval/pope"}], {}, {"do_eval": True}),
    "max_new_tokens": (3, {}, None),
    "max_evaluate_steps": (3, {}, {"do_eval": True}),
    "eval_generate": (3, {}, {"do_eval": True}),
    "eval_generate_tokens": (9, {"do_eval": True}, {"do_eval": True, "eval_generate": 3}),
    "eval_accumulation_steps": (3, {"do_eval": True}, None),
    "metric_for_best_model": ("any text", {"do_eval": True}, None),
    "greater_is_better": (True, {}, {"do_eval": True, "evaluation_strategy": "epoch", "save_strategy": "epoch",
                                     "load_best_model_at_end": True}),
    "log_on_each_node": (False, {}, None),
    "run_name": ("mine", {"report_to": ["tensorboard"]}, {"report_to": ["swanlab"]}),
    "logging_dir": ("curves", {}, {"report_to": ["tensorboard"]}),
    "wandb_api_key": ("key", {"report_to": ["swanlab"]}, {"report_to": ["wandb"]}),
    "wandb_http_proxy": ("proxy", {}, {"report_to": ["wandb"]}),
    "scale_loss": (8.0, {"bf16": True}, {"fp16": True}),
    "amp_custom_black_list": (["softmax"], {"bf16": True, "fp16_opt_level": "O2"}, {"bf16": True}),
    "amp_custom_white_list": (["matmul"], {}, {"fp16": True}),
    "fp16_opt_level": ("O0", {}, {"bf16": True}),
    "amp_master_grad": (True, {"bf16": True}, {"bf16": True, "fp16_opt_level": "O2"}),
    "use_flash_attention": (True, {}, None),
    "sharding": ("stage2", {}, {"processes": "2"}),
    "sharding_parallel_degree": (2, {"processes": "2"}, {"sharding": "stage2", "processes": "2"}),
    "sharding_parallel_config": ("split_param", {"sharding": "stage1"}, {"sharding": "stage1", "processes": "2"}),
    "sharding_comm_buffer_size_MB": (64, {"processes": "2"}, {"sharding": "stage1", "processes": "2"}),
    "data_parallel_config": ("gradient_sync_after_accumulate", {}, {"processes": "2"}),
    "dataloader_timeout": (5.0, {}, {"dataloader_num_workers": 2}),
    "lora_path": ("adapter", None, {"lora": True}),
    "lora_rank": (4, {"lora": True, "lora_path": "adapter"}, {"lora": True}),
    "lora_alpha": (4, {}, {"lora": True}),
    "lora_dropout": (0.5, {"lora": True, "lora_path": "adapter"}, {"lora": True}),
    "lora_target_modules": (["q_proj"], {"lora": True, "lora_path": "adapter"}, {"lora": True}),
    "rslora": (True, {"lora": True, "lora_path": "adapter"}, {"lora": True}),
    "use_dora": (True, {"lora": True, "lora_path": "adapter"}, {"lora": True}),
    "pissa": (True, {"lora": True, "lora_path": "adapter"}, {"lora": True}),
    "pissa_iter": (4, {"lora": True}, {"lora": True, "pissa": True}),
    "lora_plus_scale": (16.0, {}, {"lora": True}),
    "neftune_noise_alpha": (3.0, {}, {"neftune": True}),
    "template": ("v1", {"chat_template": "chat_template.json"}, {}),
    "single_view_repeat": (2, {}, {"dataset": {"train": [{"data_files": "a.json", "name": "mv_dataset"}]}}),
    "beta": (0.5, {}, {"loss_type": "sigmoid"}),
    "label_smoothing": (0.1, {"loss_type": "ipo"}, {"loss_type": "simpo"}),
    "simpo_gamma": (1.0, {"loss_type": "sigmoid"}, {"loss_type": "simpo"}),
    "rpo_alpha": (1.0, {"loss_type": "orpo"}, {"loss_type": "hinge"}),
    "desirable_weight": (1.5, {"loss_type": "ipo"}, {"loss_type": "kto"}),
    "undesirable_weight": (1.5, {}, {"loss_type": "kto"}),
    "precompute_ref_log_probs": (True, {"loss_type": "simpo"}, {"loss_type": "sigmoid"}),
    "use_fused_head_and_loss_fn": (True, {"loss_type": "sigmoid"}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", IDLE)
def test_a_key_without_effect_beside_the_others_is_noted_and_one_with_effect_is_not(name, monkeypatch):
    value, idle, works = EFFECTS[name]
    for beside, expected in ((idle, True), (works, False)):
        if beside is None:
            continue
        keys = dict(beside)
        monkeypatch.setenv("PADDLE_TRAINERS_NUM", keys.pop("processes", "1"))
        if keys.get("do_eval"):
            keys["dataset"] = LEAST["dataset"] | {"eval": [{"data_files": "val.json"}]}
        found = [note for note in load(**{name: value}, **keys).notes if note.startswith(f"{name} has no effect: ")]
        assert len(found) == expected, (beside, found)


def test_a_key_at_its_default_needs_no_note():
    assert load(num_cycles=0.5, lora_rank=8, eval_steps=None).notes == ()


@pytest.mark.parametrize("value", [4, 8])
def test_an_adapter_that_goes_on_keeps_its_rank_and_a_given_one_is_noted_whatever_it_is(value):
    notes = load(lora=True, lora_path="adapter", lora_rank=value).notes
    assert notes == ('lora_rank has no effect: the adapter of "lora_path" keeps its own',)


@pytest.mark.parametrize("name", ["sharding_parallel_config", "data_parallel_config"])
def test_options_that_nobody_knows_are_refused(name):
    assert f'"/{name}" is "nonsense": unknown word "nonsense"' in told(lambda: load(**{name: "nonsense"}))


def test_help_names_every_key():
    text = help_text()
    assert [name for name in (*KNOWN, *ALIASES) if name not in text] == []


# Row 1 to 4: the file


@pytest.mark.parametrize(("name", "text"), [("none.json", "no such file"), (".", "is a folder")])
def test_a_missing_file_or_a_folder_is_named(name, text):
    message = told(lambda: load_settings([name]))
    assert name in message
    assert text in message


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        ('{"seed": 1,}', "c.json:1:11", "a comma before"),
        ('{\n "seed": 1\n "bf16": true}', "c.json:3:2", 'expected "," or "}"'),
        ('{\n // note\n "seed": 1}', "c.json:2:2", "expected a key"),
        ('{"seed": }', "c.json:1:10", "expected a value"),
        ('{"seed": 1', "c.json:1:11", 'expected "," or "}"'),
        ("{'seed': 1}", "c.json:1:2", "expected a key in double quotes"),
        ('{"seed": NaN}', "c.json:1:10", "NaN is not a number of JSON"),
        ('{"seed": 1e400}', "c.json:1:10", "out of range"),
        ('{"seed": tru}', "c.json:1:10", 'expected a value near `{"seed": tru}`'),
        ('{"run_name": "a\nb"}', "c.json:1:16", "invalid control character"),
    ],
)
def test_a_syntax_error_has_line_column_and_excerpt(text, place, reason):
    message = told_of_bytes(text.encode())
    assert place in message
    assert reason in message
    assert "near `" in message


def test_a_byte_order_mark_is_accepted():
    Path("c.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(LEAST).encode())
    assert load_settings(["c.json"]).training.output_dir == "out"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ('{"seed": 1}'.encode("utf-16"), "byte 0: this is UTF-16"),
        (b'{"run_name": "\xff"}', "byte 14: not UTF-8"),
        (b"", "empty"),
        (b" \n", "empty"),
        (b"[1]", "expected an object {...} at the top, got a list"),
        (b"7", "got a number"),
        (b'"x"', "got a text"),
        (b"null", "got null"),
        (b'{"run_name": "\\ud800"}', "surrogate"),
    ],
)
def test_what_is_not_an_object_in_utf8_is_told(data, text):
    assert text in told_of_bytes(data)


# Row 5 to 7, 15: keys


def test_an_unknown_key_comes_with_the_nearest_name():
    message = told(lambda: load(learning_rat=1e-4))
    assert message == 'c.json: unknown key "/learning_rat", did you mean "learning_rate"?'


@pytest.mark.parametrize("name", ["learning_rat", "lor", "num_train_epoch", "lora_ran", "bf1"])
def test_no_key_is_abbreviated(name):
    assert f'unknown key "/{name}"' in told(lambda: load(**{name: 1}))
    assert f'unknown key "--{name}"' in told(lambda: load(f"--{name}", "1"))


def test_a_key_of_a_related_project_comes_with_what_to_do():
    message = told(lambda: load(deepspeed="zero3.json"))
    assert '"/deepspeed" is not a key of ours' in message
    assert "sharding" in message
    assert set(FOREIGN).isdisjoint(KNOWN)


def test_a_key_that_stands_twice_is_told_with_both_lines():
    message = told_of_bytes(b'{\n "seed": 1,\n "seed": 2}')
    assert 'key "seed" stands twice (lines 2 and 3)' in message


def test_two_names_of_one_key_are_refused():
    assert '"lora_rank" and "lora_r" are two names' in told(lambda: load(lora_rank=1, lora_r=2))


# Row 8 to 10, 12: values


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("max_steps", "3", 'is "3" (a text); expected a whole number'),
        ("max_steps", 1.5, "is 1.5 (a number); expected a whole number"),
        ("learning_rate", True, "is true (true/false); expected a number"),
        ("bf16", "true", 'is "true" (a text); expected true or false'),
        ("bf16", 2, "is 2 (a whole number); expected true or false"),
        ("output_dir", 3, "is 3 (a whole number); expected a text"),
        ("freeze_include", "x", 'is "x" (a text); expected a list of str'),
        ("freeze_include", ["x", 1], "item 1 is 1 (a whole number); expected a text"),
        ("dataset", [], "is [] (a list); expected an object"),
        ("learning_rate", -1, "is -1.0: out of range (at least 0)"),
        ("per_device_train_batch_size", 0, "is 0: out of range (at least 1)"),
        ("num_train_epochs", 0, "out of range (more than 0)"),
        ("warmup_ratio", 1.01, "out of range (at least 0, at most 1)"),
        ("device", "npuu", 'is "npuu", did you mean "npu"? expected one of cpu, gpu, npu'),
        ("lr_scheduler_type", "cosin", 'did you mean "cosine"?'),
        ("loss_type", "DPO", 'is "DPO", which is "sigmoid" here; expected one of sigmoid, hinge, ipo'),
        ("image_aspect_ratio", "crop", "expected one of square, pad, anyres"),
        ("sharding", "stage4", 'unknown word "stage4"'),
        ("sharding", "offload", "expected exactly one stage"),
        ("image_grid_pinpoints", [[336, 0]], "expected pairs"),
    ],
)
def test_a_wrong_value_is_told_with_key_value_and_expectation(name, value, text):
    message = told(lambda: load(**{name: value}))
    assert message.startswith(f'c.json: "/{name}"')
    assert text in message


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "x", "1e-4.5", "0x1"])
def test_a_wrong_number_on_the_command_line_is_told(value):
    assert '"--learning_rate" is' in told(lambda: load("--learning_rate", value))


def test_null_is_the_default_and_never_the_word_none():
    settings = load(resume_from_checkpoint=None, lora_rank=None)
    assert settings.training.resume_from_checkpoint is None
    assert settings.model.lora_rank == 8


@pytest.mark.parametrize("name", ["model_name_or_path", "output_dir"])
def test_null_for_a_required_key_is_refused(name):
    assert f'"/{name}" is null, but it is required' in told(lambda: load(**{name: None}))


@pytest.mark.parametrize("name", ["model_name_or_path", "output_dir"])
def test_a_missing_required_key_is_named(name):
    Path("c.json").write_text(json.dumps({key: value for key, value in LEAST.items() if key != name}))
    assert f'"/{name}" is missing' in told(lambda: load_settings(["c.json"]))


def _other(known):
    """A value of the right kind that is not the default."""
    return {bool: not known.default, int: 3, float: 0.25, str: "other", tuple: ["x"]}[known.kind.base]


FIXED = [name for name, known in KNOWN.items() if known.facts.fixed and _other(known) not in known.facts.also]


@pytest.mark.parametrize("name", FIXED)
def test_a_key_without_effect_is_refused_at_any_other_value_and_says_why(name):
    known = KNOWN[name]
    other = _other(known)
    message = told(lambda: load(**{name: other}))
    assert message.startswith(f'c.json: "/{name}" is')
    assert known.facts.fixed in message


def test_every_key_takes_its_own_default():
    for name, known in KNOWN.items():
        if known.default is not None:
            value = list(known.default) if isinstance(known.default, tuple) else known.default
            assert known.accept(value, name) == known.default


def test_none_is_null_on_the_command_line_unless_it_is_one_of_the_choices():
    assert load("--check_images", "none").data.check_images == "none"
    assert load("--save_total_limit", "none", save_total_limit=3).training.save_total_limit is None


# Row 11: conflicts


@pytest.mark.parametrize(
    ("keys", "also"),
    [
        ({"fp16": True, "bf16": True}, ()),
        ({"fp16_opt_level": "O2"}, ("bf16", 'fp16_opt_level": "O1')),
        ({"lora": True, "freeze_include": ["*"]}, ()),
        ({"lora": True, "tune_mm_mlp_adapter": True}, ()),
        ({"lora_path": "x"}, ("lora",)),
        ({"tune_mm_mlp_adapter": True, "freeze_mm_mlp_adapter": True}, ()),
        ({"freeze_mm_mlp_adapter": True, "mm_projector_lr": 1e-5}, ()),
        ({"resume_from_checkpoint": "x", "overwrite_output_dir": True}, ()),
        ({"group_by_length": True, "group_by_modality_length": True}, ()),
        ({"image_aspect_ratio": "pad", "image_grid_pinpoints": [[1, 2]]}, ()),
        ({"data_path": "x"}, ("dataset",)),
        ({"dataset": None}, ("do_train",)),
        ({"learning_rate": 0}, ("do_train",)),
        ({"vision_tower_lr": 1e-5}, ("tune_entire_model",)),
        ({"do_eval": True}, ("dataset",)),
        ({"do_train": False}, ("do_eval",)),
        ({"load_best_model_at_end": True}, ("evaluation_strategy", "save_strategy")),
    ],
)
def test_keys_that_do_not_go_together_are_all_named(keys, also):
    message = told(lambda: load(**keys))
    assert [name for name in (*keys, *also) if f'"{name}"' not in message] == []
    assert "do not go together" in message


def test_a_measure_that_evaluation_does_not_give_is_refused_before_the_first_evaluation():
    files = {name: [{"data_files": f"{name}.json"}] for name in ("train", "eval")}
    keys = dict(load_best_model_at_end=True, evaluation_strategy="epoch", save_strategy="epoch", dataset=files)
    assert load(metric_for_best_model="eval_loss", **keys).training.load_best_model_at_end
    assert '"metric_for_best_model" = "accuracy" do not go' in told(
        lambda: load(metric_for_best_model="accuracy", **keys)
    )
    assert "with eval_generate exact_match" in told(lambda: load(metric_for_best_model="rouge_l", **keys))
    assert load(metric_for_best_model="eval_rouge_l", eval_generate=2, **keys)
    pope = [{"name": "pope", "data": "eval/pope", "label": "my-pope"}]
    keys["dataset"] = {"train": files["train"]}
    assert load(metric_for_best_model="my_pope_accuracy", eval_benchmarks=pope, **keys)
    for name in (None, "loss", "pope_accuracy"):
        assert "name a metric of eval_benchmarks" in told(
            lambda name=name: load(metric_for_best_model=name, eval_benchmarks=pope, **keys)
        )


def test_the_remedy_for_missing_eval_rows_is_one_that_the_run_takes():
    assert '"do_eval": false and "evaluation_strategy": "no"' in told(lambda: load(do_eval=True))
    alone = told(lambda: load(do_eval=True, do_train=False))
    assert "or give eval_benchmarks" in alone
    assert '"do_eval": false' not in alone


# Row 13: paths


def test_an_output_folder_that_is_a_file_is_refused():
    Path("file").touch()
    assert '"/output_dir" is "file": that is a file' in told(lambda: load(output_dir="file"))
    assert "is a file" in told(lambda: load(output_dir="file/deeper"))


def test_an_output_folder_among_the_pictures_is_refused():
    assert "inside the data set" in told(lambda: load(image_folder="pictures", output_dir="pictures/out"))


def test_the_current_folder_is_not_taken_for_a_data_set():
    assert load(image_folder=".").training.output_dir == "out"


def test_an_output_folder_that_is_the_model_is_refused():
    Path("model").mkdir()
    assert "would be overwritten" in told(lambda: load(output_dir="model"))


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc")
def test_an_output_folder_that_cannot_be_made_is_refused():
    assert "cannot be written" in told(lambda: load(output_dir="/proc/paddlemix"))


def test_an_output_folder_without_permission_is_refused(monkeypatch):
    Path("locked").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked")  # root may write everywhere
    assert "no permission" in told(lambda: load(output_dir="locked/out"))


def test_the_check_leaves_nothing_behind():
    before = sorted(os.listdir())
    load(output_dir="new/deep")
    assert sorted(os.listdir()) == sorted({*before, "c.json"})


# Row 14: nested keys


@pytest.mark.parametrize(
    ("dataset", "text"),
    [
        ({"trian": []}, 'unknown key "/dataset/trian", did you mean "train"?'),
        ({"train": {}}, '"/dataset/train" is an object'),
        ({"train": []}, "is an empty list; name a data set in it, or take the key away"),
        ({"train": ["x"]}, '"/dataset/train/0" is a text'),
        ({"train": [{"data_files": "a", "chat_templat": "b"}]}, '/chat_templat", did you mean "chat_template"'),
        ({"train": [{"data_files": "a"}, {"data_files": 3}]}, '"/dataset/train/1/data_files" is 3'),
        ({"train": [{"data_files": []}]}, "/dataset/train/0/data_files"),
        ({"train": [{"name": "chatml_dataset"}]}, '"/dataset/train/0/data_files" is missing'),
        ({"train": [{"data_files": "a", "splits": "b"}]}, "each entry names its own file"),
    ],
)
def test_a_fault_inside_dataset_has_its_json_pointer(dataset, text):
    assert text in told(lambda: load(dataset=dataset))


# Row 16: size and depth


def test_a_file_of_ten_megabytes_is_refused_by_its_size():
    assert "at most 4194304 are read" in told_of_bytes(b'{"run_name": "' + b"x" * 10_000_000 + b'"}')


def test_deep_nesting_is_refused_without_a_recursion_error():
    assert "nested deeper than 32" in told_of_bytes(b'{"dataset": ' + b"[" * 1000 + b"]" * 1000 + b"}")


def test_nesting_is_counted_to_the_limit():
    assert strict_json.parse("[" * 32 + "]" * 32, "c.json")
    with pytest.raises(ConfigError, match="nested deeper than 32"):
        strict_json.parse("[" * 33 + "]" * 33, "c.json")


# Command line


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ([], "expected CONFIG.json or --key value"),
        (["x"], '"x" is not a .json file'),
        (["c.json", "stray"], '"stray" does not belong to a --key'),
        (["c.json", "--seed"], '"--seed" has no value'),
        (["c.json", "--seed", "1", "2"], '"--seed" has 2 values'),
        (["c.json", "--seed", "1", "--seed", "2"], '"--seed" is given twice'),
        (["c.json", "--dataset", "{"], "--dataset"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_told(flags, text):
    Path("c.json").write_text(json.dumps(LEAST))
    assert text in told(lambda: load_settings(flags))


def test_settings_are_read_without_any_heavy_import():
    Path("c.json").write_text(json.dumps(LEAST))
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from paddlemix.settings.run.loader import load_settings\nload_settings(['c.json'])\n"
        "print([name for name in ('paddle', 'paddlenlp', 'numpy', 'PIL', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Recipes


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_shipped_recipe_loads_without_a_note(path, monkeypatch):
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "8")
    settings = load_settings([str(path)])
    assert settings.notes == ()
    assert settings.training.bf16
    assert settings.training.fp16_opt_level == "O2"
    assert not settings.training.overwrite_output_dir
    # The tiles of llava-hf's Interleave are stretched, which no value of the key says.
    stretched = settings.model.model_name_or_path.startswith("llava-hf/llava-interleave")
    assert (settings.data.image_aspect_ratio is None) == stretched


def test_the_recipes_have_the_names_of_paddlemix():
    names = {str(path.relative_to(ROOT / "paddlemix/config/llava")) for path in RECIPES}
    per_version = ("sft_argument.json", "lora_sft_argument.json", "lora_sft_argument_stage2.json")
    assert names >= {"pretrain.json", *(f"{version}/{name}" for version in ("v1_5", "v1_6") for name in per_version)}


def test_training_files_on_the_command_line_replace_those_of_the_file():
    dataset = {"train": [{"data_files": "a.json"}], "eval": [{"data_files": "b.json"}]}
    named = load("--data_path", "c.json", dataset=dataset).data
    assert named.dataset == {"train": [{"data_files": "c.json"}], "eval": [{"data_files": "b.json"}]}
    assert named.data_path is None
    other = json.dumps({"train": [{"data_files": "d.json"}]})
    assert load("--dataset", other, data_path="a.json").data.dataset["train"] == [{"data_files": "d.json"}]


def test_a_new_training_file_keeps_what_the_entries_of_the_file_agree_on():
    entries = [{"name": "mv_dataset", "data_files": name, "image_folder": folder} for name, folder in ("ab", "cd")]
    named = load("--data_path", "c.json", dataset={"train": entries}).data
    assert named.dataset["train"] == [{"name": "mv_dataset", "data_files": "c.json"}]


def test_a_grid_on_a_model_that_does_not_cut_is_noted(tmp_path):
    from paddlemix.settings.run.without_effect import notes_with
    from tests.tiny import tiny_config

    config, settings = tiny_config(), load(image_grid_pinpoints=[[28, 56]])
    (note,) = notes_with(config, settings)
    assert note.startswith('image_grid_pinpoints has no effect ([(28, 56)]): the model\'s images are "pad"')
    anyres = config.with_changes(image=dataclasses.replace(config.image, aspect="anyres_max_9"))
    assert list(notes_with(anyres, settings)) == []
    assert list(notes_with(config, load())) == []
