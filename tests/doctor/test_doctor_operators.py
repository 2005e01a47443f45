# SPDX-License-Identifier: Apache-2.0
"""The comparison of the self-check itself: it must see a wrong value, a wrong gradient and a NaN."""

import paddle
import pytest

from paddlemix.doctor import operators
from paddlemix.doctor.operators import _difference


def plain(x):
    return x * 2.0


@pytest.mark.parametrize(
    ("fast", "least"),
    [
        (lambda x: x * 2.0, 0.0),
        (lambda x: x * 2.1, 0.04),
        (lambda x: (x * 2.0).detach() + (x - x.detach()), 0.5),
    ],
)
def test_values_and_gradients_are_compared(fast, least):
    x = operators._draw([8, 16], "float32", 1)
    found = _difference(fast, plain, [x])
    assert found >= least
    assert (found == 0.0) == (least == 0.0)


def test_a_nan_is_a_failure_and_not_a_small_difference(monkeypatch):
    x = operators._draw([4, 4], "float32", 1)
    monkeypatch.setattr(operators, "_cases", lambda dtype: [("bad", lambda x: x * float("nan"), plain, [x], None)])
    assert [finding.state for finding in operators.self_check("cpu", "float32")] == ["FAIL"]


def test_an_operator_that_raises_is_a_failure_with_its_message(monkeypatch):
    def broken(x):
        raise RuntimeError("line one\nEZ9999: inner error")

    x = paddle.ones([2, 2])
    monkeypatch.setattr(operators, "_cases", lambda dtype: [("bad", broken, plain, [x], None)])
    found = operators.self_check("cpu", "float32")[0]
    assert (found.state, found.text) == ("FAIL", "failed on cpu: EZ9999: inner error")
