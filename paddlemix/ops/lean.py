# SPDX-License-Identifier: Apache-2.0
"""When an operator has a backward pass of its own: on a CPU that trains.

Paddle keeps both factors of every product, the tables of the rotation and each block's copy of the keys included, and
sums the gradient of a norm's weight by a slow kernel. The layers in ``norm``, ``rope``, ``activation`` and
``attention.sdpa`` that ask here keep only what cannot be had again for little; forward they compute what the plain form
does, bit for bit. On other devices fused operators do the same.
"""

import paddle
from paddle import Tensor


def is_lean(device: str, *tensors: Tensor) -> bool:
    """Whether ``device`` is a CPU and computes on ``tensors`` (any shapes; float32), one of which wants a gradient."""
    if device != "cpu" or not paddle.is_grad_enabled() or not paddle.in_dynamic_mode():
        return False
    return all(one.dtype == paddle.float32 for one in tensors) and not all(one.stop_gradient for one in tensors)
