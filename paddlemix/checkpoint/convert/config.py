# SPDX-License-Identifier: Apache-2.0
"""``LlavaConfig`` -> the config.json of another layout: the way back of ``settings/published/config.py``."""

from dataclasses import asdict
from typing import Any

from paddlemix.checkpoint.save_files import processor_data
from paddlemix.settings.decoders.table import DECODERS
from paddlemix.settings.dense_connector import NO_CONNECTOR
from paddlemix.settings.model import ImageConfig, LlavaConfig, TextConfig, VisionConfig
from paddlemix.settings.towers.table import TOWERS
from paddlemix.utils.errors import CheckpointError

TOWER_FOLDER = "vision_tower"
"""Sub-folder for the tower of a model that does not know the tower's published name."""

_STRATEGIES = {"patch": "default", "cls_patch": "full"}


def text_data(text: TextConfig) -> dict[str, Any]:
    """The language model's keys, as its own config.json has them."""
    decoder, fields = DECODERS.get(text.model_type), asdict(text)
    foreign = set(fields) - {*decoder.defaults, "rope_scaling", "hidden_act"}
    data = {key: value for key, value in fields.items() if value is not None and key not in foreign}
    return {**data, **{key: None for key in decoder.written_null if not fields[key]}}


def original_data(config: LlavaConfig, *, tower: str | None, tower_inside: bool, dtype: str) -> dict[str, Any]:
    """LLaVA's own config.json. ``tower``: what ``mm_vision_tower`` is to name.

    ``unfreeze_mm_vision_tower`` makes LLaVA's loader take a tower inside the checkpoint; without it the weights are
    those of the named folder (model/llava_arch.py, clip_encoder.py).
    """
    decoder = DECODERS.get(config.text.model_type)
    if config.vision is None or config.image is None:
        return {
            "architectures": [decoder.hf_class],
            "model_type": config.text.model_type,
            **text_data(config.text),
            "torch_dtype": dtype,
            "tokenizer_model_max_length": config.model_max_length,
        }
    data = {
        "architectures": [decoder.original_class],
        "model_type": decoder.original_types[0],
        **text_data(config.text),
        "torch_dtype": dtype,
        "use_mm_proj": True,
        "mm_vision_tower": tower,
        "mm_hidden_size": config.vision.feature_width,
        "mm_projector_type": config.projector_type,
        "mm_vision_select_layer": config.vision.select_layer,
        "mm_vision_select_feature": config.vision.select_feature,
        "mm_use_im_start_end": config.use_im_start_end,
        "mm_use_im_patch_token": config.use_im_patch_token,
        "image_aspect_ratio": _aspect(config.image),
        "mm_patch_merge_type": config.image.merge,
        "tokenizer_padding_side": config.padding_side,
        "tokenizer_model_max_length": config.model_max_length,
        "unfreeze_mm_vision_tower": tower_inside,
        "use_cache": True,
    }
    if config.vision.dense_connector != NO_CONNECTOR:
        data["mm_dense_connector_type"] = config.vision.dense_connector
    if config.image.grid_pinpoints:
        data["image_grid_pinpoints"] = [list(pair) for pair in config.image.grid_pinpoints]
    return data


def _aspect(image: ImageConfig) -> str:
    return image.aspect if image.max_tiles is None else f"{image.aspect}_max_{image.max_tiles}"


def tower_data(vision: VisionConfig) -> dict[str, Any]:
    """The config.json of a vision tower."""
    tower = TOWERS.get(vision.model_type)
    if not tower.writable or set(vision.extra) - set(tower.extra):
        raise CheckpointError(f'a vision tower of the kind "{vision.model_type}" has no form in other layouts')
    fields = {name: value for name, value in asdict(vision).items() if name in tower.defaults}
    return {**fields, "model_type": tower.type_in_file, **tower.written, **vision.extra}


def hf_data(
    config: LlavaConfig, *, vocabulary: int, image_id: int, pad_id: int | None, dtype: str, video_id: int | None = None
) -> dict[str, Any]:
    """The config.json of llava-hf. CheckpointError for what transformers' LLaVA classes cannot express."""
    vision, image = require_hf(config)
    anyres = image.aspect == "anyres"
    family, kind = hf_family(image)
    data = {
        "architectures": [f"{family}ForConditionalGeneration"],
        "model_type": kind,
        "torch_dtype": dtype,
        "text_config": {
            "architectures": [DECODERS.get(config.text.model_type).hf_class],
            "model_type": config.text.model_type,
            **text_data(config.text),
            "vocab_size": vocabulary,
            "torch_dtype": dtype,
        },
        "vision_config": tower_data(vision),
        "vision_feature_layer": vision.select_layer,
        "vision_feature_select_strategy": _strategy(vision),
        "image_token_index": image_id,
        "image_seq_length": vision.tokens_per_tile,  # transformers counts the rows, optimum-intel believes this
        "pad_token_id": pad_id,
        "projector_hidden_act": "gelu",
        "ignore_index": -100,
        "vocab_size": vocabulary,
        "tie_word_embeddings": config.text.tie_word_embeddings,
    }
    if anyres:
        # transformers reads each pair as (height, width); ours are (width, height) as in the original.
        data["image_grid_pinpoints"] = [[height, width] for width, height in image.grid_pinpoints]
        data["use_image_newline_parameter"] = True
    if image.max_tiles is not None:
        data["vision_aspect_ratio"] = _aspect(image)
        if video_id is not None:
            data["video_token_index"] = video_id
    return data


def hf_family(image: ImageConfig) -> tuple[str, str]:
    """Beginning of the names of transformers' classes, and ``model_type``, for models with these image settings."""
    if image.aspect != "anyres":
        return "Llava", "llava"
    return ("LlavaNext", "llava_next") if image.max_tiles is None else ("LlavaOnevision", "llava_onevision")


def knows_videos(config: LlavaConfig) -> bool:
    """Whether transformers' class for the model takes videos: LLaVA-OneVision's."""
    return config.image is not None and config.image.max_tiles is not None


def require_hf(config: LlavaConfig) -> tuple[VisionConfig, ImageConfig]:
    """The tower and the image settings of a model that llava-hf can hold; CheckpointError for any other."""
    vision, image = config.vision, config.image
    if vision is None or image is None:
        raise CheckpointError("llava-hf has no form for a language model without a vision tower")
    if TOWERS.get(vision.model_type).hf_prefix is None:
        raise CheckpointError(f'llava-hf has no form for a vision tower of the kind "{vision.model_type}"')
    if vision.dense_connector != NO_CONNECTOR:
        raise CheckpointError(f'llava-hf has no form for mm_dense_connector_type "{vision.dense_connector}"')
    if config.projector_type != "mlp2x_gelu":
        raise CheckpointError(f'llava-hf has no form for the projector "{config.projector_type}", only for mlp2x_gelu')
    wanted = "spatial_unpad" if image.aspect == "anyres" else "flat"
    fits = image.aspect in ("anyres", "pad", "square") and image.merge == wanted
    if not fits or config.has_image_newline != (image.aspect == "anyres"):
        raise CheckpointError(
            f'llava-hf has no form for image_aspect_ratio "{_aspect(image)}" with mm_patch_merge_type "{image.merge}"'
        )
    return vision, image


def _strategy(vision: VisionConfig) -> str:
    """llava-hf's ``default`` leaves out row 0, which is a patch in a tower without a class token."""
    return _STRATEGIES[vision.select_feature] if vision.class_tokens else "full"


def hf_processor(config: LlavaConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """``preprocessor_config.json`` and ``processor_config.json`` of llava-hf."""
    vision, image = require_hf(config)
    data = processor_data(image)
    left_out = ("image_aspect_ratio", "image_grid_pinpoints")
    pixels = {key: value for key, value in data.items() if key not in left_out}
    anyres = image.aspect == "anyres"
    family, _ = hf_family(image)
    name = f"{family}Processor"
    pixels["processor_class"] = name
    if anyres:
        pairs = [[height, width] for width, height in image.grid_pinpoints]
        pixels |= {"image_processor_type": f"{family}ImageProcessor", "image_grid_pinpoints": pairs, "do_pad": True}
    elif image.aspect == "pad":
        # Published llava-hf folders say CLIPImageProcessor, which crops instead of padding: other pixels.
        pixels |= {"image_processor_type": "LlavaImageProcessor", "do_pad": True}
    processor = {
        "processor_class": name,
        "image_token": "<image>",
        "num_additional_image_tokens": vision.class_tokens,
        "patch_size": vision.patch_size,
        "vision_feature_select_strategy": _strategy(vision),
    }
    if image.max_tiles is not None:
        del processor["num_additional_image_tokens"], processor["patch_size"]
        processor |= {"num_image_tokens": vision.tokens_per_tile, "vision_aspect_ratio": _aspect(image)}
        processor |= {"video_token": "<video>"}
    return pixels, processor
