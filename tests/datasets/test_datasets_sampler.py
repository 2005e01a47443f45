# SPDX-License-Identifier: Apache-2.0
"""Orders of an epoch."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddlemix.datasets.build import order_of
from paddlemix.datasets.sampler import (
    LengthGroupedSampler,
    even_chunks,
    length_grouped,
    modality_grouped,
    shuffled,
    useful_share,
)
from paddlemix.settings.run.training import TrainingSettings
from paddlemix.utils.errors import DataError

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

signed = st.integers(-90, 90).filter(bool)
lists = st.lists(signed, min_size=1, max_size=70)


@pytest.mark.golden
def test_orders_equal_the_original_with_its_permutations(golden_llava: Path):
    from tools.golden.sampler import run

    cases = list(run(golden_llava))
    assert cases
    assert [case for case in cases if case.status != "ok"] == []


@given(lists, st.integers(1, 5), st.integers(1, 3), st.integers(1, 4), st.booleans())
def test_every_row_comes_once_and_again_the_same(lengths, batch_size, world, window, by_modality):
    options = {"batch_size": batch_size, "world": world, "window": window, "by_modality": by_modality, "seed": 3}
    sampler = LengthGroupedSampler(lengths, **options)
    order = sampler(2)
    assert sorted(order) == list(range(len(lengths)))
    assert order == LengthGroupedSampler(lengths, **options)(2)


def test_the_useful_share_is_what_padding_leaves():
    lengths = [3, 1, 4, 1, 5]
    assert useful_share(lengths, [0, 1, 2, 3, 4], 1) == 1
    assert useful_share(lengths, [0, 1, 2, 3, 4], 2) == 14 / (2 * 3 + 2 * 4 + 5)  # the last batch is smaller
    assert useful_share(lengths, [1, 3, 0, 2, 4], 2) == 14 / (2 * 1 + 2 * 4 + 5)


@pytest.mark.parametrize("key", ["group_by_length", "group_by_modality_length"])
@pytest.mark.parametrize("world", [1, 8])
@pytest.mark.parametrize("batch_size", [4, 16])
def test_a_grouping_key_saves_at_least_a_third_of_the_padding_of_chance(key, world, batch_size):
    chance = np.random.default_rng(0)
    pictured = chance.random(4000) < 0.9
    lengths = np.where(pictured, 640 + chance.lognormal(4.6, 0.7, 4000), chance.lognormal(5.5, 0.9, 4000))
    lengths = lengths.clip(8, 2048).astype(int)
    rows = SimpleNamespace(lengths=lengths, modality_lengths=np.where(pictured, lengths, -lengths))
    settings = TrainingSettings().with_changes(
        output_dir="out", per_device_train_batch_size=batch_size, seed=1, **{key: True}
    )
    grouped = useful_share(lengths, order_of(settings.training, rows, world)(0), batch_size)
    plain = useful_share(lengths, shuffled(len(lengths), 1)(0), batch_size)
    assert 1 - grouped < 2 / 3 * (1 - plain), (grouped, plain)


def test_epochs_and_seeds_give_other_orders():
    lengths = list(range(1, 60))
    sampler = LengthGroupedSampler(lengths, batch_size=2, seed=1)
    assert sampler(0) != sampler(1)
    assert sampler(0) != LengthGroupedSampler(lengths, batch_size=2, seed=2)(0)


@given(lists, st.integers(1, 4), st.integers(1, 3), st.integers(1, 4))
def test_modalities_do_not_mix_but_in_the_last_rows(lengths, batch_size, world, window):
    size = batch_size * world
    order = LengthGroupedSampler(lengths, batch_size=batch_size, world=world, window=window)(0)
    pictured = sum(length > 0 for length in lengths)
    rest = sum(count - (-(-count // size) - 1) * size for count in (pictured, len(lengths) - pictured) if count)
    for start in range(0, len(order) - rest, size):
        assert len({lengths[index] > 0 for index in order[start : start + size]}) == 1


def test_a_window_lowers_the_padding():
    lengths = [(7 * number) % 101 + 1 for number in range(400)]

    def padded(window: int) -> int:
        order = LengthGroupedSampler(lengths, batch_size=4, window=window)(0)
        return sum(4 * max(lengths[index] for index in order[start : start + 4]) for start in range(0, 400, 4))

    assert padded(8) < 0.75 * padded(1)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 5), st.integers(1, 4))
def test_one_permutation_is_drawn_without_a_window(lengths, batch_size, world):
    drawn = []

    def permute(count: int) -> list[int]:
        drawn.append(count)
        return list(range(count))

    length_grouped(lengths, batch_size, world, permute)
    assert drawn == [len(lengths)]


def test_chunks_have_like_totals():
    assert even_chunks([0, 1, 2, 3], [9, 5, 4, 1], 2) == [[0, 3], [1, 2]]
    assert even_chunks([0, 1, 2], [9, 5, 4], 2) == [[0, 2], [1]]


def test_a_row_of_length_zero_is_named():
    with pytest.raises(DataError, match="row 1 has length 0"):
        modality_grouped([3, 0], 1, 1, lambda n: list(range(n)))
