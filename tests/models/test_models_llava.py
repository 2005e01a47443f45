# SPDX-License-Identifier: Apache-2.0
"""Laws of the whole model: cache, batches, padding, packing, merging, freezing, recompute, no host syncs."""

from dataclasses import replace

import numpy as np
import paddle
import pytest

from paddlemix.imaging.layout import NEWLINE, Layout
from paddlemix.models.llava import allocate, build_empty, init_weights
from paddlemix.models.llm import cache as cache_room
from paddlemix.ops.attention.contract import Mask
from paddlemix.ops.linear import add_lora
from paddlemix.settings.model import ImageConfig, LlavaConfig, TextConfig, VisionConfig
from paddlemix.splice.plan import Plan, PlanRow, build_plan
from paddlemix.utils.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from paddlemix.utils.errors import ConfigError

CLOSE = 2e-5
"""Logits of size 5 from float32 sums in another order."""


def config_of(**text):
    fields = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2, **text}  # fmt: skip
    vision = VisionConfig(16, 24, 2, 2, image_size=28, patch_size=14)
    return LlavaConfig(TextConfig(**fields), vision, ImageConfig(28, 28, "pad"), has_image_newline=True)


def model_of(seed=0, **text):
    """Weights eight times as wide as a training begins with, so that answers depend on the prompt."""
    model = build_empty(config_of(**text))
    init_weights(model, seed)
    with paddle.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                allocate(parameter, parameter * 8.0)
    model.eval()
    return model


LAYOUT = Layout(tiles=1, order=np.array([0, 1, NEWLINE, 2, 3, NEWLINE]))


def row(seed, length, images=0):
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, 97, length)
    ids[1 : 1 + images] = IMAGE_TOKEN_INDEX
    labels = np.where((rng.random(length) < 0.6) & (ids >= 0), ids, IGNORE_INDEX)
    return PlanRow(ids, [LAYOUT] * images, labels)


ROWS = [row(0, 12, images=1), row(1, 7), row(2, 30, images=2)]


def pixels_of(rows):
    count = sum(len(item.layouts) for item in rows)
    values = [np.random.default_rng(len(item.ids) * 10 + i).standard_normal([1, 3, 28, 28])
              for item in rows for i in range(len(item.layouts))]  # fmt: skip
    return paddle.to_tensor(np.concatenate(values).astype("float32")) if count else None


def arguments(plan: Plan, rows, labels=False, packed=False):
    """Arguments of ``forward`` for a plan."""
    names = ["token_ids", "source", "positions"] + ["labels"] * labels + ["segments"] * packed
    batch = {name: paddle.to_tensor(getattr(plan, name)) for name in names}
    if plan.starts.any():
        batch["starts"] = paddle.to_tensor(plan.starts)
    pixels = pixels_of(rows)
    return batch if pixels is None else {**batch, "pixels": pixels}


def plan_of(rows, **changes):
    return build_plan(rows, tokens_per_tile=4, **changes)


def logits_of(model, rows, **changes):
    plan = plan_of(rows, **changes)
    with paddle.no_grad():
        logits = model(**arguments(plan, rows)).numpy()
    return [logits[i, plan.starts[i] :][: plan.lengths[i]] for i in range(len(rows))]


def embedded(model, rows):
    batch = arguments(plan_of(rows), rows)
    features = model.encode_images(batch["pixels"]) if "pixels" in batch else None
    return model.embed(batch["token_ids"], batch["source"], features), batch["positions"]


def test_parameter_names_are_those_of_the_paddle_checkpoints():
    names = {name for name, _ in model_of().named_parameters()}
    tower = "llama.vision_tower.vision_tower.vision_model."
    expected = {
        *("llama.embed_tokens.weight", "llama.norm.weight", "llama.image_newline", "lm_head.weight"),
        *("llama.layers.1.self_attn.o_proj.weight", "llama.layers.0.mlp.up_proj.weight"),
        *("llama.layers.0.input_layernorm.weight", "llama.mm_projector.0.bias", "llama.mm_projector.2.weight"),
        *(
            f"{tower}{tail}"
            for tail in ("class_embedding", "conv1.weight", "positional_embedding.weight", "ln_post.bias")
        ),
        f"{tower}transformer.layers.1.self_attn.out_proj.bias",
        f"{tower}transformer.layers.0.linear1.weight",
        f"{tower}transformer.layers.0.norm2.weight",
    }
    assert expected <= names
    assert len(names) == 2 * 9 + 3 + 1 + 4 + 7 + 2 * 16


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_mixed_batch_equals_each_row_alone(side):
    model = model_of()
    together = logits_of(model, ROWS, padding_side=side, pad_to_multiple_of=16)
    for index, item in enumerate(ROWS):
        alone = logits_of(model, [item])[0]
        np.testing.assert_allclose(together[index], alone, atol=CLOSE)


def test_the_loss_does_not_depend_on_the_padding_side():
    model = model_of()
    left = plan_of(ROWS, padding_side="left")
    # The first place of two padded rows carries a label, which padding must not be asked for.
    assert (np.take_along_axis(left.labels, left.starts[:, None], 1) != IGNORE_INDEX)[left.starts > 0].any()
    losses = [float(model(**arguments(plan, ROWS, labels=True))) for plan in (plan_of(ROWS), left)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("pieces", [[20, 1, 1], [1, 5, 16], [19, 3]])
def test_pieces_with_a_cache_equal_one_pass(pieces, fused):
    model = model_of(num_key_value_heads=4)
    model = model.prepare_inference() if fused else model
    with paddle.no_grad():
        embeds, positions = embedded(model, [row(3, 17, images=1)])
        whole = model.decode(embeds, positions, Mask(causal=True)).numpy()
        cache, parts = model.new_cache(1), []
        for count in pieces:
            piece = slice(cache.length, cache.length + count)
            parts.append(model.decode(embeds[:, piece], positions[:, piece], Mask(True, offset=cache.length), cache))
    np.testing.assert_allclose(paddle.concat(parts, axis=1).numpy(), whole, atol=CLOSE)


def test_a_cache_grows_over_its_blocks():
    model = model_of()
    rows = [row(4, 300)]
    with paddle.no_grad():
        embeds, positions = embedded(model, rows)
        whole = model.decode(embeds, positions, Mask(causal=True)).numpy()
        cache, parts = model.new_cache(1), []
        for first, last in ((0, 126), (126, 127), (127, 128), (128, 129), (129, 280), (280, 300)):
            part = model.decode(embeds[:, first:last], positions[:, first:last], Mask(True, offset=first), cache)
            parts.append(part)
    assert cache.length == 300
    assert cache.capacity == 320
    np.testing.assert_allclose(paddle.concat(parts, axis=1).numpy(), whole, atol=CLOSE)


def test_a_large_cache_that_was_made_anew_leaves_no_free_memory_behind(monkeypatch):
    model, given_back = model_of(), []
    monkeypatch.setattr(cache_room, "give_memory_back", lambda: given_back.append(cache.length))
    # One step behind the prompt, which has room for it, and behind the place that no block had room for.
    for large, wanted in ((1 << 40, []), (1, [126, 130])):
        monkeypatch.setattr(cache_room, "LARGE", large)
        with paddle.no_grad():
            embeds, positions = embedded(model, [row(4, 130)])
            cache = model.new_cache(1)
            for first, last in ((0, 64), (64, 126), *((place, place + 1) for place in range(126, 130))):
                model.decode(embeds[:, first:last], positions[:, first:last], Mask(True, offset=first), cache)
        assert given_back == wanted


def test_a_trimmed_cache_equals_a_fresh_one():
    model = model_of()
    with paddle.no_grad():
        embeds, positions = embedded(model, [row(5, 40)])
        other, _ = embedded(model, [row(6, 40)])
        fresh, used = model.new_cache(1), model.new_cache(1)
        model.decode(embeds[:, :20], positions[:, :20], Mask(True), fresh)
        model.decode(embeds[:, :20], positions[:, :20], Mask(True), used)
        model.decode(other[:, 20:], positions[:, 20:], Mask(True, offset=20), used)
        used.trim(20)
        results = [
            model.decode(embeds[:, 20:], positions[:, 20:], Mask(True, offset=20), cache).numpy()
            for cache in (fresh, used)
        ]
    assert used.length == 40
    assert np.array_equal(*results)


def test_a_left_padded_batch_with_a_cache_equals_each_row_alone():
    model = model_of()
    plan = plan_of(ROWS, padding_side="left")
    batch = arguments(plan, ROWS)
    alone = logits_of(model, ROWS)
    with paddle.no_grad():
        embeds = model.embed(batch["token_ids"], batch["source"], model.encode_images(batch["pixels"]))
        length = embeds.shape[1] - 2
        cache, parts = model.new_cache(3), []
        for piece in (slice(0, length), slice(length, length + 1), slice(length + 1, length + 2)):
            mask = Mask(True, key_starts=batch["starts"], offset=cache.length)
            parts.append(model.logits(model.decode(embeds[:, piece], batch["positions"][:, piece], mask, cache)))
    together = paddle.concat(parts, axis=1).numpy()
    for index, start in enumerate(plan.starts):
        np.testing.assert_allclose(together[index, start:], alone[index], atol=CLOSE)


def gradients(model, rows, **changes):
    packed = rows[0].segments is not None
    loss = model(**arguments(plan_of(rows, **changes), rows, labels=True, packed=packed))
    loss.backward()
    found = {name: item.grad.numpy() for name, item in model.named_parameters() if item.grad is not None}
    model.clear_gradients()
    return float(loss), found


def assert_same_training(one, two):
    assert one[0] == pytest.approx(two[0], rel=1e-5)
    assert set(one[1]) == set(two[1])
    for name, gradient in one[1].items():
        scale = max(1.0, np.abs(gradient).max())
        np.testing.assert_allclose(two[1][name], gradient, atol=2e-5 * scale, err_msg=name)


def test_packed_rows_train_as_unpacked_ones():
    model = model_of()
    packed = PlanRow(
        np.concatenate([item.ids for item in ROWS]),
        [layout for item in ROWS for layout in item.layouts],
        np.concatenate([item.labels for item in ROWS]),
        np.concatenate([np.full(len(item.ids), i) for i, item in enumerate(ROWS)]),
    )
    one = gradients(model, ROWS)
    # The packed row has the pixels of the three rows, in order.
    plan = plan_of([packed])
    loss = model(**{**arguments(plan, ROWS, labels=True, packed=True)})
    loss.backward()
    two = {name: item.grad.numpy() for name, item in model.named_parameters() if item.grad is not None}
    assert_same_training(one, (float(loss), two))


def test_more_padding_changes_neither_loss_nor_gradients():
    model = model_of()
    assert_same_training(gradients(model, ROWS), gradients(model, ROWS, pad_to_multiple_of=64))


def test_recompute_gives_the_same_loss_and_gradients():
    model = model_of()
    plain = gradients(model, ROWS)
    model.train()
    model.enable_recompute()
    assert_same_training(plain, gradients(model, ROWS))


def test_recompute_of_a_wide_model_gives_the_very_same_gradients():
    model = model_of(hidden_size=512, intermediate_size=512)  # wide enough for the kernels of ops.few_rows
    model.train()
    plain = gradients(model, ROWS)
    model.enable_recompute()
    again = gradients(model, ROWS)
    assert plain[0] == again[0]
    assert [name for name, gradient in plain[1].items() if (gradient != again[1][name]).any()] == []


@pytest.mark.parametrize("backend", ["math", "sdpa"])
def test_gradients_equal_differences_of_the_loss(monkeypatch, backend):
    monkeypatch.setenv("PADDLEMIX_ATTENTION", backend)
    model = model_of()
    _, found = gradients(model, ROWS)
    parameters = dict(model.named_parameters())
    batch = arguments(plan_of(ROWS), ROWS, labels=True)
    for name in ("llama.embed_tokens.weight", "llama.image_newline", "llama.mm_projector.0.weight",
                 "llama.layers.0.self_attn.k_proj.weight", "llama.layers.1.mlp.gate_proj.weight",
                 "llama.layers.0.input_layernorm.weight", "lm_head.weight"):  # fmt: skip
        gradient, parameter = found[name], parameters[name]
        direction = gradient / np.linalg.norm(gradient)
        start, losses, step = parameter.numpy(), [], 2e-3
        for sign in (1, -1):
            parameter.set_value(start + sign * step * direction)
            with paddle.no_grad():
                losses.append(float(model(**batch)))
        parameter.set_value(start)
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(np.linalg.norm(gradient), rel=2e-2), name


def test_the_padding_token_is_read_but_not_learnt():
    item = PlanRow([5, 0, 7, 0, 9], labels=[5, 0, 7, 0, 9])
    with_pad, without = model_of(pad_token_id=0), model_of()
    one, two = gradients(with_pad, [item]), gradients(without, [item])
    assert one[0] == two[0]
    name = "llama.embed_tokens.weight"
    assert (one[1][name][0] == 0).all()
    assert (two[1][name][0] != 0).any()
    assert np.array_equal(one[1][name][1:], two[1][name][1:])


def test_features_take_gradients_as_often_as_they_are_used():
    model = model_of()
    features = paddle.randn([1, 4, 32])
    features.stop_gradient = False
    ids = paddle.zeros([1, 3], dtype="int64")
    source = paddle.to_tensor([[3, 3, 6]])  # row 0 of the features twice, then row 3
    model.embed(ids, source, features).sum().backward()
    assert np.array_equal(features.grad.numpy()[0, :, 0], [2, 0, 0, 1])


def test_a_frozen_tower_keeps_no_graph_and_a_free_one_learns():
    model = model_of()
    tower = model.llama.vision_tower
    for parameter in tower.parameters():
        parameter.stop_gradient = True
    pixels = pixels_of(ROWS[:1])
    assert tower(pixels).stop_gradient
    _, found = gradients(model, ROWS)
    assert not [name for name in found if "vision_tower" in name]
    assert "llama.mm_projector.0.weight" in found
    tower.vision_tower.vision_model.conv1.weight.stop_gradient = False
    _, found = gradients(model, ROWS)
    assert np.abs(found["llama.vision_tower.vision_tower.vision_model.conv1.weight"]).max() > 0


def test_only_adapters_learn_when_all_else_is_frozen_with_recompute_too():
    found = []
    for recompute in (False, True):
        model = model_of()
        for parameter in model.parameters():
            parameter.stop_gradient = True
        add_lora(model, [r"llama\.layer.*(q|up)_proj.*"], r=2, alpha=4)
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.set_value(paddle.full_like(parameter, 0.01))
        model.train()
        model.enable_recompute(recompute)
        found.append(gradients(model, ROWS))
    assert len(found[0][1]) == 2 * 2 * 2
    assert {name.rpartition(".")[2] for name in found[0][1]} == {"lora_A", "lora_B"}
    assert_same_training(*found)


def test_forward_and_backward_ask_the_device_for_no_value(monkeypatch):
    model = model_of()
    model.train()
    batch = arguments(plan_of(ROWS), ROWS, labels=True)
    left = arguments(plan_of(ROWS, padding_side="left"), ROWS, labels=True)
    asked = []
    names = ("numpy", "item", "tolist", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__", "__len__")
    for name in names:
        original = getattr(paddle.Tensor, name)

        def count(self, *args, _name=name, _original=original, **kwargs):
            asked.append(_name)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(paddle.Tensor, name, count)
    for arguments_ in (batch, left):
        model(**arguments_).backward()
    model.eval()
    model.prepare_inference()
    with paddle.no_grad():
        embeds = model.embed(batch["token_ids"], batch["source"], model.encode_images(batch["pixels"]))
        cache = model.new_cache(3)
        for piece in (slice(0, 30), slice(30, 31)):
            mask = Mask(True, offset=cache.length, key_starts=left["starts"])
            model.logits(model.decode(embeds[:, piece], batch["positions"][:, piece], mask, cache))
    assert asked == []
    assert bool(paddle.to_tensor(True))
    assert asked, "the counters are not in place"


def test_tied_embeddings_have_no_head_and_use_the_table():
    model = model_of(tie_word_embeddings=True)
    assert "lm_head.weight" not in dict(model.named_parameters())
    hidden = paddle.randn([1, 2, 32])
    expected = hidden.numpy() @ model.llama.embed_tokens.weight.numpy().T
    np.testing.assert_allclose(model.logits(hidden).numpy(), expected, atol=1e-5)


def test_attention_bias_gives_every_projection_a_bias():
    names = {name for name, _ in model_of(attention_bias=True).named_parameters()}
    assert {f"llama.layers.0.self_attn.{part}_proj.bias" for part in "qkvo"} <= names


def test_construction_takes_no_memory_and_drawing_is_seeded_by_name():
    model = build_empty(config_of())
    assert not any(parameter._is_initialized() for _, parameter in model.named_parameters())
    init_weights(model, seed=1)
    again, deeper = build_empty(config_of()), build_empty(config_of(num_hidden_layers=3))
    init_weights(again, seed=1)
    init_weights(deeper, seed=1)
    names = dict(model.named_parameters())
    for name, parameter in names.items():
        assert np.array_equal(parameter.numpy(), dict(again.named_parameters())[name].numpy()), name
        assert np.array_equal(parameter.numpy(), dict(deeper.named_parameters())[name].numpy()), name
    first, second = (names[f"llama.layers.{index}.mlp.up_proj.weight"].numpy() for index in (0, 1))
    assert not np.array_equal(first, second)
    assert names["llama.embed_tokens.weight"].numpy().std() == pytest.approx(0.02, rel=0.1)


def test_fused_projections_give_the_same_logits_and_every_parameter_back():
    model = model_of(attention_bias=True)
    before = {name: parameter.numpy() for name, parameter in model.state_dict().items()}
    plain = logits_of(model, ROWS)
    model.prepare_inference()
    assert model.llama.layers[0].self_attn.fused is not None
    for one, two in zip(plain, logits_of(model, ROWS), strict=True):
        np.testing.assert_allclose(two, one, atol=CLOSE)
    after = model.state_dict()
    assert model.llama.layers[0].self_attn.fused is None
    assert all(np.array_equal(after[name].numpy(), value) for name, value in before.items())
    model.prepare_inference()
    model.train()
    assert model.llama.layers[1].mlp.fused is None
    assert model.training


def test_a_layer_outside_the_tower_is_an_error():
    vision = replace(config_of().vision, select_layer=-4)
    with pytest.raises(ConfigError, match="mm_vision_select_layer -4: the tower has 2 layers; expected -3 to 2"):
        build_empty(config_of().with_changes(vision=vision))


def test_layers_above_the_chosen_one_are_not_run():
    model = model_of()
    pixels = pixels_of(ROWS[:1])
    before = model.encode_images(pixels).numpy()
    last = model.llama.vision_tower.vision_tower.vision_model.transformer.layers[1].linear2.weight
    last.set_value(paddle.full_like(last, float("nan")))
    assert np.array_equal(model.encode_images(pixels).numpy(), before)


@pytest.mark.parametrize(
    ("pixels", "text"),
    [([1, 3, 14, 28], r"expected pixels \[N, 3, 28, 28\], got \[1, 3, 14, 28\]"), ([3, 28, 28], "got")],
)
def test_pixels_of_another_size_are_refused(pixels, text):
    with pytest.raises(ConfigError, match=text):
        model_of().encode_images(paddle.zeros(pixels))


def test_pixels_without_a_tower_are_refused():
    model = build_empty(config_of().with_changes(vision=None, image=None, has_image_newline=False))
    init_weights(model)
    with pytest.raises(ConfigError, match="no vision tower"):
        model.encode_images(paddle.zeros([1, 3, 28, 28]))
    assert np.isfinite(logits_of(model, [row(1, 7)])[0]).all()


def test_a_mask_that_forgets_the_cache_is_an_error():
    model = model_of()
    with paddle.no_grad():
        embeds, positions = embedded(model, [row(1, 7)])
        cache = model.new_cache(1)
        model.decode(embeds, positions, Mask(True), cache)
        with pytest.raises(ConfigError, match="the mask counts 0 cached places, the cache holds 7"):
            model.decode(embeds, positions, Mask(True), cache)


def test_a_sliding_window_is_refused_only_where_it_would_matter():
    model = model_of(sliding_window=10)
    assert np.isfinite(logits_of(model, [row(1, 10)])[0]).all()
    with pytest.raises(ConfigError, match=r"sequence of 11 places.*last 10 \(sliding_window\)"):
        logits_of(model, [row(1, 11)])


def test_head_counts_that_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match="num_key_value_heads 3 does not divide num_attention_heads 4"):
        build_empty(config_of(num_key_value_heads=3))


def test_a_cache_for_another_batch_and_a_trim_beyond_its_end_are_errors():
    model = model_of()
    with paddle.no_grad():
        embeds, positions = embedded(model, [row(1, 7)])
        with pytest.raises(ConfigError, match="KV cache of 2 rows was given 1 rows"):
            model.decode(embeds, positions, Mask(True), model.new_cache(2))
    with pytest.raises(ConfigError, match="cannot trim 0 filled places to 3"):
        model.new_cache(1).trim(3)


def test_a_new_projector_is_drawn_as_torch_draws_it():
    """Uniform in 1/sqrt(fan-in) has the deviation 1/sqrt(3 fan-in); the two layers have other fan-ins."""
    model = build_empty(config_of())
    init_weights(model, 0)
    projector = model.llama.mm_projector
    for layer in (projector[0], projector[2]):
        fan_in, fan_out = layer.weight.shape
        deviation = float(layer.weight.numpy().std())
        assert abs(deviation * (3 * fan_in) ** 0.5 - 1) < 4 / (2 * fan_in * fan_out) ** 0.5
    assert projector[0].weight.shape[0] != projector[0].weight.shape[1]
