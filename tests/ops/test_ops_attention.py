# SPDX-License-Identifier: Apache-2.0
"""Every attention backend against the written-out law, forward and backward; and the door that chooses."""

import dataclasses
import doctest

import numpy as np
import paddle
import pytest

from paddlemix.ops import compat, dispatch
from paddlemix.ops.attention import math, sdpa, select
from paddlemix.ops.attention.contract import Mask, make_request
from paddlemix.ops.attention.select import ATTENTION
from paddlemix.ops.runtime import Runtime
from paddlemix.utils.errors import BackendError

TOLERANCE = 2e-6
"""Float32 sums of at most 300 terms of size 1 in another order."""

SHAPES = {
    "equal heads": {"heads": 4, "kv_heads": 4},
    "grouped heads": {"heads": 4, "kv_heads": 2},
    "one key head": {"heads": 4, "kv_heads": 1},
    "one query": {"q_len": 1, "k_len": 30, "offset": 29},
    "one query, empty tail": {"q_len": 1, "k_len": 128, "offset": 29},
    "prefix in the cache": {"q_len": 200, "k_len": 300, "offset": 100},
    "prefix and empty tail": {"q_len": 150, "k_len": 300, "offset": 17},
    "longer than a block": {"q_len": 290, "k_len": 290},
    "grouped and longer than a block": {"q_len": 150, "k_len": 150, "heads": 4, "kv_heads": 2},
    "not causal": {"causal": False, "q_len": 150, "k_len": 150},
    "not causal, cross lengths": {"causal": False, "q_len": 5, "k_len": 40},
    "not causal, key lengths": {"causal": False, "q_len": 20, "k_len": 20, "key_lengths": [20, 7]},
    "key lengths": {"q_len": 20, "k_len": 20, "key_lengths": [20, 7]},
    "left padding": {"q_len": 150, "k_len": 150, "key_starts": [0, 140]},
    "left padding, one query": {"q_len": 1, "k_len": 128, "offset": 20, "key_starts": [0, 13]},
    "left padding, all of a row": {"q_len": 9, "k_len": 9, "key_starts": [0, 9]},
    "segments": {"q_len": 150, "k_len": 150, "segments": True},
    "segments and padding": {"q_len": 20, "k_len": 20, "segments": True, "key_starts": [0, 4]},
    "one query, a cache of rows": {"q_len": 1, "k_len": 30, "offset": [29, 3]},
    "one query, grouped, a cache of rows": {"q_len": 1, "k_len": 128, "offset": [0, 20], "heads": 4, "kv_heads": 2},
    "queries behind a cache of rows": {"q_len": 9, "k_len": 30, "offset": [21, 4]},
    "more than a block behind a cache of rows": {"q_len": 150, "k_len": 300, "offset": [17, 150]},
    "left padding behind a cache of rows": {"q_len": 5, "k_len": 20, "offset": [15, 3], "key_starts": [9, 5]},
    "a number that is a tensor": {"q_len": 9, "k_len": 30, "offset": 4, "traced": True},
    "segments after a cached prefix": {"q_len": 6, "k_len": 128, "offset": 10, "segments": True},
}


def case(q_len=12, k_len=12, heads=4, kv_heads=4, causal=True, offset=0, segments=False, traced=False, **places):
    """(q, k, v, mask) of two rows; ``places`` are key_lengths and key_starts."""
    if traced or isinstance(offset, list):
        offset = paddle.to_tensor(offset)
    rng = np.random.default_rng(q_len * 7 + k_len)
    shapes = [[2, q_len, heads, 8], [2, k_len, kv_heads, 8], [2, k_len, kv_heads, 8]]
    q, k, v = (paddle.to_tensor(rng.standard_normal(shape).astype("float32")) for shape in shapes)
    for tensor in (q, k, v):
        tensor.stop_gradient = False
    places = {key: paddle.to_tensor(value) for key, value in places.items()}
    if segments:
        numbers = np.sort(rng.integers(0, 3, [2, offset + q_len]), axis=1)
        places["segments"] = paddle.to_tensor(numbers)
    return q, k, v, Mask(causal, offset=offset, **places)


def by_hand(q, k, v, mask):
    """Softmax over the allowed keys of every row, one row and head at a time."""
    q, k, v = (item.numpy().astype(np.float64) for item in (q, k, v))
    out = np.zeros_like(q)
    group = q.shape[2] // k.shape[2]
    for b, i, h in np.ndindex(q.shape[:3]):
        keys = [j for j in range(k.shape[1]) if sees(mask, b, i, j)] or [min(place_of(mask, b, i), k.shape[1] - 1)]
        scores = k[b, keys, h // group] @ q[b, i, h] * 0.3
        weights = np.exp(scores - scores.max())
        out[b, i, h] = weights / weights.sum() @ v[b, keys, h // group]
    return out


def place_of(mask, b, i):
    """Of query i of row b in its row."""
    offset = mask.offset if isinstance(mask.offset, int) else np.broadcast_to(mask.offset.numpy(), [2])[b]
    return int(offset) + i


def sees(mask, b, i, j):
    place = place_of(mask, b, i)
    rules = [not mask.causal or j <= place]
    rules.append(mask.key_lengths is None or j < int(mask.key_lengths[b]))
    rules.append(mask.key_starts is None or j >= int(mask.key_starts[b]))
    if mask.segments is not None:
        numbers = mask.segments.numpy()[b]
        rules.append(j < len(numbers) and numbers[place] == numbers[min(j, len(numbers) - 1)])
    return all(rules)


SHORT = [name for name, sizes in SHAPES.items() if sizes.get("q_len", 12) <= 100]
"""The loop by hand is slow; on long rows the backends are compared with each other."""


@pytest.mark.parametrize("name", SHORT)
def test_math_is_a_softmax_over_the_allowed_keys(name):
    q, k, v, mask = case(**SHAPES[name])
    np.testing.assert_allclose(math.attend(q, k, v, mask, scale=0.3).numpy(), by_hand(q, k, v, mask), atol=TOLERANCE)


@pytest.mark.parametrize("heads_first", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_the_blocked_form_equals_math_forward_and_backward(name, heads_first):
    results = []
    for backend in (math.attend, sdpa.blocked):
        q, k, v, mask = case(**SHAPES[name])
        keys, values = (k.transpose([0, 2, 1, 3]), v.transpose([0, 2, 1, 3])) if heads_first else (k, v)
        out = backend(q, keys, values, mask, scale=0.3, kv_heads_first=heads_first)
        weight = paddle.to_tensor(np.random.default_rng(0).standard_normal(out.shape).astype("float32"))
        (out * weight).sum().backward()
        results.append([out.numpy(), q.grad.numpy(), k.grad.numpy(), v.grad.numpy()])
    for what, law, fast in zip(("out", "dq", "dk", "dv"), *results, strict=True):
        assert np.isfinite(fast).all()
        np.testing.assert_allclose(fast, law, atol=10 * TOLERANCE, err_msg=what)


def promised(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, training=True):
    """What the framework's call promises in every version, on a GPU: its own scale, fewer key heads, equal lengths."""
    assert not (is_causal and (attn_mask is not None or query.shape[1] != key.shape[1]))
    assert attn_mask is None or attn_mask.shape == [query.shape[0], query.shape[2], query.shape[1], key.shape[1]]
    repeat = query.shape[2] // key.shape[2]
    q, k, v = (paddle.transpose(item, [0, 2, 1, 3]) for item in (query, key, value))
    scores = q @ k.repeat_interleave(repeat, axis=1).transpose([0, 1, 3, 2]) / query.shape[3] ** 0.5
    scores = scores if attn_mask is None else scores + attn_mask
    scores = scores + paddle.triu(paddle.full_like(scores, -1e30), 1) if is_causal else scores
    return (paddle.nn.functional.softmax(scores, -1) @ v.repeat_interleave(repeat, axis=1)).transpose([0, 2, 1, 3])


@pytest.mark.parametrize("kernel", ["promised", "paddle's own"])
@pytest.mark.parametrize("name", [name for name, sizes in SHAPES.items() if "tail" not in name])
def test_the_fused_kernel_is_called_with_a_mask_that_means_the_same(monkeypatch, name, kernel):
    # The GPU path, run on the CPU's plain form of the same framework call.
    if kernel == "promised":
        monkeypatch.setattr(paddle.nn.functional, "scaled_dot_product_attention", promised)
    elif not compat.sdpa_asks_its_kernels():
        pytest.skip("the plain form in this paddle serves neither fewer key heads nor is_causal on a CPU")
    for scale in (0.3, 8**-0.5):
        q, k, v, mask = case(**SHAPES[name])
        fused = sdpa.fused(q, k, v, mask, scale=scale).numpy()
        np.testing.assert_allclose(fused, math.attend(q, k, v, mask, scale=scale).numpy(), atol=TOLERANCE)


@pytest.mark.parametrize(
    ("dtype", "asks", "capability", "text"),
    [
        ("float32", True, 7, None),
        ("bfloat16", False, 8, None),
        ("float16", False, 9, None),
        ("float32", False, 9, "takes float16 and bfloat16, not float32"),
        ("float16", False, 7, "compute capability 8.0"),
    ],
)
def test_an_older_paddle_is_not_given_what_its_fused_kernel_gets_wrong(monkeypatch, dtype, asks, capability, text):
    monkeypatch.setattr(compat, "sdpa_asks_its_kernels", lambda: asks)
    monkeypatch.setattr(compat, "gpu_capability", lambda: capability)
    request = dataclasses.replace(make_request(*case()), dtype=dtype)
    reason = ATTENTION.why_not("sdpa", Runtime("gpu"), request)
    assert reason is None if text is None else text in reason


def test_what_a_query_may_not_see_does_not_move_its_answer():
    q, k, v, mask = case(q_len=140, k_len=140)
    before = sdpa.blocked(q, k, v, mask, scale=0.3).numpy()
    hidden = paddle.arange(140).reshape([1, 140, 1, 1]) >= 100
    k, v = (paddle.where(hidden, paddle.full_like(item, 50.0), item) for item in (k, v))
    after = sdpa.blocked(q, k, v, mask, scale=0.3).numpy()
    assert np.array_equal(before[:, :100], after[:, :100])
    assert not np.allclose(before[:, 100:], after[:, 100:])


def test_large_scores_stay_finite():
    q, k, v, mask = case()
    out = math.attend(q * 1e4, k * 1e4, v, mask, scale=1.0)
    assert np.isfinite(out.numpy()).all()


def test_the_dense_mask_is_built_once_for_all_layers():
    mask = Mask(causal=True, key_starts=paddle.to_tensor([0, 3]))
    assert mask.additive(8, 8) is mask.additive(8, 8)


def test_dropout_drops_and_keeps_the_mean():
    paddle.seed(0)
    q, k, v, mask = case(q_len=64, k_len=64, causal=False)
    ones = paddle.ones_like(v)
    out = select.attend(q, k, ones, mask, scale=0.3, dropout=0.5, runtime=Runtime("cpu")).numpy()
    assert out.std() > 0.05
    assert abs(out.mean() - 1.0) < 0.05


def test_auto_says_why_it_passed_over_a_backend(monkeypatch):
    lines = []
    logger = type("Logger", (), {"info": staticmethod(lambda text, *values: lines.append(text % values))})
    monkeypatch.setattr(dispatch, "_reported", set())
    monkeypatch.setattr(dispatch, "get_logger", lambda name: logger)
    q, k, v, mask = case()
    for _ in range(3):
        select.attend(q, k, v, mask, scale=0.3, dropout=0.1, runtime=Runtime("cpu"))
    assert lines == ["attention: math (not sdpa: the blocked form on the CPU has no dropout)"]


@pytest.mark.parametrize(
    ("forced", "dropout", "text"),
    [("npu", 0.0, "not on an npu"), ("sdpa", 0.1, "has no dropout")],
)
def test_forcing_what_cannot_be_raises_with_the_reason(monkeypatch, forced, dropout, text):
    monkeypatch.setenv("PADDLEMIX_ATTENTION", forced)
    q, k, v, mask = case()
    with pytest.raises(BackendError, match=f"PADDLEMIX_ATTENTION={forced}.*{text}"):
        select.attend(q, k, v, mask, scale=0.3, dropout=dropout, runtime=Runtime.current())


@pytest.mark.parametrize("forced", ["math", "sdpa"])
def test_a_backend_can_be_forced(monkeypatch, forced):
    monkeypatch.setenv("PADDLEMIX_ATTENTION", forced)
    called = []
    kernels = [dataclasses.replace(one, call=lambda *a, name=one.name, **k: called.append(name))
               for one in ATTENTION.kernels]  # fmt: skip
    monkeypatch.setattr(select, "ATTENTION", dataclasses.replace(ATTENTION, kernels=tuple(kernels)))
    q, k, v, mask = case()
    select.attend(q, k, v, mask, scale=0.3, runtime=Runtime.current())
    assert called == [forced]


def test_segments_want_a_number_of_cached_places():
    with pytest.raises(BackendError, match="segments wants the number of cached places as a whole number"):
        Mask(causal=True, offset=paddle.to_tensor([1, 2]), segments=paddle.zeros([2, 4], dtype="int64"))


def test_the_examples_of_the_mask_are_what_it_gives():
    finder, examples = doctest.DocTestFinder(recurse=False), []
    for test in finder.find(Mask, "Mask", globs={"Mask": Mask, "paddle": paddle}):
        examples += test.examples
        assert doctest.DocTestRunner(verbose=False).run(test).failed == 0
    assert len(examples) == 3


def test_shapes_that_do_not_fit_are_named():
    q, k, v, mask = case(heads=4, kv_heads=4)
    with pytest.raises(BackendError, match=r"the heads of k and v must divide those of q"):
        make_request(q[:, :, :3], k, v, mask)


def test_segments_must_cover_the_cached_places():
    q, k, v, _ = case(q_len=4, k_len=12)
    mask = Mask(causal=True, offset=8, segments=paddle.zeros([2, 4], dtype="int64"))
    with pytest.raises(BackendError, match="segments cover 4 places, but 8 cached \\+ 4 new"):
        select.attend(q, k, v, mask, scale=0.3, runtime=Runtime("cpu"))
