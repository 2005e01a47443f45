# SPDX-License-Identifier: Apache-2.0
"""A layer of which only the input is kept for the backward pass."""

from typing import Any

from paddle import Tensor, nn

from paddlemix.ops import few_rows


def recomputed(layer: nn.Layer, hidden: Tensor, *more: Any) -> Tensor:
    """``layer(hidden, *more)``, computed again in the backward pass in place of being kept; any shape."""
    from paddle.distributed.fleet.utils import recompute

    if hidden.stop_gradient:
        # Paddle passes no gradient at all into a recomputed layer whose inputs need none: with frozen embeddings and
        # projector the adapters of the layer would stay at their start without a word, and so would the first block
        # of a tower that trains.
        hidden = hidden.detach()
        hidden.stop_gradient = False
    with few_rows.kept_away():  # the first pass is without gradients, the second one with them
        return recompute(layer, hidden, *more)
