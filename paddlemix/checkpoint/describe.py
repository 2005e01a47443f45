# SPDX-License-Identifier: Apache-2.0
"""What a model folder is: family, layout, dtype, tower, template, size, what is wrong, and the memory that it needs.

Nothing is downloaded and no weights are read, only headers; ``verify`` reads everything.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from paddlemix.checkpoint import keymap
from paddlemix.checkpoint.few_bits import bytes_held
from paddlemix.checkpoint.folders import ADAPTERS, CONFIG, MODEL_TYPE, find, kind_of, read_optional, resolve, tower_name
from paddlemix.checkpoint.formats.source import TensorSource, open_folder
from paddlemix.checkpoint.lora.read import read_adapter
from paddlemix.checkpoint.sources import Sources, check, find_sources, tokenizer_folder
from paddlemix.imaging.layout import tokens_told
from paddlemix.settings.dense_connector import NO_CONNECTOR
from paddlemix.settings.memory import GB, chat_memory, count_parameters, expected_memory, most_tiles
from paddlemix.settings.model import LlavaConfig
from paddlemix.settings.published.config import load_config
from paddlemix.settings.run.training import TrainingSettings
from paddlemix.settings.towers.table import LLAVA_TOWER
from paddlemix.text.tokenizer import BYTES, load_tokenizer
from paddlemix.text.tokenizer_files import has_tokenizer
from paddlemix.text.vocabulary import require_rows
from paddlemix.utils import options
from paddlemix.utils.errors import CheckpointError, PaddleMixError
from paddlemix.utils.files import MANIFEST, verify_folder

_KINDS = {
    "full": "a whole model",
    "adapter": "a LoRA adapter (ours or PaddleMIX's)",
    "peft": "a LoRA adapter (peft's)",
    "projector": "a projector alone",
}
_LAYOUTS = {
    "paddlemix": "Paddle's names",
    "llava": "the original's names",
    "llava_hf": "llava-hf's names",
    "llava_hf_new": "llava-hf's names (transformers 4.52 and newer)",
    "llava_hf_5": "llava-hf's names (transformers 5)",
    "peft": "peft's names",
}
_TOWER_ALONE = "a vision tower alone"
_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
_LORA_RANK = 128
"""Rank of the shipped LoRA configuration, for the estimate."""


@dataclass
class Description:
    """What was found. ``memory`` is in GB; ``problems`` stop the model from loading, ``notes`` do not."""

    folder: str
    kind: str
    facts: dict[str, str] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 when the model can be loaded, else 1."""
        return 1 if self.problems else 0

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def as_lines(self) -> list[str]:
        """One screen of text."""
        lines = [f"{self.folder}: {self.kind}"]
        lines += [f"  {name:<12} {text}" for name, text in self.facts.items()]
        if self.memory:
            lines.append(
                "  memory       estimated for one row of the full context; training on one card, with recompute"
            )
            for name, size in self.memory.items():
                number, unit = (size, "GB") if size >= 0.1 else (size * 1000, "MB")
                lines.append(f"    {name:<24} {number:8.1f} {unit}")
        lines += [f"  note         {text}" for text in self.notes]
        lines += [f"  FAIL         {text}" for text in self.problems]
        lines.append("  it can be loaded" if not self.problems else "  it cannot be loaded like this")
        return lines


def describe(
    folder: str | Path,
    *,
    base: str | Path | None = None,
    vision_tower: str | Path | None = None,
    projector: str | Path | None = None,
) -> Description:
    """Look at a model folder. What is wrong becomes a line of ``problems``; CheckpointError only without a folder.

    ``base``, ``vision_tower`` and ``projector`` are those of ``load_model``.
    """
    found = find(folder)
    root = found if found is not None else resolve(folder, "the model")
    try:
        kind = kind_of(root)
    except PaddleMixError as error:
        return Description(str(root), "no model folder", problems=[str(error)])
    result = Description(str(root), _KINDS[kind])
    try:
        _look(root, kind, result, {"base": base, "vision_tower": vision_tower, "projector": projector})
    except PaddleMixError as error:
        result.problems += str(error).splitlines()
    return result


def verify(folder: str | Path) -> tuple[list[str], str]:
    """Read every file. Problems, one line each, and a sentence on what they were compared with.

    With a ``manifest.json`` that is every SHA-256; without one the checksums inside torch's zips and the headers.
    """
    root = find(folder) or resolve(folder, "the model")
    if (root / MANIFEST).is_file():
        files = sum(1 for path in root.rglob("*") if path.is_file()) - 1
        return verify_folder(root), f"{files} files compared with the SHA-256 sums of {root / MANIFEST}"
    try:
        source = open_folder(root)
        for name in source.infos():
            source.view(name)
            source.release(name)
    except PaddleMixError as error:
        return [str(error)], "headers and the checksums of torch's zips"
    if not source.infos():
        return [f"{root}: its weight files hold no tensor; download them again"], "headers"
    return [], (
        f"{len(source.infos())} tensors: headers and the checksums of torch's zips are right; there is no {MANIFEST}, "
        "so a changed value in a safetensors file would not be seen (a conversion to our own layout writes one)"
    )


def _look(root: Path, kind: str, result: Description, given: Mapping[str, str | Path | None]) -> None:
    missing = _missing_folders(root, kind, given)
    if missing:
        result.problems += missing
        config = load_config(root) if (root / CONFIG).is_file() else None
        if kind == "full":
            _say_weights(open_folder(root), result)
        if config is not None:
            _say_config(config, result)
        return
    sources = find_sources(root, **given)
    _say_weights_of(sources, result)
    _say_config(sources.config, result)
    _say_tower(sources, result)
    _say_tokenizer(sources, result)
    from paddlemix.models.llava import build_empty
    from paddlemix.ops.linear import linear_layers

    # A model under LazyGuard has shapes and no memory.
    model = build_empty(sources.config)
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    count = sum(math.prod(shape) for shape in shapes.values())
    result.facts["parameters"] = f"{count / 1e9:.2f} billion" if count >= 1e8 else f"{count / 1e6:.2f} million"
    if sources.bits is not None:
        result.facts["bits"] = f"weights of {sources.bits} bits, for inference"
    linear = [name for name, _ in linear_layers(model)]
    held = {bits: bytes_held(shapes, linear, bits, sources.config.text) for bits in (8, 4)}
    needs = memory_needs(sources.config, held)
    only = f"chat, {sources.bits} bits"  # codes become no floats and are not trained
    result.memory = needs if sources.bits is None else {only: needs[only]}
    result.notes += sources.plan.report.notes
    if sources.config.vision is None:
        result.notes.append("a language model without a vision tower: pretraining makes a LLaVA of it")
    check(sources, shapes)


def _missing_folders(root: Path, kind: str, given: Mapping[str, str | Path | None]) -> list[str]:
    """Base and tower that are named and not on this machine; describing a folder downloads nothing."""
    raw = read_optional(root / CONFIG)
    if kind in ADAPTERS:
        adapter = read_adapter(root)
        beside = (root / adapter.base_relative).is_dir() if adapter.base_relative else False
        absent = adapter.base and not beside and find(adapter.base, near=root) is None
        if absent and given["base"] is None:
            return [f'its base "{adapter.base}" is not on this machine; name it with {options.current().base}']
        return []
    if kind == "projector" and given["base"] is None:
        base = raw.get("_name_or_path")
        if not isinstance(base, str) or find(base, near=root) is None:
            return [f'its language model "{base}" is not on this machine; name it with {options.current().base}']
    tower = tower_name(raw)
    if tower is None or raw.get("model_type") == MODEL_TYPE or given["vision_tower"] is not None:
        return []
    if find(tower, near=root) is not None:
        return []
    if kind == "full":
        source = open_folder(root)
        form = keymap.detect(source.infos()) or "llava"
        names = (keymap.ours(name, form) for name in source.infos())
        if any(isinstance(item, keymap.Target) and item.name.startswith(keymap.PREFIX_TOWER) for item in names):
            return []
    way = options.current().vision_tower
    return [f'its vision tower "{tower}" is not on this machine and not inside; name it with {way}']


def _say_weights(source: TensorSource, result: Description) -> None:
    infos = source.infos()
    form = keymap.detect(infos)
    known = {**_LAYOUTS, **dict.fromkeys(keymap.tower_forms(), _TOWER_ALONE)}
    result.facts["layout"] = known.get(form or "", "names of no known layout")
    files = {info.file for info in infos.values()}
    kinds = ", ".join(sorted({file.suffix.lstrip(".") for file in files}))
    size = sum(info.nbytes for info in infos.values())
    result.facts["weights"] = (
        f"{len(infos)} tensors in {len(files)} file{'s' * (len(files) > 1)} ({kinds}), {_size(size)}"
    )
    by_dtype: dict[str, int] = {}
    for info in infos.values():
        by_dtype[info.dtype] = by_dtype.get(info.dtype, 0) + info.nbytes
    ordered = sorted(by_dtype.items(), key=lambda item: -item[1])
    result.facts["dtype"] = ", ".join(f"{name} ({_size(nbytes)})" for name, nbytes in ordered)


def _say_weights_of(sources: Sources, result: Description) -> None:
    parts = sources.parts
    if parts.kind == "full":
        _say_weights(open_folder(parts.folder), result)
        return
    result.facts["base"] = f"{parts.base} ({_LAYOUTS.get(sources.form, sources.form)})"
    if parts.adapter is not None:
        pairs = list(parts.adapter.pairs.values())
        ranks = sorted({pair.r for pair in pairs})
        others = sum(len(names) for _, _, names in parts.adapter.others)
        result.facts["adapter"] = (
            f"{len(pairs)} layers, rank {', '.join(map(str, ranks))}, scale {pairs[0].scaling:g}; "
            f"{others} other trained tensors"
        )


def family(config: LlavaConfig) -> str:
    """What kind of model the configuration describes, in words."""
    text, vision, image = config.text, config.vision, config.image
    body = f"{text.model_type}, {text.num_hidden_layers} layers of width {text.hidden_size}"
    if vision is None or image is None:
        return f"language model ({body})"
    if vision.dense_connector != NO_CONNECTOR:
        body += f", dense connector {vision.dense_connector}"
    if image.max_tiles is not None:
        return f"LLaVA-OneVision type with the tower {vision.model_type} ({body})"
    if vision.model_type != LLAVA_TOWER.kind or vision.extra:
        return f"LLaVA type with the tower {vision.model_type} ({body})"
    if image.aspect.startswith("anyres") or config.has_image_newline:
        name = "LLaVA-1.6 (LLaVA-NeXT)"
    elif config.projector_type == "linear":
        name = "LLaVA v1"
    else:
        name = "LLaVA-1.5"
    return f"{name} ({body})"


def _say_config(config: LlavaConfig, result: Description) -> None:
    text, vision, image = config.text, config.vision, config.image
    result.facts["family"] = family(config)
    result.facts["template"] = config.template + (", <im_start> and <im_end> around images" * config.use_im_start_end)
    result.facts["context"] = f"{config.model_max_length} tokens, vocabulary of {text.vocab_size} rows"
    if vision is None or image is None:
        return
    joined = "" if vision.dense_connector == NO_CONNECTOR else f", dense connector {vision.dense_connector}"
    newline = " and a newline row" * config.has_image_newline
    result.facts["projector"] = f"{config.projector_type}{newline}{joined}"
    aspect = image.aspect if image.max_tiles is None else f"{image.aspect}_max_{image.max_tiles}"
    tokens = tokens_told(image, vision)
    result.facts["images"] = f"{aspect}, {image.merge}, tiles of {image.crop_size} pixels, {tokens} tokens"


def _say_tower(sources: Sources, result: Description) -> None:
    vision = sources.config.vision
    if vision is None:
        return
    where = f"from {sources.tower}" if sources.tower is not None else "inside the checkpoint"
    name = sources.config.vision_tower_name or vision.model_type
    shape = f"{vision.num_hidden_layers} layers of width {vision.hidden_size}, {vision.image_size}/{vision.patch_size}"
    result.facts["tower"] = f"{name} ({shape}, layer {vision.select_layer}), {where}"


def _say_tokenizer(sources: Sources, result: Description) -> None:
    where = tokenizer_folder(sources.parts)
    if not has_tokenizer(where):
        result.problems.append(f"{where}: no tokenizer.model or tokenizer.json; copy it from the base language model")
        return
    tokenizer = load_tokenizer(where)
    rows = sources.config.text.vocab_size
    rule = "" if tokenizer.kind == BYTES else f", legacy {str(tokenizer.legacy).lower()}"
    result.facts["tokenizer"] = f"{tokenizer.vocab_size} tokens, {tokenizer.kind}{rule}"
    try:
        require_rows(tokenizer, rows)
    except CheckpointError as error:
        result.problems.append(str(error))


def memory_needs(config: LlavaConfig, few: Mapping[int, int] | None = None) -> dict[str, float]:
    """GB for a chat, and for LoRA and full training on one card, by the formula of ``settings.memory``.

    ``few``: bytes of all weights by the bits that they are held in; the cache of keys and values is float32 there.
    Training: one row of the full context with one image of the most tiles, recompute, the vision tower frozen.
    """
    half = {"bf16": True, "fp16_opt_level": "O2", "amp_master_grad": True}
    ways = {
        f"LoRA of rank {_LORA_RANK}, bf16": {**half, "lora": True, "lora_rank": _LORA_RANK},
        "full, bf16 and fp32 state": half,
        "full, fp32": {},
    }
    always = {"recompute": True, "per_device_train_batch_size": 1, "max_length": config.model_max_length}
    needs = {f"chat, {name}": chat_memory(config, size) for name, size in (("float32", 4), ("bfloat16", 2))}
    cache = chat_memory(config, 4) - 4 * count_parameters(config).total
    needs |= {f"chat, {bits} bits": nbytes + cache for bits, nbytes in (few or {}).items()}
    for name, keys in ways.items():
        settings = TrainingSettings().with_changes(**always, **keys)
        needs[name] = expected_memory(config, settings, 1, tiles=most_tiles(config)).total
    return {name: nbytes / GB for name, nbytes in needs.items()}


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:.2f} MB"
