# SPDX-License-Identifier: Apache-2.0
"""Linear layers, adapters and fused products."""

import numpy as np
import paddle
import pytest
from paddle import nn

from paddlemix.ops.linear import Fused, Linear, LoraLinear, adapters_off, add_lora, lora_layers, merge_lora
from paddlemix.ops.pissa import principal
from paddlemix.utils.errors import ConfigError


class Block(nn.Layer):
    def __init__(self):
        super().__init__()
        self.q_proj, self.o_proj = Linear(8, 12), Linear(12, 8, bias=False)
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        return self.norm(x + self.o_proj(self.q_proj(x)))


class Stack(nn.Layer):
    def __init__(self):
        super().__init__()
        self.layers = nn.LayerList([Block(), Block()])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture
def x():
    return paddle.to_tensor(np.random.default_rng(0).standard_normal([3, 8]).astype("float32"))


def trained(model):
    """Give every adapter a B that is not zero."""
    for index, (_, layer) in enumerate(lora_layers(model)):
        values = np.random.default_rng(index).standard_normal(layer.lora_B.shape).astype("float32")
        layer.lora_B.set_value(paddle.to_tensor(values))


def test_weights_are_in_by_out(x):
    layer = Linear(8, 12)
    assert list(layer.weight.shape) == [8, 12]
    expected = x.numpy() @ layer.weight.numpy() + layer.bias.numpy()
    np.testing.assert_allclose(layer(x).numpy(), expected, atol=1e-6)


def test_a_new_adapter_changes_nothing(x):
    model = Stack()
    before = model(x).numpy()
    names = add_lora(model, [".*_proj"], r=4, alpha=8)
    assert names == ["layers.0.q_proj", "layers.0.o_proj", "layers.1.q_proj", "layers.1.o_proj"]
    assert np.array_equal(model(x).numpy(), before)


def test_parameter_names_stay_and_lora_names_are_added():
    model = Stack()
    before = {name: parameter.numpy() for name, parameter in model.named_parameters()}
    add_lora(model, ["layers.0.q_proj"], r=4, alpha=8)
    after = {name: parameter.numpy() for name, parameter in model.named_parameters()}
    assert set(after) - set(before) == {"layers.0.q_proj.lora_A", "layers.0.q_proj.lora_B"}
    assert all(np.array_equal(after[name], value) for name, value in before.items())
    assert after["layers.0.q_proj.lora_A"].shape == (8, 4)
    assert after["layers.0.q_proj.lora_B"].shape == (4, 12)


def test_the_adapter_adds_scaled_a_times_b(x):
    layer = LoraLinear(Linear(8, 12), r=4, alpha=6)
    plain = (x.numpy() @ layer.weight.numpy()) + layer.bias.numpy()
    layer.lora_B.set_value(paddle.ones([4, 12]))
    low = x.numpy() @ layer.lora_A.numpy() @ np.ones([4, 12], "float32") * 1.5
    np.testing.assert_allclose(layer(x).numpy(), plain + low, atol=1e-6)


def test_merged_equals_unmerged_and_back(x):
    model = Stack()
    add_lora(model, [".*_proj"], r=4, alpha=8)
    trained(model)
    open_, weight = model(x).numpy(), model.layers[0].q_proj.weight.numpy()
    for _, layer in lora_layers(model):
        layer.merge()
        layer.merge()  # a second time does nothing
    np.testing.assert_allclose(model(x).numpy(), open_, atol=5e-6)
    assert not np.allclose(model.layers[0].q_proj.weight.numpy(), weight)
    for _, layer in lora_layers(model):
        layer.unmerge()
    np.testing.assert_allclose(model.layers[0].q_proj.weight.numpy(), weight, atol=1e-6)


def test_merge_lora_leaves_a_plain_model(x):
    model = Stack()
    plain_names = [name for name, _ in model.named_parameters()]
    names = add_lora(model, ["layers.1.*"], r=2, alpha=2)
    trained(model)
    open_ = model(x).numpy()
    assert merge_lora(model) == names
    assert [name for name, _ in model.named_parameters()] == plain_names
    assert {type(layer) for _, layer in model.named_sublayers() if isinstance(layer, Linear)} == {Linear}
    np.testing.assert_allclose(model(x).numpy(), open_, atol=5e-6)


METHODS = {
    "lora": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "pissa": {"pissa": True},
    "both": {"dora": True, "pissa": True, "rslora": True},
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def with_adapters(method, **more):
    """A stack with adapters of one method that have their start, and the stack without."""
    model = Stack()
    add_lora(model, [".*_proj"], r=3, alpha=6, **method, **more)
    rng = np.random.default_rng(5)
    for _, layer in lora_layers(model) if "pissa" in method else ():
        layer.begin_with(*(rng.standard_normal(item.shape).astype("float32") for item in (layer.lora_A, layer.lora_B)))
    return model


def moved(model):
    """Every trained matrix and vector of the adapters somewhere else."""
    rng = np.random.default_rng(9)
    for name, parameter in model.named_parameters():
        if ".lora_" in name and "start" not in name:
            step = rng.standard_normal(parameter.shape).astype("float32") * 0.4
            parameter.set_value(parameter + paddle.to_tensor(step))


@every_method
def test_an_adapter_of_every_method_begins_as_the_base_and_goes_off_and_folds_in_and_out(method, x):
    model = with_adapters(method)
    with adapters_off(model):
        base = model(x).numpy()
    np.testing.assert_allclose(model(x).numpy(), base, atol=2e-5)
    moved(model)
    open_, weight = model(x).numpy(), model.layers[0].q_proj.weight.numpy()
    assert np.abs(open_ - base).max() > 0.1
    with adapters_off(model):
        assert np.array_equal(model(x).numpy(), base)
    assert np.array_equal(model(x).numpy(), open_)
    for _, layer in lora_layers(model):
        layer.merge()
        layer.merge()
    np.testing.assert_allclose(model(x).numpy(), open_, atol=2e-5)
    with pytest.raises(ValueError, match="unmerge it first"), adapters_off(model):
        pass
    for _, layer in lora_layers(model):
        layer.unmerge()
    np.testing.assert_allclose(model.layers[0].q_proj.weight.numpy(), weight, atol=2e-5)
    np.testing.assert_allclose(model(x).numpy(), open_, atol=2e-5)
    merge_lora(model)
    np.testing.assert_allclose(model(x).numpy(), open_, atol=2e-5)
    assert {name.rpartition(".")[2] for name, _ in model.named_parameters()} == {"weight", "bias"}


@every_method
def test_the_formula_of_every_method(method, x):
    model = with_adapters(method)
    moved(model)
    layer = model.layers[0].q_proj
    tensors = {name: value.numpy() for name, value in layer.named_parameters()}
    scale = 6 / (np.sqrt(3) if "rslora" in method else 3)
    changed = tensors["weight"] + scale * tensors["lora_A"] @ tensors["lora_B"]
    if "pissa" in method:
        changed -= scale * tensors["lora_start_A"] @ tensors["lora_start_B"]
    if "dora" in method:
        changed *= tensors["lora_magnitude_vector"] / np.sqrt((changed**2).sum(0))
    np.testing.assert_allclose(layer(x).numpy(), x.numpy() @ changed + tensors["bias"], atol=2e-5)


def test_parts_that_train_whole_have_their_first_values_while_the_adapters_are_off(x):
    model = with_adapters({"dora": True})
    first = model(x).numpy()
    originals = {"layers.0.norm.weight": model.layers[0].norm.weight.clone()}
    moved(model)
    model.layers[0].norm.weight.set_value(paddle.full([8], 3.0))
    now = model(x)
    with paddle.no_grad(), adapters_off(model, originals):
        np.testing.assert_allclose(model(x).numpy(), first, atol=1e-5)
    assert np.array_equal(model(x).numpy(), now.numpy())
    assert float(model.layers[0].norm.weight.mean()) == 3.0
    now.sum().backward()
    assert model.layers[0].norm.weight.grad is not None
    with pytest.raises(KeyError), adapters_off(model, {"nobody": x}):
        pass
    assert np.array_equal(model(x).numpy(), now.numpy())


def test_the_searched_principal_part_is_that_of_the_decomposition():
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((60, 90)) * np.linspace(3, 0.1, 90) ** 2).astype("float32")
    left, sizes, right = np.linalg.svd(weight, full_matrices=False)
    best = (left[:, :5] * sizes[:5]) @ right[:5]
    for rounds in (-1, 16):
        a, b = principal(weight, 5, rounds, seed=1)
        assert (a.shape, b.shape, a.dtype, b.dtype) == ((60, 5), (5, 90), np.float32, np.float32)
        np.testing.assert_allclose(a @ b, best, atol=1e-3)
        np.testing.assert_allclose((a**2).sum(0), sizes[:5], rtol=1e-3)
        np.testing.assert_allclose((b**2).sum(1), sizes[:5], rtol=1e-3)
    assert principal(weight[:4], 4, 16)[0].shape == (4, 4)
    with pytest.raises(np.linalg.LinAlgError, match="not finite"):
        principal(np.full((3, 3), np.nan), 1)


def test_a_column_of_zeros_is_no_division_by_zero(x):
    base = Linear(8, 12)
    base.weight.set_value(base.weight * paddle.to_tensor([0.0] + [1.0] * 11))
    layer = LoraLinear(base, r=2, alpha=2, dora=True)
    out = layer(x)
    out.sum().backward()
    assert np.isfinite(out.numpy()).all()
    assert np.isfinite(layer.lora_magnitude_vector.grad.numpy()).all()
    layer.lora_magnitude_vector.set_value(paddle.zeros([12]))
    layer.merge()
    with pytest.raises(ValueError, match="magnitude is 0"):
        layer.unmerge()


def test_the_start_of_an_adapter_depends_on_seed_and_name_only():
    one, two, other = Stack(), Stack(), Stack()
    add_lora(one, ["layers.0.q_proj", "layers.1.q_proj"], r=2, alpha=2, seed=3)
    add_lora(two, ["layers.1.q_proj"], r=2, alpha=2, seed=3)
    add_lora(other, ["layers.1.q_proj"], r=2, alpha=2, seed=4)
    assert np.array_equal(one.layers[1].q_proj.lora_A.numpy(), two.layers[1].q_proj.lora_A.numpy())
    assert not np.array_equal(one.layers[0].q_proj.lora_A.numpy(), one.layers[1].q_proj.lora_A.numpy())
    assert not np.array_equal(two.layers[1].q_proj.lora_A.numpy(), other.layers[1].q_proj.lora_A.numpy())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_an_adapter_has_the_dtype_of_its_layer(dtype):
    base = Linear(8, 12)
    base.to(dtype=dtype)
    layer = LoraLinear(base, r=4, alpha=8)
    assert {str(item.dtype) for item in (layer.weight, layer.lora_A, layer.lora_B)} == {f"paddle.{dtype}"}
    assert float(layer.lora_A.astype("float32").abs().max()) > 0.0 == float(layer.lora_B.astype("float32").abs().max())


def test_dropout_acts_in_training_only(x):
    paddle.seed(1)
    layer = LoraLinear(Linear(8, 12), r=4, alpha=4, dropout=0.5)
    layer.lora_B.set_value(paddle.ones([4, 12]))
    assert not np.allclose(layer(x).numpy(), layer(x).numpy())
    layer.eval()
    assert np.array_equal(layer(x).numpy(), layer(x).numpy())


@pytest.mark.parametrize(
    ("patterns", "text"),
    [
        ([".*_proj", "q_proj"], 'LoRA target "q_proj" matches no module .*whole name must match.*layers.'),
        (["layers.0.norm"], 'target "layers.0.norm" matches 1 modules but no linear layer .*LayerNorm'),
        (["layers.(0"], r'target "layers.\(0" is not a regular expression'),
    ],
)
def test_a_target_that_hits_no_linear_layer_is_an_error(patterns, text):
    model = Stack()
    with pytest.raises(ConfigError, match=text):
        add_lora(model, patterns, r=2, alpha=2)
    assert list(lora_layers(model)) == []


def test_a_second_adapter_on_a_layer_is_an_error():
    model = Stack()
    add_lora(model, ["layers.0.q_proj"], r=2, alpha=2)
    with pytest.raises(ConfigError, match='"layers.0.q_proj" has an adapter already; merge it first'):
        add_lora(model, ["layers.0.q_proj"], r=2, alpha=2)


def test_fused_layers_equal_plain_ones_and_come_back_bit_for_bit(x):
    layers = [Linear(8, 12), Linear(8, 4)]
    for layer in layers:
        layer.bias.set_value(paddle.randn(layer.bias.shape))
    plain = np.concatenate([layer(x).numpy() for layer in layers], axis=1)
    values = [parameter.numpy() for layer in layers for parameter in layer.parameters()]
    fused = Fused(layers)
    np.testing.assert_allclose(fused(x).numpy(), plain, atol=1e-6)
    fused.release()
    after = [parameter.numpy() for layer in layers for parameter in layer.parameters()]
    assert all(np.array_equal(one, two) for one, two in zip(values, after, strict=True))


def test_an_open_adapter_is_not_fused():
    layer = LoraLinear(Linear(8, 12), r=2, alpha=2)
    assert not Fused.can([Linear(8, 12), layer])
