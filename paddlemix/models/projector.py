# SPDX-License-Identifier: Apache-2.0
"""Projectors from vision width to model width, by the names that config files use."""

import re

from paddle import Tensor, nn

from paddlemix.ops.activation import gelu
from paddlemix.ops.linear import Linear
from paddlemix.utils.errors import ConfigError

_MLP = re.compile(r"mlp([1-9]\d*)x_gelu(\w*ln\w*)?")  # InternVL-Chat asks whether "ln" is in the name


class Gelu(nn.Layer):
    """GELU by the error function, as a place in a sequence (it takes an index in the parameter names)."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return gelu(x)


class Identity(nn.Layer):
    """Gives its input back; vision width and model width must be equal."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x


def build_projector(kind: str, vision_width: int, width: int) -> nn.Layer:
    """``linear``, ``mlpNx_gelu`` (N linear layers with GELU between them), ``mlpNx_gelu_ln`` or ``identity``.

    Parameter names below ``mm_projector``: ``weight, bias`` for linear, ``0.*, 2.*, 4.*, ...`` for an MLP. With
    ``_ln`` (InternVL-Chat) a LayerNorm of the features is number 0 and the linear layers are ``1.*, 3.*, ...``.
    """
    if kind == "linear":
        return Linear(vision_width, width)
    if kind == "identity":
        if vision_width != width:
            raise ConfigError(
                f"mm_projector_type identity: the vision width {vision_width} must equal the model width {width}"
            )
        return Identity()
    match = _MLP.fullmatch(kind)
    if match is None:
        raise ConfigError(f'mm_projector_type "{kind}": expected linear, identity or mlpNx_gelu (also with _ln)')
    layers: list[nn.Layer] = [nn.LayerNorm(vision_width)] if match[2] else []
    layers.append(Linear(vision_width, width))
    for _ in range(int(match[1]) - 1):
        layers += [Gelu(), Linear(width, width)]
    return nn.Sequential(*layers)
