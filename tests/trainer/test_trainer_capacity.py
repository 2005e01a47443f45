# SPDX-License-Identifier: Apache-2.0
"""A run that its cards cannot hold: refused before the weights are read, with keys that make it fit."""

import json
import re

import pytest

from paddlemix.settings.memory import GB
from paddlemix.settings.run.loader import load_settings
from paddlemix.trainer import capacity
from paddlemix.utils import npu_cards
from paddlemix.utils.errors import ConfigError
from tests.deploy.test_deploy_recipes import RECIPES

REASON = "the operator flash_attention_npu is not registered"
CARD_GB = 65.3
PLAIN_GB = {recipe.file: RECIPES.memory(recipe, plain_attention=True).total / GB for recipe in RECIPES.RECIPES}


def test_the_recipes_are_of_both_kinds_with_plain_attention():
    fits = {name for name, need in PLAIN_GB.items() if need < CARD_GB}
    assert {"llava_v1_5_13b", "llava_v1_6_34b_lora", "internvl_chat_7b"} <= fits
    assert set(PLAIN_GB) - fits == {"llava_v1_6_7b"}


@pytest.fixture
def card(monkeypatch):
    """A card of 64 GB less the driver's share; ``set(gb, reason)`` changes it, and why plain attention serves."""

    def put(size_gb, reason=None):
        monkeypatch.setattr(npu_cards, "free_bytes", lambda: None if size_gb is None else int(size_gb * GB))
        monkeypatch.setattr(capacity, "why_plain_attention", lambda config, settings: reason)

    put(CARD_GB)
    return put


def remedy_of(error):
    """The keys that a message names, as flags of the command."""
    named = re.search(r"Write (.+?) \(", str(error))[1]
    return [word for key, value in re.findall(r'"(\w+)": ("?\w+"?)', named) for word in (f"--{key}", value.strip('"'))]


@pytest.mark.parametrize("recipe", RECIPES.RECIPES, ids=lambda recipe: recipe.file)
def test_every_recipe_fits_with_fused_attention(card, recipe):
    line = capacity.check_memory(recipe.config, RECIPES.load(recipe), RECIPES.CARDS)
    # The table counts the images that a row of the recipe holds; the architecture here says one tile.
    told = float(re.match(r"memory: about ([\d.]+) GB \(weights", line)[1])
    assert told == pytest.approx(RECIPES.memory(recipe).total / GB, abs=0.5)
    assert f"of {CARD_GB} GB a card" in line


@pytest.mark.parametrize("recipe", RECIPES.RECIPES, ids=lambda recipe: recipe.file)
def test_with_plain_attention_a_recipe_fits_or_is_refused_with_keys_that_make_it_fit(card, recipe):
    card(CARD_GB, REASON)
    settings = RECIPES.load(recipe)
    if PLAIN_GB[recipe.file] < CARD_GB:
        assert "scores of plain attention" in capacity.check_memory(recipe.config, settings, RECIPES.CARDS)
        return
    with pytest.raises(ConfigError) as refused:
        capacity.check_memory(recipe.config, settings, RECIPES.CARDS)
    assert f"The fused attention does not serve: {REASON}." in str(refused.value)
    changed = load_settings([str(RECIPES.FOLDER / f"{recipe.file}.json"), *remedy_of(refused.value)])
    assert capacity.check_memory(recipe.config, changed, RECIPES.CARDS)
    rows = [each.training.per_device_train_batch_size * each.training.gradient_accumulation_steps
            for each in (settings, changed)]  # fmt: skip
    assert rows[0] == rows[1], "the update is over the same rows"


@pytest.mark.parametrize(
    ("keys", "gb", "expected"),
    [
        ({"recompute": False}, 80, ["--recompute", "true"]),
        ({"sharding": ""}, 80, ["--sharding", "stage2"]),
        ({"sharding": "stage2", "use_fused_head_and_loss_fn": False}, 50, ["--use_fused_head_and_loss_fn", "true"]),
        (
            {"sharding": "stage2", "use_fused_head_and_loss_fn": True},
            40,
            ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "4"],
        ),
        ({"sharding": "stage1"}, 60, ["--sharding", "stage2"]),
    ],
)
def test_what_saves_most_easily_is_named_first(card, keys, gb, expected):
    card(gb)
    recipe = RECIPES.RECIPES[0]
    settings = RECIPES.load(recipe).with_changes(**keys)
    with pytest.raises(ConfigError) as refused:
        capacity.check_memory(recipe.config, settings, RECIPES.CARDS)
    assert remedy_of(refused.value) == expected
    words = [word if word[:5] == "stage" else json.loads(word) for word in expected[1::2]]
    fits = settings.with_changes(**dict(zip((flag[2:] for flag in expected[::2]), words, strict=True)))
    assert capacity.check_memory(recipe.config, fits, RECIPES.CARDS)


def test_where_nothing_helps_the_message_says_so(card):
    card(10)
    recipe = RECIPES.RECIPES[0]
    with pytest.raises(ConfigError, match='No change of .* makes it fit: train with "lora": true, or on more cards'):
        capacity.check_memory(recipe.config, RECIPES.load(recipe), 1)


def test_the_check_can_be_left_out_and_says_nothing_where_nothing_is_known(card, monkeypatch):
    recipe = RECIPES.RECIPES[0]
    settings = RECIPES.load(recipe)
    card(None)
    assert capacity.check_memory(recipe.config, settings, 8) is None
    card(30)
    monkeypatch.setenv("PADDLEMIX_MEMORY_CHECK", "0")
    assert "of 30.0 GB a card" in capacity.check_memory(recipe.config, settings, 8)


def test_the_memory_of_a_card_is_what_the_driver_leaves_of_the_smallest(monkeypatch):
    cards = tuple(npu_cards.Card(number, "910B3", "OK", 3344, size) for number, size in enumerate((65536, 32768)))
    monkeypatch.setattr(npu_cards, "read_cards", lambda: npu_cards.Cards(cards))
    monkeypatch.delenv("ASCEND_RT_VISIBLE_DEVICES", raising=False)
    assert npu_cards.free_bytes() == int(32768 * 2**20 * 0.95)
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "0")
    assert npu_cards.free_bytes() / GB == pytest.approx(65.3, abs=0.05)
    monkeypatch.setattr(npu_cards, "read_cards", lambda: npu_cards.Cards(problem="no tool"))
    assert npu_cards.free_bytes() is None
