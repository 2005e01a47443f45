# SPDX-License-Identifier: Apache-2.0
"""The loss against its formula, and the projector table."""

import numpy as np
import paddle
import pytest

from paddlemix.models.loss import next_labels, next_token_loss
from paddlemix.models.projector import build_projector
from paddlemix.utils.constants import IGNORE_INDEX
from paddlemix.utils.errors import ConfigError

LABELS = np.array([[1, IGNORE_INDEX, 2, 3, IGNORE_INDEX], [IGNORE_INDEX, 0, IGNORE_INDEX, IGNORE_INDEX, 4]])


def logits_of(scale=3.0):
    tensor = paddle.to_tensor((np.random.default_rng(0).standard_normal([2, 5, 6]) * scale).astype("float32"))
    tensor.stop_gradient = False
    return tensor


def by_hand(logits, labels):
    wide = logits.astype(np.float64)
    log = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    picked = [-log[b, i, labels[b, i + 1]] for b in range(2) for i in range(4) if labels[b, i + 1] != IGNORE_INDEX]
    return np.mean(picked), len(picked)


def test_the_first_place_of_a_row_is_nobodys_target():
    none = IGNORE_INDEX
    labels = paddle.to_tensor([[none, none, 5, 6, 7], [4, 5, 6, 7, 8]])
    left = next_labels(labels, starts=paddle.to_tensor([2, 0]))
    assert left.tolist() == [[none, none, 6, 7, none], [5, 6, 7, 8, none]]
    packed = next_labels(labels, segments=paddle.to_tensor([[1, 1, 1, 1, 1], [1, 1, 2, 2, 3]]))
    assert packed.tolist() == [[none, 5, 6, 7, none], [5, none, 7, none, none]]


def test_loss_is_the_mean_over_the_labels_of_the_next_place():
    logits = logits_of()
    loss, count = next_token_loss(logits, paddle.to_tensor(LABELS))
    expected, number = by_hand(logits.numpy(), LABELS)
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    assert int(count) == number == 4


def test_a_batch_without_labels_has_loss_zero_and_zero_gradients():
    logits = logits_of()
    labels = np.full_like(LABELS, IGNORE_INDEX)
    labels[:, 0] = 3  # the first place of a row is nobody's next
    loss, count = next_token_loss(logits, paddle.to_tensor(labels))
    loss.backward()
    assert float(loss) == 0.0
    assert int(count) == 0
    assert (logits.grad.numpy() == 0).all()


def test_ignored_places_get_no_gradient():
    logits = logits_of()
    next_token_loss(logits, paddle.to_tensor(LABELS))[0].backward()
    moved = (logits.grad.numpy() != 0).any(-1)
    assert np.array_equal(moved[:, :4], LABELS[:, 1:] != IGNORE_INDEX)
    assert not moved[:, 4].any()


def test_segments_keep_samples_from_predicting_each_other():
    logits = logits_of()
    segments = paddle.to_tensor([[1, 1, 2, 2, 2], [1, 1, 1, 1, 2]])
    labels = LABELS.copy()
    labels[0, 2] = labels[1, 4] = IGNORE_INDEX
    with_segments = next_token_loss(logits, paddle.to_tensor(LABELS), segments)[0]
    assert float(with_segments) == pytest.approx(by_hand(logits.numpy(), labels)[0], rel=1e-6)


def test_half_precision_logits_are_summed_in_float32():
    # Float16 sums of exp() would overflow beyond 11; the CPU has no half-precision kernels, so the cast is the test.
    logits = (logits_of(scale=20.0)).detach().astype("float16")
    loss, _ = next_token_loss(logits, paddle.to_tensor(LABELS))
    assert loss.dtype == paddle.float32
    assert float(loss) == pytest.approx(by_hand(logits.numpy(), LABELS)[0], rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("linear", ["weight", "bias"]),
        ("mlp1x_gelu", ["0.weight", "0.bias"]),
        ("mlp3x_gelu", ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"]),
    ],
)
def test_projectors_have_the_names_of_the_original(kind, names):
    layer = build_projector(kind, 6, 8)
    assert [name for name, _ in layer.named_parameters()] == names
    assert list(layer(paddle.zeros([2, 3, 6])).shape) == [2, 3, 8]


def test_identity_needs_equal_widths():
    x = paddle.randn([2, 3, 8])
    assert np.array_equal(build_projector("identity", 8, 8)(x).numpy(), x.numpy())
    with pytest.raises(ConfigError, match="identity: the vision width 6 must equal the model width 8"):
        build_projector("identity", 6, 8)


@pytest.mark.parametrize("kind", ["mlp0x_gelu", "mlp2x", "resampler", "mlp2x_gelu "])
def test_an_unknown_projector_is_refused(kind):
    with pytest.raises(ConfigError, match=f'mm_projector_type "{kind}": expected linear, identity or mlpNx_gelu'):
        build_projector(kind, 6, 8)
