# SPDX-License-Identifier: Apache-2.0
"""What published models of the family say in their config.json: the keys and values that were noted, by hand.

``PUBLISHED`` has for each name the object and the facts that have to come out of it. What only differs in paths,
versions and the names of whoever trained it is left out or kept short.
"""

from typing import Any

Config = dict[str, Any]


def _llama(hidden: int = 4096, inner: int = 11008, layers: int = 32, heads: int = 32, **more: Any) -> Config:
    return {
        "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": hidden,
        "initializer_range": 0.02, "intermediate_size": inner, "max_position_embeddings": 4096,
        "num_attention_heads": heads, "num_hidden_layers": layers, "num_key_value_heads": heads,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "tie_word_embeddings": False,
        "transformers_version": "4.31.0", "use_cache": True, "vocab_size": 32000, **more,
    }  # fmt: skip


L7, L13 = _llama(), _llama(5120, 13824, 40, 40)
MISTRAL = _llama(inner=14336, num_key_value_heads=8, max_position_embeddings=32768, rope_theta=1000000.0,
                 sliding_window=None, attention_dropout=0.0, transformers_version="4.36.2")  # fmt: skip
YI_34B = _llama(7168, 20480, 60, 56, num_key_value_heads=8, rope_theta=5000000.0, vocab_size=64000,
                eos_token_id=7, pad_token_id=0, attention_bias=False, attention_dropout=0.0)  # fmt: skip
LLAMA_3 = _llama(inner=14336, num_key_value_heads=8, rope_theta=500000.0, vocab_size=128256, bos_token_id=128000,
                 eos_token_id=128001, max_position_embeddings=8192, attention_bias=False, attention_dropout=0.0,
                 transformers_version="4.40.0")  # fmt: skip
NEXT_GRID = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]

_MM = {
    "mm_hidden_size": 1024, "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False, "mm_projector_type": "mlp2x_gelu", "use_mm_proj": True,
}  # fmt: skip
_STAGE_2 = {
    "freeze_mm_mlp_adapter": False, "freeze_mm_vision_resampler": False, "tune_mm_mlp_adapter": False,
    "tune_mm_vision_resampler": False, "unfreeze_mm_vision_tower": False, "mm_resampler_type": None,
}  # fmt: skip


def _original(text: Config, **more: Any) -> Config:
    return {
        **text, **_MM, **_STAGE_2, "_name_or_path": "./checkpoints/somewhere", "model_type": "llava",
        "architectures": ["LlavaLlamaForCausalLM"], "image_aspect_ratio": "pad", "torch_dtype": "float16",
        "pad_token_id": 0, **more,
    }  # fmt: skip


def _next(text: Config, grid: list[list[int]] = NEXT_GRID, **more: Any) -> Config:
    more = {
        "image_aspect_ratio": "anyres", "image_crop_resolution": 224, "image_split_resolution": 224,
        "image_grid_pinpoints": grid, "mm_patch_merge_type": "spatial_unpad", "mm_vision_tower_lr": 2e-06,
        "unfreeze_mm_vision_tower": True, "mm_projector_lr": None, "tokenizer_model_max_length": 4096,
        "tokenizer_padding_side": "right", "torch_dtype": "bfloat16", **more,
    }  # fmt: skip
    return _original(text, **more)


_HF_VISION = {
    "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model",
    "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768, "vocab_size": 32000,
}  # fmt: skip


def _hf(text: Config, **more: Any) -> Config:
    return {
        "architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100, "image_token_index": 32000,
        "model_type": "llava", "pad_token_id": 32001, "projector_hidden_act": "gelu",
        "text_config": {"model_type": "llama", "torch_dtype": "float16", **text}, "tie_word_embeddings": False,
        "torch_dtype": "float16", "transformers_version": "4.36.0.dev0", "vision_config": _HF_VISION,
        "vision_feature_layer": -2, "vision_feature_select_strategy": "default", "vocab_size": 32064, **more,
    }  # fmt: skip


def _hf_next(text: Config, **more: Any) -> Config:
    return _hf(
        text, architectures=["LlavaNextForConditionalGeneration"], model_type="llava_next",
        image_grid_pinpoints=NEXT_GRID, use_image_newline_parameter=True, **more,
    )  # fmt: skip


_VICUNA_HF = {"_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"],
              "max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "vocab_size": 32064}  # fmt: skip
_VICUNA_13B_HF = {**_VICUNA_HF, "hidden_size": 5120, "intermediate_size": 13824, "num_attention_heads": 40,
                  "num_hidden_layers": 40, "num_key_value_heads": 40}  # fmt: skip
_MISTRAL_HF = {"_name_or_path": "mistralai/Mistral-7B-Instruct-v0.2", "architectures": ["MistralForCausalLM"],
               "model_type": "mistral", "intermediate_size": 14336, "max_position_embeddings": 32768,
               "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": None,
               "vocab_size": 32064}  # fmt: skip
_YI_HF = {"_name_or_path": "NousResearch/Nous-Hermes-2-Yi-34B", "architectures": ["LlamaForCausalLM"],
          "eos_token_id": 7, "hidden_size": 7168, "intermediate_size": 20480, "max_position_embeddings": 4096,
          "num_attention_heads": 56, "num_hidden_layers": 60, "num_key_value_heads": 8, "pad_token_id": 0,
          "rms_norm_eps": 1e-05, "rope_theta": 5000000.0, "vocab_size": 64064, "use_cache": False}  # fmt: skip
_LLAMA_3_HF = {"_name_or_path": "meta-llama/Meta-Llama-3-8B-Instruct", "architectures": ["LlamaForCausalLM"],
               "bos_token_id": 128000, "eos_token_id": 128001, "intermediate_size": 14336,
               "max_position_embeddings": 8192, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
               "rope_theta": 500000.0, "vocab_size": 128320}  # fmt: skip


def _qwen(hidden: int, inner: int, layers: int, heads: int, kv: int, **more: Any) -> Config:
    return {
        "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645, "hidden_act": "silu",
        "hidden_size": hidden, "initializer_range": 0.02, "intermediate_size": inner, "max_position_embeddings": 32768,
        "max_window_layers": layers, "num_attention_heads": heads, "num_hidden_layers": layers,
        "num_key_value_heads": kv, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768,
        "tie_word_embeddings": False, "use_cache": True, "use_sliding_window": False, "vocab_size": 152064, **more,
    }  # fmt: skip


_QWEN_05 = _qwen(896, 4864, 24, 14, 2, tie_word_embeddings=True, vocab_size=151936)
_QWEN_7 = _qwen(3584, 18944, 28, 28, 4, sliding_window=131072)
_QWEN_1_5_7 = _qwen(4096, 11008, 32, 32, 32, vocab_size=151936)
_QWEN_1_5_110 = _qwen(8192, 49152, 80, 64, 8)
_OV_GRID = [[384 * w, 384 * h] for w in range(1, 7) for h in range(1, 7)]


def _lmms(text: Config, **more: Any) -> Config:
    """What LLaVA-NeXT's training wrote since May 2024."""
    mine = {
        "architectures": ["LlavaQwenForCausalLM"], "image_crop_resolution": None, "image_split_resolution": None,
        "image_token_index": 151646, "mm_spatial_pool_mode": "bilinear", "mm_spatial_pool_stride": None,
        "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model", "pos_skipping_range": 4096,
        "use_pos_skipping": False, "vision_tower_pretrained": None, "mm_hidden_size": 1152, "image_grid_pinpoints":
        _OV_GRID, "image_aspect_ratio": "anyres_max_9", "mm_vision_tower": "google/siglip-so400m-patch14-384",
        "tokenizer_model_max_length": 32768, "transformers_version": "4.40.0.dev0", "pad_token_id": None,
        "mm_resampler_type": None, "mm_vision_tower_lr": 2e-06, "rope_scaling": None,
    }  # fmt: skip
    return _next(text, **{**mine, **more})


_SIGLIP_HF = {"hidden_size": 1152, "image_size": 384, "intermediate_size": 4304, "model_type": "siglip_vision_model",
              "num_attention_heads": 16, "num_hidden_layers": 26, "patch_size": 14,
              "vision_use_head": False}  # fmt: skip
_QWEN_HF = {"model_type": "qwen2", "torch_dtype": "bfloat16"}
_OV_HF = {
    "architectures": ["LlavaOnevisionForConditionalGeneration"], "model_type": "llava_onevision",
    "image_grid_pinpoints": _OV_GRID, "image_token_index": 151646, "video_token_index": 151647,
    "projector_hidden_act": "gelu", "torch_dtype": "float16", "transformers_version": "4.45.0.dev0",
    "use_image_newline_parameter": True, "vision_aspect_ratio": "anyres_max_9", "vision_config": _SIGLIP_HF,
    "vision_feature_layer": -1, "vision_feature_select_strategy": "full", "tie_word_embeddings": False,
}  # fmt: skip
_INTERLEAVE_HF = {
    "vision_config": _SIGLIP_HF, "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
    "image_token_index": 151646, "pad_token_id": 151643, "vocab_size": 152000,
}  # fmt: skip
OV = "qwen2 mlp2x_gelu anyres_max_9 spatial_unpad qwen_1_5 384"

# What the training code of HJYao00/DenseConnector writes; the files themselves were not at hand.
_DENSE = {
    "mm_dense_connector_type": "dci", "mm_hidden_size": 3 * 1152, "mm_vision_tower": "google/siglip-so400m-patch14-384",
    "model_type": "llava_llama", "mm_patch_merge_type": "flat", "mm_projector_lr": None,
    "tokenizer_padding_side": "right", "tokenizer_model_max_length": 2048, "torch_dtype": "bfloat16",
}  # fmt: skip
_SHARE = {"model_type": "share4v", "architectures": ["Share4VLlamaForCausalLM"]}
_INTERN = {
    "mm_hidden_size": 3200, "mm_vision_tower": "OpenGVLab/InternViT-6B-224px", "mm_vision_select_layer": -4,
    "freeze_backbone": False, "tokenizer_model_max_length": 2048,
}  # fmt: skip

ROUND = "llama mlp2x_gelu pad flat vicuna_v1 336 -2"
"""Facts in one line: decoder, projector, aspect, merge, template, side of a tile, layer of the tower."""
NEXT = "llama mlp2x_gelu anyres spatial_unpad vicuna_v1 336 -2"

PUBLISHED: dict[str, tuple[Config, str]] = {
    "liuhaotian/llava-v1.5-7b": (_original(L7), ROUND),
    "liuhaotian/llava-v1.5-13b": (_original(L13), ROUND),
    "liuhaotian/llava-v1.5-7b-lora": (
        _original(L7, model_type="llava_llama", image_grid_pinpoints=None, mm_projector_lr=2e-05), ROUND),
    "liuhaotian/llava-v1.5-13b-lora": (
        _original(L13, model_type="llava_llama", image_grid_pinpoints=None, mm_projector_lr=2e-05), ROUND),
    "liuhaotian/llava-v1.5-mlp2x-336px-pretrain-vicuna-7b-v1.5": (
        _original(L7, tune_mm_mlp_adapter=True, pretrain_mm_mlp_adapter=None, image_aspect_ratio="square"),
        ROUND.replace("pad", "square")),
    "liuhaotian/llava-llama-2-13b-chat-lightning-preview": (
        _original(L13, mm_vision_tower="openai/clip-vit-large-patch14", mm_projector_type="linear",
                  image_aspect_ratio="square", sep_image_conv_front=False, mm_use_im_patch_token=False),
        "llama linear square flat vicuna_v1 224 -2"),
    "liuhaotian/llava-v1-0719-336px-lora-vicuna-13b-v1.3": (
        _original(_llama(5120, 13824, 40, 40, max_position_embeddings=2048, rms_norm_eps=1e-06),
                  mm_projector_type="linear", image_aspect_ratio="square"),
        "llama linear square flat vicuna_v1 336 -2"),
    "liuhaotian/llava-v1.6-vicuna-7b": (_next(L7), NEXT),
    "liuhaotian/llava-v1.6-vicuna-13b": (_next(L13), NEXT),
    "liuhaotian/llava-v1.6-mistral-7b": (
        _next(MISTRAL, model_type="llava_mistral", architectures=["LlavaMistralForCausalLM"]),
        "mistral mlp2x_gelu anyres spatial_unpad mistral_instruct 336 -2"),
    "liuhaotian/llava-v1.6-34b": (
        _next(YI_34B, model_type="llava_llama"), "llama mlp2x_gelu anyres spatial_unpad chatml_direct 336 -2"),
    "llava-hf/llava-1.5-7b-hf": (_hf(_VICUNA_HF), ROUND.replace("pad", "square")),
    "llava-hf/llava-1.5-13b-hf": (_hf(_VICUNA_13B_HF), ROUND.replace("pad", "square")),
    "llava-hf/llava-1.5-7b-hf (2025)": (
        _hf(_VICUNA_HF, image_seq_length=576, multimodal_projector_bias=True, _attn_implementation_autoset=True,
            image_token_id=32000, vision_config={**_HF_VISION, "num_channels": 3}),
        ROUND.replace("pad", "square")),
    "llava-hf/bakLlava-v1-hf": (
        _hf({**_MISTRAL_HF, "rope_theta": 10000.0, "max_position_embeddings": 32768, "sliding_window": 4096}),
        "mistral mlp2x_gelu square flat vicuna_v1 336 -2"),
    "llava-hf/llava-v1.6-mistral-7b-hf": (
        _hf_next(_MISTRAL_HF), "mistral mlp2x_gelu anyres spatial_unpad mistral_instruct 336 -2"),
    "llava-hf/llava-v1.6-vicuna-7b-hf": (_hf_next(_VICUNA_HF), NEXT),
    "llava-hf/llava-v1.6-vicuna-13b-hf": (_hf_next(_VICUNA_13B_HF), NEXT),
    "llava-hf/llava-v1.6-34b-hf": (
        _hf_next(_YI_HF, image_token_index=64000, pad_token_id=64001),
        "llama mlp2x_gelu anyres spatial_unpad chatml_direct 336 -2"),
    "llava-hf/llama3-llava-next-8b-hf": (
        _hf_next(_LLAMA_3_HF, image_token_index=128256, pad_token_id=128257),
        "llama mlp2x_gelu anyres spatial_unpad llava_llama_3 336 -2"),
    "xtuner/llava-llama-3-8b-v1_1-transformers": (
        _hf(_LLAMA_3_HF, image_token_index=128257, pad_token_id=128258),
        "llama mlp2x_gelu square flat llama_3 336 -2"),
    "xtuner/llava-llama-3-8b-v1_1-hf": (
        _original(LLAMA_3, image_grid_pinpoints=None, mm_projector_lr=None, mm_patch_merge_type="flat",
                  tokenizer_model_max_length=4096, mm_vision_tower="openai/clip-vit-large-patch14-336"),
        "llama mlp2x_gelu pad flat llava_llama_3 336 -2"),
    "lmms-lab/llama3-llava-next-8b": (
        _next(LLAMA_3, model_type="llava_llama", image_crop_resolution=None, image_split_resolution=None,
              mm_spatial_pool_mode=None, mm_spatial_pool_stride=None, mm_tunable_parts="mm_vision_tower,mm_mlp_adapter,"
              "mm_language_model", mm_vision_tower_lr=2e-06, pos_skipping_range=4096, use_pos_skipping=False,
              tokenizer_model_max_length=8192, delay_load=True, vision_tower_pretrained=None),
        "llama mlp2x_gelu anyres spatial_unpad llava_llama_3 336 -2"),
    "Lin-Chen/ShareGPT4V-7B": (
        _original(L7, **_SHARE, mm_vision_tower="Lin-Chen/ShareGPT4V-7B_Pretrained_vit-large336-l12",
                  tune_entire_model=True, tune_vision_tower=True, tune_vit_from_layer=12, tune_vit_pos_embedding=False,
                  torch_dtype="bfloat16"),
        ROUND),
    "Lin-Chen/ShareGPT4V-13B": (
        _original(L13, **_SHARE, mm_vision_tower="Lin-Chen/ShareGPT4V-13B_Pretrained_vit-large336-l12",
                  tune_entire_model=True, tune_vision_tower=True, tune_vit_from_layer=12, tune_vit_pos_embedding=False),
        ROUND),
    "Zery/MV-LLaVA-7B": (
        _original(L7, **_SHARE, mm_vision_tower="Zery/MV-LLaVA-7B_Pretrained_vit-large224-l4",
                  tune_entire_model=True, tune_vit_from_layer=4),
        ROUND.replace("336", "224")),
    "lmms-lab/llava-onevision-qwen2-0.5b-ov": (_lmms(_QWEN_05), f"{OV} -2"),
    "lmms-lab/llava-onevision-qwen2-7b-ov": (_lmms(_QWEN_7), f"{OV} -2"),
    "lmms-lab/llava-onevision-qwen2-7b-si": (_lmms(_QWEN_7, mm_spatial_pool_mode=None), f"{OV} -2"),
    "lmms-lab/llava-critic-7b": (_lmms(_QWEN_7, model_type="llava_qwen"), f"{OV} -2"),
    "lmms-lab/llava-next-interleave-qwen-7b": (
        _lmms(_QWEN_1_5_7, image_aspect_ratio="pad", mm_patch_merge_type="flat", image_grid_pinpoints=None,
              mm_spatial_pool_mode=None, mm_projector_lr=1e-05),
        "qwen2 mlp2x_gelu pad flat qwen_1_5 384 -2"),
    "lmms-lab/llava-next-110b": (
        _lmms(_QWEN_1_5_110, model_type="llava_qwen", image_aspect_ratio="anyres", image_grid_pinpoints=NEXT_GRID,
              mm_hidden_size=1024, mm_vision_tower="openai/clip-vit-large-patch14-336"),
        "qwen2 mlp2x_gelu anyres spatial_unpad qwen_1_5 336 -2"),
    "llava-hf/llava-interleave-qwen-0.5b-hf": (
        _hf({**_QWEN_HF, "hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16,
             "num_hidden_layers": 24, "num_key_value_heads": 16, "max_window_layers": 21, "vocab_size": 152000,
             "tie_word_embeddings": True, "rope_theta": 1000000.0}, **_INTERLEAVE_HF),
        "qwen2 mlp2x_gelu square flat qwen_1_5 384 -1"),
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": (
        {**_OV_HF, "text_config": {**_QWEN_05, **_QWEN_HF, "vocab_size": 152000}}, f"{OV} -1"),
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": (
        {**_OV_HF, "text_config": {**_QWEN_7, **_QWEN_HF, "vocab_size": 152128}}, f"{OV} -1"),
    "HuanjinYao/DenseConnector-v1.5-7B": (
        _original(L7, **_DENSE), "llama mlp2x_gelu pad flat vicuna_v1 384 -2"),
    "HuanjinYao/DenseConnector-v1.5-8B": (
        _original(LLAMA_3, **_DENSE), "llama mlp2x_gelu pad flat llava_llama_3 384 -2"),
    "OpenGVLab/InternVL-Chat-ViT-6B-Vicuna-7B": (
        _original(L7, **_INTERN, mm_projector_type="mlp2x_gelu"), ROUND.replace("-2", "-4")),
    "OpenGVLab/InternVL-Chat-ViT-6B-Vicuna-13B": (
        _original(L13, **_INTERN, mm_projector_type="mlp2x_gelu"), ROUND.replace("-2", "-4")),
}  # fmt: skip
