# SPDX-License-Identifier: Apache-2.0
"""InternViT and EVA-CLIP equal a float64 reference written here from their description alone; their laws."""

import math
from dataclasses import replace

import numpy as np
import paddle
import pytest

from paddlemix.models.llava import init_weights
from paddlemix.models.projector import build_projector
from paddlemix.models.vision.build import encoder_class
from paddlemix.models.vision.intern_vit import resize_matrix
from paddlemix.settings.model import VisionConfig
from paddlemix.utils.errors import ConfigError
from tests.tiny import tiny_intern_config, tiny_model

INTERN = VisionConfig(
    24,
    40,
    3,
    4,
    image_size=42,
    patch_size=7,
    model_type="intern_vit_6b",
    hidden_act="gelu",
    layer_norm_eps=1e-6,
    extra={"qkv_bias": False, "qk_normalization": True, "position_grid": 4},
)
EVA = replace(
    INTERN,
    model_type="eva_clip_vision_model",
    image_size=28,
    extra={"q_bias": True, "k_bias": False, "v_bias": True, "post_layernorm": False},
)


def encoder_of(config, seed=0):
    """A tower's transformer with random values in every parameter, biases and norms included."""
    encoder = encoder_class(config.model_type)(config)
    rng = np.random.default_rng(seed)
    with paddle.no_grad():
        for parameter in encoder.parameters():
            values = rng.normal(0.1, 0.3, parameter.shape).astype(np.float32)
            parameter.set_value(paddle.to_tensor(values))
    encoder.eval()
    return encoder


def pixels_of(height, width, count=2, seed=1):
    return np.random.default_rng(seed).standard_normal((count, 3, height, width)).astype(np.float32)


def close(ours, theirs, tolerance=2e-5):
    worst = np.abs(ours.numpy() - theirs).max()
    assert worst < tolerance * max(1.0, np.abs(theirs).max()), worst


# ---- the reference: float64, one loop a thing ---------------------------------------------------------------------


def resized(grid, rows, columns):
    """Cubic convolution with a = -0.75, half-pixel centres, clamped borders; ``grid`` is [side, side, C]."""
    side = grid.shape[0]

    def weight(x):
        x, a = abs(x), -0.75
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    out = np.zeros((rows, columns, grid.shape[2]))
    for i in range(rows):
        for j in range(columns):
            y, x = (i + 0.5) * side / rows - 0.5, (j + 0.5) * side / columns - 0.5
            for m in range(math.floor(y) - 1, math.floor(y) + 3):
                for n in range(math.floor(x) - 1, math.floor(x) + 3):
                    value = grid[min(max(m, 0), side - 1), min(max(n, 0), side - 1)]
                    out[i, j] += weight(y - m) * weight(x - n) * value
    return out


def patches_of(pixels, weight, bias):
    patch = weight.shape[-1]
    rows, columns = pixels.shape[2] // patch, pixels.shape[3] // patch
    cells = [
        np.einsum("nchw,dchw->nd", pixels[:, :, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch], weight)
        + bias
        for r in range(rows)
        for c in range(columns)
    ]
    return np.stack(cells, axis=1), rows, columns


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(q, k, v, heads):
    n, length, width = q.shape
    q, k, v = (x.reshape(n, length, heads, width // heads).transpose(0, 2, 1, 3) for x in (q, k, v))
    scores = (q / math.sqrt(width // heads)) @ k.transpose(0, 1, 3, 2)
    return (softmax(scores) @ v).transpose(0, 2, 1, 3).reshape(n, length, width)


def rms(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def layer_norm(x, weight, bias, eps):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight + bias


def values_of(encoder):
    return {name: value.numpy().astype(np.float64) for name, value in encoder.named_parameters()}


def intern_states(encoder, config, pixels):
    w = values_of(encoder)
    patches, rows, columns = patches_of(
        pixels, w["embeddings.patch_embedding.weight"], w["embeddings.patch_embedding.bias"]
    )
    table = w["embeddings.position_embedding"][0]
    side = math.isqrt(len(table) - 1)
    grid = resized(table[1:].reshape(side, side, -1), rows, columns).reshape(rows * columns, -1)
    first = np.repeat(w["embeddings.class_embedding"], len(pixels), axis=0)
    x = np.concatenate([first, patches], axis=1) + np.concatenate([table[:1], grid])
    states, eps = [x], config.layer_norm_eps
    for i in range(config.num_hidden_layers):
        p = {name.removeprefix(f"encoder.layers.{i}."): value for name, value in w.items()}
        h = rms(x, p["norm1.weight"], eps) @ p["attn.qkv.weight"] + p.get("attn.qkv.bias", 0.0)
        q, k, v = np.split(h, 3, axis=-1)
        if config.extra["qk_normalization"]:
            q, k = rms(q, p["attn.q_norm.weight"], eps), rms(k, p["attn.k_norm.weight"], eps)
        h = attention(q, k, v, config.num_attention_heads) @ p["attn.proj.weight"] + p["attn.proj.bias"]
        x = x + p["ls1"] * h
        h = gelu(rms(x, p["norm2.weight"], eps) @ p["mlp.fc1.weight"] + p["mlp.fc1.bias"])
        x = x + p["ls2"] * (h @ p["mlp.fc2.weight"] + p["mlp.fc2.bias"])
        states.append(x)
    return states


def eva_states(encoder, config, pixels):
    w = {name.removeprefix("vision_model."): value for name, value in values_of(encoder).items()}
    patches, _, _ = patches_of(pixels, w["conv1.weight"], w["conv1.bias"])
    first = np.broadcast_to(w["class_embedding"], (len(pixels), 1, config.hidden_size))
    x = np.concatenate([first, patches], axis=1) + w["positional_embedding.weight"]
    states, eps = [x], config.layer_norm_eps
    for i in range(config.num_hidden_layers):
        p = {name.removeprefix(f"transformer.layers.{i}."): value for name, value in w.items()}

        def norm(h, number, p=p):
            return layer_norm(h, p[f"norm{number}.weight"], p[f"norm{number}.bias"], eps)

        def attend(h, p=p):
            q, k, v = (
                h @ p[f"self_attn.{n}_proj.weight"] + p.get(f"self_attn.{n}_proj.bias", 0.0) for n in ("q", "k", "v")
            )
            h = attention(q, k, v, config.num_attention_heads)
            return h @ p["self_attn.out_proj.weight"] + p["self_attn.out_proj.bias"]

        def mlp(h, p=p):
            return gelu(h @ p["linear1.weight"] + p["linear1.bias"]) @ p["linear2.weight"] + p["linear2.bias"]

        if config.extra["post_layernorm"]:
            x = x + norm(attend(x), 1)
            x = x + norm(mlp(x), 2)
        else:
            x = x + attend(norm(x, 1))
            x = x + mlp(norm(x, 2))
        states.append(x)
    return states


# ---- InternViT ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width"), [(28, 28), (42, 42), (21, 21), (56, 56), (28, 49), (33, 31)],
    ids=["native", "larger", "smaller", "twice", "wide", "unaligned"],
)  # fmt: skip
def test_every_hidden_state_equals_the_reference_at_any_height_and_width(height, width):
    encoder, pixels = encoder_of(INTERN), pixels_of(height, width)
    expected = intern_states(encoder, INTERN, pixels)
    for layer, state in enumerate(expected):
        close(encoder.hidden_state(paddle.to_tensor(pixels), layer), state)
    close(encoder.pooled(paddle.to_tensor(pixels)), expected[-1][:, 0])


@pytest.mark.parametrize(("bias", "norms"), [(True, False), (True, True), (False, False)])
def test_the_bias_of_qkv_and_the_norms_of_q_and_k_are_choices(bias, norms):
    config = replace(INTERN, extra={**INTERN.extra, "qkv_bias": bias, "qk_normalization": norms})
    encoder, pixels = encoder_of(config), pixels_of(35, 35)
    names = [name for name, _ in encoder.named_parameters()]
    assert any(name.endswith("qkv.bias") for name in names) == bias
    assert any(name.endswith("q_norm.weight") for name in names) == norms
    close(encoder.hidden_state(paddle.to_tensor(pixels), 3), intern_states(encoder, config, pixels)[-1])


def test_a_grid_of_the_tables_own_size_is_taken_as_it_is():
    embeddings = encoder_of(INTERN).embeddings
    assert np.array_equal(embeddings.positions((4, 4)).numpy(), embeddings.position_embedding.numpy()[:, 1:])


def test_weights_of_a_resize_sum_to_one_and_give_back_a_grid_of_the_same_size():
    assert np.allclose(resize_matrix(16, (24, 31)).sum(1), 1.0, atol=1e-6)
    assert np.array_equal(resize_matrix(5, (5, 5)), np.eye(25, dtype=np.float32))


def test_the_side_of_the_grid_comes_from_the_table_and_not_from_the_configuration():
    encoder = encoder_of(INTERN)
    wide = encoder_of(replace(INTERN, extra={**INTERN.extra, "position_grid": 6}))
    with paddle.no_grad():
        table = paddle.concat([encoder.embeddings.position_embedding[:, :1], encoder.embeddings.positions((6, 6))], 1)
        wide.embeddings.position_embedding.set_value(table)
    assert np.abs(wide.embeddings.positions((6, 6)).numpy() - encoder.embeddings.positions((6, 6)).numpy()).max() == 0


def test_positions_learn_through_the_resize():
    encoder, pixels = encoder_of(INTERN), paddle.to_tensor(pixels_of(35, 49))
    for parameter in encoder.parameters():
        parameter.stop_gradient = True
    table = encoder.embeddings.position_embedding
    table.stop_gradient = False
    probe = np.random.default_rng(3).standard_normal((2, 35, 24)).astype(np.float32)
    (encoder.hidden_state(pixels, 0)[:, 1:] * paddle.to_tensor(probe)).sum().backward()
    expected = resize_matrix(4, (5, 7)).T @ probe.sum(0)
    assert np.allclose(table.grad.numpy()[0, 1:], expected, atol=1e-4)
    assert np.abs(table.grad.numpy()[0, 0]).max() == 0


def test_in_bfloat16_the_resize_is_computed_in_float32():
    encoder = encoder_of(INTERN)
    exact = encoder.embeddings.positions((6, 6)).numpy()
    encoder.embeddings.to(dtype="bfloat16")
    found = encoder.embeddings.positions((6, 6))
    assert found.dtype == paddle.bfloat16
    # One rounding of the table and one of the result: 2 ** -8 of the largest value at most.
    assert np.abs(found.astype("float32").numpy() - exact).max() < 2**-8 * np.abs(exact).max() * 1.5


def test_a_model_with_internvit_makes_as_many_tokens_as_its_tiles_have_patches():
    model = tiny_model(config=tiny_intern_config())
    config = model.config.vision
    with paddle.no_grad():
        features = model.encode_images(paddle.to_tensor(pixels_of(42, 42)))
    assert config.tokens_per_tile == 9
    assert features.shape == [2, 9, 32]
    assert model.llama.vision_tower.vision_tower.embeddings.position_embedding.shape == [1, 5, 32]


def gradients(model, pixels, recompute):
    model.train()
    model.enable_recompute(recompute)
    model.clear_gradients()
    weight = paddle.to_tensor(np.random.default_rng(5).standard_normal((2, 9, 32)).astype(np.float32))
    (model.encode_images(pixels) * weight).sum().backward()
    return {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("trains", ["vision_tower", "layers.1.", "position_embedding", "mm_projector"])
def test_recompute_gives_the_same_gradients_whatever_part_of_the_tower_trains(trains):
    model, pixels = tiny_model(config=tiny_intern_config()), paddle.to_tensor(pixels_of(42, 42))
    for name, parameter in model.named_parameters():
        parameter.stop_gradient = trains not in name
    plain, again = gradients(model, pixels, False), gradients(model, pixels, True)
    assert plain.keys() == again.keys()
    assert plain
    for name in plain:
        assert np.allclose(plain[name], again[name], rtol=1e-5, atol=1e-6), name


def test_blocks_above_the_chosen_layer_get_no_gradient():
    model = tiny_model(config=tiny_intern_config())
    found = gradients(model, paddle.to_tensor(pixels_of(42, 42)), False)
    layers = {name.split("encoder.layers.")[1].split(".")[0] for name in found if "encoder.layers." in name}
    assert layers == {"0", "1", "2"}  # select_layer -2 of four


def test_new_weights_have_ones_in_norms_and_a_tenth_in_the_scales():
    model = tiny_model(config=tiny_intern_config(projector_type="mlp2x_gelu_ln"))
    init_weights(model, 3)
    found = {name: value.numpy() for name, value in model.named_parameters()}
    block = "llama.vision_tower.vision_tower.encoder.layers.0."
    for name in ("norm1.weight", "attn.q_norm.weight"):
        assert (found[block + name] == 1).all()
    assert np.allclose(found[f"{block}ls1"], 0.1)
    assert (found["llama.mm_projector.0.weight"] == 1).all()
    assert found["llama.mm_projector.1.weight"].std() > 0.05


# ---- EVA-CLIP and projectors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [False, True])
def test_eva_clip_equals_the_reference_with_norms_before_or_behind(after):
    config = replace(EVA, extra={**EVA.extra, "post_layernorm": after})
    encoder, pixels = encoder_of(config), pixels_of(28, 28)
    for layer, state in enumerate(eva_states(encoder, config, pixels)):
        close(encoder.hidden_state(paddle.to_tensor(pixels), layer), state)


def test_eva_clip_has_the_biases_that_its_configuration_names():
    names = {name for name, _ in encoder_of(EVA).named_parameters()}
    attention_0 = "vision_model.transformer.layers.0.self_attn."
    assert {f"{attention_0}q_proj.bias", f"{attention_0}v_proj.bias"} <= names
    assert f"{attention_0}k_proj.bias" not in names
    assert not any("ln_pre" in name for name in names)


@pytest.mark.parametrize(
    ("kind", "names"),
    [("mlp2x_gelu_ln", ["0", "1", "3"]), ("mlp3x_gelu_ln", ["0", "1", "3", "5"]), ("mlp1x_gelu_ln", ["0", "1"])],
)
def test_ln_in_a_projectors_name_puts_a_norm_in_front_and_moves_the_numbers(kind, names):
    projector = build_projector(kind, 6, 8)
    found = sorted({name.split(".")[0] for name, _ in projector.named_parameters()})
    assert found == names
    given = paddle.to_tensor(np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32))
    # A norm in front: neither scale nor shift of the features matters.
    assert np.allclose(projector(given).numpy(), projector(given * 7 + 3).numpy(), atol=1e-4)


@pytest.mark.parametrize("kind", ["mlp2x_gelu_x", "mlp0x_gelu", "mlp2x_relu", "two_mlp"])
def test_an_unknown_projector_is_refused(kind):
    with pytest.raises(ConfigError, match="mlpNx_gelu"):
        build_projector(kind, 6, 8)
