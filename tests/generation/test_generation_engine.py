# SPDX-License-Identifier: Apache-2.0
"""The engine: batch = rows alone, cache = no cache, beams = exhaustive search."""

import itertools
from typing import Any

import numpy as np
import paddle
import pytest

from paddlemix.generation.engine import _advance, _Beams, encode_images, generate, generate_batch
from paddlemix.generation.sampling import Decoding, Sampler
from paddlemix.imaging.processor import ImageProcessor
from paddlemix.ops.runtime import Runtime
from paddlemix.splice.plan import Plan, PlanRow, build_plan
from paddlemix.utils.constants import IMAGE_TOKEN_INDEX as IMAGE
from paddlemix.utils.errors import BackendError
from tests.tiny import tiny_image, tiny_model


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model(seed=1)


@pytest.fixture(scope="module")
def pictures(model: Any) -> list[Any]:
    processor = ImageProcessor(model.config.image, model.config.vision)
    return [processor(tiny_image(kind)) for kind in range(2)]


IDS = ([1, 5, IMAGE, 7, 8, 9], [1, IMAGE, 4, IMAGE, 99, 100, 101, 102], [1, 44])
USES = ([0], [0, 1], [])


def plan_of(pictures: list[Any], rows: list[int], side: str = "left") -> tuple[Plan, np.ndarray | None]:
    layouts = [[pictures[i].layout for i in USES[row]] for row in rows]
    tiles = [pictures[i].pixels for row in rows for i in USES[row]]
    plan = build_plan(
        [PlanRow(IDS[row], own) for row, own in zip(rows, layouts, strict=True)], tokens_per_tile=4, padding_side=side
    )
    return plan, np.concatenate(tiles) if tiles else None


def without_cache(model: Any, plan: Plan, pixels: np.ndarray | None, steps: int) -> list[int]:
    """Greedy ids of one row by running everything again for each of them."""
    features = None if pixels is None else model.encode_images(paddle.to_tensor(pixels))
    made: list[int] = []
    for _ in range(steps):
        scores = scores_after(model, plan, features, made)
        made.append(int(scores.argmax()))
    return made


@paddle.no_grad()
def scores_after(model: Any, plan: Plan, features: Any, made: list[int]) -> np.ndarray:
    from paddlemix.ops.attention.contract import Mask

    prompt = model.embed(paddle.to_tensor(plan.token_ids), paddle.to_tensor(plan.source), features)
    if made:
        ids = paddle.to_tensor([made])
        prompt = paddle.concat([prompt, model.llama.embed(ids)], axis=1)
    positions = paddle.arange(prompt.shape[1]).unsqueeze(0)
    hidden = model.decode(prompt, positions, Mask(causal=True))
    return model.logits(hidden[:, -1]).numpy()[0]


def test_a_mixed_left_padded_batch_equals_each_row_alone(model: Any, pictures: list[Any]) -> None:
    decoding = Decoding(max_new_tokens=10)
    together = generate_batch(model, *plan_of(pictures, [0, 1, 2]), decoding)
    alone = [generate_batch(model, *plan_of(pictures, [row]), decoding)[0] for row in range(3)]
    assert together == alone
    assert len({tuple(row) for row in alone}) == 3


def test_the_cache_gives_what_running_everything_again_gives(model: Any, pictures: list[Any]) -> None:
    for row in range(3):
        plan, pixels = plan_of(pictures, [row])
        assert generate_batch(model, plan, pixels, Decoding(max_new_tokens=8))[0] == without_cache(
            model, plan, pixels, 8
        )


def test_a_row_that_ended_is_padded_while_the_others_go_on(model: Any, pictures: list[Any]) -> None:
    free = generate_batch(model, *plan_of(pictures, [0, 1]), Decoding(max_new_tokens=8))
    ending = next(token for token in free[0] if token not in free[1])
    place = free[0].index(ending)
    ended = generate_batch(model, *plan_of(pictures, [0, 1]), Decoding(max_new_tokens=8, eos_ids=(ending,), pad_id=3))
    assert ended[0] == free[0][: place + 1] + [3] * (7 - place)
    assert ended[1] == free[1]


def test_generation_stops_when_every_row_has_ended(model: Any, pictures: list[Any]) -> None:
    free = generate_batch(model, *plan_of(pictures, [2]), Decoding(max_new_tokens=8))[0]
    ended = generate_batch(model, *plan_of(pictures, [2]), Decoding(max_new_tokens=8, eos_ids=(free[2],)))[0]
    assert ended == free[: free.index(free[2]) + 1]


def test_the_picture_changes_the_answer(model: Any, pictures: list[Any]) -> None:
    plan, pixels = plan_of(pictures, [0])
    other = generate_batch(model, plan, pictures[1].pixels, Decoding(max_new_tokens=8))
    assert other != generate_batch(model, plan, pixels, Decoding(max_new_tokens=8))


def test_a_sampled_row_does_not_depend_on_its_neighbours(model: Any, pictures: list[Any]) -> None:
    decoding = Decoding(max_new_tokens=8, temperature=0.8, top_p=0.9, seed=11)
    together = generate_batch(model, *plan_of(pictures, [0, 1]), decoding)
    samplers = [Sampler(decoding, (0, 1))]
    alone = [token for (token,) in generate(model, *plan_of(pictures, [1]), decoding, samplers=samplers)]
    assert together[1] == alone


def test_ids_beyond_the_tokenizer_are_never_picked(model: Any, pictures: list[Any]) -> None:
    made = generate_batch(model, *plan_of(pictures, [0, 1, 2]), Decoding(max_new_tokens=10, vocab_size=50))
    assert max(itertools.chain(*made)) < 50


def test_repetition_penalty_reaches_the_choice(model: Any, pictures: list[Any]) -> None:
    decoding = Decoding(max_new_tokens=10, repetition_penalty=1e6)
    made = generate_batch(model, *plan_of(pictures, [1]), decoding)[0]
    assert len(set(made)) == len(made)


def best_by_search(model: Any, plan: Plan, features: Any, length: int, end: int) -> list[int]:
    """The ids of best mean log probability among all of ``length`` and all shorter ones that close with ``end``."""
    best: tuple[float, list[int]] = (-np.inf, [])
    open_rows: list[tuple[float, list[int]]] = [(0.0, [])]
    for step in range(1, length + 1):
        grown = []
        for total, ids in open_rows:
            scores = scores_after(model, plan, features, ids)[:6]
            chances = scores - scores.max()
            chances = chances - np.log(np.exp(chances).sum())
            grown += [(total + float(chances[token]), [*ids, token]) for token in range(6)]
        closed = [(total / step, ids) for total, ids in grown if ids[-1] == end or step == length]
        best = max([best, *closed])
        open_rows = [item for item in grown if item[1][-1] != end]
    return best[1]


@pytest.mark.parametrize("row", [0, 2])
def test_beams_as_wide_as_the_vocabulary_find_the_best_answer(model: Any, pictures: list[Any], row: int) -> None:
    plan, pixels = plan_of(pictures, [row])
    features = None if pixels is None else encode_images(model, pixels)
    decoding = Decoding(max_new_tokens=3, num_beams=36, eos_ids=(4,), vocab_size=6)
    made = [token for (token,) in generate(model, plan, pixels, decoding)]
    assert made == best_by_search(model, plan, features, 3, end=4)


def test_an_ending_counts_only_among_as_many_candidates_as_there_are_beams() -> None:
    beams = _Beams(width=2, length_penalty=1.0)
    # Two open rows and three ids, of which 2 ends an answer. The ending of row 0 ranks first, that of row 1 third.
    candidates = np.array([-2.0, -9.0, -1.0, -4.0, -9.0, -3.0], dtype=np.float32)
    order = np.argsort(-candidates, kind="stable")[:4]
    decoding = Decoding(num_beams=2, eos_ids=(2,))
    rows, totals, parents = _advance(beams, [[7], [8]], candidates, order, 3, decoding)
    assert (rows, totals.tolist(), parents) == ([[7, 0], [8, 0]], [-2.0, -4.0], [0, 1])
    assert beams.done == [(-0.5, [7, 2])]


def test_more_beams_find_a_likelier_answer_than_greedy(model: Any, pictures: list[Any]) -> None:
    plan, pixels = plan_of(pictures, [1])
    features = encode_images(model, pixels)

    def worth(ids: list[int]) -> float:
        total = 0.0
        for place, token in enumerate(ids):
            scores = scores_after(model, plan, features, ids[:place]).astype(np.float64)
            total += scores[token] - np.log(np.exp(scores - scores.max()).sum()) - scores.max()
        return total / len(ids)

    greedy = [token for (token,) in generate(model, plan, pixels, Decoding(max_new_tokens=6))]
    beams = [token for (token,) in generate(model, plan, pixels, Decoding(max_new_tokens=6, num_beams=4))]
    assert worth(beams) > worth(greedy)


def test_scores_that_are_not_finite_are_an_error_with_a_remedy(pictures: list[Any]) -> None:
    broken = tiny_model(seed=1)
    with paddle.no_grad():
        broken.llama.norm.weight.set_value(broken.llama.norm.weight * float("nan"))
    for decoding in (Decoding(), Decoding(temperature=1.0), Decoding(num_beams=2)):
        with pytest.raises(BackendError, match="not finite .* use bfloat16 or float32"):
            list(generate(broken, *plan_of(pictures, [0]), decoding))


def test_a_plan_padded_on_the_right_is_refused(model: Any) -> None:
    plan = build_plan([PlanRow([1, 2, 3]), PlanRow([1])], tokens_per_tile=4)
    with pytest.raises(ValueError, match="padding_side='left'"):
        list(generate(model, plan))


@pytest.mark.parametrize("device", ["cpu", "npu"])
def test_rows_of_a_static_cache_give_the_ids_of_each_row_alone(pictures: list[Any], device: str) -> None:
    """``npu``: its layout of the cache and its way of writing it, with the plain attention."""
    model = tiny_model(seed=1, runtime=Runtime(device))
    decoding = Decoding(max_new_tokens=10, eos_ids=frozenset())
    alone = [generate_batch(model, *plan_of(pictures, [row]), decoding)[0] for row in range(3)]
    assert len({tuple(row) for row in alone}) == 3
    plan, pixels = plan_of(pictures, [0, 1, 2], "right")
    assert len(set(plan.lengths)) == 3
    steps = generate(model, plan, pixels, decoding, cache=model.new_static_cache(32))
    assert [list(row) for row in zip(*steps, strict=True)] == alone


def test_rows_go_on_behind_what_a_static_cache_holds_of_each(model: Any, pictures: list[Any]) -> None:
    """A second round of three conversations: what each row alone gives with a cache of its own."""
    decoding, more = Decoding(max_new_tokens=4, eos_ids=frozenset()), ([21, 22, 23, 24, 25], [31], [41, 42])
    alone = []
    for row in range(3):
        cache = model.new_cache(1)
        list(generate(model, *plan_of(pictures, [row]), decoding, cache=cache))
        second = build_plan([PlanRow(more[row])], tokens_per_tile=4)
        alone.append([ids for (ids,) in generate(model, second, None, decoding, cache=cache)])
    cache = model.new_static_cache(48)
    list(generate(model, *plan_of(pictures, [0, 1, 2], "right"), decoding, cache=cache))
    second = build_plan([PlanRow(ids) for ids in more], tokens_per_tile=4, padding_side="right")
    together = [list(row) for row in zip(*generate(model, second, None, decoding, cache=cache), strict=True)]
    assert together == alone


def test_beams_and_draws_are_the_same_with_a_static_cache(model: Any, pictures: list[Any]) -> None:
    for decoding in (Decoding(max_new_tokens=6, num_beams=3), Decoding(max_new_tokens=6, temperature=0.8, seed=3)):
        plan, pixels = plan_of(pictures, [1])
        usual = list(generate(model, plan, pixels, decoding))
        assert list(generate(model, plan, pixels, decoding, cache=model.new_static_cache(32))) == usual


def test_a_static_cache_wants_its_padding_on_the_right(model: Any, pictures: list[Any]) -> None:
    plan, pixels = plan_of(pictures, [0, 1])
    with pytest.raises(ValueError, match="padding_side='right'"):
        list(generate(model, plan, pixels, cache=model.new_static_cache(32)))


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("sampled", [{}, {"temperature": 0.7, "top_p": 0.9}])
def test_a_batch_waits_for_the_device_once_a_token(model, pictures, monkeypatch, sampled, static):
    plan, pixels = plan_of(pictures, [0, 1, 2], "right" if static else "left")
    asked = []
    for name in ("numpy", "item", "tolist", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__"):
        original = getattr(paddle.Tensor, name)

        def count(self, *args, _name=name, _original=original, **kwargs):
            asked.append(_name)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(paddle.Tensor, name, count)
    waits = []
    for tokens in (4, 9):
        asked.clear()
        decoding = Decoding(max_new_tokens=tokens, eos_ids=frozenset(), **sampled)
        list(generate(model, plan, pixels, decoding, cache=model.new_static_cache(32) if static else None))
        waits.append(len(asked))
    assert waits == [4, 9]
