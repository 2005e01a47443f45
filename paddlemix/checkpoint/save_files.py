# SPDX-License-Identifier: Apache-2.0
"""The files of a model folder: weights in shards; config, processor, generation and settings as JSON."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from paddlemix.checkpoint.folders import CONFIG, GENERATION, MODEL_TYPE
from paddlemix.checkpoint.formats.safetensors import Stored, write_safetensors
from paddlemix.settings.model import ImageConfig, LlavaConfig

MAX_SHARD_BYTES = 5 * 10**9
PREPROCESSOR = "preprocessor_config.json"
TRAINING_SETTINGS = "training_settings.json"
"""The resolved settings of the run that made the weights, when there was one."""


class SavesItself(Protocol):
    """The part of a tokenizer that is needed here."""

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files into a folder."""


def write_side_files(
    folder: Path,
    config: LlavaConfig,
    tokenizer: SavesItself | None,
    generation: Mapping[str, Any] | None = None,
    training_settings: Mapping[str, Any] | None = None,
) -> None:
    """config.json, the tokenizer's files, preprocessor_config.json, generation_config.json and the settings."""
    write_config(folder, config)
    if tokenizer is not None:
        tokenizer.save(folder)
    write_json(folder / GENERATION, dict(generation or generation_data(config)))
    if training_settings is not None:
        write_json(folder / TRAINING_SETTINGS, dict(training_settings))


def write_config(folder: Path, config: LlavaConfig, more: Mapping[str, Any] | None = None) -> None:
    """``config.json`` (with the keys ``more``), and ``preprocessor_config.json`` for a model with a tower."""
    write_json(folder / CONFIG, {**config_data(config), **(more or {})})
    if config.image is not None:
        write_json(folder / PREPROCESSOR, processor_data(config.image))


def config_data(config: LlavaConfig) -> dict[str, Any]:
    """What stands in our ``config.json``."""
    return {"model_type": MODEL_TYPE, "architectures": ["LlavaForCausalLM"], **config.to_dict()}


def processor_data(image: ImageConfig) -> dict[str, Any]:
    """``preprocessor_config.json`` in the widespread form of CLIP's processor (SigLIP's), with LLaVA's own keys."""
    tile = {"height": image.crop_size, "width": image.crop_size}
    crop = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": image.resize_size},
        "do_center_crop": True,
        "crop_size": tile,
    }
    return {
        **({"image_processor_type": "SiglipImageProcessor", "size": tile} if image.stretch else crop),
        "do_resize": True,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(image.mean),
        "image_std": list(image.std),
        "do_convert_rgb": True,
        "image_aspect_ratio": image.aspect,
        "image_grid_pinpoints": [list(pair) for pair in image.grid_pinpoints],
    }


def generation_data(config: LlavaConfig) -> dict[str, Any]:
    """Greedy generation with the model's own special ids."""
    text = config.text
    ids = {"bos_token_id": text.bos_token_id, "eos_token_id": text.eos_token_id, "pad_token_id": text.pad_token_id}
    return {**{name: value for name, value in ids.items() if value is not None}, "do_sample": False}


def write_json(path: Path, data: Mapping[str, Any] | list[Any]) -> None:
    """Readable UTF-8 JSON."""
    path.write_text(json.dumps(data, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def write_weights(
    folder: Path,
    tensors: Iterable[Stored],
    max_shard_bytes: int = MAX_SHARD_BYTES,
    metadata: dict[str, str] | None = None,
) -> None:
    """``model.safetensors``, or shards with an index when there are more than ``max_shard_bytes``.

    ``metadata`` goes into the header of every file; transformers wants ``{"format": "pt"}`` there.
    """
    shards: list[list[Stored]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    if len(shards) == 1:
        write_safetensors(folder / "model.safetensors", shards[0], metadata)
        return
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file, shard, metadata)
        weight_map.update({tensor.name: file for tensor in shard})
    total = sum(tensor.nbytes for shard in shards for tensor in shard)
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})
