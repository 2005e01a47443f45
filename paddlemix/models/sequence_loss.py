# SPDX-License-Identifier: Apache-2.0
"""The loss of rows whose places several devices share (sequence parallel, ``ops.sequence``)."""

from typing import Protocol

import paddle
from paddle import Tensor

from paddlemix.ops.attention.contract import Mask
from paddlemix.utils.constants import IGNORE_INDEX


class Model(Protocol):
    """The steps of a model that the loss takes one by one (``LlavaForCausalLM``)."""

    def embed(
        self, token_ids: Tensor, source: Tensor, features: Tensor | None, blend: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """int64 [B, L] twice and [N, P, D] to [B, L, D]."""

    def decode(self, embeds: Tensor, positions: Tensor, mask: Mask) -> Tensor:
        """[B, L, D] and int64 [B, L] to [B, L, D]."""

    def mean_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """[B, L, D] and int64 [B, L] to a float32 scalar."""


def loss_of_part(
    model: Model,
    token_ids: Tensor,
    source: Tensor,
    positions: Tensor,
    targets: Tensor,
    features: Tensor | None,
    blend: tuple[Tensor, Tensor] | None,
    mask: Mask,
) -> Tensor:
    """What this device's places add to the mean loss of the rows, times the number of devices: a float32 scalar.

    int64 ``token_ids``, ``source``, ``positions`` and ``targets`` [B, L] are whole rows, ``features`` [N, P, D] of
    their images. Its mean over the devices is the loss, that of its gradients the gradient, as data parallel has it.
    """
    sequence = mask.sequence
    embeds = model.embed(sequence.own(token_ids), sequence.own_source(source), features, blend)
    hidden = model.decode(embeds, sequence.own(positions), mask)
    own = sequence.own(targets)
    mine, count = (paddle.clip((part != IGNORE_INDEX).astype("float32").sum(), min=1.0) for part in (own, targets))
    return model.mean_loss(hidden, own) * (mine / count * sequence.size)
