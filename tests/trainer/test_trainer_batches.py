"""Batches: every row once, whole optimizer steps, the same for every seed and place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddlemix.datasets.sampler import shuffled
from paddlemix.trainer.batches import TrainBatches, split_batches

sizes = st.integers(1, 40)


@given(rows=sizes, batch=st.integers(1, 6), world=st.integers(1, 3), accumulate=st.integers(1, 4))
def test_every_row_is_seen_and_every_process_makes_whole_steps(rows, batch, world, accumulate):
    order = shuffled(rows, 3)(0)
    plans = [split_batches(order, batch, rank=r, world=world, accumulate=accumulate) for r in range(world)]
    assert {index for plan in plans for part in plan for index in part} == set(range(rows))
    assert len({len(plan) for plan in plans}) == 1
    assert len(plans[0]) % accumulate == 0


def test_consecutive_batches_go_to_the_processes_in_turn():
    assert split_batches(range(8), 2, rank=0, world=2) == [[0, 1], [4, 5]]
    assert split_batches(range(8), 2, rank=1, world=2) == [[2, 3], [6, 7]]


def test_an_epoch_is_filled_up_from_its_own_beginning():
    assert split_batches(range(5), 1, accumulate=2) == [[0], [1], [2], [3], [4], [0]]


def test_drop_last_drops_the_short_batch_only():
    assert split_batches(range(5), 2, drop_last=True) == [[0, 1], [2, 3]]
    assert split_batches(range(1), 2, drop_last=True) == [[0]]


def test_the_order_depends_on_seed_and_epoch_only():
    assert shuffled(50, 1)(2) == shuffled(50, 1)(2)
    assert shuffled(50, 1)(2) != shuffled(50, 1)(3)
    assert shuffled(50, 1)(2) != shuffled(50, 2)(2)


class Counting:
    def __init__(self, rows):
        self.rows, self.read = rows, []

    def __len__(self):
        return self.rows

    def __getitem__(self, index):
        self.read.append(index)
        return index


def batches(rows=10, **more):
    data = Counting(rows)
    keys = dict(batch_size=2, accumulate=2) | more
    return data, TrainBatches(data, lambda items: {"rows": items}, shuffled(rows, 0), **keys)


@pytest.mark.parametrize("done", [0, 1, 4, 6, 9])
def test_a_resumed_run_sees_the_batches_the_straight_run_would_have_seen(done):
    _, straight = batches()
    every = [batch["rows"] for _ in range(3) for batch in straight]
    data, resumed = batches()
    resumed.resume(done)
    rest = [batch for _ in range(3 - done // len(resumed)) for batch in resumed]
    skipped = done % len(resumed)
    assert [batch["rows"] for batch in rest[skipped:]] == every[done:]
    assert all(batch == {} for batch in rest[:skipped])
    assert len(data.read) == sum(len(batch["rows"]) for batch in rest[skipped:])


def test_a_set_smaller_than_one_step_makes_a_smaller_step():
    _, small = batches(rows=3, accumulate=8)
    assert (small.accumulate, len(small)) == (2, 2)


def test_recent_rows_are_those_of_the_last_step():
    _, some = batches()
    seen = [batch["rows"] for batch in some]
    assert some.recent == seen[-2:]
    assert some.describe_recent().count("row ") == 4
