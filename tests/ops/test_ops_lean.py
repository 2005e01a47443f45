# SPDX-License-Identifier: Apache-2.0
"""The operators with a backward pass of their own give what the plain ones give, and keep less."""

from collections.abc import Callable

import numpy as np
import paddle
import pytest

from paddlemix.ops import activation, norm, rope
from paddlemix.ops.attention import sdpa
from paddlemix.ops.attention.contract import Mask
from paddlemix.ops.runtime import Runtime

ROOMS = (activation, norm, rope, sdpa)
RUNTIME = Runtime("cpu")
PLACES = rope.RotaryTables(16, 10000.0, None, RUNTIME).step(paddle.arange(7).unsqueeze(0).expand([2, 7]))
SEGMENTS = paddle.to_tensor(np.repeat([[1, 2]], [140, 160], axis=1).repeat(2, axis=0))

MASKS = {
    "causal": lambda: Mask(causal=True),
    "a part of the keys": lambda: Mask(causal=True, offset=40),
    "whole": lambda: Mask(causal=False),
    "packed": lambda: Mask(causal=True, segments=SEGMENTS),
    "left padding": lambda: Mask(causal=True, key_starts=paddle.to_tensor([0, 40])),
}


def rms_norm(x: paddle.Tensor, weight: paddle.Tensor) -> paddle.Tensor:
    layer = norm.RMSNorm(weight.shape[0], 1e-5, RUNTIME)
    del layer.weight
    layer.weight = weight
    return layer(x)


def attention(mask: Mask) -> Callable[..., paddle.Tensor]:
    return lambda q, k, v: sdpa.blocked(q, k, v, mask, scale=0.25)


CASES = {
    "norm": (rms_norm, [[2, 7, 96], [96]]),
    "swiglu": (lambda gate, up: activation.gated(activation.silu, gate, up, RUNTIME), [[2, 7, 96]] * 2),
    "rotation": (PLACES.turn, [[2, 7, 4, 16]]),
    **{
        f"attention, {name}": (attention(mask()), [[2, 300, 4, 16], *[[2, 340 if "part" in name else 300, 2, 16]] * 2])
        for name, mask in MASKS.items()
    },
}


def both(monkeypatch: pytest.MonkeyPatch, call: Callable[[], object]) -> tuple[object, object]:
    """What ``call`` gives by the operators' own backward passes, and by paddle's."""
    own = call()
    for room in ROOMS:
        monkeypatch.setattr(room, "is_lean", lambda *_: False)
    return own, call()


@pytest.mark.parametrize(("call", "shapes"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("frozen", [None, 0, 1])
def test_results_and_gradients_are_those_of_the_plain_form(call, shapes, frozen, monkeypatch):
    if frozen is not None and len(shapes) <= frozen + (len(shapes) == 1):
        pytest.skip("nothing would train")
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]

    def run() -> list[paddle.Tensor | None]:
        tensors = [paddle.to_tensor(array, stop_gradient=index == frozen) for index, array in enumerate(arrays)]
        out = call(*tensors)
        (out * paddle.arange(out.size, dtype="float32").reshape(out.shape).sin()).sum().backward()
        return [out, *(tensor.grad for tensor in tensors)]

    own, plain = both(monkeypatch, run)
    np.testing.assert_allclose(own[0].numpy(), plain[0].numpy(), rtol=1e-6, atol=1e-6)
    for index, (ours, theirs) in enumerate(zip(own[1:], plain[1:], strict=True)):
        if index == frozen:
            assert ours is None
        else:
            theirs = theirs.numpy()
            np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize(
    ("name", "share"), [("norm", 0.1), ("swiglu", 0.1), ("rotation", 0.1), ("attention, causal", 0.15)]
)
def test_less_is_kept_for_the_backward_pass(name, share, monkeypatch):
    call, shapes = CASES[name]
    call(*map(paddle.randn, shapes))  # makes the tables and biases, which stay

    def kept() -> int:
        tensors = [paddle.randn(shape) for shape in shapes]
        for tensor in tensors:
            tensor.stop_gradient = False
        before = paddle.base.core.host_memory_stat_current_value("Allocated", 0)
        out = call(*tensors)
        assert not out.stop_gradient
        return paddle.base.core.host_memory_stat_current_value("Allocated", 0) - before - 4 * int(out.size)

    own, plain = both(monkeypatch, kept)
    assert own <= share * plain


def gate_and_up(both: paddle.Tensor) -> paddle.Tensor:
    return activation.gated(activation.silu, both, None, RUNTIME)


WITHOUT = {
    "swiglu": (CASES["swiglu"][0], [[2, 300, 960]] * 2, 1.5),
    "swiglu of both": (gate_and_up, [[2, 300, 1920]], 3.5),
    "attention of all": (attention(Mask(causal=False)), [[1, 600, 4, 16]] * 3, 40),
}
"""Name: (function, shapes, most memory beside what is given: in sizes of the result)."""


@pytest.mark.parametrize(("call", "shapes", "most"), WITHOUT.values(), ids=WITHOUT)
def test_without_gradients_the_result_is_the_same_in_less_memory(call, shapes, most):
    tensors = [paddle.randn(shape) for shape in shapes]
    before = [tensor.numpy() for tensor in tensors]
    for tensor in tensors:
        tensor.stop_gradient = False
    wanted, core = call(*tensors).numpy(), paddle.base.core
    with paddle.no_grad():
        held = core.host_memory_stat_current_value("Allocated", 0)
        core.host_memory_stat_reset_peak_value("Allocated", 0)
        found = call(*tensors)
        taken = core.host_memory_stat_peak_value("Allocated", 0) - held
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-6, atol=1e-6)
    for tensor, values in zip(tensors, before, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), values)
    assert taken <= 4 * found.size * most


def test_what_was_kept_is_free_after_the_backward_pass():
    """Paddle holds a layer's context as long as its loss, were it not told otherwise."""
    gate, up = (paddle.randn([500, 500]) for _ in range(2))
    gate.stop_gradient = up.stop_gradient = False
    before = paddle.base.core.host_memory_stat_current_value("Allocated", 0)
    loss = activation.gated(activation.silu, gate * 2.0, up * 2.0, RUNTIME).sum()
    loss.backward()
    left = paddle.base.core.host_memory_stat_current_value("Allocated", 0) - before
    assert left < 2.5 * 4 * 500 * 500, "more than the two gradients"


def test_without_gradients_and_elsewhere_the_plain_form_serves():
    x = paddle.randn([2, 3])
    assert not norm.is_lean("cpu", x)
    x.stop_gradient = False
    assert norm.is_lean("cpu", x)
    assert not norm.is_lean("npu", x)
    assert not norm.is_lean("cpu", x.astype("float64"))
    with paddle.no_grad():
        assert not norm.is_lean("cpu", x)


def test_a_second_backward_pass_is_an_error_and_not_the_end_of_the_process():
    gate, up = (paddle.to_tensor([1.0, 2.0], stop_gradient=False) for _ in range(2))
    loss = activation.gated(activation.silu, gate, up, RUNTIME).sum()
    loss.backward(retain_graph=True)
    with pytest.raises((RuntimeError, OSError), match="serves one backward pass; compute the loss again"):
        loss.backward()
