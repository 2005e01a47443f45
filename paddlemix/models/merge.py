# SPDX-License-Identifier: Apache-2.0
"""The merge of text rows and feature rows: one gather by the indices of the splice plan."""

import paddle
from paddle import Tensor
from paddle.nn import functional


def merge_rows(source: Tensor, text: Tensor, features: Tensor | None, newline: Tensor | None) -> Tensor:
    """Rows of ``concat([text, features, zero, newline])`` in the order of ``source`` [B, L], as ``[B, L, D]``.

    Contract (splice/plan): text [B, L, D] gives the first ``B * L`` rows, features [N, P, D] the next ``N * P``, then
    comes one row of zeros for padding, then the newline [D] if the model has one.
    """
    width = text.shape[-1]
    parts = [text.reshape([-1, width])]
    if features is not None:
        parts.append(features.astype(text.dtype).reshape([-1, width]))
    parts.append(paddle.zeros([1, width], dtype=text.dtype))
    if newline is not None:
        parts.append(newline.astype(text.dtype).reshape([1, width]))
    # An embedding look-up, because it has forward and backward with duplicate indices on every device.
    return functional.embedding(source, paddle.concat(parts, axis=0))
