# SPDX-License-Identifier: Apache-2.0
"""Rotary positions, RMSNorm and activations against their formulas in double precision."""

import math

import numpy as np
import paddle
import pytest

from paddlemix.ops.activation import ACTIVATIONS, quick_gelu_by_silu
from paddlemix.ops.norm import RMSNorm
from paddlemix.ops.rope import RotaryTables, rotate
from paddlemix.ops.rope_scaling import rotary_frequencies
from paddlemix.ops.runtime import Runtime
from paddlemix.utils.errors import ConfigError

CPU = Runtime("cpu")


def randn(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def rotated(x, positions, theta):
    """Pairs (i, i + D/2) of every head turned by position / theta^(2i/D), as complex numbers."""
    half = x.shape[-1] // 2
    pairs = x[..., :half].astype(np.float64) + 1j * x[..., half:]
    angles = positions[:, :, None, None] / theta ** (np.arange(half) / half)
    turned = pairs * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], axis=-1)


@pytest.mark.parametrize("theta", [1e4, 1e6])
def test_rotation_is_a_complex_product(theta):
    x, positions = randn(2, 7, 3, 8), np.array([[0, 1, 2, 3, 4, 5, 6], [0, 0, 9, 400, 1999, 2, 1]])
    tables = RotaryTables(8, theta, None, CPU).step(paddle.to_tensor(positions))
    ours = rotate(paddle.to_tensor(x), tables.over(3), CPU).numpy()
    # Float32 angles: at position 1999 one rounding of the angle is 1e-4 of a turn's radian.
    np.testing.assert_allclose(ours, rotated(x, positions, theta), atol=5e-4)
    np.testing.assert_allclose(ours[0], rotated(x, positions, theta)[0], atol=2e-6)


def test_wide_tables_equal_broadcast_ones():
    tables = RotaryTables(8, 1e4, None, CPU).step(paddle.arange(5).reshape([1, 5]))
    x = paddle.to_tensor(randn(1, 5, 3, 8))
    assert np.array_equal(rotate(x, tables.over(3), CPU).numpy(), rotate(x, (tables.cos, tables.sin), CPU).numpy())


def test_scores_depend_on_the_distance_only():
    q, k = paddle.to_tensor(randn(1, 1, 1, 16)), paddle.to_tensor(randn(1, 1, 1, 16) * 2)
    tables = RotaryTables(16, 1e4, None, CPU)
    scores = []
    for place in (0, 50):
        first, second = (tables.step(paddle.to_tensor([[p]])).over(1) for p in (place + 3, place))
        scores.append(float((rotate(q, first, CPU) * rotate(k, second, CPU)).sum()))
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_linear_scaling_stretches_positions():
    plain, scaled = rotary_frequencies(8, 1e4, None), rotary_frequencies(8, 1e4, {"type": "linear", "factor": 4.0})
    np.testing.assert_allclose(scaled, plain / 4, rtol=1e-6)


def test_llama3_scaling_equals_the_reference():
    # transformers 5.23, ROPE_INIT_FUNCTIONS["llama3"] with head width 16 and the values of Llama 3.1.
    reference = [1.0, 0.193922758, 0.0376060307, 0.00729266508, 0.000524846022, 3.42810235e-05, 6.64786967e-06,
                 1.28917316e-06]  # fmt: skip
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    ours = rotary_frequencies(16, 500000.0, {**scaling, "original_max_position_embeddings": 8192})
    np.testing.assert_allclose(ours, reference, rtol=1e-6)


@pytest.mark.parametrize(
    ("scaling", "text"),
    [
        ({"type": "dynamic", "factor": 2.0}, 'type "dynamic" needs max_position_embeddings'),
        ({"rope_type": "longrope"}, 'type "longrope" is not supported; known: default, linear, llama3, dynamic, yarn'),
        ({"rope_type": "yarn"}, '"original_max_position_embeddings": expected a number above 0, got None'),
        ({"type": "linear"}, '"factor": expected a number above 0, got None'),
        ({"type": "linear", "factor": True}, '"factor": expected a number above 0, got True'),
    ],
)
def test_unknown_scaling_is_refused(scaling, text):
    with pytest.raises(ConfigError, match=text):
        RotaryTables(8, 1e4, scaling, CPU)


def test_rms_norm_is_its_formula():
    x = randn(2, 5, 64) * 3
    layer = RMSNorm(64, 1e-5, CPU)
    layer.weight.set_value(paddle.to_tensor(randn(64)))
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5) * layer.weight.numpy()
    np.testing.assert_allclose(layer(paddle.to_tensor(x)).numpy(), expected, atol=3e-6)


def test_rms_norm_of_zeros_has_a_finite_gradient():
    x = paddle.zeros([1, 4])
    x.stop_gradient = False
    RMSNorm(4, 1e-5, CPU)(x).sum().backward()
    assert np.isfinite(x.grad.numpy()).all()


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("quick_gelu", lambda x: x / (1 + math.exp(-1.702 * x))),
        ("gelu", lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2)))),
        ("silu", lambda x: x / (1 + math.exp(-x))),
    ],
)
def test_activations_are_their_formulas(name, formula):
    x = np.linspace(-6, 6, 49, dtype=np.float32)
    ours = ACTIVATIONS.get(name)(paddle.to_tensor(x)).numpy()
    np.testing.assert_allclose(ours, [formula(float(value)) for value in x], atol=1e-6)


def test_quick_gelu_of_half_precision_is_the_same_formula():
    x = np.linspace(-6, 6, 25, dtype=np.float32)
    found = quick_gelu_by_silu(paddle.to_tensor(x)).numpy()
    np.testing.assert_allclose(found, x / (1 + np.exp(-1.702 * x.astype(np.float64))), atol=1e-6)


def test_an_unknown_activation_names_the_nearest():
    with pytest.raises(ConfigError, match='unknown activation "qick_gelu", did you mean "quick_gelu"'):
        ACTIVATIONS.get("qick_gelu")


def test_a_lack_of_memory_is_no_limit_of_an_operator():
    """A refusal is remembered for calls of the same shapes; memory may be there again at the next one."""
    from paddlemix.ops.npu import library

    def lacking():
        raise RuntimeError("ResourceExhaustedError: Out of memory on npu:0")

    x = paddle.ones([2])
    with pytest.raises(RuntimeError, match="ResourceExhausted") as raised:
        library.guarded("some_op", lacking, (x,))
    assert not isinstance(raised.value, library.RefusalError)
    assert library.guarded("some_op", lambda: 7, (x,)) == 7
    with pytest.raises(library.RefusalError, match="some_op of this plug-in refused"):
        library.guarded("some_op", lambda: 1 / 0 if x is None else int("a"), (x,))
    with pytest.raises(library.RefusalError):
        library.guarded("some_op", lambda: 7, (x,))
