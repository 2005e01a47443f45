# SPDX-License-Identifier: Apache-2.0
"""What code needs to be traced into a static graph: sizes that are not known, and the call that traces.

While ``to_static`` traces, the layers run once as plain Python: an axis whose size is left open has the size -1, a
tensor has no values and lies nowhere, and a Python ``if`` on a tensor is an error. ``reshape`` takes 0 for "as it is".
"""

from collections.abc import Sequence

import paddle
from paddle import Tensor, nn
from paddle.nn import functional

import paddlemix


def size(x: Tensor, axis: int) -> int | Tensor:
    """Size of ``axis`` of ``x`` (any shape and dtype): a number where it is known, else an int64 tensor ``[]``."""
    known = x.shape[axis]
    return known if known >= 0 else paddle.shape(x)[axis].astype("int64")


def contiguous(x: Tensor) -> Tensor:
    """``x`` (any shape and dtype) without strides; in a graph there are none."""
    return x.contiguous() if paddle.in_dynamic_mode() else x


def look_up(table: Tensor, index: Tensor) -> Tensor:
    """Rows of ``table`` [R, D] in the order of int64 ``index`` [...]: [..., D], in the dtype of the table.

    An embedding, because it has forward and backward with duplicate indices on every device; it does not take a table
    whose length a traced graph leaves open, so there it is a gather.
    """
    if table.shape[0] >= 0:
        return functional.embedding(index, table)
    shape = [size(index, axis) for axis in range(index.ndim)]
    return paddle.gather(table, index.reshape([-1])).reshape([*shape, table.shape[1]])


def to_static(layer: nn.Layer, input_spec: Sequence[paddle.static.InputSpec]) -> nn.Layer:
    """``layer`` as one static graph; ``None`` in the shape of a spec leaves that axis open.

    Our own code is traced as it stands: paddle would otherwise rewrite its source first, and turn each ``if`` on a size
    into an operator.
    """
    paddle.jit.ignore_module([paddlemix])
    return paddle.jit.to_static(layer, input_spec=list(input_spec), full_graph=True)
