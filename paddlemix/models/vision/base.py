# SPDX-License-Identifier: Apache-2.0
"""What the other rooms know of a vision tower: pixels in, the chosen layer's features out."""

from collections.abc import Iterable
from typing import Protocol

import paddle
from paddle import Tensor, nn

from paddlemix.models.recompute import recomputed
from paddlemix.ops.attention.contract import Mask
from paddlemix.settings.model import VisionConfig
from paddlemix.utils.errors import ConfigError


class VisionEncoder(Protocol):
    """One family's transformer. With ``recompute`` blocks that train keep only their input.

    "1 +" in the shapes is the class token, which not every tower has (``settings.towers.base.Tower.class_token``).
    """

    recompute: bool

    def hidden_state(self, pixels: Tensor, layer: int) -> Tensor:
        """``[N, 3, S, S]`` to ``[N, 1 + P, C]``: 0 is the input of the first layer, i the output of layer i."""


class VisionTower(nn.Layer):
    """Chooses layer and rows of an encoder, which it holds as ``vision_tower`` (the name published files use)."""

    def __init__(self, config: VisionConfig, encoder: nn.Layer) -> None:
        super().__init__()
        self.config = config
        self.vision_tower = encoder
        self.layer = config.feature_layer
        if config.select_feature not in ("patch", "cls_patch"):
            raise ConfigError(f'mm_vision_select_feature "{config.select_feature}": expected "patch" or "cls_patch"')

    def forward(self, pixels: Tensor) -> Tensor:
        """``[N, 3, S, S]`` to ``[N, P, C]``. Layers above the chosen one are not run."""
        side = self.config.image_size
        if pixels.ndim != 4 or list(pixels.shape[1:]) != [3, side, side]:
            raise ConfigError(f"vision tower: expected pixels [N, 3, {side}, {side}], got {list(pixels.shape)}")
        hidden = self.vision_tower.hidden_state(pixels, self.layer)
        # The class token is row 0; "patch" leaves it out.
        without = self.config.select_feature == "patch" and self.config.class_tokens
        return hidden[:, 1:] if without else hidden


def run_layers(blocks: Iterable[nn.Layer], hidden: Tensor, mask: Mask, recompute: bool) -> Tensor:
    """``hidden`` [N, 1 + P, C] through ``blocks``; see ``VisionEncoder`` for ``recompute``."""
    for block in blocks:
        hidden = recomputed(block, hidden, mask) if recompute and _trains(block, hidden) else block(hidden, mask)
    return hidden


def _trains(block: nn.Layer, hidden: Tensor) -> bool:
    """Whether the backward pass goes through ``block`` at all: a frozen tower keeps nothing anyway."""
    if not paddle.is_grad_enabled():
        return False
    return not hidden.stop_gradient or not all(item.stop_gradient for item in block.parameters())
