# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters on a model in memory: attaching a saved one, and saving a complete adapter folder."""

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn

from paddlemix.checkpoint import keymap
from paddlemix.checkpoint.folders import ADAPTER_CONFIG, ADAPTER_WEIGHTS, kind_of, resolve
from paddlemix.checkpoint.formats.base import to_float32
from paddlemix.checkpoint.formats.safetensors import write_safetensors
from paddlemix.checkpoint.formats.source import TensorSource, open_folder
from paddlemix.checkpoint.lora.base import fingerprint
from paddlemix.checkpoint.lora.read import Adapter, check_targets, read_adapter
from paddlemix.checkpoint.save import ReadValues, plain_values, stored
from paddlemix.checkpoint.save_files import SavesItself, write_json, write_side_files
from paddlemix.models.llava import allocate
from paddlemix.ops.linear import add_lora, lora_layers
from paddlemix.ops.parallel import cut, whole_shape
from paddlemix.settings.model import LlavaConfig
from paddlemix.settings.towers.table import LLAVA_TOWER
from paddlemix.utils.errors import CheckpointError
from paddlemix.utils.files import publish_folder


def attach(adapter: Adapter, model: nn.Layer) -> list[str]:
    """Put LoRA layers with the adapter's ranks and method into ``model``. Returns the names of the layers.

    Their parameters wait to be loaded; the model's weights need not be there yet.
    """
    ranks: dict[int, list[str]] = {}
    for weight, pair in adapter.pairs.items():
        ranks.setdefault(pair.r, []).append(re.escape(weight.removesuffix(".weight")))
    method = {"rslora": adapter.rslora, "dora": adapter.dora, "pissa": adapter.pissa}
    names = []
    for r, patterns in ranks.items():
        names += add_lora(model, patterns, r, adapter.alpha, adapter.dropout, begin=False, **method)
    return names


def load_adapter(model: nn.Layer, folder: str | Path) -> list[str]:
    """Attach a saved adapter to a model in memory and load its values, projector included.

    Returns the names of the parameters that were loaded. CheckpointError when the adapter does not fit the model.
    """
    adapter = read_adapter(Path(folder))
    parameters = dict(model.named_parameters())
    check_targets(adapter, {name: whole_shape(value) for name, value in parameters.items()})
    attach(adapter, model)
    parameters = dict(model.named_parameters())
    loaded = []
    for weight, pair in adapter.pairs.items():
        for part, half in pair.parameters().items():
            name = f"{weight.removesuffix('.weight')}.{part}"
            _set(parameters[name], adapter.half(half))
            loaded.append(name)
    for source, form, names in adapter.others:
        for name in names:
            target = keymap.ours(name, form)
            if isinstance(target, keymap.Ignored):
                continue
            if target is None or target.name not in parameters:
                raise CheckpointError(f'{adapter.folder}: "{name}" has no place in the model')
            values = to_float32(source.read(name), source.infos()[name].dtype)
            _set(parameters[target.name], values.T if target.transpose else values)
            loaded.append(target.name)
    return loaded


@paddle.no_grad()
def _set(parameter: Tensor, values: np.ndarray) -> None:
    wanted = whole_shape(parameter)
    if wanted != values.shape:
        raise CheckpointError(f"adapter tensor of shape {list(values.shape)} for a parameter of {list(wanted)}")
    own = np.ascontiguousarray(cut(parameter, values), np.float32)
    allocate(parameter, paddle.to_tensor(own).astype(parameter.dtype))


def save_adapter(
    folder: str | Path,
    model: nn.Layer,
    config: LlavaConfig,
    tokenizer: SavesItself | None,
    *,
    base: str | Path,
    vision_tower: str | Path | None = None,
    generation: Mapping[str, Any] | None = None,
    training_settings: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    keep: Collection[str] = (),
    replace: bool = False,
    read: ReadValues = plain_values,
) -> Path:
    """Publish an adapter folder that opens without further flags.

    It holds the LoRA weights, every other tensor that was trained, that belongs to the projector, or that neither
    ``base`` nor ``vision_tower`` holds in the same shape; config, tokenizer, processor, template; and the path (also
    relative) and a fingerprint of the base. ``keep`` names parameters that go along in any case: those that an adapter
    that was loaded brought (``Adapter.other_names``) are not the base's, although they may be frozen now. ``read``:
    see ``save_model``. CheckpointError when the model has no adapter or the base cannot be read.
    """
    folder = Path(folder)
    layers = list(lora_layers(model))
    if not layers:
        raise CheckpointError(f"{folder}: the model carries no adapter; save it with save_model")
    base_folder = resolve(base, "the base model")
    tower_folder = None if vision_tower is None else resolve(vision_tower, "the vision tower", near=base_folder)
    if kind_of(base_folder) != "full":
        raise CheckpointError(f"{base_folder}: an adapter's base must be a whole model")
    source = open_folder(base_folder)
    form = keymap.detect(source.infos()) or "llava"
    held = _held(source, form)
    if tower_folder is not None:
        tower = open_folder(tower_folder)
        held = {**_held(tower, keymap.detect(tower.infos()) or LLAVA_TOWER.form_name), **held}
    tensors = [
        stored(name, value, read)
        for name, value in model.named_parameters()
        if name in keep or _belongs(name, value, held)
    ]
    with publish_folder(folder, replace=replace) as staging:
        write_safetensors(staging / ADAPTER_WEIGHTS, tensors)
        write_json(staging / ADAPTER_CONFIG, _adapter_data(folder, layers, base_folder, tower_folder, source, form))
        write_side_files(staging, config, tokenizer, generation, training_settings)
        for name, data in (extra or {}).items():
            write_json(staging / name, data)
    return folder


def _held(source: TensorSource, form: str) -> dict[str, tuple[int, ...]]:
    held = {}
    for name, info in source.infos().items():
        target = keymap.ours(name, form)
        if isinstance(target, keymap.Target):
            held[target.name] = info.shape[::-1] if target.transpose else info.shape
    return held


def _belongs(name: str, parameter: Tensor, held: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a parameter goes into the adapter folder."""
    if ".lora_" in name or not parameter.stop_gradient:
        return True
    own = name.startswith(keymap.PREFIX_PROJECTOR) or name == keymap.NEWLINE
    return own or held.get(name) != whole_shape(parameter)


def _adapter_data(
    folder: Path, layers: list[tuple[str, Any]], base: Path, tower: Path | None, source: TensorSource, form: str
) -> dict[str, Any]:
    first = layers[0][1]
    kinds = {(layer.r, layer.alpha, layer.rslora, layer.dora, layer.pissa) for _, layer in layers}
    if len(kinds) > 1:
        raise CheckpointError(
            f"{folder}: layers with different ranks, alphas or methods cannot be saved in one adapter"
        )
    data = {
        "r": first.r,
        "lora_alpha": first.alpha,
        "lora_dropout": first.dropout,
        **{key: True for key in ("rslora", "pissa") if getattr(first, key)},
        **({"use_dora": True} if first.dora else {}),
        "target_modules": [name for name, _ in layers],
        "merge_weights": False,
        "dtype": str(first.weight.dtype).rpartition(".")[2],
        "base_model_name_or_path": str(base.absolute()),
        "base_relative_path": os.path.relpath(base.absolute(), folder.absolute()),
        "base_fingerprint": fingerprint(source, form),
    }
    if tower is not None:
        data["vision_tower"] = str(tower.absolute())
        data["vision_tower_relative_path"] = os.path.relpath(tower.absolute(), folder.absolute())
    return data
