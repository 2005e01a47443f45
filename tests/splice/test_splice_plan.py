# SPDX-License-Identifier: Apache-2.0
"""Laws of the merge plan, with numpy in the place of the model."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddlemix.imaging.layout import NEWLINE, Layout
from paddlemix.splice.plan import Plan, PlanRow, build_plan
from paddlemix.utils.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from paddlemix.utils.errors import DataError

P = 3


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    tiles = draw(st.integers(1, 3))
    order = draw(st.permutations(range(tiles * P)))[: draw(st.integers(1, tiles * P))]
    newlines = draw(st.integers(0, 2))
    return Layout(tiles, np.array([*order, *[NEWLINE] * newlines], dtype=np.int64))


@st.composite
def plan_rows(draw: st.DrawFn) -> PlanRow:
    ids = draw(st.lists(st.one_of(st.just(IMAGE_TOKEN_INDEX), st.integers(1, 50)), min_size=1, max_size=12))
    images = [draw(layouts()) for token in ids if token == IMAGE_TOKEN_INDEX]
    labels = [7 if token == IMAGE_TOKEN_INDEX else draw(st.sampled_from([token, IGNORE_INDEX])) for token in ids]
    return PlanRow(ids, images, labels)


batches = st.lists(plan_rows(), min_size=1, max_size=4)


def gathered(plan: Plan) -> np.ndarray:
    """What the model's gather gives when text rows are their id and feature rows are 1000 + number."""
    features = 1000 + np.arange(plan.n_tiles * P)
    table = np.concatenate([plan.token_ids.reshape(-1), features, [0], [-1]])
    return table[plan.source]


def expected(row: PlanRow, first_tile: int) -> list[int]:
    """The same for one row, said plainly: walk over the ids."""
    out, images = [], iter(row.layouts)
    for token in row.ids:
        if token != IMAGE_TOKEN_INDEX:
            out.append(int(token))
            continue
        layout = next(images)
        out += [-1 if entry == NEWLINE else 1000 + first_tile * P + int(entry) for entry in layout.order]
        first_tile += layout.tiles
    return out


def tiles_before(rows: list[PlanRow]) -> list[int]:
    counts = [sum(layout.tiles for layout in row.layouts) for row in rows]
    return [sum(counts[:index]) for index in range(len(rows))]


@settings(max_examples=150, deadline=None)
@given(batches, st.sampled_from(["right", "left"]), st.sampled_from([None, 8]), st.integers(0, 9))
def test_every_token_and_feature_row_appears_once_and_in_order(rows, side, multiple, min_tiles):
    plan = build_plan(rows, tokens_per_tile=P, padding_side=side, pad_to_multiple_of=multiple, min_tiles=min_tiles)
    longest = int(plan.lengths.max())
    assert plan.token_ids.shape[1] == (longest if multiple is None else math.ceil(longest / multiple) * multiple)
    values = gathered(plan)
    for index, (row, first) in enumerate(zip(rows, tiles_before(rows), strict=True)):
        start, length = plan.starts[index], plan.lengths[index]
        assert values[index, start : start + length].tolist() == expected(row, first)
        assert plan.positions[index, start : start + length].tolist() == list(range(length))
    assert (values[~plan.mask] == 0).all()
    assert (plan.token_ids[~plan.mask] == 0).all()
    assert (plan.positions[~plan.mask] == 0).all()
    assert (plan.labels[~plan.mask] == IGNORE_INDEX).all()
    assert (plan.segments == plan.mask).all()
    assert plan.n_tiles >= min_tiles


@settings(max_examples=100, deadline=None)
@given(batches)
def test_labels_follow_their_tokens_and_images_are_not_learnt(rows):
    plan = build_plan(rows, tokens_per_tile=P)
    for index, row in enumerate(rows):
        learnt = plan.labels[index] != IGNORE_INDEX
        assert plan.labels[index][learnt].tolist() == [
            label
            for token, label in zip(row.ids, row.labels, strict=True)
            if label != IGNORE_INDEX and token != IMAGE_TOKEN_INDEX
        ]
        assert (plan.token_ids[index][learnt] == plan.labels[index][learnt]).all()


@settings(max_examples=100, deadline=None)
@given(batches)
def test_a_batch_equals_each_row_alone(rows):
    plan = build_plan(rows, tokens_per_tile=P)
    values = gathered(plan)
    for index, (row, first) in enumerate(zip(rows, tiles_before(rows), strict=True)):
        alone = build_plan([row], tokens_per_tile=P)
        own = gathered(alone)[0]
        length = plan.lengths[index]
        assert values[index, :length].tolist() == np.where(own >= 1000, own + first * P, own).tolist()
        for name in ("labels", "positions", "token_ids"):
            assert getattr(plan, name)[index, :length].tolist() == getattr(alone, name)[0].tolist()


@settings(max_examples=100, deadline=None)
@given(batches, st.one_of(st.none(), st.integers(1, 20)))
def test_left_padding_is_right_padding_shifted(rows, max_length):
    right = build_plan(rows, tokens_per_tile=P, max_length=max_length)
    left = build_plan(rows, tokens_per_tile=P, max_length=max_length, padding_side="left")
    for index, length in enumerate(right.lengths):
        for a, b in ((gathered(right), gathered(left)), (right.labels, left.labels), (right.positions, left.positions)):
            assert a[index, :length].tolist() == b[index, -length:].tolist()


@settings(max_examples=100, deadline=None)
@given(batches, st.integers(1, 20))
def test_truncation_keeps_the_head_and_says_how_much_is_gone(rows, max_length):
    whole = build_plan(rows, tokens_per_tile=P)
    plan = build_plan(rows, tokens_per_tile=P, max_length=max_length)
    assert (plan.lengths + plan.truncated == whole.lengths).all()
    assert plan.lengths.max() <= max_length
    for index, length in enumerate(plan.lengths):
        assert gathered(plan)[index, :length].tolist() == gathered(whole)[index, :length].tolist()


@settings(max_examples=100, deadline=None)
@given(batches)
def test_packing_is_the_concatenation_of_its_samples(rows):
    packed = PlanRow(
        np.concatenate([row.ids for row in rows]),
        [layout for row in rows for layout in row.layouts],
        np.concatenate([row.labels for row in rows]),
        np.repeat(np.arange(len(rows)) + 7, [len(row.ids) for row in rows]),
    )
    plan = build_plan([packed], tokens_per_tile=P)
    single = build_plan(rows, tokens_per_tile=P)
    values, start = gathered(single), 0
    for index, length in enumerate(single.lengths):
        part = slice(start, start + length)
        assert gathered(plan)[0, part].tolist() == values[index, :length].tolist()
        assert plan.positions[0, part].tolist() == list(range(length))
        assert (plan.segments[0, part] == index + 1).all()
        assert plan.labels[0, start] == IGNORE_INDEX
        assert plan.labels[0, start + 1 : start + length].tolist() == single.labels[index, 1:length].tolist()
        start += length
    assert start == plan.lengths[0]


def test_the_example_of_the_docstring():
    image = Layout(1, np.array([0, 1, NEWLINE]))
    plan = build_plan([PlanRow([1, IMAGE_TOKEN_INDEX, 7], [image]), PlanRow([1, 8])], tokens_per_tile=2)
    assert plan.token_ids.tolist() == [[1, 0, 0, 0, 7], [1, 8, 0, 0, 0]]
    assert plan.source.tolist() == [[0, 10, 11, 13, 4], [5, 6, 12, 12, 12]]
    assert plan.positions.tolist() == [[0, 1, 2, 3, 4], [0, 1, 0, 0, 0]]
    assert plan.lengths.tolist() == [5, 2]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (PlanRow([1, IMAGE_TOKEN_INDEX]), "batch row 1: 1 image places but 0 images"),
        (PlanRow([1, 2], [Layout(1, np.arange(P))]), "batch row 1: 0 image places but 1 images"),
        (PlanRow([]), "batch row 1 has no tokens"),
        (PlanRow([1, 2], (), [1]), "batch row 1: 1 labels for 2 ids"),
        (PlanRow([1, -7]), "batch row 1: token id -7 is negative"),
        (PlanRow([IMAGE_TOKEN_INDEX], [Layout(1, np.arange(P + 1))]), "image 0: its layout names feature rows 0 to 3"),
    ],
)
def test_rows_that_do_not_fit_are_named(row, text):
    with pytest.raises(DataError, match=text):
        build_plan([PlanRow([5]), row], tokens_per_tile=P)


def test_an_unknown_padding_side_and_an_empty_batch_are_refused():
    with pytest.raises(DataError, match='padding_side "middle"'):
        build_plan([PlanRow([5])], tokens_per_tile=P, padding_side="middle")
    with pytest.raises(DataError, match="without rows"):
        build_plan([], tokens_per_tile=P)


def test_a_frozen_plan_can_be_replaced_field_by_field():
    plan = build_plan([PlanRow([5])], tokens_per_tile=P)
    assert replace(plan, n_tiles=4).n_tiles == 4
