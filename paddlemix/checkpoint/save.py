# SPDX-License-Identifier: Apache-2.0
"""Our own folder form: weights in our layout, config, tokenizer, processor and template; complete and atomic."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import paddle

from paddlemix.checkpoint import keymap
from paddlemix.checkpoint.folders import CONFIG, MODEL_TYPE
from paddlemix.checkpoint.formats_safetensors import Stored, write_safetensors
from paddlemix.settings.model import ImageConfig, LlavaConfig
from paddlemix.utils.errors import CheckpointError
from paddlemix.utils.files import publish_folder

MAX_SHARD_BYTES = 5 * 10**9

TRAINING_SETTINGS = "training_settings.json"
"""The resolved settings of the run that made the weights, when there was one."""


class SavesItself(Protocol):
    """The part of a tokenizer that is needed here."""

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files into a folder."""


def save_model(
    folder: str | Path,
    model: Any,
    config: LlavaConfig,
    tokenizer: SavesItself | None,
    *,
    generation: Mapping[str, Any] | None = None,
    training_settings: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    replace: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Publish ``folder`` with everything that chat and training need, the vision tower included.

    ``extra`` maps further file names to JSON data. ``tokenizer=None`` leaves the tokenizer out (tests). CheckpointError
    when the folder holds something already (unless ``replace``), or when the model carries unmerged adapters.
    """
    folder = Path(folder)
    tensors = model_tensors(model)
    with publish_folder(folder, replace=replace) as staging:
        write_weights(staging, tensors, max_shard_bytes)
        write_side_files(staging, config, tokenizer, generation, training_settings)
        for name, data in (extra or {}).items():
            write_json(staging / name, data)
    return folder


def model_tensors(model: Any) -> list[Stored]:
    """Every parameter under the name it is saved by. CheckpointError for a name our form does not have."""
    tensors = []
    for name, parameter in model.named_parameters():
        if keymap.theirs(name, "paddlemix") is None:
            hint = (
                "merge the adapter first, or save it with save_adapter"
                if ".lora_" in name
                else "only plain layers are saved, not the fused ones of inference"
            )
            raise CheckpointError(f'the model cannot be saved with the parameter "{name}": {hint}')
        tensors.append(stored(name, parameter))
    return tensors


def stored(name: str, parameter: Any) -> Stored:
    """A parameter to be written when its turn comes."""
    return Stored(name, dtype_name(parameter), tuple(parameter.shape), _reader(parameter))


def _reader(parameter: Any) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        with paddle.no_grad():
            return np.asarray(parameter.numpy())

    return read


def dtype_name(tensor: Any) -> str:
    """``float32`` for a tensor of ``paddle.float32``."""
    return str(tensor.dtype).rpartition(".")[2]


def write_weights(folder: Path, tensors: Iterable[Stored], max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """``model.safetensors``, or shards with an index when there are more than ``max_shard_bytes``."""
    shards: list[list[Stored]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    if len(shards) == 1:
        write_safetensors(folder / "model.safetensors", shards[0])
        return
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file, shard)
        weight_map.update({tensor.name: file for tensor in shard})
    total = sum(tensor.nbytes for shard in shards for tensor in shard)
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_side_files(
    folder: Path,
    config: LlavaConfig,
    tokenizer: SavesItself | None,
    generation: Mapping[str, Any] | None = None,
    training_settings: Mapping[str, Any] | None = None,
) -> None:
    """config.json, the tokenizer's files, preprocessor_config.json, generation_config.json and the settings."""
    write_json(folder / CONFIG, config_data(config))
    if tokenizer is not None:
        tokenizer.save(folder)
    if config.image is not None:
        write_json(folder / "preprocessor_config.json", processor_data(config.image))
    write_json(folder / "generation_config.json", dict(generation or generation_data(config)))
    if training_settings is not None:
        write_json(folder / TRAINING_SETTINGS, dict(training_settings))


def config_data(config: LlavaConfig) -> dict[str, Any]:
    """What stands in our ``config.json``."""
    return {"model_type": MODEL_TYPE, "architectures": ["LlavaForCausalLM"], **config.to_dict()}


def processor_data(image: ImageConfig) -> dict[str, Any]:
    """``preprocessor_config.json`` in the widespread form of CLIP's processor, with LLaVA's own keys."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": image.resize_size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": image.crop_size, "width": image.crop_size},
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


def write_json(path: Path, data: Any) -> None:
    """Readable UTF-8 JSON."""
    path.write_text(json.dumps(data, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
