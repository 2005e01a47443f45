# SPDX-License-Identifier: Apache-2.0
"""When an operator has a backward pass of its own: on a CPU that trains.

Paddle keeps both factors of every product, the tables of the rotation and each block's copy of the keys included, and
sums the gradient of a norm's weight by a slow kernel. The layers in ``norm``, ``rope``, ``activation`` and
``attention.sdpa`` that ask here keep only what cannot be had again for little; forward they compute what the plain form
does, bit for bit. On other devices fused operators do the same.
"""

from collections.abc import Callable
from typing import Any

import paddle
from paddle import Tensor
from paddle.autograd import PyLayer


def is_lean(device: str, *tensors: Tensor) -> bool:
    """Whether ``device`` is a CPU and computes on ``tensors`` (any shapes; float32), one of which wants a gradient."""
    if device != "cpu" or not paddle.is_grad_enabled() or not paddle.in_dynamic_mode():
        return False
    return all(one.dtype == paddle.float32 for one in tensors) and not all(one.stop_gradient for one in tensors)


def keeps_nothing(device: str) -> bool:
    """Whether ``device`` is a CPU that computes without gradients: memory is free as soon as nobody reads it."""
    return device == "cpu" and not paddle.is_grad_enabled() and paddle.in_dynamic_mode()


def apply_once(layer: type[PyLayer], *arguments: Any) -> Tensor:
    """``layer.apply`` whose second backward pass is a RuntimeError.

    Paddle has forgotten the layer's context by then, even with ``retain_graph``, and calling it ends the process.
    """
    out = layer.apply(*arguments)
    if not out.stop_gradient:
        out.register_hook(_once())
    return out


def _once() -> Callable[[Tensor], None]:
    passed: list[bool] = []

    def hook(gradient: Tensor) -> None:
        if passed:
            raise RuntimeError("what a layer keeps serves one backward pass; compute the loss again")
        passed.append(True)

    return hook
