"""What trains is decided once, by stage and lists."""

from dataclasses import replace

import pytest

from paddlemix.models.llava import build_empty
from paddlemix.ops.linear import add_lora
from paddlemix.trainer.checkpointing import plain_optimizer
from paddlemix.trainer.lora_targets import default_targets
from paddlemix.trainer.stages import part_of, plan_stage
from paddlemix.utils.errors import ConfigError
from tests.trainer.trainer_kit import CONFIG, make_trainer, settings, tiny


def parts(plan):
    return {part.name for part in plan.parts if part.trainable}


def with_adapters(model):
    add_lora(model, default_targets(), 4, 8)
    return model


def test_full_training_freezes_the_vision_tower_only(tmp_path):
    plan = plan_stage(tiny(newline=True), settings(tmp_path))
    names = {part.name for part in plan.parts}
    assert names - parts(plan) == {"vision tower"}


def test_lora_trains_adapters_and_projector_only(tmp_path):
    plan = plan_stage(with_adapters(tiny(newline=True)), settings(tmp_path, lora=True))
    assert parts(plan) == {"LoRA adapters", "projector"}


def test_default_targets_are_all_linear_layers_of_the_decoder_and_none_else():
    model = tiny()
    names = add_lora(model, default_targets(), 4, 8)
    assert len(names) == 2 * 7
    assert all(name.startswith("llama.layers.") for name in names)


def test_a_frozen_projector_stays_frozen_under_lora(tmp_path):
    run = settings(tmp_path, lora=True, freeze_include=("*mm_projector*",))
    assert parts(plan_stage(with_adapters(tiny()), run)) == {"LoRA adapters"}


def test_freeze_lists_never_freeze_adapters(tmp_path):
    run = settings(tmp_path, lora=True, freeze_include=("*llama*",), freeze_exclude=("*llama.mm_projector*",))
    assert parts(plan_stage(with_adapters(tiny()), run)) == {"LoRA adapters", "projector"}


def test_pretraining_trains_the_projector_and_leaves_the_newline_frozen(tmp_path):
    plan = plan_stage(tiny(newline=True), settings(tmp_path, tune_mm_mlp_adapter=True))
    assert parts(plan) == {"projector"}


def test_the_shipped_pretraining_lists_leave_the_projector(tmp_path):
    run = settings(tmp_path, freeze_include=("*llama*", "*lm_head*"), freeze_exclude=("*llama.mm_projector*",))
    assert parts(plan_stage(tiny(newline=True), run)) == {"projector"}


def test_the_lists_name_the_head_of_a_tied_model_by_its_own_name(tmp_path):
    tied = CONFIG.with_changes(text=replace(CONFIG.text, tie_word_embeddings=True))
    model = build_empty(tied)
    run = settings(tmp_path, freeze_include=("*llama*", "*lm_head*"), freeze_exclude=("*llama.mm_projector*",))
    assert parts(plan_stage(model, run)) == {"projector"}
    assert "token embedding" not in parts(plan_stage(model, settings(tmp_path, freeze_include=("lm_head.*",))))


def test_a_parameter_of_both_lists_keeps_its_default(tmp_path):
    both = dict(freeze_include=("*vision_tower*", "*lm_head*"), freeze_exclude=("*vision_tower*", "*lm_head*"))
    assert parts(plan_stage(tiny(), settings(tmp_path, **both))) == parts(plan_stage(tiny(), settings(tmp_path)))


def test_freeze_exclude_alone_lets_the_vision_tower_train(tmp_path):
    assert "vision tower" in parts(plan_stage(tiny(), settings(tmp_path, freeze_exclude=("*vision_tower*",))))


@pytest.mark.parametrize("key", ["freeze_include", "freeze_exclude"])
def test_a_pattern_without_a_match_is_an_error_that_names_it(tmp_path, key):
    with pytest.raises(ConfigError, match=rf'"{key}": the pattern "\*mm_projektor\*" matches no parameter'):
        plan_stage(tiny(), settings(tmp_path, **{key: ("*mm_projektor*",)}))


def test_a_pattern_for_a_tower_that_is_not_there_says_that_it_is_missing(tmp_path):
    """PaddleMIX's pretrain.json on a plain Vicuna names the projector, which comes with a tower."""
    from paddlemix.models.llava import init_weights
    from paddlemix.trainer.arguments import names_of_keys
    from paddlemix.utils.options import speaking

    model = build_empty(CONFIG.with_changes(vision=None, image=None))
    init_weights(model, 0)
    run = settings(tmp_path, freeze_include=("*llama*",), freeze_exclude=("*llama.mm_projector*",))
    text = r'without a vision tower; name the tower with "vision_tower": "FOLDER"'
    with speaking(names_of_keys(run)), pytest.raises(ConfigError, match=text):
        plan_stage(model, run)


def test_freezing_everything_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="nothing would train"):
        plan_stage(tiny(), settings(tmp_path, freeze_include=("*",)))


def test_the_projector_has_its_own_rate_and_the_newline_has_not(tmp_path):
    plan = plan_stage(tiny(newline=True), settings(tmp_path, mm_projector_lr=1e-4))
    rates = {name: rule.learning_rate for name, rule in plan.rules.items()}
    assert {rate for name, rate in rates.items() if part_of(name) == "projector"} == {1e-4}
    assert {rate for name, rate in rates.items() if part_of(name) != "projector"} == {1e-2}


def test_norms_and_biases_do_not_decay_and_the_rest_does(tmp_path):
    plan = plan_stage(tiny(newline=True), settings(tmp_path))
    still = {name for name, rule in plan.rules.items() if not rule.decay}
    assert still == {name for name in plan.rules if "norm" in name or name.endswith("bias")}
    assert {"llama.image_newline", "llama.embed_tokens.weight", "lm_head.weight"} <= set(plan.rules) - still


def test_norms_of_mistral_decay_as_in_the_original(tmp_path):
    plan = plan_stage(tiny(model_type="mistral"), settings(tmp_path))
    assert plan.rules["llama.norm.weight"].decay


def test_the_table_counts_every_parameter_once(tmp_path):
    model = tiny(newline=True)
    plan = plan_stage(model, settings(tmp_path))
    total = sum(int(parameter.numel()) for parameter in model.parameters())
    *_, last = plan.rows()
    assert last[1] == f"{total:,}"
    assert sum(part.trainable for part in plan.parts) == sum(
        int(value.numel()) for value in plan.trainable(model).values()
    )


def tower_layers(plan):
    names = [name for name in plan.rules if part_of(name) == "vision tower"]
    return sorted({name.split("layers.")[1][0] if "layers." in name else "outside" for name in names})


def test_the_entire_model_trains_with_its_tower(tmp_path):
    model = tiny()
    plan = plan_stage(model, settings(tmp_path, tune_entire_model=True))
    idle = {name for name, _ in model.named_parameters()} - set(plan.rules)
    # Features come from the last layer but one: the last one and the norm behind it are never trained.
    assert {name.split("vision_model.")[1].rpartition(".")[0] for name in idle if "layers.2" not in name} == {"ln_post"}
    assert len(idle) == 16 + 2


def test_every_planned_parameter_gets_a_gradient(tmp_path):
    model = tiny(newline=True)
    run = settings(tmp_path, tune_entire_model=True, num_train_epochs=1, lora=False)
    trainer = make_trainer(run, model=model)
    trainer.train()
    inner = plain_optimizer(trainer.optimizer)
    moments = inner._accumulators["moment1"]
    assert {name for name, value in trainer.plan.trainable(model).items() if value.name not in moments} == set()


def test_the_tower_trains_from_a_layer_on_and_nothing_of_it_outside_of_layers(tmp_path):
    plan = plan_stage(tiny(), settings(tmp_path, tune_entire_model=True, tune_vit_from_layer=1))
    assert tower_layers(plan) == ["1"]
    assert {"projector", "decoder layers", "output head"} < parts(plan)


def test_minus_one_is_every_parameter_of_the_tower(tmp_path):
    plan = plan_stage(tiny(), settings(tmp_path, tune_entire_model=True, tune_vit_from_layer=-1))
    assert tower_layers(plan) == ["0", "1", "outside"]


def test_with_lora_the_entire_model_adds_the_tower_only(tmp_path):
    plan = plan_stage(with_adapters(tiny()), settings(tmp_path, lora=True, tune_entire_model=True))
    assert parts(plan) == {"LoRA adapters", "projector", "vision tower"}


def test_the_tower_can_train_alone_or_with_the_projector(tmp_path):
    assert parts(plan_stage(tiny(), settings(tmp_path, tune_vision_tower=True))) == {"vision tower"}
    both = settings(tmp_path, tune_vision_tower=True, tune_mm_mlp_adapter=True)
    assert parts(plan_stage(tiny(), both)) == {"vision tower", "projector"}


def test_the_tower_has_its_own_rate_without_one_for_the_projector(tmp_path):
    plan = plan_stage(tiny(), settings(tmp_path, tune_entire_model=True, vision_tower_lr=1e-6))
    rates = {part_of(name): rule.learning_rate for name, rule in plan.rules.items()}
    assert rates["vision tower"] == 1e-6
    assert rates["projector"] == rates["decoder layers"] == 1e-2


def test_a_layer_that_the_tower_does_not_have_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match='"tune_vit_from_layer" is 3, but the vision tower has 3 layers'):
        plan_stage(tiny(), settings(tmp_path, tune_entire_model=True, tune_vit_from_layer=3))


def test_a_rate_for_a_frozen_tower_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match='"vision_tower_lr" is 1e-06, but no parameter of the vision tower trains'):
        plan_stage(tiny(), settings(tmp_path, vision_tower_lr=1e-6))


def test_layers_that_give_no_feature_alone_are_an_error(tmp_path):
    with pytest.raises(ConfigError, match="features come from behind 2 layers of the vision tower"):
        plan_stage(tiny(), settings(tmp_path, tune_entire_model=True, tune_vit_from_layer=2))
    plan = plan_stage(tiny(), settings(tmp_path, tune_entire_model=True, tune_vit_from_layer=1))
    assert tower_layers(plan) == ["1"]
    assert len(plan.idle) == 16


@pytest.mark.parametrize(
    "keys",
    [
        {"tune_mm_mlp_adapter": True, "mm_projector_lr": 0.0},
        {"tune_vision_tower": True, "vision_tower_lr": 0.0},
        {"learning_rate": 0.0},
    ],
)
def test_rates_of_which_none_is_above_zero_are_refused(tmp_path, keys):
    with pytest.raises(ConfigError, match="no weight would change"):
        plan_stage(tiny(), settings(tmp_path, **keys))
    assert plan_stage(tiny(), settings(tmp_path, do_train=False, **keys)).rules


def test_a_part_may_have_the_rate_zero_beside_others(tmp_path):
    assert plan_stage(
        tiny(), settings(tmp_path, tune_entire_model=True, mm_projector_lr=0.0, vision_tower_lr=0.0)
    ).rules


@pytest.mark.parametrize("keys", [{"freeze_include": ("*mm_projector*",)}, {"tune_vision_tower": True}])
def test_a_rate_of_a_projector_that_does_not_train_is_refused(tmp_path, keys):
    with pytest.raises(ConfigError, match='"mm_projector_lr" is 0.001, but no parameter of the projector trains'):
        plan_stage(tiny(), settings(tmp_path, mm_projector_lr=1e-3, **keys))
