# SPDX-License-Identifier: Apache-2.0
"""Names go to ours and back without loss in every form; a name that nobody knows is not guessed."""

import dataclasses

import pytest

from paddlemix.checkpoint import keymap
from paddlemix.settings.key_rows import same
from paddlemix.settings.towers.table import LLAVA_TOWER, TOWERS, register
from tests.tiny import tiny_intern_config, tiny_model

HAS_NO_CLIP = ("intern_vit",)
HAS_INTERN_VIT = ("paddlemix", "llava", "peft", "intern_vit")


@pytest.fixture(scope="module")
def all_names() -> dict[str, list[str]]:
    intern = tiny_model(config=tiny_intern_config(projector_type="mlp2x_gelu_ln"))
    return {
        "clip": [name for name, _ in tiny_model(has_image_newline=True).named_parameters()],
        "intern": [name for name, _ in intern.named_parameters()],
    }


@pytest.fixture
def names(all_names, form) -> list[str]:
    return all_names["intern" if form in HAS_NO_CLIP else "clip"]


@pytest.mark.parametrize("form", keymap.forms())
def test_every_parameter_comes_back_under_its_name(form, names):
    mapped = {name: keymap.theirs(name, form) for name in names}
    known = {name: target for name, target in mapped.items() if target is not None}
    assert known
    assert len({target.name for target in known.values()}) == len(known)
    for name, target in known.items():
        assert keymap.ours(target.name, form) == keymap.Target(name, target.transpose)


@pytest.mark.parametrize("form", [form for form in keymap.forms() if form not in keymap.tower_forms()])
def test_a_whole_model_has_a_name_for_every_parameter(form, names):
    assert [name for name in names if keymap.theirs(name, form) is None] == []


@pytest.mark.parametrize("form", HAS_INTERN_VIT)
def test_internvit_comes_back_under_its_names(form, all_names):
    mapped = {name: keymap.theirs(name, form) for name in all_names["intern"]}
    known = {name: target for name, target in mapped.items() if target is not None}
    assert sum(name.startswith(keymap.PREFIX_TOWER) for name in known) == 4 + 4 * 13
    assert form == "intern_vit" or len(known) == len(mapped)
    for name, target in known.items():
        assert keymap.ours(target.name, form) == keymap.Target(name, target.transpose)


@pytest.mark.parametrize("form", keymap.forms())
def test_a_form_is_recognised_by_its_names(form, names):
    stored = [target.name for target in (keymap.theirs(name, form) for name in names) if target is not None]
    assert keymap.detect(stored) == ("peft" if form.startswith("peft") else form)


PAIRS = [
    ("llava", "model.layers.3.self_attn.q_proj.weight", "llama.layers.3.self_attn.q_proj.weight", True),
    ("llava", "model.mm_projector.2.bias", "llama.mm_projector.2.bias", False),
    ("llava", "model.mm_projector.weight", "llama.mm_projector.weight", True),
    ("llava", "lm_head.weight", "lm_head.weight", True),
    ("llava_hf", "multi_modal_projector.linear_2.weight", "llama.mm_projector.2.weight", True),
    ("llava_hf", "image_newline", "llama.image_newline", False),
    ("llava_hf_new", "model.image_newline", "llama.image_newline", False),
    ("llava_hf_new", "model.language_model.norm.weight", "llama.norm.weight", False),
    ("llava_hf_new", "model.vision_tower.pre_layrnorm.bias", f"{keymap.PREFIX_TOWER}vision_model.ln_pre.bias", False),
    (
        "clip",
        "vision_model.encoder.layers.11.mlp.fc1.weight",
        f"{keymap.PREFIX_TOWER}vision_model.transformer.layers.11.linear1.weight",
        True,
    ),
    (
        "intern_vit",
        "encoder.layers.4.attn.qkv.weight",
        f"{keymap.PREFIX_TOWER}encoder.layers.4.attn.qkv.weight",
        True,
    ),
    ("intern_vit", "encoder.layers.0.ls1", f"{keymap.PREFIX_TOWER}encoder.layers.0.ls1", False),
    (
        "llava",
        "model.vision_tower.vision_tower.embeddings.position_embedding",
        "llama.vision_tower.vision_tower.embeddings.position_embedding",
        False,
    ),
    ("clip", "vision_model.embeddings.patch_embedding.bias", f"{keymap.PREFIX_TOWER}vision_model.conv1.bias", False),
    ("peft", "base_model.model.model.mm_projector.0.weight", "llama.mm_projector.0.weight", True),
    ("peft", "base_model.model.mm_projector.0.weight", "llama.mm_projector.0.weight", True),
]


@pytest.mark.parametrize(("form", "theirs", "ours", "transpose"), PAIRS)
def test_published_names_go_to_the_paddle_names(form, theirs, ours, transpose):
    assert keymap.ours(theirs, form) == keymap.Target(ours, transpose)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.vision_tower.vision_tower.vision_model.embeddings.position_ids",
    ],
)
def test_buffers_of_old_files_are_ignored_with_a_reason(name):
    assert keymap.ours(name, "llava").reason


@pytest.mark.parametrize("name", ["text_model.final_layer_norm.bias", "logit_scale", "visual_projection.weight"])
def test_the_text_side_of_clip_is_ignored_with_a_reason(name):
    assert keymap.ours(name, "clip").reason


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.qkv_proj.weight",
        "model.layers.00.input_layernorm.weight",
        "model.layers.x.input_layernorm.weight",
        "xmodel.norm.weight",
        "model.norm.weight.extra",
        "model.vision_resampler.weight",
        "logits_scale",
    ],
)
def test_an_unknown_name_is_not_guessed(name):
    assert keymap.ours(name, "llava") is None


def test_names_of_no_layout_have_no_form():
    assert keymap.detect(["transformer.h.0.attn.weight"]) is None


def test_a_tower_that_is_registered_later_counts_from_then_on(monkeypatch):
    monkeypatch.setattr(TOWERS, "_table", dict(TOWERS._table))
    name = "model.vision_tower.vision_tower.stages.3.gain"
    assert keymap.ours(name, "llava") is None
    late = dataclasses.replace(
        LLAVA_TOWER,
        kind="late",
        form="late",
        prefix="",
        published_prefix="",
        signature=(),
        rows=same(("stages.{n}.gain",)),
    )
    register(late)
    target = keymap.Target(f"{keymap.PREFIX_TOWER}stages.3.gain", False)
    assert keymap.ours(name, "llava") == target
    assert keymap.theirs(target.name, "late") == keymap.Target("stages.3.gain", False)
    assert keymap.detect(["stages.3.gain"]) == "late"
    assert "late" in keymap.tower_forms()
