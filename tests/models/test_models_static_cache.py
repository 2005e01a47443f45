# SPDX-License-Identifier: Apache-2.0
"""The KV cache of a fixed size: what stands at which place of which row, and what it refuses."""

from typing import Any

import numpy as np
import paddle
import pytest

from paddlemix.models.llm import cache as cache_room
from paddlemix.models.llm.slot_cache import RowCache, SlotCache
from paddlemix.models.llm.static_cache import StaticCache
from paddlemix.ops.runtime import Runtime
from paddlemix.utils.errors import ConfigError

HEADS, WIDTH, CAPACITY = 2, 4, 6


def keys_of(batch: int, length: int, first: int = 0) -> paddle.Tensor:
    """``[B, L, Hk, D]`` whose values say row, place and head: 1000 b + 10 (first + l) + h."""
    b, place, head = np.ogrid[:batch, first : first + length, :HEADS]
    values = (1000 * b + 10 * place + head).astype(np.float32)
    return paddle.to_tensor(np.repeat(values[..., None], WIDTH, axis=3))


def filled(cache: StaticCache, *steps: tuple[int, int, Any]) -> np.ndarray:
    """(batch, length, what is kept) after each step; the keys of layer 0 as ``[B, M, Hk]``."""
    for batch, length, kept in steps:
        first = int(np.max(cache.lengths))
        for layer in range(2):
            cache.append(layer, keys_of(batch, length, first), -keys_of(batch, length, first))
        cache.advance(length)
        cache.trim(kept)
    keys = cache.keys[0].numpy()[..., 0]
    return keys.transpose([0, 2, 1]) if cache.heads_first else keys


@pytest.fixture(params=["cpu", "gpu", "npu"])
def cache(request: pytest.FixtureRequest) -> StaticCache:
    """In the layout, and by the way of writing, of each device."""
    return StaticCache(2, CAPACITY, "float32", Runtime(request.param))


def places(row: int, *first_heads: int) -> list[list[int]]:
    """What a row holds, by the value of head 0 at each place; -1 is empty."""
    return [[0, 0] if value < 0 else [1000 * row + value, 1000 * row + value + 1] for value in first_heads]


def test_rows_of_different_length_are_written_each_behind_its_own_places(cache: StaticCache) -> None:
    found = filled(cache, (2, 3, np.array([3, 1])), (2, 1, np.array([4, 2])))
    # The step's keys say 30; the padding of row 1 at place 1 is overwritten, that at place 2 is not seen any more.
    assert found[0].tolist() == places(0, 0, 10, 20, 30, -1, -1)
    assert found[1].tolist() == places(1, 0, 30, 20, -1, -1, -1)
    assert np.array_equal(cache.lengths, [4, 2])
    assert cache.offset.tolist() == [4, 2]
    assert (cache.values[1] == -cache.keys[1]).all()


def test_several_places_at_once_behind_rows_of_different_length(cache: StaticCache) -> None:
    found = filled(cache, (2, 2, np.array([2, 1])), (2, 3, np.array([5, 4])))
    assert found[0].tolist() == places(0, 0, 10, 20, 30, 40, -1)
    assert found[1].tolist() == places(1, 0, 20, 30, 40, -1, -1)


def test_rows_of_one_length_count_as_a_number(cache: StaticCache) -> None:
    found = filled(cache, (2, 2, 2), (2, 1, np.array([3, 3])))
    assert cache.offset == 3
    assert found[1].tolist() == places(1, 0, 10, 20, -1, -1, -1)


def test_the_first_step_attends_to_its_own_keys_alone(cache: StaticCache) -> None:
    k = keys_of(2, 3)
    keys, values = cache.append(0, k, -k)
    assert keys.shape[2 if cache.heads_first else 1] == 3
    assert (values == -keys).all()
    cache.advance(3)
    later, _ = cache.append(0, keys_of(2, 1, 3), keys_of(2, 1, 3))
    assert later.shape[2 if cache.heads_first else 1] == CAPACITY


def test_a_step_builds_what_it_shares_once(cache: StaticCache) -> None:
    filled(cache, (2, 3, np.array([3, 1])))
    assert cache.offset is cache.offset
    cache.append(0, keys_of(2, 1), keys_of(2, 1))
    index = cache._index
    cache.append(1, keys_of(2, 1), keys_of(2, 1))
    assert cache._index is index


def test_beams_take_their_row_and_its_length(cache: StaticCache) -> None:
    filled(cache, (2, 3, np.array([3, 1])))
    cache.reorder([1, 1, 0])
    assert cache.lengths.tolist() == [1, 1, 3]
    keys = cache.keys[1].numpy()[..., 0]
    keys = keys if not cache.heads_first else keys.transpose([0, 2, 1])
    assert keys[:, 0, 0].tolist() == [1000, 1000, 0]


@pytest.mark.parametrize("kept", [2, np.array([3, 1])])
def test_a_row_without_room_is_an_error_that_names_the_capacity(cache: StaticCache, kept: Any) -> None:
    filled(cache, (2, 3, kept))
    held = "2" if isinstance(kept, int) else "3, 1"
    with pytest.raises(ConfigError, match=f"static KV cache of 6 places: rows hold {held}, and 5 more do not fit"):
        cache.append(0, keys_of(2, 5), keys_of(2, 5))


def test_another_number_of_rows_is_an_error(cache: StaticCache) -> None:
    filled(cache, (2, 3, np.array([3, 1])))
    for rows in (1, 3):
        with pytest.raises(ConfigError, match=f"static KV cache of 2 rows was given {rows} rows"):
            cache.append(0, keys_of(rows, 1), keys_of(rows, 1))


@pytest.mark.parametrize("kept", [4, -1, np.array([1, 2])])
def test_what_is_not_filled_cannot_be_kept(cache: StaticCache, kept: Any) -> None:
    filled(cache, (2, 3, np.array([3, 1])))
    with pytest.raises(ConfigError, match="cannot trim 3, 1 filled places to"):
        cache.trim(kept)


def test_a_traced_row_without_room_spoils_no_other_row() -> None:
    """Lengths are tensors in a graph, and nobody can look at them."""
    runtime = Runtime("cpu")
    held = paddle.zeros([2, HEADS, CAPACITY, WIDTH])
    cache = StaticCache.of([held], [held.clone()], paddle.to_tensor([CAPACITY, 1]), runtime)
    cache.append(0, keys_of(2, 1, 5) + 7, keys_of(2, 1))
    keys = cache.keys[0].numpy()[:, 0, :, 0]
    assert keys[1].tolist() == [0, 1057, 0, 0, 0, 0]
    assert keys[0, :-1].tolist() == [0] * 5


def test_the_step_behind_a_change_of_slots_gives_free_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_room, "LARGE", 1)
    given_back: list[int] = []
    monkeypatch.setattr(cache_room, "give_memory_back", lambda: given_back.append(cache.capacity))
    part = (paddle.zeros([1, 2, 2, WIDTH]),)  # heads or places first
    row = RowCache(part, part, 2)
    for device, wanted in (("cpu", [6, 8]), ("gpu", [])):
        cache = SlotCache(row, 1, 6, Runtime(device))
        cache.put(0, row)
        for _ in range(2):
            cache.advance(1)
        cache.resize([0], 2, 8)
        for _ in range(2):
            cache.advance(1)
        assert given_back == wanted
        given_back.clear()
