# SPDX-License-Identifier: Apache-2.0
"""InternViT-6B, the tower of InternVL-Chat. Its tensors keep InternViT's own names."""

from paddlemix.settings.key_rows import same
from paddlemix.settings.towers.base import IMAGENET_MEAN, IMAGENET_STD, Refused, Start, Tower

_ROWS = (
    *same(
        (
            "embeddings.{class_embedding|position_embedding}",
            "embeddings.patch_embedding.{weight|bias}",
            "encoder.layers.{n}.{ls1|ls2}",
            "encoder.layers.{n}.{norm1|norm2}.weight",
            "encoder.layers.{n}.attn.{q_norm|k_norm}.weight",
            "encoder.layers.{n}.attn.{qkv|proj}.bias",
            "encoder.layers.{n}.mlp.{fc1|fc2}.bias",
        )
    ),
    *same(("encoder.layers.{n}.attn.{qkv|proj}.weight", "encoder.layers.{n}.mlp.{fc1|fc2}.weight"), transpose=True),
)

_14B = Refused(
    why=(
        "InternVL-14B (queries that look at the image through a language model of their own) is not supported; "
        "the InternViT-6B towers and their chat models are"
    ),
    type_prefix="internvl",
    key="qllama_config",
    projectors=("two_mlp",),
    names=("InternVL-14B-224px", "InternVL-14B-FT-224px"),
)

TOWER = Tower(
    kind="intern_vit_6b",
    encoder="paddlemix.models.vision.intern_vit:InternVitEncoder",
    # Defaults of InternVisionConfig.
    defaults={
        "hidden_size": 3200,
        "intermediate_size": 12800,
        "num_hidden_layers": 48,
        "num_attention_heads": 25,
        "image_size": 224,
        "patch_size": 14,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    },
    rows=_ROWS,
    layers="encoder.layers.",
    form="intern_vit",
    signature=("embeddings.", "encoder.layers."),
    extra={"qkv_bias": False, "qk_normalization": True},
    activations=("gelu", "quick_gelu"),
    expected={
        "norm_type": ("rms_norm", "only RMS norms are supported (the small InternViT models have others)"),
    },
    ignored={
        "use_flash_attn": "chooses a kernel or a parallel layout of another program; the numbers are the same",
        "drop_path_rate": "layers are dropped while the tower trains in its own code only; here all of them act",
    },
    has_code=True,
    refused=(_14B,),
    published={
        "OpenGVLab/InternViT-6B-224px": {},
        "OpenGVLab/InternViT-6B-448px": {"image_size": 448},
        "OpenGVLab/InternViT-6B-448px-V1-0": {"image_size": 448},
        "OpenGVLab/InternViT-6B-448px-V1-2": {"image_size": 448, "num_hidden_layers": 45},
        "OpenGVLab/InternViT-6B-448px-V1-5": {"image_size": 448, "num_hidden_layers": 45},
    },
    known_by_last_part=True,  # chat models call them pretrained/... or OpenGVLab/...
    position_table="embeddings.position_embedding",
    # The original gives 336 to every tower without "448" in its name; published are 224 and 448 only.
    tile_sides={224: 336},
    start=(Start(("class_embedding",), lambda width, depth: width**-0.5),),
    start_constants={".ls1": 0.1, ".ls2": 0.1},  # initializer_factor
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    # InternVL-Chat does not read the file: it says 224 for the tower that is used at 336.
    reads_preprocessor=False,
    # Published chat models hold an older table of positions (577 rows, resized once), which their code ignores.
    folder_wins=True,
    writable=False,
)
