# SPDX-License-Identifier: Apache-2.0
"""EVA-CLIP: its files call it clip_vision_model, like CLIP, and differ by the switches of ``extra``."""

from paddlemix.settings.towers.base import Tower
from paddlemix.settings.towers.clip import CLIP_DEFAULTS, CLIP_MEAN, CLIP_ROWS, CLIP_START, CLIP_STD

TOWER = Tower(
    kind="eva_clip_vision_model",
    encoder="paddlemix.models.vision.eva_clip:EvaEncoder",
    defaults=CLIP_DEFAULTS,
    rows=CLIP_ROWS,
    layers="transformer.layers.",
    prefix="vision_model.",
    published_prefix="vision_model.",
    form="clip",
    signature=("vision_model.",),
    file_type="clip_vision_model",
    extra={"q_bias": True, "k_bias": False, "v_bias": True, "post_layernorm": False},
    known_by_extra=True,
    behind_layers=("ln_post.",),
    start=CLIP_START,
    mean=CLIP_MEAN,
    std=CLIP_STD,
    writable=False,
)
