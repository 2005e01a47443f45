# SPDX-License-Identifier: Apache-2.0
"""The table of vision towers by the ``model_type`` of their config."""

from collections.abc import Callable

from paddle import nn

from paddlemix.models.vision.base import VisionTower
from paddlemix.models.vision.clip import ClipEncoder
from paddlemix.models.vision.eva_clip import EvaEncoder
from paddlemix.models.vision.intern_vit import InternVitEncoder
from paddlemix.ops.parallel import ALONE, TensorParallel
from paddlemix.settings.model import VisionConfig
from paddlemix.utils.registry import Registry

ENCODERS: Registry[Callable[[VisionConfig, TensorParallel], nn.Layer]] = Registry("vision tower")
ENCODERS.add("clip_vision_model")(ClipEncoder)
ENCODERS.add("eva_clip_vision_model")(EvaEncoder)
ENCODERS.add("intern_vit_6b")(InternVitEncoder)


def build_tower(config: VisionConfig, parallel: TensorParallel = ALONE) -> VisionTower:
    """The tower that ``config.model_type`` names; ConfigError lists the known ones."""
    return VisionTower(config, ENCODERS.get(config.model_type)(config, parallel))
