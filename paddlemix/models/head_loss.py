# SPDX-License-Identifier: Apache-2.0
"""The output head and the loss of some positions at a time, so that no table of all logits is ever in memory.

For each portion of positions the logits, their loss and its gradient are computed and the logits dropped; what is kept
until the backward pass is the gradient of the hidden rows and of the head. No product is computed twice. (The idea is
that of PaddleNLP's ``fused_head_and_loss_fn`` and of Liger's fused linear cross entropy.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import paddle
from paddle import Tensor, nn
from paddle.autograd import PyLayer, PyLayerContext
from paddle.nn import functional

from paddlemix.ops.dtypes import to_dtype
from paddlemix.ops.lean import apply_once
from paddlemix.ops.linear import Linear, LoraLinear
from paddlemix.ops.parallel import ALONE, Share, TensorParallel
from paddlemix.utils.constants import IGNORE_INDEX

HALF_SCALE = 1.0 / 32.0
"""Half precision sums rows times slopes of up to 1024 positions: this keeps the sum of float16 below its end."""


@dataclass(frozen=True)
class HeadForm:
    """How logits come of rows and weights.

    ``transposed``: weights are [V, D] (the table of tokens is the head). ``vocabulary``: they hold this device's places
    of the vocabulary only. ``summed``: the products of these devices add up to the logits. ``in_place``: by
    operators that a CPU computes in the memory of their input, in float32; half the memory, and less time.
    """

    transposed: bool = False
    vocabulary: Share | None = None
    summed: TensorParallel = ALONE
    in_place: bool = False


def loss_through_head(
    products: Sequence[tuple[Tensor, Tensor]], targets: Tensor, *, portion: int, form: HeadForm
) -> Tensor:
    """Mean loss over the ``targets`` [N] (int64) that are not IGNORE_INDEX, a float32 scalar.

    The logits are the sum of all ``products``: rows [N, D] times weight [D, V], or [V, D] when ``form.transposed``. D
    may differ from pair to pair (a low-rank addition is a pair of its own). A weight or rows whose ``stop_gradient`` is
    set get no gradient, and none is computed. In tensor parallel the gradient of rows is this device's part of it.
    RuntimeError in a second backward pass.
    """
    flat = [tensor for pair in products for tensor in pair]
    # Inside the layer paddle says that no gradient is wanted.
    return apply_once(_HeadLoss, targets, portion, form, paddle.is_grad_enabled(), *flat)


def has_products(layer: nn.Layer) -> bool:
    """Whether the layer's output is the sum of its ``products``: a kind of layer derived from these need not be."""
    if type(layer) not in (Linear, LoraLinear) or layer.bias is not None or layer.sums:
        return False
    return not getattr(layer, "dora", False)


def head_note(portion: int) -> str:
    """A line for the log of a run whose loss is computed ``portion`` positions at a time; 0: all of them."""
    how = f"{portion:,} of them at a time" if portion else "all of them at once (use_fused_head_and_loss_fn)"
    return f"head and loss: at the positions that have a label, {how}"


class _HeadLoss(PyLayer):
    @staticmethod
    def forward(
        ctx: PyLayerContext, targets: Tensor, portion: int, form: HeadForm, wanted: bool, *flat: Tensor
    ) -> Tensor:
        counted = (targets != IGNORE_INDEX).astype("float32")
        # No negative label and two axes: what every cross-entropy kernel of the NPU plug-in takes.
        known = paddle.where(targets != IGNORE_INDEX, targets, paddle.zeros_like(targets))
        sums = [_Sums(rows, weight, form) for rows, weight in zip(flat[::2], flat[1::2], strict=True)]
        total = paddle.zeros([], dtype="float32")
        for first in range(0, targets.shape[0], portion):
            part = slice(first, min(first + portion, targets.shape[0]))
            weighed = counted[part]
            pieces = [rows[part].detach() for rows in flat[::2]]
            loss, slope = _of_part(pieces, flat[1::2], known[part], weighed, form, wanted)
            total = total + loss
            if slope is not None:
                for each, piece in zip(sums, pieces, strict=True):
                    each.add(piece, slope, weighed)
            del slope  # or it would lie beside the next logits
        ctx.share = 1.0 / paddle.clip(counted.sum(), min=1.0)
        ctx.counted, ctx.sums = counted, sums if wanted else []
        return total * ctx.share

    @staticmethod
    def backward(ctx: PyLayerContext, gradient: Tensor) -> tuple[Tensor | None, ...]:
        sums, ctx.sums = ctx.sums, []
        factor = gradient.astype("float32") * ctx.share
        return (None, *(found for each in sums for found in each.gradients(ctx.counted, factor)))


class _Sums:
    """The gradients of one product's rows and weight, summed portion by portion, before any factor."""

    def __init__(self, rows: Tensor, weight: Tensor, form: HeadForm) -> None:
        self.weight, self.transposed, self.in_place = weight, form.transposed, form.in_place
        self.dtypes = (rows.dtype, weight.dtype)
        self.needs = (not rows.stop_gradient, not weight.stop_gradient)
        self.scale = 1.0 if weight.dtype == rows.dtype == paddle.float32 else HALF_SCALE
        self.of_rows: list[Tensor] = []
        self.of_weight: Tensor | None = None

    def add(self, piece: Tensor, slope: Tensor, weighed: Tensor) -> None:
        """``piece`` [n, D], ``slope`` [n, V] in the dtype of the logits, ``weighed`` float32 [n]: 0 for no label."""
        if self.needs[0]:
            self.of_rows.append(paddle.matmul(slope, self.weight.detach(), transpose_y=not self.transposed))
        if not self.needs[1]:
            return
        piece = piece * (weighed * self.scale).astype(piece.dtype).unsqueeze(-1)
        pair = (slope, piece) if self.transposed else (piece, slope)
        if self.in_place and self.of_weight is not None:
            self.of_weight = paddle.addmm_(self.of_weight, paddle.transpose(pair[0], [1, 0]), pair[1])
            return
        product = to_dtype(paddle.matmul(*pair, transpose_x=True), paddle.float32)
        self.of_weight = product if self.of_weight is None else self.of_weight.add_(product)

    def gradients(self, counted: Tensor, factor: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Of rows [N, D] and weight, each in its dtype; ``counted`` float32 [N], ``factor`` a float32 scalar."""
        of_rows, of_weight = None, None
        if self.of_rows:
            of_rows = to_dtype(paddle.concat(self.of_rows), paddle.float32)
            of_rows = to_dtype(of_rows.multiply_((counted * factor).unsqueeze(-1)), self.dtypes[0])
        if self.of_weight is not None:
            factor = factor * (1.0 / self.scale)
            # A number is four times as fast as a tensor of one, and costs a CPU no waiting.
            scaled = self.of_weight.scale_(float(factor)) if self.in_place else self.of_weight.multiply_(factor)
            of_weight = to_dtype(scaled, self.dtypes[1])
        self.of_rows, self.of_weight = [], None
        return of_rows, of_weight


def _of_part(
    pieces: list[Tensor], weights: Sequence[Tensor], known: Tensor, weighed: Tensor, form: HeadForm, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """The part's sum of losses, and the slope of its logits (in their dtype) if it is ``wanted``."""
    logits = paddle.matmul(pieces[0], weights[0].detach(), transpose_y=form.transposed)
    for piece, weight in zip(pieces[1:], weights[1:], strict=True):
        logits = logits + paddle.matmul(piece, weight.detach(), transpose_y=form.transposed)
    narrow = logits.dtype
    with paddle.amp.auto_cast(enable=False):  # O2 would cast each operator of the float32 island back
        logits = to_dtype(logits, paddle.float32)
        if form.summed.size > 1:
            logits = form.summed.reduce(logits)
        if form.vocabulary is not None:
            each, slope = _of_divided(logits, known, form.vocabulary, wanted)
        elif form.in_place:
            each, slope = _of_softmax(logits, known, wanted)
        else:
            each, slope = _of_loss(logits, known, wanted)
        loss = (each.reshape(weighed.shape) * weighed).sum()
        return loss, None if slope is None else to_dtype(slope, narrow)


def _of_loss(logits: Tensor, known: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """Losses [n] and the slope [n, V] of float32 ``logits``, by the operator's own gradient."""
    with paddle.set_grad_enabled(wanted):
        logits.stop_gradient = not wanted
        each = functional.cross_entropy(logits, known, ignore_index=IGNORE_INDEX, reduction="none")
        slope = paddle.grad(each.sum(), logits)[0] if wanted else None
    return each.detach(), slope


def _of_softmax(logits: Tensor, known: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """The same in the memory of ``logits``, which become their softmax: it is the slope but for the label's place."""
    labels = known.unsqueeze(-1)
    slope, each = paddle._C_ops.cross_entropy_with_softmax_(logits, labels, False, True, True, IGNORE_INDEX, -1)
    return each, _less_at(slope, known, paddle.ones(known.shape)) if wanted else None


def _of_divided(logits: Tensor, known: Tensor, vocabulary: Share, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """The same from this device's part of the logits [n, V']; losses are whole, the slope is of the part.

    log(sum exp) and the label's logit are one number a position, and all that is exchanged.
    """
    parallel = vocabulary.parallel
    ((start, stop),) = vocabulary.ranges
    logits = logits - parallel.largest(logits.max(axis=-1, keepdim=True))
    here = paddle.logical_and(known >= start, known < stop)
    place = paddle.where(here, known - start, paddle.zeros_like(known))
    own = paddle.take_along_axis(logits, place.unsqueeze(-1), axis=-1).squeeze(-1)
    powers = paddle.exp(logits)
    summed = parallel.reduce(powers.sum(axis=-1))
    own = parallel.reduce(paddle.where(here, own, paddle.zeros_like(own)))
    each = paddle.log(summed) - own
    if not wanted:
        return each, None
    return each, _less_at(powers / summed.unsqueeze(-1), place, here.astype("float32"))


def _less_at(values: Tensor, place: Tensor, less: Tensor) -> Tensor:
    """``values`` [n, V] less ``less`` [n] at column ``place`` [n] of each row, in their memory."""
    shape = values.shape
    index = paddle.arange(shape[0]) * shape[1] + place
    flat = values.reshape_([-1])
    flat = paddle.scatter_(flat, index, paddle.gather(flat, index) - less)
    return flat.reshape_(shape)
