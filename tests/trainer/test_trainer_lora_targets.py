"""Which layers a pattern of lora_target_modules means: PaddleMIX's, peft's and llava-hf's ways of writing it."""

import re

import pytest

from paddlemix.ops.linear import lora_layers
from paddlemix.trainer.lora_targets import add_adapters, default_targets, find_targets
from paddlemix.utils.errors import ConfigError
from tests.trainer.trainer_kit import settings, tiny

QUERIES = ["llama.layers.0.self_attn.q_proj", "llama.layers.1.self_attn.q_proj"]


@pytest.fixture(scope="module")
def names():
    from paddlemix.ops.linear import Linear

    return [name for name, layer in tiny().named_sublayers() if isinstance(layer, Linear)]


@pytest.mark.parametrize(
    "pattern",
    [
        "q_proj",
        "self_attn.q_proj",
        ".*q_proj",
        r".*\.q_proj",
        ".*q_proj.*",
        "llama.layer.*q_proj.*",
        r"model\.layers\.\d+\.self_attn\.q_proj",
        r".*language_model.*\.q_proj",
        r"language_model\.model\.layers\..*q_proj",
        "^(?!.*vision_tower).*q_proj",
        "(?!.*vision).*q_proj",
    ],
)
def test_every_spelling_of_a_decoder_layer_means_the_decoder_alone(names, pattern):
    assert any("vision_tower" in name and name.endswith("q_proj") for name in names)
    assert find_targets(names, [pattern])[0] == QUERIES


def test_pefts_word_for_all_and_patterns_of_everything_mean_the_default(names):
    default = find_targets(names, default_targets())[0]
    assert len(default) == 2 * 7
    for pattern in ("all-linear", ".*", "llama.*"):
        assert find_targets(names, [pattern])[0] == default


def test_layers_outside_of_the_decoder_are_taken_when_their_part_is_named(names):
    tower = find_targets(names, [".*vision_tower.*q_proj"])[0]
    assert len(tower) == 3
    assert all(name.startswith("llama.vision_tower.") for name in tower)
    both, notes = find_targets(names, [r".*vision_tower.*q_proj", "q_proj"])
    assert set(both) == {*tower, *QUERIES}
    assert find_targets(names, [r".*(layers|vision\_tower).*q_proj"])[0] == both
    assert find_targets(names, ["lm_head"])[0] == ["lm_head"]
    assert len(notes) == 1


def test_a_pattern_that_would_have_fitted_the_tower_says_so_and_others_say_nothing(names):
    (note,) = find_targets(names, [".*q_proj"])[1]
    assert re.search(r'".*q_proj" means 2 layers of the decoder; 3 outside of it fit too \(llama\.vision_tower\.', note)
    assert find_targets(names, ["llama.layer.*q_proj.*", *default_targets()])[1] == []


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("q_prjo", r'"q_prjo" fits no linear layer, did you mean "q_proj"\? \(a layer is called llama\.layers\.0\.'),
        ("q_proj,v_proj", "write a list, one name an item"),
        ("out_proj", r'fits no layer of the decoder, but 3 outside of it .*name their part: "\.\*vision_tower\.\*out_'),
        ("(q_proj", r'"\(q_proj" is not a regular expression'),
        ("mm_projektor.0", "fits no linear layer"),
    ],
)
def test_a_pattern_without_a_layer_is_an_error_that_shows_one_of_the_decoder(names, pattern, text):
    with pytest.raises(ConfigError, match=text) as caught:
        find_targets(names, ["q_proj", pattern])
    assert "lora_target_modules" in str(caught.value)
    assert "vision_tower" not in str(caught.value) or pattern == "out_proj"


def test_the_suggested_pattern_is_taken(names):
    with pytest.raises(ConfigError) as caught:
        find_targets(names, ["out_proj"])
    suggested = re.search(r'name their part: "([^"]+)"', str(caught.value))[1]
    assert len(find_targets(names, [suggested])[0]) == 3


def test_a_run_attaches_what_was_meant(tmp_path):
    model = tiny()
    notes = add_adapters(model, settings(tmp_path, lora=True, lora_target_modules=(".*q_proj",)))
    assert [name for name, _ in lora_layers(model)] == QUERIES
    assert len(notes) == 1
