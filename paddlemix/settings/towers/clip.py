# SPDX-License-Identifier: Apache-2.0
"""CLIP's vision transformer (openai ViT), the tower of LLaVA; by the tensor names of transformers and PaddleMIX."""

from paddlemix.settings.key_rows import KeyRow
from paddlemix.settings.towers.base import Start, Tower

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# Defaults of transformers' CLIPVisionConfig.
CLIP_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}

CLIP_LARGE_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
"""CLIP ViT-L/14: the tower that a llava-hf config means when it has no vision_config."""
_CLIP_LARGE_224 = {**CLIP_LARGE_336, "image_size": 224}

CLIP_ROWS = (
    KeyRow("embeddings.class_embedding", "class_embedding"),
    KeyRow("embeddings.patch_embedding.{weight|bias}", "conv1.{weight|bias}"),  # a bias in EVA-CLIP
    KeyRow("embeddings.position_embedding.weight", "positional_embedding.weight"),
    KeyRow("pre_layrnorm.{weight|bias}", "ln_pre.{weight|bias}"),  # the reference misspells it
    KeyRow("post_layernorm.{weight|bias}", "ln_post.{weight|bias}"),
    KeyRow("encoder.layers.{n}.layer_norm1.{weight|bias}", "transformer.layers.{n}.norm1.{weight|bias}"),
    KeyRow("encoder.layers.{n}.layer_norm2.{weight|bias}", "transformer.layers.{n}.norm2.{weight|bias}"),
    KeyRow(
        "encoder.layers.{n}.self_attn.{q_proj|k_proj|v_proj|out_proj}.weight",
        "transformer.layers.{n}.self_attn.{q_proj|k_proj|v_proj|out_proj}.weight",
        transpose=True,
    ),
    KeyRow(
        "encoder.layers.{n}.self_attn.{q_proj|k_proj|v_proj|out_proj}.bias",
        "transformer.layers.{n}.self_attn.{q_proj|k_proj|v_proj|out_proj}.bias",
    ),
    KeyRow("encoder.layers.{n}.mlp.fc1.weight", "transformer.layers.{n}.linear1.weight", transpose=True),
    KeyRow("encoder.layers.{n}.mlp.fc1.bias", "transformer.layers.{n}.linear1.bias"),
    KeyRow("encoder.layers.{n}.mlp.fc2.weight", "transformer.layers.{n}.linear2.weight", transpose=True),
    KeyRow("encoder.layers.{n}.mlp.fc2.bias", "transformer.layers.{n}.linear2.bias"),
)

# As transformers draws a CLIPModel (factor 1).
CLIP_START = (
    Start(("class_embedding",), lambda width, depth: width**-0.5),
    Start(
        ("q_proj.weight", "k_proj.weight", "v_proj.weight", "linear2.weight"),
        lambda width, depth: width**-0.5 * (2 * depth) ** -0.5,
    ),
    Start(("out_proj.weight",), lambda width, depth: width**-0.5),
    Start(("linear1.weight",), lambda width, depth: (2 * width) ** -0.5),
)

TOWER = Tower(
    kind="clip_vision_model",
    joins_layers=True,
    encoder="paddlemix.models.vision.clip:ClipEncoder",
    defaults=CLIP_DEFAULTS,
    rows=CLIP_ROWS,
    layers="transformer.layers.",
    prefix="vision_model.",
    published_prefix="vision_model.",
    form="clip",
    signature=("vision_model.",),
    hf_prefix="vision_model.",
    hf_5_prefix="",
    ignored_tensors={
        r"text_model\..*": "CLIP's text tower takes no part",
        r"(text|visual)_projection\.weight|logit_scale": "CLIP's contrastive head takes no part",
    },
    whole_type="clip",
    gguf="clip",
    published={
        "openai/clip-vit-large-patch14-336": CLIP_LARGE_336,
        "openai/clip-vit-large-patch14": _CLIP_LARGE_224,
        # What MV-LLaVA and ShareGPT4V name: CLIP's towers, tuned.
        "Zery/MV-LLaVA-7B_Pretrained_vit-large224-l4": _CLIP_LARGE_224,
        "Lin-Chen/ShareGPT4V-7B_Pretrained_vit-large336-l12": CLIP_LARGE_336,
        "Lin-Chen/ShareGPT4V-13B_Pretrained_vit-large336-l12": CLIP_LARGE_336,
    },
    weight_sizes={
        "hidden_size": ("class_embedding", 0),
        "intermediate_size": ("transformer.layers.0.linear1.bias", 0),
        "patch_size": ("conv1.weight", -1),
        "positions": ("positional_embedding.weight", 0),
    },
    behind_layers=("ln_post.",),
    start=CLIP_START,
    mean=CLIP_MEAN,
    std=CLIP_STD,
)
