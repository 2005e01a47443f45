# SPDX-License-Identifier: Apache-2.0
"""SigLIP, the tower of LLaVA-NeXT-Interleave and LLaVA-OneVision: CLIP's layers and names without a class token."""

from paddlemix.settings.towers.base import Start, Tower
from paddlemix.settings.towers.clip import CLIP_ROWS

SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
}

TOWER = Tower(
    kind="siglip_vision_model",
    joins_layers=True,
    encoder="paddlemix.models.vision.siglip:SiglipEncoder",
    # Defaults of transformers' SiglipVisionConfig.
    defaults={
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    },
    rows=CLIP_ROWS,  # its names are CLIP's; the rows of class token and pre-norm match nothing
    layers="transformer.layers.",
    prefix="vision_model.",
    published_prefix="vision_model.",
    form="clip",
    signature=("vision_model.",),
    hf_prefix="vision_model.",
    hf_5_prefix="",
    ignored_tensors={
        r"(.*\.)?head\.(probe|(attention|layernorm|mlp)\..*)": "the pooling head of SigLIP takes no part",
        r"logit_bias": "SigLIP's contrastive head takes no part",
    },
    whole_type="siglip",
    activations=("gelu_pytorch_tanh", "gelu", "quick_gelu"),
    ignored={"vision_use_head": "the pooling head takes no part"},
    written={"vision_use_head": False},
    published={
        "google/siglip-so400m-patch14-384": {**SO400M, "image_size": 384},
        "google/siglip-so400m-patch14-224": {**SO400M, "image_size": 224},
        "google/siglip-base-patch16-224": {},
        "google/siglip-base-patch16-384": {"image_size": 384},
        "google/siglip-large-patch16-384": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 384,
        },
    },
    class_token=False,
    stretches=True,
    behind_layers=("ln_post.",),
    # As transformers draws a SiglipModel: the linear layers by their widths (Xavier), the rest by the width.
    start=(Start(("conv1.weight", "positional_embedding.weight"), lambda width, depth: width**-0.5),),
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)
