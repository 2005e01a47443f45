# SPDX-License-Identifier: Apache-2.0
"""The loss of rows whose places several devices share (sequence parallel, ``ops.sequence``)."""

from typing import TYPE_CHECKING

import paddle
from paddle import Tensor

from paddlemix.models.loss import loss_of_targets
from paddlemix.ops.attention.contract import Mask
from paddlemix.utils.constants import IGNORE_INDEX

if TYPE_CHECKING:
    from paddlemix.models.llava import LlavaForCausalLM


def loss_of_part(
    model: "LlavaForCausalLM",
    token_ids: Tensor,
    source: Tensor,
    positions: Tensor,
    targets: Tensor,
    features: Tensor | None,
    blend: tuple[Tensor, Tensor] | None,
    mask: Mask,
) -> Tensor:
    """What this device's places add to the mean loss of the rows, times the number of devices: a float32 scalar.

    int64 ``token_ids``, ``source``, ``positions`` and ``targets`` [B, L] are whole rows, ``features`` [N, P, D] of their
    images. The mean of it over the devices is the loss, and that of its gradients the gradient, as data parallel takes it.
    """
    sequence = mask.sequence
    embeds = model.embed(sequence.own(token_ids), sequence.own_source(source), features, blend)
    hidden = model.decode(embeds, sequence.own(positions), mask)
    own = sequence.own(targets)
    mine, count = (paddle.clip((part != IGNORE_INDEX).astype("float32").sum(), min=1.0) for part in (own, targets))
    return model.mean_loss(hidden, own) * (mine / count * sequence.size)
