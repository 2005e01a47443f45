# SPDX-License-Identifier: Apache-2.0
"""Tower, prefill and decode step as static graphs give the numbers of the dynamic model, with axes left open."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import Tensor, nn
from paddle.static import InputSpec

from paddlemix.generation.engine import generate_batch
from paddlemix.generation.sampling import Decoding
from paddlemix.imaging.layout import Layout
from paddlemix.models.llm.given_cache import GivenCache
from paddlemix.models.llm.static_cache import StaticCache
from paddlemix.ops.attention import sdpa, select
from paddlemix.ops.attention.contract import Mask
from paddlemix.ops.tracing import to_static
from paddlemix.splice.plan import Plan, PlanRow, build_plan
from tests.tiny import tiny_config, tiny_intern_config, tiny_model

CLOSE = 1e-5
CAPACITY = 64
LENGTHS = (2, 9, 23)
"""Words behind the image in each row: three rows of different lengths."""


class Encode(nn.Layer):
    """Pixels to features: tower and projector."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """``[N, 3, S, S]`` to ``[N, P, D]``."""
        return self.model.encode_images(pixels)


class Prefill(nn.Layer):
    """A right-padded batch of prompts to all scores, and the keys and values of a static cache."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, token_ids: Tensor, source: Tensor, positions: Tensor, features: Tensor) -> Any:
        """``[B, L]`` three times and ``[N, P, D]`` to ``[B, L, V]`` and two lists of tensors."""
        cache = self.model.new_static_cache(CAPACITY)
        rows = self.model.embed(token_ids, source, features)
        hidden = self.model.decode(rows, positions, Mask(causal=True, offset=cache.offset), cache)
        return self.model.logits(hidden), cache.keys, cache.values


class Step(nn.Layer):
    """One more token in every row."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, token_ids: Tensor, lengths: Tensor, keys: list[Tensor], values: list[Tensor]) -> Any:
        """``[B, 1]``, ``[B]`` and the cache to ``[B, V]`` and the cache."""
        cache = StaticCache.of(keys, values, lengths, self.model.parallel.runtime)
        mask = Mask(causal=True, offset=cache.offset)
        hidden = self.model.decode(self.model.llama.embed(token_ids), lengths.unsqueeze(1), mask, cache)
        return self.model.logits(hidden[:, -1]), cache.keys, cache.values


def whole(*shape: int | None) -> InputSpec:
    """An int64 input; None leaves an axis open."""
    return InputSpec(list(shape), "int64")


def of_layers(what: str) -> list[InputSpec]:
    """The keys, or values, of both layers; each input has a name of its own."""
    return [InputSpec([None, 2, CAPACITY, 8], "float32", name=f"{what}_{layer}") for layer in range(2)]


@pytest.fixture(scope="module", autouse=True)
def no_gradients() -> Iterator[None]:
    with paddle.no_grad():
        yield


@pytest.fixture(scope="module", params=["plain projections", "fused projections"])
def model(request: pytest.FixtureRequest) -> Any:
    made = tiny_model()
    return made.prepare_inference() if request.param.startswith("fused") else made


@pytest.fixture(scope="module")
def plan() -> Plan:
    """Three rows with an image each, of different lengths, padded on the right."""
    rng, layout = np.random.default_rng(0), Layout(1, np.arange(4, dtype=np.int64))
    rows = [PlanRow([1, 7, -200, *rng.integers(3, 400, count).tolist()], [layout]) for count in LENGTHS]
    return build_plan(rows, tokens_per_tile=4, padding_side="right")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(1).standard_normal([3, 3, 28, 28]).astype(np.float32)


@pytest.fixture(scope="module")
def prefill(model: Any) -> nn.Layer:
    features = InputSpec([None, 4, 32], "float32")
    return to_static(Prefill(model), [whole(None, None), whole(None, None), whole(None, None), features])


@pytest.fixture(scope="module")
def step(model: Any) -> nn.Layer:
    return to_static(Step(model), [whole(None, 1), whole(None), of_layers("keys"), of_layers("values")])


def prompt(plan: Plan) -> list[Tensor]:
    """What a prefill is given of a plan."""
    return [paddle.to_tensor(array) for array in (plan.token_ids, plan.source, plan.positions)]


def difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max())


def eva_config() -> Any:
    """``tiny_config`` with an EVA-CLIP tower."""
    config = tiny_config()
    extra = {"q_bias": True, "k_bias": False, "v_bias": True, "post_layernorm": False}
    return config.with_changes(vision=replace(config.vision, model_type="eva_clip_vision_model", extra=extra))


@pytest.mark.parametrize("made", [tiny_config, tiny_intern_config, eva_config], ids=["clip", "intern_vit", "eva_clip"])
def test_tower_and_projector_of_any_number_of_tiles(made: Any) -> None:
    model = tiny_model(config=made())
    side = model.config.vision.image_size
    static = to_static(Encode(model), [InputSpec([None, 3, side, side], "float32")])
    for count in (1, 3):
        tiles = paddle.to_tensor(np.random.default_rng(count).standard_normal([count, 3, side, side], np.float32))
        assert difference(static(tiles), model.encode_images(tiles)) <= CLOSE
    # What the trace made stays in the trace: the dynamic model goes on as before.
    assert np.isfinite(model.encode_images(tiles).numpy()).all()


def test_prefill_of_any_number_of_rows_and_positions(prefill: nn.Layer, model: Any, plan: Plan, pixels: Any) -> None:
    features = model.encode_images(paddle.to_tensor(pixels))
    for one in (plan, build_plan([PlanRow([1, 5, 6, 7], [])], tokens_per_tile=4)):
        given = prompt(one)
        cache = model.new_static_cache(CAPACITY)
        hidden = model.decode(model.embed(*given[:2], features), given[2], Mask(causal=True), cache)
        logits, keys, values = prefill(*given, features)
        assert difference(logits, model.logits(hidden)) <= CLOSE
        for ours, theirs in zip([*keys, *values], [*cache.keys, *cache.values], strict=True):
            assert difference(ours, theirs) <= CLOSE


@pytest.mark.parametrize("lengths", [[9, 9], [9, 4], [63, 0]])
def test_a_decode_step_of_rows_of_any_length(step: nn.Layer, model: Any, lengths: list[int]) -> None:
    rng = np.random.default_rng(3)
    held = [paddle.to_tensor(rng.standard_normal([2, 2, CAPACITY, 8], np.float32)) for _ in range(4)]
    ids, places = paddle.to_tensor(rng.integers(3, 400, [2, 1])), paddle.to_tensor(lengths)
    logits, keys, values = step(ids, places, held[:2], held[2:])
    copies = [item.clone() for item in held]
    cache = StaticCache.of(copies[:2], copies[2:], np.array(lengths), model.parallel.runtime)
    mask = Mask(causal=True, offset=cache.offset)
    hidden = model.decode(model.llama.embed(ids), places.unsqueeze(1), mask, cache)
    assert difference(logits, model.logits(hidden[:, -1])) <= CLOSE
    for ours, theirs in zip([*keys, *values], [*cache.keys, *cache.values], strict=True):
        assert difference(ours, theirs) <= CLOSE


def test_graphs_alone_give_the_ids_of_each_row_alone(
    monkeypatch: pytest.MonkeyPatch, prefill: nn.Layer, step: nn.Layer, model: Any, plan: Plan, pixels: Any
) -> None:
    decoding = Decoding(max_new_tokens=8, eos_ids=frozenset())
    alone = [generate_batch(model, row, tiles, decoding)[0] for row, tiles in rows_alone(plan, pixels)]
    assert len({tuple(ids) for ids in alone}) == len(LENGTHS)
    features = model.encode_images(paddle.to_tensor(pixels))
    prefill(*prompt(plan), features)  # traced, if it was not before
    step(paddle.ones([3, 1], "int64"), paddle.ones([3], "int64"), *[[paddle.zeros([3, 2, CAPACITY, 8])] * 2] * 2)

    def gone(*_: Any) -> None:
        raise AssertionError("a graph runs without the code of the model")

    monkeypatch.setattr(type(model.llama), "decode", gone)
    logits, keys, values = prefill(*prompt(plan), features)
    rows, lengths = np.arange(3), plan.lengths.copy()
    made = [logits.numpy()[rows, lengths - 1].argmax(-1)]
    for _ in range(7):
        ids, places = paddle.to_tensor(made[-1][:, None]), paddle.to_tensor(lengths)
        logits, keys, values = step(ids, places, keys, values)
        made.append(logits.numpy().argmax(-1))
        lengths += 1
    assert np.stack(made, 1).tolist() == alone


def rows_alone(plan: Plan, pixels: np.ndarray) -> Iterator[tuple[Plan, np.ndarray]]:
    """Each row of ``plan`` as a plan of its own, with its tile."""
    layout = Layout(1, np.arange(4, dtype=np.int64))
    for row, length in enumerate(plan.lengths):
        text = [int(token) for token in plan.token_ids[row, :length]]
        ids = [*text[:2], -200, *text[6:]]  # four columns are the image's
        yield build_plan([PlanRow(ids, [layout])], tokens_per_tile=4), pixels[row : row + 1]


def test_known_lengths_are_computed_in_blocks_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph of one bucket of lengths takes the fast form of the attention, which needs to know them."""
    monkeypatch.setattr(sdpa, "BLOCK", 16)
    served: list[int] = []
    blocked = sdpa.KERNELS[0].call
    kernels = [
        replace(one, call=lambda *given, **more: served.append(1) or blocked(*given, **more))
        if one.name == "sdpa"
        else one
        for one in select.ATTENTION.kernels
    ]
    monkeypatch.setattr(select, "ATTENTION", replace(select.ATTENTION, kernels=tuple(kernels)))
    model = tiny_model()
    static = to_static(Prefill(model), [whole(1, 40), whole(1, 40), whole(1, 40), InputSpec([1, 4, 32], "float32")])
    ids, places = np.random.default_rng(0).integers(3, 400, [1, 40]), np.arange(40)[None]
    given = [paddle.to_tensor(array) for array in (ids, places, places)]
    features = paddle.zeros([1, 4, 32])
    logits = static(*given, features)[0]
    assert len(served) == 2, "once a layer"
    hidden = model.decode(model.embed(*given[:2], features), given[2], Mask(causal=True))
    assert difference(logits, model.logits(hidden)) <= CLOSE


@pytest.mark.parametrize("kind", ["grows", "static", "given"])
def test_the_wanted_place_of_each_row_is_what_it_is_in_the_whole_step(kind: str) -> None:
    """The last layer computes nothing else for the other places but keys and values; those are the same, too."""
    model, length = tiny_model(), 9
    text = model.config.text
    empty = [paddle.zeros([2, text.num_key_value_heads, 1, text.width_per_head])] * text.num_hidden_layers
    kinds = {
        "grows": lambda: model.new_cache(2),
        "static": lambda: model.new_static_cache(CAPACITY),
        "given": lambda: GivenCache(empty, empty, paddle.zeros([2], dtype="int64")),
    }
    paddle.seed(0)
    embeds, places = paddle.randn([2, length, text.hidden_size]), paddle.arange(length).expand([2, length])
    columns, found, kept = [length - 1, 5], [], []
    for ends in (None, paddle.to_tensor([columns[0], length + columns[1]])):
        cache = kinds[kind]()
        mask = Mask(causal=True, key_starts=paddle.to_tensor([0, 2]), offset=cache.offset)
        found.append(model.llama.decode(embeds, places, mask, cache, ends))
        kept.append(cache.new_values if kind == "given" else [cache.held(at)[1] for at in range(len(empty))])
    assert found[1].shape == [2, 1, text.hidden_size]
    for row, column in enumerate(columns):
        assert difference(found[1][row, 0], found[0][row, column]) <= CLOSE
    assert all(difference(*pair) == 0 for pair in zip(*kept, strict=True))
