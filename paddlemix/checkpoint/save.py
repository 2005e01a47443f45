# SPDX-License-Identifier: Apache-2.0
"""Our own folder form: weights in our layout, config, tokenizer, processor and template; complete and atomic."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn

from paddlemix.checkpoint import keymap
from paddlemix.checkpoint.formats.safetensors import Stored
from paddlemix.checkpoint.save_files import (
    MAX_SHARD_BYTES,
    SavesItself,
    write_json,
    write_side_files,
    write_weights,
)
from paddlemix.ops.parallel import whole_shape
from paddlemix.settings.model import LlavaConfig
from paddlemix.utils.errors import CheckpointError
from paddlemix.utils.files import publish_folder

ReadValues = Callable[[Tensor], np.ndarray]
"""Gives the whole values of a parameter, of which this device may hold a slice only."""


def plain_values(parameter: Tensor) -> np.ndarray:
    """The values (any shape, its dtype) of a parameter that lies on this device as a whole."""
    with paddle.no_grad():
        return np.asarray(parameter.numpy())


def save_model(
    folder: str | Path,
    model: nn.Layer,
    config: LlavaConfig,
    tokenizer: SavesItself | None,
    *,
    generation: Mapping[str, Any] | None = None,
    training_settings: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    replace: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    read: ReadValues = plain_values,
) -> Path:
    """Publish ``folder`` with everything that chat and training need, the vision tower included.

    ``read`` fetches the values of each parameter when its turn comes. ``extra`` maps further file names to JSON data.
    ``tokenizer=None`` leaves the tokenizer out (tests). CheckpointError when the folder holds something already (unless
    ``replace``), or when the model carries unmerged adapters.
    """
    folder = Path(folder)
    tensors = model_tensors(model, read)
    with publish_folder(folder, replace=replace) as staging:
        write_weights(staging, tensors, max_shard_bytes)
        write_side_files(staging, config, tokenizer, generation, training_settings)
        for name, data in (extra or {}).items():
            write_json(staging / name, data)
    return folder


def model_tensors(model: nn.Layer, read: ReadValues = plain_values) -> list[Stored]:
    """Every parameter under the name it is saved by. CheckpointError for a name our form does not have."""
    bits = getattr(model, "bits", None)
    if bits is not None:
        raise CheckpointError(
            f"the model holds weights of {bits} bits, which are not saved; load the folder of floats that they were "
            "made of"
        )
    tensors = []
    for name, parameter in model.named_parameters():
        if keymap.theirs(name, "paddlemix") is None:
            hint = (
                "merge the adapter first, or save it with save_adapter"
                if ".lora_" in name
                else "only plain layers are saved, not the fused ones of inference"
            )
            raise CheckpointError(f'the model cannot be saved with the parameter "{name}": {hint}')
        tensors.append(stored(name, parameter, read))
    return tensors


def stored(name: str, parameter: Tensor, read: ReadValues = plain_values) -> Stored:
    """A parameter (any shape and float dtype) to be written when its turn comes."""
    return Stored(name, dtype_name(parameter), whole_shape(parameter), lambda: read(parameter))


def dtype_name(tensor: Tensor) -> str:
    """``float32`` for a tensor (any shape) of ``paddle.float32``."""
    return str(tensor.dtype).rpartition(".")[2]
