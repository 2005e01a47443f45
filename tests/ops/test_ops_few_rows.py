# SPDX-License-Identifier: Apache-2.0
"""Products of a few rows by kernels compiled here, against numpy; and where paddle's own product serves instead."""

import numpy as np
import paddle
import pytest

from paddlemix.ops import few_rows
from paddlemix.ops.linear import apply_linear
from paddlemix.ops.low_bits import build


def drawn(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def _compiled():
    reason = build.why_not(few_rows.SOURCE)
    if reason:
        pytest.skip(reason)


@pytest.mark.parametrize(("rows", "width", "out"), [(1, 1031, 272), (2, 515, 528), (5, 256, 4112), (8, 1031, 272)])
def test_a_few_rows_give_what_numpy_gives(rows, width, out):
    x, weight, bias = drawn(rows, width), drawn(width, out), drawn(out)

    with paddle.no_grad():
        found = few_rows.product(paddle.to_tensor(x)[:, None], paddle.to_tensor(weight))
        whole = apply_linear(*map(paddle.to_tensor, (x, weight, bias)))

    assert found.shape == [rows, 1, out]
    np.testing.assert_allclose(found.numpy()[:, 0], x.astype(np.float64) @ weight, rtol=0, atol=2e-4)
    np.testing.assert_allclose(whole.numpy(), x.astype(np.float64) @ weight + bias, rtol=0, atol=2e-4)


def test_a_row_is_the_same_beside_any_others_and_with_any_threads():
    x, weight = paddle.to_tensor(drawn(8, 700)), paddle.to_tensor(drawn(700, 5136))
    fork, _ = build.team()
    split = paddle.empty([8, 5136])
    kernel = build.library(few_rows.SOURCE).paddlemix_few_rows

    with paddle.no_grad():
        together, pair, alone = (few_rows.product(rows, weight) for rows in (x, x[3:5], x[7:]))
        kernel(x.data_ptr(), weight.data_ptr(), split.data_ptr(), 8, 700, 5136, fork, 3)

    assert (together[3:5].numpy() == pair.numpy()).all()
    assert (together[7:].numpy() == alone.numpy()).all()
    assert (together.numpy() == split.numpy()).all()


def test_paddle_serves_many_rows_gradients_and_small_or_odd_weights():
    x, weight = paddle.to_tensor(drawn(4, 512)), paddle.to_tensor(drawn(512, 528))

    assert few_rows.product(x, weight) is None  # gradients are on
    with paddle.no_grad():
        assert few_rows.product(x, weight) is not None
        assert few_rows.product(x[:0], weight) is None
        assert few_rows.product(paddle.concat([x, x, x]), weight) is None
        assert few_rows.product(x, weight[:, :64]) is None
        assert few_rows.product(x.reshape([8, 256]), weight) is None  # another width: an error of paddle's
        assert few_rows.product(x, paddle.to_tensor(drawn(512, 529))) is None
        assert few_rows.product(x.astype("float64"), weight.astype("float64")) is None
