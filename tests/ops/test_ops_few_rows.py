# SPDX-License-Identifier: Apache-2.0
"""The operators of a step by kernels compiled here, beside numpy's and paddle's; and where paddle's serve instead."""

import functools

import numpy as np
import paddle
import pytest

from paddlemix.models.llm.llama import LlamaModel
from paddlemix.models.llm.slot_cache import RowCache, SlotCache
from paddlemix.ops import few_rows
from paddlemix.ops.activation import ACTIVATIONS, gated
from paddlemix.ops.attention import math as plain_attention
from paddlemix.ops.attention import sdpa
from paddlemix.ops.attention.contract import Mask
from paddlemix.ops.linear import apply_linear
from paddlemix.ops.low_bits import build
from paddlemix.ops.norm import RMSNorm
from paddlemix.ops.rope import RotaryTables
from paddlemix.ops.runtime import Runtime
from paddlemix.settings.model import TextConfig


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
    kernel = few_rows.compiled().product

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


@pytest.fixture
def paddles_own(monkeypatch):
    """A function that computes without the kernels."""

    def call(work):
        with monkeypatch.context() as patch:
            patch.setattr(few_rows, "compiled", functools.cache(lambda: None))
            return work()

    return call


@pytest.mark.parametrize("width", [512, 1031])
def test_norm_of_few_rows_is_the_plain_one(width):
    x, weight = drawn(3, 1, width) * [[[5]], [[1]], [[1e-3]]], drawn(width)
    x = x.astype(np.float32)
    norm = RMSNorm(width, 1e-5, Runtime.current())
    norm.weight.set_value(paddle.to_tensor(weight))
    wide = x.astype(np.float64)

    with paddle.no_grad():
        few = few_rows.rms_norm(paddle.to_tensor(x), norm.weight, 1e-5).numpy()
        assert (norm(paddle.to_tensor(x)).numpy() == few).all()

    np.testing.assert_allclose(few, wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5) * weight, rtol=2e-6)


def test_gate_of_few_rows_is_exact_from_minus_to_plus_infinity():
    gate = np.concatenate([np.linspace(-120, 120, 510), [0, np.inf]]).astype(np.float32)
    both = np.concatenate([gate, drawn(512)])[None]
    wide = gate[:-1].astype(np.float64)

    with paddle.no_grad():
        few = few_rows.swiglu(paddle.to_tensor(both)).numpy()[0]
        assert (gated(ACTIVATIONS.get("silu"), paddle.to_tensor(both), None, Runtime.current()).numpy() == few).all()
        spoiled = few_rows.swiglu(paddle.to_tensor(np.full([1, 1024], np.nan, np.float32))).numpy()

    np.testing.assert_allclose(few[:-1], wide / (1 + np.exp(-wide)) * both[0, 512:-1], rtol=1e-6, atol=1e-34)
    assert few[-1] == np.inf * both[0, -1]
    assert np.isnan(spoiled).all()


def test_rotation_of_few_rows_is_the_plain_one(paddles_own):
    tables = RotaryTables(64, 1e4, None, Runtime.current()).step(paddle.to_tensor([[3], [700]]))
    joined = paddle.to_tensor(drawn(2, 1, (6 + 2 * 2) * 64))

    with paddle.no_grad():
        few, plain = tables.split(joined, 6, 2), paddles_own(lambda: tables.split(joined, 6, 2))

    for one, other in zip(few, plain, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "places"),
    [(16, 16, 64, 300), (8, 8, 64, 1103), (12, 3, 72, 9), (6, 2, 100, 2053), (34, 2, 20, 70)],
)
def test_attention_of_a_step_is_the_plain_one(heads, kv_heads, width, places):
    q, k, v = drawn(4, 1, heads, width), drawn(4, kv_heads, places, width), drawn(4, kv_heads, places, width)
    q, k, v = map(paddle.to_tensor, (q, k, v))
    last = places - 1
    several = paddle.to_tensor([0, last - 1, last // 2, last])
    masks = [
        Mask(causal=True, offset=last),
        Mask(causal=True, offset=2),
        Mask(causal=True, offset=several),
        Mask(causal=True, offset=several, key_starts=paddle.to_tensor([0, 2, 3, last])),
        Mask(
            causal=True, offset=4, key_starts=paddle.to_tensor([0, 4, 5, 9])
        ),  # the last two rows see themselves alone
        Mask(causal=False, offset=3, key_lengths=paddle.to_tensor([1, places, 7, 3])),
        Mask(causal=False, offset=places + 2, key_lengths=paddle.to_tensor([0, places, 7, 3])),
        Mask(causal=False),
    ]
    for mask in masks:
        limits = {"starts": mask.key_starts, "lengths": mask.key_lengths}
        with paddle.no_grad():
            few = few_rows.attend(q, k, v, causal=mask.causal, offset=mask.offset, scale=0.2, **limits)
            plain = plain_attention.attend(q, k, v, mask, scale=0.2, kv_heads_first=True)
        np.testing.assert_allclose(few.numpy(), plain.numpy(), rtol=0, atol=3e-6)


def test_attention_of_a_row_is_the_same_beside_others_and_with_any_threads():
    q, k, v = (paddle.to_tensor(drawn(*shape)) for shape in ([3, 1, 8, 64], [3, 4, 1400, 64], [3, 4, 1400, 64]))
    offsets = paddle.to_tensor([1399, 3, 1100])
    split, (fork, _) = paddle.empty([3, 1, 8, 64]), build.team()
    addresses = [one.data_ptr() for one in (q, k, v, split, offsets)]

    with paddle.no_grad():
        options = {"causal": True, "starts": None, "lengths": None, "scale": 0.125}
        together = few_rows.attend(q, k, v, offset=offsets, **options)
        alone = few_rows.attend(q[2:], k[2:], v[2:], offset=1100, **options)
        few_rows.compiled().attend(*addresses, 0, 0, 0, 1, 3, 8, 4, 1400, 64, 0.125, fork, 3)

    assert (together[2:].numpy() == alone.numpy()).all()
    assert (together.numpy() == split.numpy()).all()


def test_a_nan_of_a_row_stays_in_that_row_and_is_seen():
    q, k, v = (paddle.to_tensor(drawn(*shape)) for shape in ([2, 1, 8, 64], [2, 8, 40, 64], [2, 8, 40, 64]))
    k[1, 3, 7, 0] = float("nan")

    with paddle.no_grad():
        found = few_rows.attend(q, k, v, causal=True, offset=20, starts=None, lengths=None, scale=0.125).numpy()

    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1, 0, 3]).all()
    assert np.isfinite(np.delete(found[1, 0], 3, axis=0)).all()


@pytest.mark.usefixtures("views")
def test_places_and_starts_that_lie_apart_in_memory_are_not_read_as_a_row():
    q, k, v = (paddle.to_tensor(drawn(*shape)) for shape in ([3, 1, 8, 64], [3, 4, 9, 64], [3, 4, 9, 64]))
    apart = paddle.to_tensor([[2, 8], [5, 1], [7, 3]])[:, 0]
    masks = [
        Mask(causal=True, offset=apart),
        Mask(causal=True, offset=8, key_starts=apart),
        Mask(causal=False, key_lengths=apart),
    ]

    for mask in masks:
        with paddle.no_grad():
            found = sdpa.blocked(q, k, v, mask, scale=0.125, kv_heads_first=True)
            plain = plain_attention.attend(q, k, v, mask, scale=0.125, kv_heads_first=True)
        np.testing.assert_allclose(found.numpy(), plain.numpy(), rtol=0, atol=3e-6)


def test_a_rotation_that_all_rows_share_reads_no_table_behind_it(paddles_own):
    tables = RotaryTables(64, 1e4, None, Runtime.current()).step(paddle.to_tensor([[7]]))
    joined = paddle.to_tensor(drawn(3, 1, (6 + 2 * 2) * 64))

    with paddle.no_grad():
        shared, plain = tables.split(joined, 6, 2), paddles_own(lambda: tables.split(joined, 6, 2))

    for one, other in zip(shared, plain, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=0, atol=1e-6)


def test_what_does_not_fit_together_is_left_to_paddle_which_says_so():
    q, k = paddle.to_tensor(drawn(2, 1, 8, 64)), paddle.to_tensor(drawn(2, 4, 9, 64))
    tables = paddle.to_tensor(drawn(2, 1, 1, 64))
    limits = {"causal": True, "offset": 8, "starts": None, "lengths": None, "scale": 1.0}

    with paddle.no_grad():
        for one, other in [(k[:1], k[:1]), (k, k[:, :, :5]), (k, k[..., :32]), (k[:, :3], k[:, :3])]:
            assert few_rows.attend(q, one.contiguous(), other.contiguous(), **limits) is None
        assert few_rows.turn(paddle.to_tensor(drawn(2, 1, 11 * 64)), tables, tables, 6, 2) is None
        assert few_rows.rms_norm(paddle.to_tensor(drawn(2, 600)), paddle.ones([512]), 1e-5) is None
        assert few_rows.swiglu(paddle.to_tensor(drawn(2, 1025))) is None


@pytest.mark.usefixtures("views")
def test_keys_are_written_to_the_place_of_each_row_alone():
    held, new = paddle.to_tensor(drawn(2, 3, 5, 8)), paddle.to_tensor(drawn(2, 3, 1, 8))
    few_rows.compiled()
    before, wanted = held.numpy().copy(), held.numpy().copy()
    wanted[0, :, 4], wanted[1, :, 1] = new.numpy()[0, :, 0], new.numpy()[1, :, 0]

    assert not few_rows.put([held], [new], 2)  # gradients are on
    with paddle.no_grad():
        assert not few_rows.put([held], [new[:1]], 2)
        assert not few_rows.put([held], [new.astype("float64")], 2)
        assert not few_rows.put([held], [new], paddle.to_tensor([1, 2, 3]))
        assert (held.numpy() == before).all()
        assert not few_rows.put([held], [new], paddle.to_tensor([[4, 9], [1, 9]])[:, 0])
        assert (held.numpy() == before).all()
        assert few_rows.put([held], [new], paddle.to_tensor([5, 1]))  # a row without room spoils its own last place
    assert (held.numpy() == wanted).all()

    wanted[1, :, 4] = new.numpy()[1, :, 0]
    with paddle.no_grad():
        assert few_rows.put([held], [new], paddle.to_tensor([4, -1]))  # outside on the other side: the last place, too
    assert (held.numpy() == wanted).all()


@pytest.mark.usefixtures("views")
def test_keys_of_several_layers_are_written_together_or_not_at_all():
    held = [paddle.to_tensor(drawn(2, 3, 5, 8)) for _ in range(3)]
    new = [paddle.to_tensor(drawn(2, 3, 8)).unsqueeze(axis) for axis in (1, 2, 1)]  # [B, 1, Hk, D] is the same memory
    few_rows.compiled()
    before = [one.numpy().copy() for one in held]

    with paddle.no_grad():
        for last in (held[0][:, :, 1:], held[0].astype("float64"), held[0][:1]):
            assert not few_rows.put([*held[:2], last], new, 3)
        assert not few_rows.put(held, [*new[:2], new[0].reshape([2, 8, 3, 1])], 3)
        assert not few_rows.put(held, new[:2], 3)
        assert not few_rows.put([], [], 3)
        assert all((one.numpy() == other).all() for one, other in zip(held, before, strict=True))
        assert few_rows.put(held, new, 3)
    for one, other, row in zip(held, before, new, strict=True):
        other[:, :, 3] = row.numpy().reshape(2, 3, 8)
        assert (one.numpy() == other).all()


def test_paddle_serves_rows_of_small_layers():
    small, heads = paddle.to_tensor(drawn(1, 256)), paddle.to_tensor(drawn(1, 1, 4, 64))
    wide = paddle.to_tensor(drawn(1, 1, 1024))

    with paddle.no_grad():
        assert few_rows.rms_norm(small, paddle.ones([256]), 1e-5) is None
        assert few_rows.swiglu(small) is None
        limits = {"causal": False, "offset": 0, "starts": None, "lengths": None}
        assert few_rows.attend(heads, heads, heads, scale=1.0, **limits) is None
    assert few_rows.rms_norm(wide, paddle.ones([1024]), 1e-5) is None  # gradients are on


@pytest.mark.parametrize("kv_heads", [8, 2])
def test_steps_of_rows_of_unequal_lengths_give_the_scores_of_paddles_operators(kv_heads, paddles_own):
    config = TextConfig(90, 512, 768, 2, 8, kv_heads)
    with paddle.no_grad():
        paddle.seed(3)
        model = LlamaModel(config)
        model.fuse()
        shape, lengths = [1, kv_heads, 40, 64], (40, 7, 19)
        rows = [
            RowCache(*(tuple(paddle.to_tensor(drawn(*shape) + n) for _ in range(2)) for n in range(2)), length)
            for length in lengths
        ]

        def steps():
            cache, found = SlotCache(rows[0], 3, 64, Runtime.current()), []
            for slot, row in enumerate(rows):
                cache.put(slot, row)
            for step in range(3):
                embeds = paddle.to_tensor(drawn(3, 1, 512) + step)
                mask = Mask(causal=True, offset=cache.offset)
                found.append(model.decode(embeds, paddle.to_tensor(cache.filled[:, None]), mask, cache).numpy())
            return np.stack(found)

        few, plain = steps(), paddles_own(steps)

    assert (few != plain).any()  # otherwise no kernel was at work
    np.testing.assert_allclose(few, plain, rtol=0, atol=2e-5)
