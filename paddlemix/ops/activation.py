# SPDX-License-Identifier: Apache-2.0
"""Activations by the names that published config files use."""

from paddle import Tensor
from paddle.nn import functional

from paddlemix.utils.registry import Registry

ACTIVATIONS: Registry = Registry("activation")


@ACTIVATIONS.add("quick_gelu")
def quick_gelu(x: Tensor) -> Tensor:
    """CLIP was trained with x * sigmoid(1.702 x), not with GELU (openai/CLIP, class QuickGELU)."""
    return x * functional.sigmoid(x * 1.702)


@ACTIVATIONS.add("gelu")
def gelu(x: Tensor) -> Tensor:
    """GELU by the error function; the projector and SigLIP-less towers use it."""
    return functional.gelu(x)


@ACTIVATIONS.add("silu", "swish")
def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x)."""
    return functional.silu(x)
