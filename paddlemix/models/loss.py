# SPDX-License-Identifier: Apache-2.0
"""The next-token loss: mean over the positions that carry a label, in float32."""

import paddle
from paddle import Tensor
from paddle.nn import functional

from paddlemix.ops.parallel import Share
from paddlemix.utils.constants import IGNORE_INDEX


def next_labels(labels: Tensor, segments: Tensor | None = None, starts: Tensor | None = None) -> Tensor:
    """Labels ``[B, L]`` moved one place left, so that column i holds what row i must predict; the last is ignored.

    The first place of a sample is nobody's target: with ``segments`` [B, L] (packed rows) and ``starts`` [B] (left
    padding) it is taken out here, as it falls out by itself in a row of its own.
    """
    length = labels.shape[1]
    end = paddle.full([labels.shape[0], 1], IGNORE_INDEX, dtype=labels.dtype)
    moved = paddle.concat([labels[:, 1:], end], axis=1)
    none = paddle.full_like(moved, IGNORE_INDEX)
    if segments is not None:
        same = paddle.concat([segments[:, 1:] == segments[:, :-1], paddle.zeros_like(end, dtype="bool")], axis=1)
        moved = paddle.where(same, moved, none)
    if starts is not None:
        before = paddle.arange(1, length + 1).unsqueeze(0) == starts.astype("int64").unsqueeze(1)
        moved = paddle.where(before, none, moved)
    return moved


def next_token_loss(
    logits: Tensor, labels: Tensor, segments: Tensor | None = None, starts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(mean loss, number of labels) of ``logits`` [B, L, V] and unshifted ``labels`` [B, L]; both are scalars.

    Without any label the loss is 0 with zero gradients (the original gives NaN). ``reduction="mean"`` of Paddle is not
    used: it divides by all positions, ignored ones included.

    The kernel is given two axes and no negative label, which is what every form of the NPU plug-in's takes: one form
    refuses negative labels, another computes its gradient from the second axis. Ignored positions count 0 afterwards.
    """
    return loss_of_targets(logits, next_labels(labels, segments, starts))


def loss_of_targets(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The same for ``targets`` [B, L] that are moved already (``next_labels``)."""
    rows = logits.reshape([-1, logits.shape[-1]]).astype("float32")
    # A select and no clip: without an upper end, the plug-in's older clip of int64 wraps around in int32.
    known = paddle.where(targets != IGNORE_INDEX, targets, paddle.zeros_like(targets)).reshape([-1])
    return _mean(functional.cross_entropy(rows, known, ignore_index=IGNORE_INDEX, reduction="none"), targets)


def loss_of_parts(logits: Tensor, targets: Tensor, vocabulary: Share) -> Tensor:
    """The mean loss from float32 ``logits`` [B, L, V'] of this device's part of the vocabulary and ``targets`` [B, L].

    log(sum exp) and the label's logit are each one number a position, so no device ever holds a row of all logits.
    """
    parallel = vocabulary.parallel
    ((start, stop),) = vocabulary.ranges
    top = parallel.largest(logits.detach().max(axis=-1, keepdim=True))
    summed = parallel.sum_over_ranks(paddle.exp(logits - top).sum(axis=-1))
    here = paddle.logical_and(targets >= start, targets < stop)
    place = paddle.clip(targets - start, 0, stop - start - 1).unsqueeze(-1)
    own = paddle.take_along_axis(logits - top, place, axis=-1).squeeze(-1)
    wanted = parallel.sum_over_ranks(paddle.where(here, own, paddle.zeros_like(own)))
    each = paddle.where(targets != IGNORE_INDEX, paddle.log(summed) - wanted, paddle.zeros_like(wanted))
    return _mean(each, targets)[0]


def _mean(each: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    counted = (targets != IGNORE_INDEX).astype("float32")
    count = counted.sum()
    return (each.reshape(counted.shape) * counted).sum() / paddle.clip(count, min=1.0), count
