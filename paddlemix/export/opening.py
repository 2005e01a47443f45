# SPDX-License-Identifier: Apache-2.0
"""Exported folders in, a ``Predictor`` out: chat, batches and evaluation ask the graphs as they ask a model."""

from pathlib import Path

import paddle

from paddlemix.checkpoint.folders import ending_ids
from paddlemix.export.manifest import EXPORT, STEMS, Facts, Part, part_folder, read_facts
from paddlemix.export.static_model import Graph, StaticModel, require_device
from paddlemix.generation.folder import picture_tokens, processor_for, template_for
from paddlemix.generation.predictor import Predictor
from paddlemix.settings.published.config import load_config
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.utils import device as devices
from paddlemix.utils.errors import CheckpointError, ConfigError
from paddlemix.utils.options import current


def open_static(
    text: str | Path,
    vision: str | Path | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    conv_mode: str | None = None,
) -> Predictor:
    """The model whose parts lie in ``text`` and ``vision`` (an export, a part of one, or the prefix of its files).

    ``dtype`` is only compared: a graph computes in the dtype that it was exported in. Everything about the folders is
    checked before weights are read.
    """
    names = current()
    folder, facts = _read(text, "encode_text", names.text_graph)
    seen = None if vision is None else _read(vision, "encode_image", names.vision_graph)
    if seen is not None and seen[1].model != facts.model:
        raise CheckpointError(
            f"{seen[0]} and {folder} are parts of different models (fingerprints {seen[1].model[:12]} and "
            f"{facts.model[:12]}); export both from one: {EXPORT}"
        )
    config, tokenizer = load_config(folder), load_tokenizer(folder)
    template = template_for(folder, config, conv_mode)
    chosen = devices.choose(device, facts.dtype if dtype is None else dtype)
    _require_dtype(facts, chosen.dtype)
    for one in (facts, seen[1] if seen else facts):
        require_device(one, chosen.kind)
    paddle.set_device(chosen.name)
    eyes = None if seen is None else Graph(seen[0] / STEMS["encode_image"], chosen.name, seen[1].paddle)
    model = StaticModel(config, Graph(folder / STEMS["encode_text"], chosen.name, facts.paddle), eyes, facts)
    sees = picture_tokens(config) if seen else "no vision graph"
    return Predictor(
        model,
        tokenizer,
        None if seen is None else processor_for(config),
        template,
        ends=ending_ids(folder),
        about=f"{folder}: static graphs of paddle {facts.paddle}; {chosen.reason}; template {template.name}; {sees}",
    )


def _read(path: str | Path, part: Part, name: str) -> tuple[Path, Facts]:
    try:
        folder = part_folder(Path(path), part)
        return folder, read_facts(folder, part)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error


def _require_dtype(facts: Facts, wanted: str) -> None:
    if wanted != facts.dtype:
        raise ConfigError(
            f"these graphs compute in {facts.dtype}, and {wanted} is to be used here; export the model again there "
            "(with --fp16 for float16), or leave --fp16 out"
        )
