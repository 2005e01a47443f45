# SPDX-License-Identifier: Apache-2.0
"""Continuous batching: whoever shares the steps, each row's ids are those of the row alone."""

import random
from typing import Any

import numpy as np
import paddle
import pytest

from paddlemix.generation.continuous import ContinuousBatch, Row
from paddlemix.generation.engine import encode_images, generate
from paddlemix.generation.features import Picture, key_of
from paddlemix.generation.prefix_store import PrefixStore
from paddlemix.generation.prompt import Prompt, plan_of
from paddlemix.generation.sampling import Decoding, Sampler
from paddlemix.imaging.processor import ImageProcessor
from paddlemix.ops.runtime import Runtime
from paddlemix.utils.constants import IMAGE_TOKEN_INDEX as IMAGE
from paddlemix.utils.errors import BackendError
from tests.tiny import tiny_image, tiny_model


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model(seed=1)


def prompts_of(model: Any, count: int, seed: int = 0) -> list[Prompt]:
    """Prompts of different lengths; every other one has an image, and some begin alike."""
    draw, processor = random.Random(seed), ImageProcessor(model.config.image, model.config.vision)
    pictures = []
    for kind in range(2):
        image = tiny_image(kind)
        processed = processor(image)
        pictures.append(Picture(key_of(image, processor), processed.layout, encode_images(model, processed.pixels)))
    made = []
    for number in range(count):
        ids = [1, *(draw.randrange(5, 100) for _ in range(draw.choice([1, 3, 20, 40])))]
        if number % 2:
            ids[1:1] = [5, IMAGE]
        if number % 3 == 0:
            ids[1:1] = list(range(10, 40))
        made.append(Prompt(tuple(ids), "", (pictures[number % 4 // 2],) if number % 2 else ()))
    return made


def alone(model: Any, prompt: Prompt, decoding: Decoding, draw: tuple[int, ...] = (0,)) -> list[int]:
    """The ids of one prompt by the engine for one batch, without any sharing."""
    plan, features = plan_of([prompt], model.config.tokens_per_tile)
    steps = generate(model, plan, None, decoding, features=features, samplers=[Sampler(decoding, draw)])
    return [token for (token,) in steps]


def run(batch: ContinuousBatch) -> dict[Row, list[int]]:
    """All ids that come until nobody waits, by their row."""
    found: dict[Row, list[int]] = {}
    while batch.busy:
        for row, token in batch.step():
            found.setdefault(row, []).append(token)
    return found


@pytest.mark.parametrize("device", ["cpu", "npu"])
@pytest.mark.parametrize(("slots", "piece"), [(1, 512), (3, 7), (8, 512)])
def test_each_row_gets_the_ids_that_it_gets_alone(device: str, slots: int, piece: int) -> None:
    """``npu``: its layout of the cache and its way of writing it, with the plain attention."""
    model = tiny_model(seed=1, runtime=Runtime(device))
    prompts = prompts_of(model, 7)
    decodings = [Decoding(max_new_tokens=3 + 5 * (number % 3)) for number in range(7)]
    batch = ContinuousBatch(model, slots, piece=piece)
    rows = [batch.submit(prompt, decoding) for prompt, decoding in zip(prompts, decodings, strict=True)]
    found = run(batch)
    expected = [alone(model, prompt, decoding) for prompt, decoding in zip(prompts, decodings, strict=True)]
    assert len({tuple(ids[:3]) for ids in expected}) > 4
    assert [found[row] for row in rows] == expected
    assert [row.ids for row in rows] == expected
    assert {row.state for row in rows} == {"done"}


def test_rows_that_come_and_go_at_random_change_no_other_row(model: Any) -> None:
    draw = random.Random(5)
    prompts, decoding = prompts_of(model, 24, seed=3), Decoding(max_new_tokens=12)
    batch = ContinuousBatch(model, 4, piece=16, prefixes=PrefixStore(), keep_answers=True)
    rows: list[Row] = []
    states: set[str] = set()
    cancelled: dict[Row, list[int]] = {}
    left = list(prompts)
    while left or batch.busy:
        for _ in range(draw.randrange(3)):
            if left:
                rows.append(batch.submit(left.pop(), decoding))
        batch.step()
        assert batch.running <= 4
        if draw.random() < 0.3 and (still := [row for row in rows if row.open]):
            row = draw.choice(still)
            states.add(row.state)
            before = batch.running
            batch.cancel(row)
            cancelled[row] = list(row.ids)
            assert batch.running == before - (len(row.ids) > 0)
        if batch._cache is not None:
            assert not batch._cache.filled[~batch._cache.active].any()
    assert states == {"waiting", "prefill", "running"}
    for row in rows:
        expected = alone(model, row.prompt, decoding)
        if row in cancelled:
            assert (row.state, row.ids) == ("cancelled", cancelled[row])
            assert row.ids == expected[: len(row.ids)]
        else:
            assert row.ids == expected


def test_a_random_row_depends_on_its_seed_and_not_on_its_neighbours(model: Any) -> None:
    prompts, decoding = prompts_of(model, 4), Decoding(max_new_tokens=8, temperature=1.0, top_p=0.9, seed=11)
    batch = ContinuousBatch(model, 4)
    rows = [batch.submit(prompt, decoding, (0, number)) for number, prompt in enumerate(prompts)]
    greedy = batch.submit(prompts[0], Decoding(max_new_tokens=8))
    run(batch)
    assert [row.ids for row in rows] == [
        alone(model, prompt, decoding, (0, number)) for number, prompt in enumerate(prompts)
    ]
    assert greedy.ids == alone(model, prompts[0], Decoding(max_new_tokens=8)) != rows[0].ids


def test_an_ending_row_makes_room_in_the_same_step(model: Any) -> None:
    prompts = prompts_of(model, 3)
    batch = ContinuousBatch(model, 1)
    first = batch.submit(prompts[0], Decoding(max_new_tokens=2))
    second = batch.submit(prompts[1], Decoding(max_new_tokens=2))
    assert [row for row, _ in batch.step()] == [first, first]
    assert [row for row, _ in batch.step()] == [second, second]
    assert not batch.busy


def test_a_long_prompt_is_run_in_pieces_while_the_others_go_on(model: Any) -> None:
    prompts = sorted(prompts_of(model, 7), key=lambda prompt: prompt.length)
    batch = ContinuousBatch(model, 2, piece=8)
    short = batch.submit(prompts[0], Decoding(max_new_tokens=30))
    batch.step()
    long = batch.submit(prompts[-1], Decoding(max_new_tokens=2))
    steps = -(-prompts[-1].length // 8)
    assert steps > 3
    for number in range(1, steps):
        assert [row for row, _ in batch.step()] == [short]
        assert (long.state, long.ids) == ("prefill", []), number
    assert [row for row, _ in batch.step()].count(long) == 2


def test_a_prompt_that_begins_like_another_runs_only_what_is_new(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = prompts_of(model, 8)[3]
    longer = Prompt((*prompt.ids, 50, 51), "", prompt.pictures)
    store = PrefixStore()
    ran: list[int] = []
    decode = type(model).decode

    def count(self: Any, embeds: paddle.Tensor, *rest: Any) -> paddle.Tensor:
        ran.append(embeds.shape[1])
        return decode(self, embeds, *rest)

    monkeypatch.setattr(type(model), "decode", count)
    decoding = Decoding(max_new_tokens=3)
    rows = []
    for asked in (prompt, prompt, longer):
        batch = ContinuousBatch(model, 2, prefixes=store)
        rows.append(batch.submit(asked, decoding))
        run(batch)
    assert ran == [prompt.length, 1, 1, 1, 1, 1, 2, 1, 1]
    assert [row.reused for row in rows] == [0, prompt.length - 1, prompt.length]
    monkeypatch.undo()
    assert [row.ids for row in rows] == [alone(model, row.prompt, decoding) for row in rows]


def test_a_kept_prompt_is_not_spoiled_by_one_that_begins_like_it(model: Any) -> None:
    common, store = tuple(range(20, 50)), PrefixStore()
    first, second = Prompt((1, *common, 60, 61, 62), "", ()), Prompt((1, *common, 70, 71), "", ())
    for prompt in (first, second):
        run_row(model, store, prompt)
    row = run_row(model, store, Prompt((*first.ids, 80), "", ()))
    assert row.reused == len(first.ids)
    assert row.ids == alone(model, row.prompt, row.decoding)


def test_a_kept_row_that_only_lends_its_beginning_counts_as_used(model: Any) -> None:
    store = PrefixStore()
    prompts = [Prompt((1, *range(start, start + 30), 90), "", ()) for start in (5, 40)]
    for prompt in prompts:
        run_row(model, store, prompt)
    store.max_bytes = store.bytes
    assert run_row(model, store, Prompt((*prompts[0].ids[:-1], 91), "", ())).reused == 31
    assert store.find(prompts[0].slots) is not None
    assert store.find(prompts[1].slots) is None


def test_a_conversation_goes_on_behind_its_kept_answer(model: Any) -> None:
    prompt, store = prompts_of(model, 1)[0], PrefixStore()
    batch = ContinuousBatch(model, 2, prefixes=store, keep_answers=True)
    first = batch.submit(prompt, Decoding(max_new_tokens=6))
    run(batch)
    second = Prompt((*prompt.ids, *first.ids, 60, 61), "", ())
    row = batch.submit(second, Decoding(max_new_tokens=4))
    run(batch)
    assert row.reused == prompt.length + 5  # the last id of an answer has not been fed
    assert row.ids == alone(model, second, Decoding(max_new_tokens=4))


def test_what_is_kept_stays_below_the_limit_and_the_last_used_stay(model: Any) -> None:
    prompts = [Prompt((1, *range(start, start + 30)), "", ()) for start in (5, 40, 70)]
    store = PrefixStore()
    run_row(model, store, prompts[0])
    size = store.bytes
    assert size > 0
    store.max_bytes = 2 * size
    run_row(model, store, prompts[1])
    assert run_row(model, store, prompts[0]).reused == 30
    run_row(model, store, prompts[2])
    assert store.bytes <= 2 * size
    assert len(store) == 2
    assert run_row(model, store, prompts[0]).reused == 30
    assert run_row(model, store, prompts[1]).reused == 0


def run_row(model: Any, store: PrefixStore, prompt: Prompt) -> Row:
    batch = ContinuousBatch(model, 1, prefixes=store)
    row = batch.submit(prompt, Decoding(max_new_tokens=1))
    run(batch)
    return row


def test_slots_and_places_shrink_again_when_fewer_rows_are_left(model: Any) -> None:
    batch = ContinuousBatch(model, 8)
    long = Prompt((1, *range(5, 90), *range(5, 90)), "", ())
    rows = [batch.submit(long, Decoding(max_new_tokens=2))]
    rows += [batch.submit(prompt, Decoding(max_new_tokens=40)) for prompt in prompts_of(model, 5)]
    for _ in range(6):
        batch.step()
    assert (batch._cache.slots, batch._cache.capacity) == (8, 128)
    for row in rows[2:]:
        batch.cancel(row)
    batch.step()
    assert batch._cache.slots == 1
    run(batch)
    assert rows[1].ids == alone(model, rows[1].prompt, rows[1].decoding)


def test_a_row_with_scores_that_are_not_finite_fails_alone(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = prompts_of(model, 3)
    batch = ContinuousBatch(model, 4)
    rows = [batch.submit(prompt, Decoding(max_new_tokens=6)) for prompt in prompts]
    for _ in range(3):
        batch.step()
    logits, spoiled = type(model).logits, []

    def spoil(self: Any, hidden: paddle.Tensor) -> paddle.Tensor:
        scores = logits(self, hidden)
        if not spoiled:
            spoiled.append(True)
            scores[batch._rows.index(rows[1])] = np.nan
        return scores

    monkeypatch.setattr(type(model), "logits", spoil)
    run(batch)
    assert [row.state for row in rows] == ["done", "failed", "done"]
    assert isinstance(rows[1].error, BackendError)
    monkeypatch.undo()
    for row in (rows[0], rows[2]):
        assert row.ids == alone(model, row.prompt, row.decoding)


def test_beams_are_sent_to_the_other_engine(model: Any) -> None:
    with pytest.raises(ValueError, match=r"use engine\.generate"):
        ContinuousBatch(model).submit(prompts_of(model, 1)[0], Decoding(num_beams=2))
