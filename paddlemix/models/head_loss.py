# SPDX-License-Identifier: Apache-2.0
"""The output head and the loss of some positions at a time, so that no table of all logits is ever in memory.

For each portion of positions the logits, their loss and its gradient are computed and the logits dropped; what is kept
until the backward pass is the gradient of the hidden rows and of the head. No product is computed twice. (The idea is
that of PaddleNLP's ``fused_head_and_loss_fn`` and of Liger's fused linear cross entropy.)
"""

import paddle
from paddle import Tensor
from paddle.autograd import PyLayer, PyLayerContext
from paddle.nn import functional

from paddlemix.utils.constants import IGNORE_INDEX


def loss_through_head(hidden: Tensor, weight: Tensor, targets: Tensor, *, transposed: bool, portion: int) -> Tensor:
    """Mean loss over the ``targets`` [B, L] that are not IGNORE_INDEX, a float32 scalar.

    ``hidden`` [B, L, D]; ``weight`` [D, V], or [V, D] when ``transposed`` (a head that is the table of tokens).
    """
    rows = hidden.reshape([-1, hidden.shape[-1]])
    # Inside the layer paddle says that no gradient is wanted.
    return _HeadLoss.apply(rows, weight, targets.reshape([-1]), transposed, portion, paddle.is_grad_enabled())


class _HeadLoss(PyLayer):
    @staticmethod
    def forward(
        ctx: PyLayerContext, rows: Tensor, weight: Tensor, targets: Tensor, transposed: bool, portion: int, wanted: bool
    ) -> Tensor:
        counted = (targets != IGNORE_INDEX).astype("float32")
        # No negative label and two axes: what every cross-entropy kernel of the NPU plug-in takes.
        known = paddle.where(targets != IGNORE_INDEX, targets, paddle.zeros_like(targets))
        share = counted / paddle.clip(counted.sum(), min=1.0)
        of_rows, of_weight = [], None
        total = paddle.zeros([], dtype="float32")
        for first in range(0, rows.shape[0], portion):
            part = slice(first, min(first + portion, rows.shape[0]))
            piece = rows[part].detach()
            loss, slope = _of_part(piece, weight.detach(), known[part], share[part], transposed)
            total = total + loss
            if not wanted:
                continue
            of_rows.append(paddle.matmul(slope, weight.detach(), transpose_y=not transposed))
            if not weight.stop_gradient:
                pair = (slope, piece) if transposed else (piece, slope)
                product = paddle.matmul(*pair, transpose_x=True).astype("float32")
                of_weight = product if of_weight is None else of_weight.add_(product)
        ctx.of_rows = paddle.concat(of_rows) if of_rows else None
        ctx.of_weight = None if of_weight is None else of_weight.astype(weight.dtype)
        ctx.needs_rows = not rows.stop_gradient
        return total

    @staticmethod
    def backward(ctx: PyLayerContext, gradient: Tensor) -> tuple[Tensor | None, ...]:
        found = []
        for needed, slopes in ((ctx.needs_rows, ctx.of_rows), (True, ctx.of_weight)):
            used = slopes if needed else None
            found.append(None if used is None else used * gradient.astype(used.dtype))
        return (*found, None)


def _of_part(piece: Tensor, weight: Tensor, known: Tensor, share: Tensor, transposed: bool) -> tuple[Tensor, Tensor]:
    """The part's share of the mean, and the gradient of its logits in their own dtype."""
    with paddle.no_grad():
        narrow = paddle.matmul(piece, weight, transpose_y=transposed)
    with paddle.enable_grad():
        logits = narrow.astype("float32")
        logits.stop_gradient = False
        each = functional.cross_entropy(logits, known, ignore_index=IGNORE_INDEX, reduction="none")
        loss = (each.reshape(share.shape) * share).sum()
    (slope,) = paddle.grad(loss, logits)
    return loss.detach(), slope.astype(narrow.dtype)
