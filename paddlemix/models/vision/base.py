# SPDX-License-Identifier: Apache-2.0
"""What the other rooms know of a vision tower: pixels in, the chosen layer's features out."""

from collections.abc import Iterable
from typing import Protocol

import paddle
from paddle import Tensor, nn

from paddlemix.models.recompute import recomputed
from paddlemix.ops.attention.contract import Mask
from paddlemix.settings.dense_connector import POOLED, joined_layers
from paddlemix.settings.model import VisionConfig
from paddlemix.utils.errors import ConfigError


class VisionEncoder(Protocol):
    """One family's transformer. With ``recompute`` blocks that train keep only their input.

    "1 +" in the shapes is the class token, which not every tower has (``settings.towers.base.Tower.class_token``).
    """

    recompute: bool

    def hidden_state(self, pixels: Tensor, layer: int) -> Tensor:
        """``[N, 3, S, S]`` to ``[N, 1 + P, C]``: 0 is the input of the first layer, i the output of layer i."""

    def onward(self, hidden: Tensor, first: int, last: int) -> Tensor:
        """Hidden state ``first`` [N, 1 + P, C] to hidden state ``last``; only for ``settings.dense_connector``."""


class VisionTower(nn.Layer):
    """Chooses layer and rows of an encoder, which it holds as ``vision_tower`` (the name published files use)."""

    def __init__(self, config: VisionConfig, encoder: nn.Layer) -> None:
        super().__init__()
        self.config = config
        self.vision_tower = encoder
        self.layer = config.feature_layer
        self.groups = joined_layers(config.dense_connector, config.num_hidden_layers)
        if config.select_feature not in ("patch", "cls_patch"):
            raise ConfigError(f'mm_vision_select_feature "{config.select_feature}": expected "patch" or "cls_patch"')

    def forward(self, pixels: Tensor) -> Tensor:
        """``[N, 3, S, S]`` to ``[N, P, C]``; with a Dense Connector more rows, or ``[N, P, 3 C]``.

        Layers above the chosen one are not run.
        """
        side = self.config.image_size
        if pixels.ndim != 4 or list(pixels.shape[1:]) != [3, side, side]:
            raise ConfigError(f"vision tower: expected pixels [N, 3, {side}, {side}], got {list(pixels.shape)}")
        if self.groups:
            return self._joined(pixels)
        return self._rows(self.vision_tower.hidden_state(pixels, self.layer))

    def _rows(self, hidden: Tensor) -> Tensor:
        # The class token is row 0; "patch" leaves it out.
        without = self.config.select_feature == "patch" and self.config.class_tokens
        return hidden[:, 1:] if without else hidden

    def _joined(self, pixels: Tensor) -> Tensor:
        """The features with those of ``groups`` of other layers behind or beside them."""
        kind = self.config.dense_connector
        hidden = self.vision_tower.hidden_state(pixels, 0)
        means: list[Tensor | None] = [None for _ in self.groups]
        for layer in range(self.layer + 1):
            if layer:
                hidden = self.vision_tower.onward(hidden, layer - 1, layer)
            for number, group in enumerate(self.groups):
                if layer in group:
                    part = self._rows(hidden) / len(group)
                    means[number] = part if means[number] is None else means[number] + part
        if kind == "sti":
            return paddle.concat([self._rows(hidden), *map(_pooled, means)], axis=1)
        return paddle.concat([self._rows(hidden), *means], axis=2)


def _pooled(rows: Tensor) -> Tensor:
    """``[N, P, C]`` to ``[N, P // 8, C]``: the mean of every 8 rows."""
    kept = rows.shape[1] // POOLED
    return rows[:, : kept * POOLED].reshape([0, kept, POOLED, rows.shape[2]]).mean(axis=2)


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
