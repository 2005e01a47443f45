# SPDX-License-Identifier: Apache-2.0
"""Changes of dtype that cost nothing where there is nothing to change."""

import paddle
from paddle import Tensor


def to_dtype(x: Tensor, dtype: paddle.dtype) -> Tensor:
    """``x`` in ``dtype``; itself when it has it. A cast to the same dtype costs 3 us, 150 times in a decode step."""
    return x if x.dtype == dtype else x.astype(dtype)
