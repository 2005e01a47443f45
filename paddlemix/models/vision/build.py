# SPDX-License-Identifier: Apache-2.0
"""From the configuration of a vision tower to its layers; ``settings/towers/table.py`` is the table."""

from collections.abc import Callable

from paddle import nn

from paddlemix.models.vision.base import VisionTower
from paddlemix.ops.parallel import ALONE, TensorParallel
from paddlemix.settings.model import VisionConfig
from paddlemix.settings.towers.table import TOWERS
from paddlemix.utils.registry import named


def encoder_class(kind: str) -> Callable[..., nn.Layer]:
    """The encoder (``base.VisionEncoder``) of a ``model_type``; ConfigError lists the known ones."""
    return named(TOWERS.get(kind).encoder)


def build_tower(config: VisionConfig, parallel: TensorParallel = ALONE) -> VisionTower:
    """The tower that ``config.model_type`` names; ConfigError lists the known ones."""
    return VisionTower(config, encoder_class(config.model_type)(config, parallel))
