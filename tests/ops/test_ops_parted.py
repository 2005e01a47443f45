# SPDX-License-Identifier: Apache-2.0
"""Attention over keys in two tensors is that over the same keys in one, row by row."""

import paddle
import pytest

from paddlemix.ops.attention import math, parted
from paddlemix.ops.attention.contract import Mask

CLOSE = 1e-6
WIDTH, CACHE, FILLED, STARTS = 8, 6, [3, 5], [0, 2]


def given(kv_heads: int, new: int, blocks: int = 1) -> tuple[paddle.Tensor, parted.Parts, parted.Parts]:
    """q ``[2, new, 4, D]``, and keys and values of two rows with 3 and 5 filled places of 6."""
    paddle.seed(new)
    filled = paddle.to_tensor(FILLED)

    def parts() -> parted.Parts:
        past, own = paddle.randn([2, kv_heads, CACHE, WIDTH]), paddle.randn([2, new, kv_heads, WIDTH])
        return parted.Parts(past, own, filled, blocks)

    return paddle.randn([2, new, 4, WIDTH]), parts(), parts()


def joined(parts: parted.Parts, row: int) -> paddle.Tensor:
    """What one row sees, ``[1, Hk, filled + L, D]``."""
    each = parts.past[row : row + 1, :, : FILLED[row]], parts.new[row : row + 1]
    return paddle.concat(each, axis=2)


def expected(q: paddle.Tensor, k: parted.Parts, v: parted.Parts, row: int) -> paddle.Tensor:
    """The plain attention of one row, ``[L, H, D]``."""
    mask = Mask(causal=True, key_starts=paddle.to_tensor([STARTS[row]]), offset=FILLED[row])
    return math.attend(q[row : row + 1], joined(k, row), joined(v, row), mask, scale=0.5, kv_heads_first=True)[0]


@pytest.mark.parametrize(
    ("new", "blocks"), [(1, 1), (5, 1), (5, 4), (4, 4)], ids=["a token", "a piece", "uneven blocks", "single rows"]
)
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_each_row_sees_its_filled_places_and_new_ones_up_to_its_own(kv_heads: int, new: int, blocks: int) -> None:
    q, k, v = given(kv_heads, new, blocks)
    found = parted.attend(q, k, v, Mask(causal=True, key_starts=paddle.to_tensor(STARTS), offset=k.filled), scale=0.5)
    for row in range(2):
        assert float((found[row] - expected(q, k, v, row)).abs().max()) <= CLOSE


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_one_query_of_a_piece_gets_what_it_gets_beside_the_others(kv_heads: int) -> None:
    q, k, v = given(kv_heads, 5)
    columns = [4, 1]
    one = paddle.stack([q[row, column] for row, column in enumerate(columns)]).unsqueeze(1)
    mask = Mask(causal=True, key_starts=paddle.to_tensor(STARTS), offset=k.filled + paddle.to_tensor(columns))
    found = parted.attend(one, k, v, mask, scale=0.5)
    for row, column in enumerate(columns):
        assert float((found[row, 0] - expected(q, k, v, row)[column]).abs().max()) <= CLOSE
