# SPDX-License-Identifier: Apache-2.0
"""All layers of a decode step in one call: beside the same step operator by operator, and where it must not serve."""

import copy
import functools
import gc
import threading

import numpy as np
import paddle
import pytest

from paddlemix.models.llm.cache import KVCache
from paddlemix.models.llm.llama import LlamaModel
from paddlemix.models.llm.slot_cache import RowCache, SlotCache
from paddlemix.ops import few_rows
from paddlemix.ops.attention.contract import Mask
from paddlemix.ops.linear import add_lora, linear_layers, share_memory
from paddlemix.ops.low_bits import build, form
from paddlemix.ops.low_bits.weights import Compiled, Plain
from paddlemix.ops.runtime import Runtime
from paddlemix.ops.whole_step import Seen, WholeStep
from paddlemix.settings.model import TextConfig
from paddlemix.utils.errors import ConfigError

RUNTIME = Runtime("cpu")


def drawn(*shape, seed=0):
    return np.random.default_rng(sum(shape) + seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(autouse=True)
def _no_gradients():
    reason = build.why_not(few_rows.SOURCE)
    if reason:
        pytest.skip(reason)
    with paddle.no_grad():
        yield


@pytest.fixture
def calls(monkeypatch):
    """How many steps were one call; ``calls.off`` makes none one."""

    class Calls(list):
        off = False

    found, whole = Calls(), WholeStep.__call__

    def call(self, *given):
        answer = None if found.off else whole(self, *given)
        found.append(answer is not None)
        return answer

    monkeypatch.setattr(WholeStep, "__call__", call)
    return found


def built(bits=None, floats=(), **changes):
    """A decoder of two layers with random weights, norms and biases, joined for inference.

    ``bits``: so few in every layer whose name does not begin with one of ``floats``.
    """
    given = {"intermediate_size": 768, "num_key_value_heads": 4, **changes}
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 8, "max_position_embeddings": 512}
    model = LlamaModel(TextConfig(90, 512, **sizes, **given))
    for number, parameter in enumerate(model.parameters()):
        values = drawn(*parameter.shape, seed=number) * (0.05 if parameter.ndim > 1 else 0.3) + (parameter.ndim == 1)
        parameter.set_value(values.astype(np.float32))
    if bits is not None:
        for number, (name, layer) in enumerate(linear_layers(model)):
            if name.startswith(floats):
                continue
            width, out = layer.weight.shape
            # A mixture, as ``--bits 4`` writes it: some weights have more bits than the others.
            own = 8 if bits == 4 and name.endswith(("v_proj", "down_proj")) else bits
            layer.hold(Compiled([form.packed(drawn(out, width, seed=number) * 0.05, (out, width), own)]))
    model.fuse()
    return model


def behind_a_prompt(model, rows, length, steps, starts=None):
    """What each step behind a prompt of ``length`` random places gives, and the cache at the end."""
    cache = KVCache(model.config, rows, runtime=RUNTIME)
    given = paddle.to_tensor(drawn(rows, length + steps, 512))
    places = paddle.arange(length + steps).expand([rows, -1])
    found = []
    for first, last in [(0, length), *((at, at + 1) for at in range(length, length + steps))]:
        mask = Mask(causal=True, offset=cache.offset, key_starts=starts)
        part = given[:, first:last].contiguous(), places[:, first:last].contiguous()
        found.append(model.decode(*part, mask, cache)[:, -1].numpy())
    held = [half[:, :, : length + steps].numpy() for layer in range(2) for half in cache.held(layer)]
    return np.stack(found[1:]), held


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 8},
        {"num_key_value_heads": 2, "model_type": "qwen2"},
        {"attention_bias": True, "head_dim": 80},
        {"rms_norm_eps": 1e-2, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"bits": 8},
        {"bits": 4, "model_type": "qwen2"},
        {"bits": 16},
        {"bits": 8, "floats": ("layers.0",)},
    ],
    ids=str,
)
def test_a_step_gives_what_operator_by_operator_gives_and_leaves_the_same_cache(calls, changes):
    model = built(**changes)
    starts = paddle.to_tensor([0, 5, 60])

    found, held = behind_a_prompt(model, 3, 61, 6, starts)  # the cache grows behind the third step
    assert calls == [True] * 5
    calls.off = True
    wanted, others = behind_a_prompt(model, 3, 61, 6, starts)

    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5)
    assert np.abs(wanted).max() > 1
    for one, other in zip(held, others, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5)


def test_rows_of_unequal_lengths_and_slots_that_are_free(calls):
    model, lengths = built(), (40, 7, 19)

    def steps():
        rows = [
            RowCache(
                *(tuple(paddle.to_tensor(drawn(1, 4, 40, 64, seed=n)) for _ in range(2)) for n in range(2)), length
            )
            for length in lengths
        ]
        cache, found = SlotCache(rows[0], 4, 48, RUNTIME), []
        for slot, row in enumerate(rows):
            cache.put(slot, row)
        for step in range(4):
            embeds = paddle.to_tensor(drawn(4, 1, 512, seed=step))
            mask = Mask(causal=True, offset=cache.offset)
            found.append(model.decode(embeds, paddle.to_tensor(cache.filled[:, None]), mask, cache).numpy()[:3])
            if step == 1:
                cache.free(1)
        return np.stack(found)

    few = steps()
    assert calls == [True] * 4
    calls.off = True
    np.testing.assert_allclose(few[:2], steps()[:2], rtol=0, atol=2e-5)
    np.testing.assert_allclose(few[:, [0, 2]], steps()[:, [0, 2]], rtol=0, atol=2e-5)


def test_a_row_is_the_same_alone_and_beside_others_and_with_several_threads(calls, monkeypatch):
    model = built()

    def row(rows, which):
        cache = KVCache(model.config, rows, runtime=RUNTIME)
        mask = Mask(causal=True, offset=0)
        given = paddle.to_tensor(np.repeat(drawn(1, 30, 512), rows, 0) + (np.arange(rows) != which)[:, None, None])
        given = given.astype("float32")
        model.decode(given[:, :29].contiguous(), paddle.arange(29).expand([rows, -1]), mask, cache)
        for layer in range(2):  # a prompt is multiplied by paddle, whose sums depend on the rows
            for half in cache.held(layer):
                half.set_value(np.repeat(drawn(1, 4, 64, 64, seed=layer), rows, 0))
        step = given[:, 29:].contiguous(), paddle.full([rows, 1], 29, "int64")
        return model.decode(*step, Mask(causal=True, offset=29), cache).numpy()[which]

    alone, among = row(1, 0), row(5, 3)
    kernels = few_rows.compiled()
    fork, _ = build.team()
    monkeypatch.setattr(kernels, "team", lambda: (fork, 3))
    split = row(5, 3)

    assert calls == [True] * 3
    assert (alone == among).all()
    assert (split == among).all()


def change(model, name):
    """Changes the last layer, or the order of both, after their first steps."""
    layer = model.layers[1]
    mlp, attn = layer.mlp, layer.self_attn
    if name == "order":
        model.layers = paddle.nn.LayerList(reversed(list(model.layers)))
    elif name == "memory":
        share_memory(mlp.down_proj.weight, mlp.down_proj.weight * 2.0)
    elif name == "parameter":
        attn.o_proj.weight = paddle.create_parameter([512, 512], "float32")
    elif name == "bias":
        attn.o_proj.bias = paddle.create_parameter([512], "float32", is_bias=True)
        attn.o_proj.bias.set_value(paddle.ones([512]))
    elif name == "few bits":
        mlp.down_proj.hold(Compiled([form.packed(drawn(512, 768) * 0.1, (512, 768), 8)]))
        gc.collect()
    elif name == "epsilon":
        layer.input_layernorm.epsilon = 1.0
    elif name == "hook":
        attn.register_forward_post_hook(lambda layer, given, found: found * 2.0)
    else:
        mlp.forward = lambda x: x * 2.0


ALWAYS = ("bias", "few bits", "epsilon", "hook", "forward", "order")


@pytest.mark.parametrize(
    ("bits", "name"), [(None, "memory"), (None, "parameter"), *((bits, name) for bits in (None, 8) for name in ALWAYS)]
)
def test_what_has_changed_is_seen_at_the_next_step(calls, bits, name):
    model = built(bits)
    before, _ = behind_a_prompt(model, 1, 9, 1)
    change(model, name)

    after, _ = behind_a_prompt(model, 1, 9, 1)
    calls.off = True
    wanted, _ = behind_a_prompt(model, 1, 9, 1)

    assert np.abs(after - before).max() > 1e-2
    np.testing.assert_allclose(after, wanted, rtol=0, atol=2e-5)


def test_a_copy_of_a_model_computes_with_its_own_weights(calls):
    model = built()
    before, _ = behind_a_prompt(model, 1, 9, 1)
    twin = copy.deepcopy(model)
    assert twin._step._looked_at is None
    model.layers[0].mlp.fused.weight.zero_()
    assert (behind_a_prompt(twin, 1, 9, 1)[0] == before).all()


def test_threads_with_caches_of_their_own_share_a_model(calls):
    model, found = built(), {}
    wanted = {length: behind_a_prompt(model, 1, length, 25)[0] for length in (5, 70, 130)}

    def talk(length):
        with paddle.no_grad():
            found[length] = [behind_a_prompt(model, 1, length, 25)[0] for _ in range(4)]

    threads = [threading.Thread(target=talk, args=(length,)) for length in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for length, steps in wanted.items():
        for given in found[length]:
            np.testing.assert_allclose(given, steps, rtol=0, atol=1e-5)


def test_keys_that_were_lent_are_not_written_to(calls):
    model = built()
    first = KVCache(model.config, 1, runtime=RUNTIME)
    given = paddle.to_tensor(drawn(1, 20, 512))
    model.decode(given, paddle.arange(20).unsqueeze(0), Mask(causal=True, offset=0), first)
    lent = first.lend()
    second = KVCache(model.config, 1, runtime=RUNTIME)
    second.borrow(*lent, 12)
    before = [half.numpy() for side in lent for half in side]

    for cache, place in ((first, 20), (second, 12), (second, 13)):
        mask = Mask(causal=True, offset=cache.offset)
        model.decode(given[:, :1].contiguous(), paddle.full([1, 1], place, "int64"), mask, cache)

    assert calls == [True]  # the first step behind a loan copies
    for one, other in zip(before, (half for side in lent for half in side), strict=True):
        assert (one == other.numpy()).all()


def test_what_is_not_of_its_form_goes_operator_by_operator(calls, monkeypatch):
    behind_a_prompt(built(), 9, 5, 1)
    behind_a_prompt(built(hidden_act="gelu"), 1, 5, 1)
    behind_a_prompt(built(num_key_value_heads=2, head_dim=38), 1, 5, 1)  # 456 columns: no multiple of 16 floats
    behind_a_prompt(built(intermediate_size=776), 1, 5, 1)  # so many of the gate, too
    mixed = built(bits=8)
    down = mixed.layers[1].mlp.down_proj
    down.low_bits = Plain(down.low_bits.parts)
    behind_a_prompt(mixed, 1, 5, 1)
    wide = [(paddle.zeros([1, 4, 8, 64]), paddle.zeros([1, 4, 8, 64], "float64"))] * 2
    tables = paddle.ones([1, 1, 1, 64]), paddle.ones([1, 1, 1, 64])
    model = built()
    step = paddle.ones([1, 1, 512]), tables, wide, Seen(3, None, None), 8, 0.125
    assert WholeStep()(model._parts(), *step) is None
    monkeypatch.setattr(few_rows, "compiled", functools.cache(lambda: None))
    behind_a_prompt(built(), 1, 5, 1)
    assert not any(calls)

    number = len(calls)
    plain = built()
    plain.unfuse()
    behind_a_prompt(plain, 1, 5, 1)
    assert len(calls) == number


def test_gradients_and_a_forced_backend_keep_it_away(calls, monkeypatch):
    model = built()
    with paddle.enable_grad():
        behind_a_prompt(model, 1, 5, 1)
    monkeypatch.setenv("PADDLEMIX_ATTENTION", "math")
    behind_a_prompt(built(), 1, 5, 1)
    assert not calls


def test_a_full_row_is_refused_before_anything_is_written(calls):
    model = built()
    row = RowCache(*(tuple(paddle.to_tensor(drawn(1, 4, 8, 64)) for _ in range(2)) for _ in range(2)), 8)
    cache = SlotCache(row, 1, 8, RUNTIME)
    cache.put(0, row)

    step = paddle.to_tensor(drawn(1, 1, 512)), paddle.full([1, 1], 8, "int64"), Mask(causal=True, offset=cache.offset)
    with pytest.raises(ConfigError, match="1 more do not fit"):
        model.decode(*step, cache)
    assert (cache.keys[0].numpy() == row.keys[0].numpy()).all()
    assert not calls


def test_an_adapter_cannot_come_to_joined_weights_unseen():
    model = built()

    with pytest.raises(ConfigError, match=r"joined for inference; call train\(\) first"):
        add_lora(model, [r".*\.o_proj"], 2, 4)
    model.unfuse()
    assert len(add_lora(model, [r".*\.o_proj"], 2, 4)) == 2
    model.fuse()
    assert model._parts() is None
