# SPDX-License-Identifier: Apache-2.0
"""An adapter and its base become one complete model folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddlemix.checkpoint.folders import generation_file, read_json, read_optional
from paddlemix.checkpoint.load import Loaded, load_model
from paddlemix.checkpoint.lora.base import MERGED_MARKER, merged_marker
from paddlemix.checkpoint.lora.read import merge_paths
from paddlemix.checkpoint.save import save_model
from paddlemix.checkpoint.save_files import TRAINING_SETTINGS
from paddlemix.text.model_template import CHAT_TEMPLATE, file_of
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.text.vocabulary import fit_rows


@dataclass(frozen=True)
class Merged:
    """Where the merged model lies and what it was made of."""

    folder: Path
    base: Path
    layers: int
    dtype: str
    nbytes: int


def merge_adapter(
    adapter: str | Path,
    target: str | Path | None = None,
    *,
    base: str | Path | None = None,
    vision_tower: str | Path | None = None,
    projector: str | Path | None = None,
    dtype: str = "float32",
) -> Merged:
    """Fold an adapter into its base and publish a folder that chat and training open by itself.

    ``target`` is by default a new folder beside the adapter, its name with ``-merged``. ``base`` is by default the
    one that the adapter names; ``vision_tower`` and ``projector`` are those of ``load_model``. CheckpointError when the
    folder is no adapter, when the target holds something, or when the adapter is merged into the base already.
    """
    source, folder = merge_paths(adapter, target)
    loaded = load_model(source, base=base, vision_tower=vision_tower, projector=projector, dtype=dtype, lora="merge")
    tokenizer = load_tokenizer(loaded.tokenizer_folder)
    fit_rows(tokenizer, loaded.config.text.vocab_size)
    marker = merged_marker(loaded.adapter, loaded.base)
    save_model(
        folder,
        loaded.model,
        loaded.config,
        tokenizer,
        generation=generation_of(loaded),
        training_settings=training_of(loaded),
        extra={MERGED_MARKER: marker, **template_file(loaded)},
    )
    nbytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return Merged(folder, loaded.base, len(loaded.adapter.pairs), loaded.config.dtype, nbytes)


def template_file(loaded: Loaded) -> dict[str, Any]:
    """The PaddleNLP ``chat_template.json`` that the model was trained with, to be handed on."""
    data = file_of(loaded.template_folder)
    return {} if data is None else {CHAT_TEMPLATE: data}


def training_of(loaded: Loaded) -> dict[str, Any] | None:
    """The settings of the run that made the adapter, which the merged model owes its weights to."""
    return read_optional(loaded.folder / TRAINING_SETTINGS) or None


def generation_of(loaded: Loaded) -> dict[str, Any] | None:
    """The ``generation_config.json`` that belongs to a loaded model; None when it has none."""
    path = generation_file(loaded.folder, loaded.base)
    return None if path is None else read_json(path)
