# SPDX-License-Identifier: Apache-2.0
"""What lies between the products of a prompt or of a tower, by kernels compiled here, beside numpy's and paddle's."""

import functools
import threading
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from paddle.nn import functional

from paddlemix.ops import few_rows
from paddlemix.ops.activation import ACTIVATIONS, gated
from paddlemix.ops.attention import math as plain_attention
from paddlemix.ops.attention import sdpa
from paddlemix.ops.attention.contract import Mask
from paddlemix.ops.low_bits import build
from paddlemix.ops.runtime import Runtime

ROWS = [1, 9, 130, 700]
EDGES = [-np.inf, np.inf, np.nan, -1e4, 1e4, -0.0, -3e38]


def drawn(*shape, seed=0):
    return np.random.default_rng(sum(shape) + seed).standard_normal(shape).astype(np.float32)


def heads_of(rows, queries, places, heads, kv_heads, width):
    """q [rows, queries, heads, width], and k and v [rows, places, kv_heads, width]."""
    held = rows, places, kv_heads, width
    return drawn(rows, queries, heads, width), drawn(*held, seed=1), drawn(*held, seed=2)


def near(found, wanted, rounding=1e-6):
    """One is the other to ``rounding`` of the largest."""
    np.testing.assert_allclose(found, wanted, rtol=0, atol=rounding * np.abs(wanted).max())


def split(name, *arguments):
    """Call a kernel with three threads."""
    fork, _ = build.team()
    return getattr(few_rows.compiled(), name)(*arguments, fork, 3)


@pytest.fixture(scope="module", autouse=True)
def _compiled():
    reason = build.why_not(few_rows.SOURCE)
    if reason:
        pytest.skip(reason)


@pytest.fixture
def blas():
    """Address of cblas_sgemm."""
    if build.multiply() is None:
        pytest.skip("this paddle multiplies by another library than MKL")
    return build.multiply()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("width", [512, 520, 1031, 1040])
def test_norm_of_many_rows_is_that_of_numpy_with_any_threads(rows, width):
    values, weight = drawn(rows, width) * np.geomspace(1e-3, 9, rows, dtype=np.float32)[:, None], drawn(width)
    x, scales, other = paddle.to_tensor(values), paddle.to_tensor(weight), paddle.empty([rows, width])
    wide = values.astype(np.float64)

    with paddle.no_grad():
        found = few_rows.rms_norm(x[None], scales, 1e-5)
    split("rms_norm", x.data_ptr(), scales.data_ptr(), other.data_ptr(), rows, width, 1e-5)

    assert found.shape == [1, rows, width]
    near(found.numpy()[0], wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5) * weight)
    assert (found.numpy()[0] == other.numpy()).all()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("inner", [512, 528, 1040])
def test_gate_of_many_rows_is_that_of_numpy_with_any_threads(rows, inner):
    both = drawn(rows, 2 * inner) * 4
    x, other = paddle.to_tensor(both), paddle.empty([rows, inner])
    gate, up = np.split(both.astype(np.float64), 2, axis=1)

    with paddle.no_grad():
        found = few_rows.swiglu(x[None])
    split("swiglu", x.data_ptr(), other.data_ptr(), rows, inner)

    assert found.shape == [1, rows, inner]
    near(found.numpy()[0], gate / (1 + np.exp(-gate)) * up)
    assert (found.numpy()[0] == other.numpy()).all()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("width", [512, 528, 1040])
def test_quick_gelu_of_many_rows_is_that_of_numpy_with_any_threads(rows, width):
    values = drawn(rows, width) * 4
    x, other, wide = paddle.to_tensor(values), paddle.empty([rows, width]), values.astype(np.float64)

    with paddle.no_grad():
        found = few_rows.quick_gelu(x[None])
        assert (ACTIVATIONS.get("quick_gelu")(x).numpy() == found.numpy()[0]).all()
    split("quick_gelu", x.data_ptr(), other.data_ptr(), rows, width)

    assert found.shape == [1, rows, width]
    near(found.numpy()[0], wide / (1 + np.exp(-1.702 * wide)))
    assert (found.numpy()[0] == other.numpy()).all()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(8, 8, 64), (6, 2, 72), (5, 1, 80)])
def test_rotation_of_many_rows_is_that_of_numpy_with_any_threads(rows, heads, kv_heads, width):
    values = drawn(1, rows, heads + 2 * kv_heads, width)
    cosine, sine = np.cos(drawn(1, rows, 1, width)), np.sin(drawn(1, rows, 1, width, seed=1))
    joined = paddle.to_tensor(values.reshape(1, rows, -1))
    tables = [paddle.to_tensor(table) for table in (cosine, sine)]
    others = [paddle.empty([1, rows, number, width]) for number in (heads, kv_heads, kv_heads)]
    turned = values * cosine.astype(np.float64) + np.roll(values, width // 2, axis=-1) * sine.astype(np.float64)

    with paddle.no_grad():
        found = few_rows.turn(joined, *tables, heads, kv_heads)
    split("turn", *(one.data_ptr() for one in (joined, *tables, *others)), rows, heads, kv_heads, width)

    wanted = turned[:, :, :heads], turned[:, :, heads:-kv_heads], values[:, :, -kv_heads:]
    for one, plain, other in zip(found, wanted, others, strict=True):
        assert one.shape == list(plain.shape)
        near(one.numpy(), plain)
        assert (one.numpy() == other.numpy()).all()


def alike(found, wanted):
    """The same at the edges of float32: infinities, NaN, and zeros with their sign."""
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-30)
    sure = ~np.isnan(wanted)
    assert (np.signbit(found) == np.signbit(wanted))[sure].all()


def test_activations_give_at_the_edges_what_paddle_gives():
    edges = np.resize(np.float32(EDGES), 512)  # each of them comes to lie in every lane
    x = paddle.to_tensor(edges[None])

    with paddle.no_grad():
        gelu = few_rows.quick_gelu(x)
        gate = gated(ACTIVATIONS.get("silu"), paddle.concat([x, paddle.ones_like(x)], axis=1), None, Runtime.current())
        alike(gelu.numpy(), (x * functional.sigmoid(x * 1.702)).numpy())
        alike(gate.numpy(), functional.silu(x).numpy())


def test_quick_gelu_of_a_number_is_left_to_paddle():
    with paddle.no_grad():
        assert few_rows.quick_gelu(paddle.to_tensor(1.0)) is None
        assert float(ACTIVATIONS.get("quick_gelu")(paddle.to_tensor(1.0))) == pytest.approx(0.845795)


def dense(q, k, v, mask, scale):
    """q [B, L, H, D] over k and v [B, Lk, Hk, D] in float64."""
    q, k, v = (one.astype(np.float64).transpose(0, 2, 1, 3) for one in (q, k, v))
    group = q.shape[1] // k.shape[1]
    scores = q @ np.repeat(k, group, axis=1).swapaxes(2, 3) * scale
    allowed = mask.allowed(q.shape[2], k.shape[2])
    if allowed is not None:
        scores = np.where(allowed.numpy(), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True) @ np.repeat(v, group, axis=1)).transpose(0, 2, 1, 3)


def many(q, k, v, mask, scale, first=False):
    """The kernel for q [B, L, H, D] over k and v [B, Lk, Hk, D], which are given with heads first if ``first``."""
    if first:
        k, v = (one.transpose(0, 2, 1, 3).copy() for one in (k, v))
    limits = {"starts": mask.key_starts, "lengths": mask.key_lengths, "kv_heads_first": first}
    with paddle.no_grad():
        q, k, v = map(paddle.to_tensor, (q, k, v))
        return few_rows.attend_many(q, k, v, causal=mask.causal, offset=mask.offset, scale=scale, **limits)


def masks(queries, places):
    """Of two rows."""
    cached = max(places - queries, 0)
    several, half = paddle.to_tensor([cached, cached // 2]), places // 2
    return [
        Mask(causal=False),
        Mask(causal=True, offset=cached),
        Mask(causal=True, offset=cached // 3),
        Mask(causal=True, offset=several),
        Mask(causal=True, offset=several, key_starts=paddle.to_tensor([0, cached // 2])),
        Mask(causal=True, offset=cached, key_starts=paddle.to_tensor([half, -1])),
        Mask(causal=True, offset=2, key_starts=paddle.to_tensor([places, 3])),  # the first row is blind
        Mask(causal=True, offset=several, key_lengths=paddle.to_tensor([half, places + 5])),
        Mask(causal=False, offset=several, key_lengths=paddle.to_tensor([half, 1])),
        Mask(causal=False, offset=half + 1, key_lengths=paddle.to_tensor([0, 1])),  # blind ones, some behind all keys
        Mask(causal=False, key_starts=paddle.to_tensor([half, 1]), key_lengths=paddle.to_tensor([half, places])),
    ]


@pytest.mark.usefixtures("blas")
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "queries", "places"),
    [
        (8, 8, 64, 1, 40),
        (8, 2, 64, 127, 127),
        (8, 4, 64, 128, 150),
        (7, 1, 80, 129, 300),
        (9, 3, 72, 50, 9),  # fewer keys than queries
        (8, 2, 64, 21, 5003),  # a block of 16 queries has more scores than are wanted
        (8, 8, 64, 300, 700),
    ],
)
def test_attention_of_many_queries_is_the_dense_one(heads, kv_heads, width, queries, places, first):
    q, k, v = heads_of(2, queries, places, heads, kv_heads, width)
    for mask in masks(queries, places):
        found = many(q, k, v, mask, 0.2, first)
        assert found.shape == [2, queries, heads, width]
        near(found.numpy(), dense(q, k, v, mask, 0.2), 2e-6)


@pytest.mark.usefixtures("blas")
def test_blind_queries_see_themselves():
    q, k, v = heads_of(2, 6, 9, 8, 8, 64)

    found = many(q, k, v, Mask(causal=True, offset=2, key_starts=paddle.to_tensor([6, 9])), 1.0).numpy()
    behind = many(q, k, v, Mask(causal=False, offset=6, key_lengths=paddle.to_tensor([0, -1])), 1.0).numpy()

    np.testing.assert_allclose(found[0, :4], v[0, 2:6], rtol=1e-6)
    np.testing.assert_allclose(found[1], v[1, 2:8], rtol=1e-6)
    np.testing.assert_allclose(behind, v[:, [6, 7, 8, 8, 8, 8]], rtol=1e-6)


@pytest.mark.usefixtures("blas")
@pytest.mark.parametrize("first", [False, True])
def test_what_nobody_may_see_is_not_read(first):
    q, k, v = heads_of(2, 140, 200, 8, 4, 64)
    starts, lengths, offset = paddle.to_tensor([7, 0]), paddle.to_tensor([150, 11]), paddle.to_tensor([40, 9])
    cases = [
        (Mask(causal=True, offset=30), [slice(0, 170), slice(0, 170)]),
        (Mask(causal=True, offset=offset, key_starts=starts), [slice(7, 180), slice(0, 149)]),
        (Mask(causal=False, key_starts=starts, key_lengths=lengths), [slice(7, 150), slice(0, 11)]),
    ]
    for mask, seen in cases:
        keys, values = np.full_like(k, np.nan), np.full_like(v, np.nan)
        for row, places in enumerate(seen):
            keys[row, places], values[row, places] = k[row, places], v[row, places]
        near(many(q, keys, values, mask, 0.125, first).numpy(), dense(q, k, v, mask, 0.125), 2e-6)


@pytest.mark.usefixtures("blas")
def test_large_scores_do_not_overflow_and_a_nan_stays_in_its_row():
    q, k, v = heads_of(2, 30, 30, 8, 8, 64)
    q, k = q * 60, k * 60
    mask = Mask(causal=True)

    large = many(q, k, v, mask, 1.0).numpy()
    q[1, 4, 2, 0] = np.nan
    spoiled = many(q, k, v, mask, 1.0).numpy()

    # Scores of 1e5 are themselves rounded to 1e-2, so only the plain form in float32 says what is to be expected.
    with paddle.no_grad():
        plain = plain_attention.attend(*map(paddle.to_tensor, (np.nan_to_num(q), k, v)), mask, scale=1.0).numpy()
    assert np.isfinite(large).all()
    assert np.isnan(spoiled[1, 4, 2]).all()
    spoiled[1, 4, 2] = large[1, 4, 2]
    assert (spoiled == large).all()
    assert (np.abs(np.delete(large[1], 4, axis=0) - np.delete(plain[1], 4, axis=0)) < 0.1).all()


@pytest.mark.parametrize("first", [False, True])
def test_queries_of_a_row_are_the_same_beside_others_and_with_any_threads(first, blas):
    q, k, v = heads_of(3, 140, 300, 8, 4, 64)
    offsets, other = paddle.to_tensor([160, 0, 33]), paddle.empty([3, 140, 8, 64])
    apart = (64, 300 * 64) if first else (4 * 64, 64)

    together = many(q, k, v, Mask(causal=True, offset=offsets), 0.125, first)
    alone = many(q[2:], k[2:], v[2:], Mask(causal=True, offset=33), 0.125, first)
    held = [paddle.to_tensor(one.transpose(0, 2, 1, 3).copy() if first else one) for one in (k, v)]
    tensors = [paddle.to_tensor(q), *held]
    addresses = [*(one.data_ptr() for one in tensors), 0, 0, other.data_ptr(), offsets.data_ptr(), 0, 0]
    assert not split("attend_many", *addresses, 0, 1, 3, 140, 8, 4, 300, 64, *apart, 300 * 4 * 64, 0.125, blas)

    assert (together.numpy() == other.numpy()).all()
    assert (together[2:].numpy() == alone.numpy()).all()


def test_keys_of_the_queries_may_lie_beside_the_cached_ones(blas):
    """What stands in the cache from the offset of a row on is not read."""
    (q, k, v), lengths = heads_of(3, 70, 110, 8, 4, 64), [40, 0, 25]
    several = {"offset": paddle.to_tensor(lengths), "key_starts": paddle.to_tensor([3, 0, 30])}
    for mask in (Mask(causal=True, **several), Mask(causal=True, **several, key_lengths=paddle.to_tensor([45, 9, 20]))):
        held = [np.full([3, 4, 50, 64], np.nan, np.float32) for _ in range(2)]
        own = [np.empty([3, 70, 4, 64], np.float32) for _ in range(2)]
        for row, length in enumerate(lengths):
            for one, cached, new in zip((k, v), held, own, strict=True):
                cached[row, :, :length] = one[row, :length].swapaxes(0, 1)
                new[row] = one[row, length : length + 70]
        y = paddle.empty([3, 70, 8, 64])
        tensors = [paddle.to_tensor(one) for one in (q, *held, *own)]
        limits = [0 if one is None else one.data_ptr() for one in (mask.offset, mask.key_starts, mask.key_lengths)]
        addresses = [*(one.data_ptr() for one in (*tensors, y)), *limits]
        assert not split("attend_many", *addresses, 0, 1, 3, 70, 8, 4, 110, 64, 64, 50 * 64, 4 * 50 * 64, 0.2, blas)
        near(y.numpy(), dense(q, k, v, mask, 0.2), 2e-6)


@pytest.mark.usefixtures("blas")
@pytest.mark.parametrize("first", [False, True])
def test_a_prompt_is_served_by_the_kernel_unless_it_has_segments(first, monkeypatch):
    q, k, v = map(paddle.to_tensor, heads_of(2, 12, 12, 8, 8, 64))
    few, asked = few_rows.attend_many, []
    monkeypatch.setattr(few_rows, "attend_many", lambda *given, **more: asked.append(few(*given, **more)) or asked[-1])
    segments = paddle.to_tensor([[0] * 5 + [1] * 7, [0] * 12])
    if first:
        k, v = (one.transpose([0, 2, 1, 3]).contiguous() for one in (k, v))

    with paddle.no_grad():
        found = sdpa.blocked(q, k, v, Mask(causal=True), scale=0.125, kv_heads_first=first)
        assert len(asked) == 1
        assert asked[0] is found
        packed = Mask(causal=True, segments=segments)
        apart = sdpa.blocked(q, k, v, packed, scale=0.125, kv_heads_first=first)
        plain = plain_attention.attend(q, k, v, packed, scale=0.125, kv_heads_first=first)
    assert len(asked) == 1
    np.testing.assert_allclose(apart.numpy(), plain.numpy(), rtol=0, atol=3e-6)


LIMITS = {"causal": True, "offset": 0, "starts": None, "lengths": None, "scale": 0.125, "kv_heads_first": False}


@pytest.mark.usefixtures("views", "blas")
def test_paddle_serves_other_dtypes_views_and_gradients():
    x, q = paddle.to_tensor(drawn(9, 1024)), paddle.to_tensor(drawn(2, 9, 8, 64))
    joined, tables = paddle.to_tensor(drawn(2, 9, 12 * 64)), [paddle.to_tensor(drawn(2, 9, 1, 64)) for _ in range(2)]
    calls = [
        (lambda one: few_rows.rms_norm(one, paddle.ones([one.shape[-1]]), 1e-5), x),
        (few_rows.swiglu, x),
        (few_rows.quick_gelu, x),
        (lambda one: few_rows.turn(one, *tables, 8, 2), joined),
        (lambda one: few_rows.turn(joined, one, tables[1], 8, 2), tables[0]),
        (lambda one: few_rows.attend_many(one, q, q, **LIMITS), q),
        (lambda one: few_rows.attend_many(q, one, q, **LIMITS), q),
        (lambda one: few_rows.attend_many(q, q, one, **LIMITS), q),
    ]
    for call, one in calls:
        assert call(one) is None  # gradients are on
        with paddle.no_grad():
            apart = paddle.concat([one, one], axis=-1)[..., : one.shape[-1]]
            assert not apart.is_contiguous()
            assert call(one) is not None
            assert call(one.astype("float64")) is None
            assert call(apart) is None


def test_what_is_empty_is_left_to_paddle():
    none, q, k = paddle.zeros([0, 1024]), paddle.to_tensor(drawn(2, 9, 8, 64)), paddle.to_tensor(drawn(2, 11, 4, 64))
    tables = paddle.zeros([2, 0, 1, 64])

    with paddle.no_grad():
        assert few_rows.rms_norm(none, paddle.ones([1024]), 1e-5) is None
        assert few_rows.swiglu(none) is None
        assert few_rows.quick_gelu(none) is None
        assert few_rows.turn(paddle.zeros([2, 0, 12 * 64]), tables, tables, 8, 2) is None
        for queries, keys in [
            (paddle.zeros([0, 9, 8, 64]), paddle.zeros([0, 11, 4, 64])),
            (paddle.zeros([2, 0, 8, 64]), k),
            (q, paddle.zeros([2, 0, 4, 64])),
        ]:
            assert few_rows.attend_many(queries, keys, keys, **LIMITS) is None


@pytest.mark.usefixtures("blas")
def test_paddle_serves_what_is_narrow_or_does_not_fit():
    q, k = paddle.to_tensor(drawn(2, 9, 8, 64)), paddle.to_tensor(drawn(2, 11, 4, 64))
    narrow, odd = paddle.to_tensor(drawn(9, 496)), paddle.to_tensor(drawn(9, 520))
    tables = paddle.to_tensor(drawn(2, 9, 1, 64))

    def attend(q, k, v, **other):
        return few_rows.attend_many(q, k, v, **{**LIMITS, **other})

    with paddle.no_grad():
        assert few_rows.rms_norm(narrow, paddle.ones([496]), 1e-5) is None
        assert few_rows.rms_norm(odd, paddle.ones([512]), 1e-5) is None
        assert few_rows.swiglu(paddle.concat([narrow, narrow], axis=1)) is None
        assert few_rows.swiglu(paddle.concat([odd, odd], axis=1)) is None
        assert few_rows.swiglu(paddle.to_tensor(drawn(9, 1025))) is None
        assert few_rows.quick_gelu(narrow) is None
        assert few_rows.quick_gelu(odd) is None
        assert few_rows.turn(paddle.to_tensor(drawn(2, 9, 7 * 64)), tables, tables, 5, 1) is None
        assert few_rows.turn(paddle.to_tensor(drawn(2, 9, 13 * 64)), tables, tables, 8, 2) is None
        for shared in (tables[:1], tables[:, :1]):
            assert few_rows.turn(paddle.to_tensor(drawn(2, 9, 12 * 64)), shared, shared, 8, 2) is None

        assert attend(q, k, k) is not None
        assert attend(*(one[:, :, :1].contiguous() for one in (q, k, k))) is None
        for one, other in [(k[:1], k[:1]), (k, k[:, :5]), (k, k[..., :32]), (k[..., :32],) * 2, (k[:, :, :3],) * 2]:
            assert attend(q, one.contiguous(), other.contiguous()) is None
        for wrong in (paddle.to_tensor([3]), paddle.to_tensor(3), paddle.to_tensor([3, 4], dtype="int32")):
            for name in ("offset", "starts", "lengths"):
                assert attend(q, k, k, **{name: wrong}) is None


@pytest.mark.usefixtures("views", "blas")
def test_limits_that_lie_apart_in_memory_are_not_read_as_a_row():
    q, k, v = heads_of(3, 9, 20, 8, 4, 64)
    apart = paddle.to_tensor([[2, 8], [5, 1], [7, 3]])[:, 0]
    for mask in (
        Mask(causal=True, offset=apart),
        Mask(causal=True, offset=8, key_starts=apart),
        Mask(causal=False, key_lengths=apart),
    ):
        assert many(q, k, v, mask, 0.125) is None
        with paddle.no_grad():
            found = sdpa.blocked(*map(paddle.to_tensor, (q, k, v)), mask, scale=0.125)
        np.testing.assert_allclose(found.numpy(), dense(q, k, v, mask, 0.125), rtol=0, atol=3e-6)


@pytest.mark.usefixtures("blas")
def test_a_prompt_too_long_for_the_memory_is_told(monkeypatch):
    q = drawn(1, 9, 8, 64)
    full = SimpleNamespace(attend_many=lambda *given: 1, team=few_rows.compiled().team)
    monkeypatch.setattr(few_rows, "compiled", functools.cache(lambda: full))

    with pytest.raises(MemoryError, match="9 queries over 9 keys"):
        many(q, q, q, Mask(causal=True), 0.125)


def test_without_the_library_of_paddle_its_operators_serve_a_prompt(monkeypatch):
    q = drawn(1, 9, 8, 64)
    monkeypatch.setattr(build, "multiply", lambda: None)

    assert many(q, q, q, Mask(causal=True), 0.125) is None


def test_other_threads_compute_while_one_traces_or_keeps_the_kernels_away():
    x, weight, found = paddle.to_tensor(drawn(3, 512)), paddle.to_tensor(drawn(512)), []

    def ask():
        with paddle.no_grad():
            found.append(few_rows.rms_norm(x, weight, 1e-5))

    for block in (few_rows.traced_by(SimpleNamespace(rms_norm=lambda *given: None)), few_rows.kept_away()):
        with block, paddle.no_grad():
            assert few_rows.rms_norm(x, weight, 1e-5) is None
            thread = threading.Thread(target=ask)
            thread.start()
            thread.join()
        ask()

    assert all((one.numpy() == found[-1].numpy()).all() for one in found)


@pytest.mark.parametrize("rows", ROWS)
def test_a_bias_is_added_to_the_product_of_many_rows_with_any_threads(rows):
    x, weight, bias = (paddle.to_tensor(drawn(*shape)) for shape in ([rows, 24], [24, 528], [528]))
    with paddle.no_grad():
        found = few_rows.biased(x[None], weight, bias)
        other = paddle.matmul(x[None], weight)
    split("add_bias", other.data_ptr(), bias.data_ptr(), rows, 528)

    assert found.shape == [1, rows, 528]
    near(found.numpy()[0], x.numpy().astype(np.float64) @ weight.numpy().astype(np.float64) + bias.numpy())
    assert (found.numpy() == other.numpy()).all()


def test_paddle_adds_a_bias_with_gradients_to_narrow_or_odd_columns_and_what_does_not_fit():
    x, weight, bias = (paddle.to_tensor(drawn(*shape)) for shape in ([9, 24], [24, 528], [528]))
    assert few_rows.biased(x, weight, bias) is None  # gradients are on
    with paddle.no_grad():
        assert few_rows.biased(x, weight, bias) is not None
        assert few_rows.biased(x[:0], weight, bias) is None
        assert few_rows.biased(x, weight[:, :496].contiguous(), bias[:496]) is None
        assert few_rows.biased(x, paddle.to_tensor(drawn(24, 520)), bias[:520]) is None
        assert few_rows.biased(x, weight[:, :512].contiguous(), bias) is None
        assert few_rows.biased(*(one.astype("float64") for one in (x, weight, bias))) is None
        with few_rows.kept_away():
            assert few_rows.biased(x, weight, bias) is None


def test_a_linear_layer_adds_its_bias_by_the_kernel(monkeypatch):
    from paddlemix.ops.linear import apply_linear

    x, weight, bias = (paddle.to_tensor(drawn(*shape)) for shape in ([9, 24], [24, 528], [528]))
    marked = paddle.zeros([9, 528])
    monkeypatch.setattr(few_rows, "biased", lambda *_: marked)
    with paddle.no_grad():
        assert apply_linear(x, weight, bias) is marked
