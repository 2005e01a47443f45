# SPDX-License-Identifier: Apache-2.0
"""The layout of llava-hf (transformers' classes Llava, LlavaNext and LlavaOnevision) -> ``LlavaConfig``."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddlemix.settings.decoders.table import DECODERS, LLAVA_DECODER, ONEVISION_DECODER
from paddlemix.settings.model import LlavaConfig, TextConfig, VisionConfig
from paddlemix.settings.published.asked import folder_template
from paddlemix.settings.published.common import TEMPLATE_KEY, checked, choice, default_template, image_config
from paddlemix.settings.published.grid import read_aspect
from paddlemix.settings.published.reader import KeyReader
from paddlemix.settings.published.text import read_text
from paddlemix.settings.published.tower import pixels_for, vision_of, with_feature
from paddlemix.settings.published.unknown_keys import warn_once
from paddlemix.settings.published.unused_keys import ANYWHERE, LLAVA_HF
from paddlemix.settings.strict_json import read_object
from paddlemix.settings.towers.table import LLAVA_HF_VISION, ONEVISION_HF_VISION
from paddlemix.utils.constants import IMAGE_TOKEN
from paddlemix.utils.errors import CheckpointError
from paddlemix.utils.shown import as_json


@dataclass(frozen=True)
class _Class:
    """What a configuration class of transformers takes where a file is silent; ``grid``: (height, width) in pixels."""

    text: str
    vision: Mapping[str, Any]
    strategy: str = "default"
    layer: int = -2
    grid: tuple[tuple[int, int], ...] = ()


_SIDES = tuple(range(384, 2305, 384))
_CLASSES = {
    "llava": _Class(LLAVA_DECODER.kind, LLAVA_HF_VISION),
    "llava_next": _Class(
        LLAVA_DECODER.kind, LLAVA_HF_VISION, grid=((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
    ),
    "llava_onevision": _Class(
        ONEVISION_DECODER.kind,
        ONEVISION_HF_VISION,
        "full",
        -1,
        tuple((height, width) for height in _SIDES for width in _SIDES),
    ),
}
"""The defaults of transformers' configuration_llava*.py (5.24.0), by ``model_type``."""
HF_TYPES = tuple(_CLASSES)
_HEAD_BYTES = 1 << 20
_STRATEGIES = {"default": "patch", "full": "cls_patch"}


def is_llava_hf(reader: KeyReader) -> bool:
    """Whether a file of a type in ``HF_TYPES`` is llava-hf's; LLaVA's own layout calls its models ``llava``, too."""
    return reader.data.get("model_type") in HF_TYPES[1:] or "text_config" in reader.data


def read_llava_hf(reader: KeyReader, root: Path) -> LlavaConfig:
    """The layout of llava-hf: text_config and vision_config, what they leave out is transformers' default."""
    kind = reader.take("model_type", str, "")
    next_model, silent = kind in HF_TYPES[1:], _CLASSES[kind]
    part = reader.child("text_config", {})
    family = part.take("model_type", str, silent.text)
    if family not in DECODERS:
        part.wrong("model_type", family, f"expected one of {', '.join(DECODERS)}")
    text = read_text(part, family, complete=False)
    dtype = reader.dtype() or part.dtype() or "float32"
    part.dtype()
    part.ignore(ANYWHERE)
    part.finish()
    vision = _hf_vision(reader, silent)
    reader.expect("projector_hidden_act", "gelu", why="only gelu is supported")
    reader.expect("multimodal_projector_bias", True, why="the projector has biases")
    pixels = pixels_for(vision, [root])
    # transformers reads each pair as (height, width); ours are (width, height) as in the original, in the same order.
    pairs = reader.pairs("image_grid_pinpoints")
    if reader.data.get("image_grid_pinpoints") is None:
        pairs = silent.grid
    grid = tuple((width, height) for height, width in pairs)
    aspect, most = "anyres" if next_model else ("pad" if pixels.pads else "square"), None
    if kind == "llava_onevision":
        named = reader.take("vision_aspect_ratio", str, "anyres_max_9")
        aspect, most = read_aspect(KeyReader({"image_aspect_ratio": named}, reader.file), "")
        if most is None:
            reader.wrong("vision_aspect_ratio", named, "expected anyres_max_N")
    _check_image_token(reader, root)
    template = reader.take(TEMPLATE_KEY, str, None) or folder_template(root, _usual_template(text, kind))
    reader.ignore(LLAVA_HF, ANYWHERE)
    reader.finish()
    image = image_config(pixels, aspect, "spatial_unpad" if next_model else "flat", grid)
    config = LlavaConfig(
        text=text,
        vision=vision,
        image=dataclasses.replace(image, max_tiles=most),
        projector_type="mlp2x_gelu",
        has_image_newline=next_model,
        template=template,
        model_max_length=min(text.max_position_embeddings, 32768 if most else 4096),
        vision_tower_name=None,
        dtype=dtype,
    )
    return checked(config, reader)


_OF_LLAVA = {"mistral_instruct": "vicuna_v1", "llava_llama_3": "llama_3"}
"""Templates of class Llava where LLaVA-1.6, which brought the decoder to LLaVA, has another.

BakLLaVA, the one published LLaVA-1.5 on Mistral (llava-hf/bakLlava-v1-hf), learnt from LLaVA-1.5's conversations: its
turns begin with USER and ASSISTANT. XTuner's on Llama-3 (xtuner/llava-llama-3-8b-v1_1-transformers) has Llama-3's turns
without a system text.
"""


def _usual_template(text: TextConfig, kind: str) -> str:
    """The template of a folder that says nothing of it."""
    usual = default_template(text)
    return _OF_LLAVA.get(usual, usual) if kind == "llava" else usual


def _check_image_token(reader: KeyReader, root: Path) -> None:
    """A warning where config.json and the tokenizer's files give ``<image>`` different ids.

    Nothing here uses the id, but transformers puts the features of an image where its token stands.
    """
    key = next((key for key in ("image_token_id", "image_token_index") if reader.data.get(key) is not None), None)
    if key is None:
        return
    for name, ids in _image_ids(root):
        if reader.data[key] not in ids:
            warn_once(
                f'{reader.file}: "{key}" is {as_json(reader.data[key])}, but "{IMAGE_TOKEN}" has the id {ids[0]} in '
                f"{root / name}. Images are put in place of that text here, whatever its id; transformers goes by the "
                f"id: write {ids[0]} there, or take the file that belongs to these weights"
            )


def _image_ids(root: Path) -> Iterator[tuple[str, list[int]]]:
    """(file, ids) of ``<image>`` in the files of a tokenizer; of transformers 5 only tokenizer.json names it."""
    path = root / "tokenizer_config.json"
    added = read_object(path, CheckpointError).get("added_tokens_decoder") if path.is_file() else None
    if isinstance(added, dict):
        rows = [(number, row) for number, row in added.items() if isinstance(row, dict) and number.isdecimal()]
        if ids := [int(number) for number, row in rows if row.get("content") == IMAGE_TOKEN]:
            yield path.name, ids
    path = root / "added_tokens.json"
    found = read_object(path, CheckpointError).get(IMAGE_TOKEN) if path.is_file() else None
    if type(found) is int:
        yield path.name, [found]
    rows = _added_tokens(root / "tokenizer.json")
    if ids := [row["id"] for row in rows if row.get("content") == IMAGE_TOKEN and type(row.get("id")) is int]:
        yield "tokenizer.json", ids


def _added_tokens(path: Path) -> list[dict[str, Any]]:
    """The added tokens of a ``tokenizer.json``, which stand in front of its vocabulary of many megabytes."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        _, key, rest = file.read(_HEAD_BYTES).decode("utf-8", "replace").partition('"added_tokens"')
    try:
        found = json.JSONDecoder().raw_decode(rest.lstrip(" :\r\n\t"))[0] if key else []
    except (ValueError, RecursionError):
        return []  # not in the head of the file, or broken, which whoever opens the tokenizer tells
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def _hf_vision(reader: KeyReader, silent: _Class) -> VisionConfig:
    part = reader.child("vision_config", dict(silent.vision))
    vision = vision_of(part.updated({"model_type": part.data.get("model_type", silent.vision["model_type"])}))
    strategy = choice(reader, "vision_feature_select_strategy", tuple(_STRATEGIES), silent.strategy)
    if strategy == "default" and not vision.class_tokens:
        why = "leaves out the first row, which is a patch in a tower without a class token; expected full"
        reader.wrong("vision_feature_select_strategy", strategy, why)
    layer = reader.take("vision_feature_layer", (int, list), silent.layer)
    if isinstance(layer, list):
        if len(layer) != 1 or type(layer[0]) is not int:
            reader.wrong("vision_feature_layer", layer, "features of several layers are not supported")
        layer = layer[0]
    return with_feature(dataclasses.replace(vision, select_layer=layer), _STRATEGIES[strategy])
