# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of single tokens through the output head, some positions at a time.

What preference losses need: one number a token, whose weight in the loss is known only when all of them are there. So
the backward pass computes the logits of each portion again; no table of all logits is ever in memory.
"""

import paddle
from paddle import Tensor
from paddle.autograd import PyLayer, PyLayerContext
from paddle.nn import functional


def plain_log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    """float32 [K]: log-softmax of ``logits`` [K, V] at ``targets`` int64 [K]."""
    return -functional.cross_entropy(logits.astype("float32"), targets, reduction="none").reshape([-1])


def log_probs_through_head(rows: Tensor, weight: Tensor, targets: Tensor, *, transposed: bool, portion: int) -> Tensor:
    """float32 [K]: what ``plain_log_probs`` gives for the logits of hidden ``rows`` [K, D], ``portion`` at a time.

    ``weight`` [D, V], or [V, D] when ``transposed`` (a head that is the table of tokens); ``targets`` int64 [K].
    """
    return _LogProbs.apply(rows, weight, targets, transposed, portion)


class _LogProbs(PyLayer):
    @staticmethod
    def forward(
        ctx: PyLayerContext, rows: Tensor, weight: Tensor, targets: Tensor, transposed: bool, portion: int
    ) -> Tensor:
        found = []
        for part in _parts(rows.shape[0], portion):
            logits = _logits(rows[part], weight, transposed)
            narrow = logits.dtype
            found.append(plain_log_probs(logits, targets[part]))
        ctx.save_for_backward(rows, weight, targets)
        ctx.transposed, ctx.portion = transposed, portion
        ctx.narrow = narrow  # that of the product, which auto_cast may choose; it is off in the backward pass
        ctx.needs = not rows.stop_gradient, not weight.stop_gradient
        return paddle.concat(found)

    @staticmethod
    def backward(ctx: PyLayerContext, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, targets = ctx.saved_tensor()
        dtypes = rows.dtype, weight.dtype
        rows, weight = rows.detach().astype(ctx.narrow), weight.detach().astype(ctx.narrow)
        of_rows, of_weight = [], None
        for part in _parts(rows.shape[0], ctx.portion):
            slope = _slope(rows[part], weight, targets[part], gradient[part], ctx.transposed)
            if ctx.needs[0]:
                of_rows.append(paddle.matmul(slope, weight, transpose_y=not ctx.transposed))
            if ctx.needs[1]:
                pair = (slope, rows[part]) if ctx.transposed else (rows[part], slope)
                product = paddle.matmul(*pair, transpose_x=True).astype("float32")
                of_weight = product if of_weight is None else of_weight.add_(product)
        return (
            paddle.concat(of_rows).astype(dtypes[0]) if of_rows else None,
            None if of_weight is None else of_weight.astype(dtypes[1]),
            None,
        )


def _parts(count: int, portion: int) -> list[slice]:
    return [slice(first, min(first + portion, count)) for first in range(0, count, portion)]


def _logits(rows: Tensor, weight: Tensor, transposed: bool) -> Tensor:
    return paddle.matmul(rows, weight, transpose_y=transposed)


def _slope(rows: Tensor, weight: Tensor, targets: Tensor, gradient: Tensor, transposed: bool) -> Tensor:
    """Gradient of a portion's logits, in their own dtype."""
    narrow = _logits(rows, weight, transposed)
    with paddle.enable_grad():
        logits = narrow.astype("float32").detach()
        logits.stop_gradient = False
        found = plain_log_probs(logits, targets)
    (slope,) = paddle.grad(found, logits, grad_outputs=gradient.astype("float32"))
    return slope.astype(narrow.dtype)
