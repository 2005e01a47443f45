# SPDX-License-Identifier: Apache-2.0
"""Changes of dtype that cost nothing where there is nothing to change."""

import paddle
from paddle import Tensor


def dtype_name(dtype: paddle.dtype) -> str:
    """``float32``, ``bfloat16``, ..."""
    return str(dtype).rpartition(".")[2]


def to_dtype(x: Tensor, dtype: paddle.dtype) -> Tensor:
    """``x`` (any shape) in ``dtype``; itself when it has it: a needless cast costs 3 us, 150 times in a decode step."""
    return x if x.dtype == dtype else x.astype(dtype)
