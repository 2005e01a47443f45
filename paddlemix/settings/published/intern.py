# SPDX-License-Identifier: Apache-2.0
"""The towers of InternVL-Chat: InternViT-6B and EVA-CLIP, as their config.json files describe them."""

import dataclasses
from typing import Any

from paddlemix.settings.model import VisionConfig
from paddlemix.settings.published.reader import KeyReader
from paddlemix.settings.published.unused_keys import ANYWHERE, INTERN_VIT, VISION

INTERN_VIT_TYPE = "intern_vit_6b"
EVA_TYPE = "eva_clip_vision_model"
"""Our name; the files call it clip_vision_model, like CLIP, and differ by the keys of ``EVA_KEYS``."""

EVA_KEYS = {"q_bias": True, "k_bias": False, "v_bias": True, "post_layernorm": False}
"""Keys that only EVA-CLIP has, with the defaults of its configuration class."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Defaults of InternVisionConfig.
_DEFAULTS = {
    "hidden_size": 3200,
    "intermediate_size": 12800,
    "num_hidden_layers": 48,
    "num_attention_heads": 25,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
}

INTERN_VIT_FACTS = {
    "InternViT-6B-224px": {},
    "InternViT-6B-448px": {"image_size": 448},
    "InternViT-6B-448px-V1-0": {"image_size": 448},
    "InternViT-6B-448px-V1-2": {"image_size": 448, "num_hidden_layers": 45},
    "InternViT-6B-448px-V1-5": {"image_size": 448, "num_hidden_layers": 45},
}
"""What the published towers have other than the defaults, for chat checkpoints that hold the tower's weights."""

_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
_NAMES_14B = ("InternVL-14B-224px", "InternVL-14B-FT-224px")
_NOT_14B = (
    "InternVL-14B (queries that look at the image through a language model of their own) is not supported; "
    "the InternViT-6B towers and their chat models are"
)


def is_eva(reader: KeyReader) -> bool:
    """Whether the object of a CLIP vision tower is EVA-CLIP's."""
    return any(key in reader.data for key in EVA_KEYS)


def refuse_14b(reader: KeyReader, kind: str) -> None:
    """CheckpointError for the config.json of InternVL-14B."""
    if kind.startswith("internvl") or "qllama_config" in reader.data:
        reader.wrong("model_type", kind, _NOT_14B)


def refuse_chat_14b(reader: KeyReader) -> None:
    """CheckpointError for a chat model of InternVL-14B, before its tower is looked for."""
    if reader.data.get("mm_projector_type") == "two_mlp":
        reader.wrong("mm_projector_type", "two_mlp", _NOT_14B)
    name = str(reader.data.get("mm_vision_tower"))
    if name.rpartition("/")[2] in _NAMES_14B:
        reader.wrong("mm_vision_tower", name, _NOT_14B)


def intern_vit_of(reader: KeyReader) -> VisionConfig:
    """InternViT from its config.json. The tile has the side that the chat models give it (``tile_side``)."""
    values = {name: reader.take(name, type(default), default) for name, default in _DEFAULTS.items()}
    reader.take("model_type", str, INTERN_VIT_TYPE)
    reader.positive(values, *_SIZES, "layer_norm_eps")
    _check_heads(reader, values)
    reader.expect("num_channels", 3, why="images have 3 channels")
    reader.expect("norm_type", "rms_norm", why="only RMS norms are supported (the small InternViT models have others)")
    if values["hidden_act"] not in ("gelu", "quick_gelu"):
        reader.wrong("hidden_act", values["hidden_act"], "expected gelu or quick_gelu")
    extra = {
        "qkv_bias": reader.take("qkv_bias", bool, False),
        "qk_normalization": reader.take("qk_normalization", bool, True),
    }
    reader.ignore(INTERN_VIT, VISION, ANYWHERE)
    reader.dtype()
    reader.finish()
    return _intern_vit(values, extra)


def known_intern_vit(name: str) -> VisionConfig | None:
    """A published InternViT by the last part of its name (chat models call them pretrained/... or OpenGVLab/...)."""
    facts = INTERN_VIT_FACTS.get(name.rpartition("/")[2])
    if facts is None:
        return None
    return _intern_vit({**_DEFAULTS, **facts}, {"qkv_bias": False, "qk_normalization": True})


def tile_side(native: int) -> int:
    """Pixels of a tile for a tower of ``native`` pixels: 336 for the one of 224, else the tower's own side.

    The original gives 336 to every tower without "448" in its name; published are 224 and 448 only.
    """
    return 336 if native == 224 else native


def with_side(vision: VisionConfig, side: int) -> VisionConfig:
    """The same InternViT with tiles of ``side`` pixels."""
    return dataclasses.replace(vision, image_size=side)


def eva_of(reader: KeyReader, defaults: dict[str, Any]) -> VisionConfig:
    """EVA-CLIP's vision tower; what its file leaves out is as in CLIP's ``defaults``."""
    values = {name: reader.take(name, type(default), default) for name, default in defaults.items()}
    reader.take("model_type", str, "clip_vision_model")
    reader.positive(values, *_SIZES, "layer_norm_eps")
    _check_heads(reader, values)
    reader.expect("num_channels", 3, why="images have 3 channels")
    if values["hidden_act"] not in ("quick_gelu", "gelu"):
        reader.wrong("hidden_act", values["hidden_act"], "expected quick_gelu or gelu")
    extra = {name: reader.take(name, bool, default) for name, default in EVA_KEYS.items()}
    reader.ignore(VISION, ANYWHERE)
    reader.dtype()
    reader.finish()
    return VisionConfig(model_type=EVA_TYPE, extra=extra, **values)


def _intern_vit(values: dict[str, Any], extra: dict[str, Any]) -> VisionConfig:
    grid = values["image_size"] // values["patch_size"]
    sized = {**values, "image_size": tile_side(values["image_size"])}
    return VisionConfig(model_type=INTERN_VIT_TYPE, extra={**extra, "position_grid": grid}, **sized)


def _check_heads(reader: KeyReader, values: dict[str, Any]) -> None:
    heads = values["num_attention_heads"]
    if values["hidden_size"] % heads:
        reader.wrong("num_attention_heads", heads, f"hidden_size {values['hidden_size']} is no multiple")
    if values["image_size"] < values["patch_size"]:
        reader.wrong("patch_size", values["patch_size"], f"larger than image_size {values['image_size']}")
