# SPDX-License-Identifier: Apache-2.0
"""The vision tower and the projector in the file that llama.cpp's LLaVA reader takes ("mmproj").

Keys and tensors are those that its ``convert_image_encoder_to_gguf.py`` writes for LLaVA-1.5 and 1.6. The layer that
the features come from is written in so many words (``clip.vision.feature_layer``); without it a reader guesses.
"""

from paddlemix.checkpoint.gguf import names
from paddlemix.checkpoint.gguf.package import Field
from paddlemix.settings.dense_connector import NO_CONNECTOR
from paddlemix.settings.model import LlavaConfig, VisionConfig
from paddlemix.settings.towers.table import TOWERS
from paddlemix.utils.errors import CheckpointError

_ASPECTS = ("square", "pad", "anyres")
_ACTIVATIONS = ("quick_gelu", "gelu")
_PROJECTION = 768
"""Width of CLIP's joint space (ViT-L/14). LLaVA does not use it, but every reader asks for the number."""


_CLASS_TOKEN = (
    "llama.cpp's newer readers (one of October 2026 too) take CLIP's class token for the last patch, its issue 25814: "
    "answers about images are worse there than here until that is mended; docs/checkpoints.md says more"
)
_TILES = "llama.cpp puts the tiles of LLaVA-1.6 before the whole image and has no rows between their lines"


def require_known(config: LlavaConfig) -> None:
    """CheckpointError for a model that llama.cpp's LLaVA reader would not run, or would run otherwise."""
    vision, image = config.vision, config.image
    assert vision is not None  # noqa: S101 - for a reader; the callers have looked
    assert image is not None  # noqa: S101
    wrong = None
    if TOWERS.get(vision.model_type).gguf is None:
        wrong = f'a vision tower of the kind "{vision.model_type}"'
    elif vision.hidden_act not in _ACTIVATIONS:
        wrong = f'a tower with the activation "{vision.hidden_act}"'
    elif vision.select_feature != "patch":
        wrong = f'mm_vision_select_feature "{vision.select_feature}"'
    elif vision.dense_connector != NO_CONNECTOR:
        wrong = f'mm_dense_connector_type "{vision.dense_connector}"'
    elif vision.intermediate_size == vision.hidden_size:
        wrong = "a tower whose layers do not widen"  # the reader tells fc1 from fc2 by their shapes
    elif config.projector_type != "mlp2x_gelu":
        wrong = f'the projector "{config.projector_type}"'
    elif image.aspect not in _ASPECTS or image.max_tiles is not None or image.stretch:
        wrong = "images cut up as LLaVA-OneVision does" if image.max_tiles else f'images as "{image.aspect}"'
    if wrong:
        raise CheckpointError(f"llama.cpp's LLaVA reader has no form for {wrong}")


def notes(config: LlavaConfig) -> list[str]:
    """What llama.cpp makes of the file otherwise than the model does (``test_checkpoint_gguf_images_reference.py``)."""
    image = config.image
    return [_CLASS_TOKEN, *([_TILES] if image is not None and image.aspect == "anyres" else [])]


def tower_fields(config: LlavaConfig) -> dict[str, Field]:
    """The fields of the file. CLIP's tower ends with the layer that the features come from."""
    vision, image = config.vision, config.image
    assert vision is not None  # noqa: S101 - as above
    assert image is not None  # noqa: S101
    grid = [side for pair in image.grid_pinpoints for side in pair]
    unpads = image.aspect == "anyres" and image.merge == "spatial_unpad"
    fields: dict[str, Field] = {
        "general.description": "image encoder for LLaVA",
        "clip.has_text_encoder": False,
        "clip.has_vision_encoder": True,
        "clip.has_llava_projector": True,
        "clip.projector_type": "mlp",
        "clip.vision.image_size": vision.image_size,
        "clip.vision.patch_size": vision.patch_size,
        "clip.vision.embedding_length": vision.hidden_size,
        "clip.vision.feed_forward_length": vision.intermediate_size,
        "clip.vision.projection_dim": _PROJECTION,
        "clip.vision.attention.head_count": vision.num_attention_heads,
        "clip.vision.attention.layer_norm_epsilon": float(vision.layer_norm_eps),
        "clip.vision.block_count": vision.feature_layer,
        "clip.vision.feature_layer": [vision.feature_layer],
        "clip.vision.image_mean": [float(value) for value in image.mean],
        "clip.vision.image_std": [float(value) for value in image.std],
        "clip.vision.mm_projector_type": config.projector_type,
        "clip.use_gelu": vision.hidden_act == "gelu",
    }
    if image.aspect == "anyres":
        fields |= {"clip.vision.image_grid_pinpoints": grid, "clip.vision.image_aspect_ratio": "anyres"}
        fields["clip.vision.image_crop_resolution"] = image.crop_size
    if unpads:
        fields["clip.vision.mm_patch_merge_type"] = "spatial_unpad"
    return fields


def is_used(name: str, vision: VisionConfig | None) -> bool:
    """Whether the features depend on a tensor (LLaVA's name): not on the layers behind theirs, nor on the last norm."""
    if name.removeprefix(names.TOWER_PREFIX).startswith("post_layernorm."):
        return False
    layer = names.tower_layer(name)
    return layer is None or vision is None or layer < vision.feature_layer
