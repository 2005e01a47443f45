# SPDX-License-Identifier: Apache-2.0
"""The recipes for 8 x 64 GB cards: they load, they fit, and the documents say what the function says."""

import dataclasses
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

from paddlemix.settings.memory import RESERVE, count_parameters, expected_memory
from paddlemix.settings.model import ImageConfig, LlavaConfig, TextConfig
from paddlemix.settings.run.loader import load_settings
from paddlemix.settings.run.training import TrainingSettings
from tests.tiny import tiny_config, tiny_intern_config

ROOT = Path(__file__).resolve().parents[2]
GB = 10**9


def recipes():
    spec = importlib.util.spec_from_file_location("npu_recipes", ROOT / "tools" / "npu_recipes.py")
    module = importlib.util.module_from_spec(spec)
    import sys

    # A dataclass looks its module up by name; the script puts the repository in front of the path.
    sys.modules["npu_recipes"] = module
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


RECIPES = recipes()


def test_the_table_holds_every_recipe_of_the_folder():
    assert {recipe.file for recipe in RECIPES.RECIPES} == {path.stem for path in RECIPES.FOLDER.glob("*.json")}


@pytest.mark.parametrize("recipe", RECIPES.RECIPES, ids=lambda recipe: recipe.file)
def test_a_recipe_loads_fits_the_card_and_keeps_shapes_static(recipe, monkeypatch):
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "8")
    settings = RECIPES.load(recipe)
    training, data = settings.training, settings.data
    assert training.device == "npu"
    assert not [note for note in settings.notes if "no effect" in note], settings.notes
    assert RECIPES.memory(recipe).total < 0.95 * RECIPES.CARD_BYTES
    assert data.max_length % data.pad_to_multiple_of == 0
    assert data.max_length // data.pad_to_multiple_of <= 4, "each bucket is a shape that has to be prepared once"
    assert training.dataloader_drop_last
    rows = training.per_device_train_batch_size * training.gradient_accumulation_steps * RECIPES.CARDS
    assert rows // max(training.tensor_parallel_degree, 1) == 128, "the global batch of the originals"


def test_the_document_holds_the_table_as_the_function_gives_it():
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    assert "\n".join(RECIPES.table()) in text, "run: python tools/npu_recipes.py"


def test_public_figures_are_marked_as_those_of_others():
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    assert "not ours" in text
    assert "others, tokens/s a card" in RECIPES.table()[0]


@pytest.mark.parametrize(
    "config",
    [tiny_config(), tiny_intern_config(), *(RECIPES.RECIPES[number].config for number in (0, 3, 4))],
    ids=["tiny", "tiny-intern", "7b", "34b", "intern-7b"],
)  # fmt: skip
def test_counted_parameters_are_those_of_the_model(config):
    from paddlemix.models.llava import build_empty

    sizes = {name: int(np.prod(value.shape)) for name, value in build_empty(config).named_parameters()}
    counts = count_parameters(config)
    tower = sum(size for name, size in sizes.items() if "vision_tower" in name)
    assert counts.decoder + counts.projector == sum(sizes.values()) - tower
    # InternViT has other vectors in a layer than CLIP; matrices are all that counts.
    assert abs(counts.tower - tower) <= (
        0 if config.vision.model_type == "clip_vision_model" else max(5e-5 * tower, 2000)
    )


def test_counted_parameters_hold_the_biases_of_attention():
    from paddlemix.models.llava import build_empty

    config = tiny_config()
    config = config.with_changes(text=dataclasses.replace(config.text, attention_bias=True))
    sizes = {name: int(np.prod(value.shape)) for name, value in build_empty(config).named_parameters()}
    assert sum(name.endswith("_proj.bias") and "self_attn" in name and "layers" in name for name in sizes) >= 8
    counts = count_parameters(config)
    assert counts.decoder + counts.projector == sum(size for name, size in sizes.items() if "vision_tower" not in name)


@pytest.mark.parametrize("method", [{}, {"dora": True}, {"pissa": True}], ids=["lora", "dora", "pissa"])
def test_counted_adapters_are_those_of_the_model(method):
    from paddlemix.models.llava import LlavaForCausalLM
    from paddlemix.ops.linear import add_lora
    from paddlemix.trainer.lora_targets import default_targets

    model = LlavaForCausalLM(tiny_config())
    add_lora(model, default_targets(), 4, 8, **method)
    sizes = {name: int(np.prod(value.shape)) for name, value in model.named_parameters() if ".lora_" in name}
    starts = sum(size for name, size in sizes.items() if ".lora_start_" in name)
    counts = count_parameters(tiny_config(), lora_rank=4, **method)
    assert (counts.adapters, counts.starts) == (sum(sizes.values()) - starts, starts)
    assert (starts > 0) == ("pissa" in method)


PLAIN = LlavaConfig(TextConfig(1000, 64, 128, 2, 4, 4), None, ImageConfig(28, 28))


def need(cards=8, plain_attention=False, **keys):
    settings = TrainingSettings().with_changes(
        **({"bf16": True, "fp16_opt_level": "O2", "amp_master_grad": True, "recompute": True} | keys)
    )
    return expected_memory(PLAIN, settings, cards, plain_attention=plain_attention)


def test_the_formula_counts_what_the_methods_of_adapters_add():
    keys = {"lora": True, "lora_rank": 8, "lora_dropout": 0.0}
    plain = need(**keys)
    pissa = need(**keys, pissa=True)
    pairs = 2 * 8 * (2 * 4 * 64 + 2 * 64 + 3 * (64 + 128) - 2 * 64)  # two layers: A and B of seven linear layers
    assert (pissa.weights - plain.weights, pissa.optimizer) == (2 * pairs, plain.optimizer)
    dora = need(**keys, use_dora=True)
    outputs = 5 * 64 + 2 * 128
    assert dora.optimizer - plain.optimizer == 12 * 2 * outputs
    assert dora.activations - plain.activations == 8 * 8 * 2048 * outputs + 12 * 64 * 128
    saved = need(**keys, modules_to_save=("model.embed_tokens", "lm_head"))
    assert saved.optimizer - plain.optimizer == 12 * 2 * 1000 * 64
    assert saved.logits - plain.logits == 6 * 64 * 1000
    assert need(**keys, modules_to_save=("embed_tokens",)).logits == plain.logits
    dpo = need(**keys, modules_to_save=("embed_tokens",), loss_type="sigmoid")
    assert dpo.weights - plain.weights == 2 * 1000 * 64  # a copy of what is no adapter


def test_the_formula_counts_weights_gradients_and_optimizer_by_hand():
    numbers = count_parameters(PLAIN).total
    assert numbers == 2 * 1000 * 64 + 64 + 2 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64)
    whole = need()
    assert (whole.weights, whole.gradients, whole.optimizer) == (2 * numbers, 4 * numbers, 12 * numbers)
    assert whole.logits == (16 * 1024 + 6 * 64) * 1000
    assert need(use_fused_head_and_loss_fn=False).logits == 16 * 8 * 2048 * 1000
    assert need(sharding="stage3").logits == need(use_fused_head_and_loss_fn=False).logits
    assert need(lora=True).logits == 16 * 1024 * 1000, "a head that is frozen has no gradient"
    assert need(bf16=False).optimizer == 8 * numbers
    assert need(amp_master_grad=False).gradients == 2 * numbers
    assert whole.reserve > RESERVE


@pytest.mark.parametrize(
    ("sharding", "shares"), [("", (1, 1, 1)), ("stage1", (1, 1, 8)), ("stage2", (1, 8, 8)), ("stage3", (8, 8, 8))]
)
def test_each_stage_of_sharding_divides_what_it_divides(sharding, shares):
    whole, split = need(), need(sharding=sharding)
    parts = ((whole.weights, split.weights), (whole.gradients, split.gradients), (whole.optimizer, split.optimizer))
    assert tuple(round(a / b) for a, b in parts) == shares
    assert need(sharding="stage2 offload").optimizer == 0


@pytest.mark.parametrize("config", [RECIPES.RECIPES[3].config, RECIPES.RECIPES[4].config], ids=["34b", "intern-7b"])
def test_tensor_parallel_counts_what_lies_on_one_card(config):
    from paddlemix.models.llava import build_empty
    from paddlemix.ops.parallel import TensorParallel

    model = build_empty(config, TensorParallel(7, 8))
    found = 2 * sum(int(np.prod(value.shape)) for value in model.parameters())
    keys = {"bf16": True, "fp16_opt_level": "O2", "tensor_parallel_degree": 8}
    counted = expected_memory(config, TrainingSettings().with_changes(**keys), 8)
    # The last card; of 25 heads of InternViT it has three and the first card four.
    assert counted.weights == pytest.approx(found, rel=2e-3 if config is RECIPES.RECIPES[3].config else 2e-2)
    alone = expected_memory(config, TrainingSettings().with_changes(**keys | {"tensor_parallel_degree": -1}), 8)
    assert alone.logits // 8 == counted.logits
    assert alone.weights > 7 * counted.weights


def test_plain_attention_counts_the_scores_of_one_layer_or_of_all():
    rows, length, heads, layers = 8, 2048, 4, 2
    score = rows * heads * length**2
    assert need().scores == 0
    assert need(plain_attention=True).scores == 13 * score
    assert need(plain_attention=True, recompute=False).scores == 13 * score + 6 * score * (layers - 1)
    assert need(plain_attention=True, tensor_parallel_degree=2).scores == 13 * score // 2
    assert need(plain_attention=True).total == need().total + 13 * score


def test_head_and_loss_by_portions_need_no_table_of_all_logits():
    width, words = 64, 1000
    assert need(use_fused_head_and_loss_fn=True).logits == (16 * 1024 + 6 * width) * words
    short = need(use_fused_head_and_loss_fn=True, max_length=16, per_device_train_batch_size=2)
    assert short.logits == (16 * 32 + 6 * width) * words


def test_the_scores_of_a_tower_count_where_they_are_more_than_those_of_the_decoder():
    tower = RECIPES.INTERN_VIT
    config = LlavaConfig(TextConfig(1000, 64, 128, 2, 4, 4), tower, ImageConfig(336, 336))
    settings = TrainingSettings().with_changes(bf16=True, recompute=True, max_length=64)
    found = expected_memory(config, settings, 8, tiles=3, plain_attention=True).scores
    assert found == 13 * 8 * 3 * tower.num_attention_heads * 577**2


@pytest.mark.parametrize(
    ("file", "rows", "length", "fused", "plain"),
    [
        ("llava_v1_5_7b", 8, 2048, 45, 59),
        ("llava_v1_6_7b", 4, 4096, 45, 73),
        ("internvl_chat_7b", 4, 2048, 52, 59),
        ("llava_v1_5_13b", 1, 2048, 63, 65),
    ],
)
def test_the_gigabytes_of_a_batch_with_and_without_fused_attention(file, rows, length, fused, plain):
    recipe = next(recipe for recipe in RECIPES.RECIPES if recipe.file == file)
    settings = RECIPES.load(recipe).with_changes(per_device_train_batch_size=rows, max_length=length)
    found = [
        round(expected_memory(recipe.config, settings, 8, tiles=recipe.tiles, plain_attention=way).total / GB)
        for way in (False, True)
    ]
    assert found == [fused, plain]


def test_tensor_parallel_counts_the_whole_matrices_of_adapters():
    from paddlemix.models.llava import LlavaForCausalLM
    from paddlemix.ops.linear import add_lora
    from paddlemix.ops.parallel import TensorParallel
    from paddlemix.trainer.lora_targets import default_targets

    model = LlavaForCausalLM(PLAIN, TensorParallel(1, 2))
    add_lora(model, default_targets(), 4, 8)
    found = sum(int(np.prod(value.shape)) for name, value in model.named_parameters() if ".lora_" in name)
    assert need(tensor_parallel_degree=2, lora=True, lora_rank=4).gradients == 4 * found


def test_recompute_keeps_one_row_for_each_layer():
    assert need(recompute=False).activations > need().activations


def test_every_other_profile_of_a_cluster_loads_too():
    for path in sorted((ROOT / "config").rglob("*.json")):
        if not re.search(r"demo", str(path)):
            load_settings([str(path)])
