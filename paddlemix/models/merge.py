# SPDX-License-Identifier: Apache-2.0
"""The merge of text rows and feature rows: one gather by the indices of the splice plan."""

import paddle
from paddle import Tensor

from paddlemix.ops.tracing import look_up


def merge_rows(
    source: Tensor,
    text: Tensor,
    features: Tensor | None,
    newline: Tensor | None,
    blend: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Rows of ``concat([text, features, zero, newline, blended])`` in the order of ``source`` [B, L], as ``[B, L, D]``.

    Contract (splice/plan): text [B, L, D] gives the first ``B * L`` rows, features [N, P, D] the next ``N * P``, then
    comes one row of zeros for padding, then the newline [D] if the model has one. ``blend`` is the plan's index and
    weight [K, 4]: row k is the weighted sum of four feature rows.
    """
    width = text.shape[-1]
    parts = [text.reshape([-1, width])]
    if features is not None:
        parts.append(features.astype(text.dtype).reshape([-1, width]))
    parts.append(paddle.zeros([1, width], dtype=text.dtype))
    if newline is not None:
        parts.append(newline.astype(text.dtype).reshape([1, width]))
    if blend is not None and features is not None:
        parts.append(_blended(features.reshape([-1, width]), *blend).astype(text.dtype))
    return look_up(paddle.concat(parts, axis=0), source)


def _blended(rows: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """``[N * P, D]`` and ``[K, 4]`` to ``[K, D]``, summed in float32."""
    corners = look_up(rows, index).astype("float32")
    return (corners * weight.unsqueeze(-1)).sum(axis=1)
