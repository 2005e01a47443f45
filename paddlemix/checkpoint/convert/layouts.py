# SPDX-License-Identifier: Apache-2.0
"""A model folder in one layout to a folder in another, tensor by tensor; the values stay what they are.

``own`` (ours), ``original`` (LLaVA's), ``llava-hf`` (transformers'), ``paddlemix`` (PaddleMIX's .pdparams) and
``projector`` (mm_projector.bin alone). Every folder but an original one gets ``conversion.json``, which keeps what the
source's layout says beyond the model itself, so that the way back gives the same bytes.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from paddlemix.checkpoint import keymap
from paddlemix.checkpoint.convert import config as convert_config
from paddlemix.checkpoint.convert.parts import write_adapter, write_projector
from paddlemix.checkpoint.convert.tensors import delta_entries, few_bits_of, stored
from paddlemix.checkpoint.convert.transformers_files import write_for_transformers
from paddlemix.checkpoint.convert.vocab import (
    TokenizerPlan,
    keep_tokenizer,
    plan_for_hf,
    plan_without_image_token,
)
from paddlemix.checkpoint.few_bits import bits_of_weights, few_bits_note
from paddlemix.checkpoint.folders import (
    ADAPTERS,
    CONFIG,
    GENERATION,
    MODEL_TYPE,
    generation_file,
    kind_of,
    read_json,
    resolve,
    tower_name,
)
from paddlemix.checkpoint.formats.pdparams import write_pdparams
from paddlemix.checkpoint.formats.safetensors import Stored, write_safetensors
from paddlemix.checkpoint.plan import LoadEntry
from paddlemix.checkpoint.save_files import (
    MAX_SHARD_BYTES,
    PREPROCESSOR,
    generation_data,
    processor_data,
    write_config,
    write_json,
    write_weights,
)
from paddlemix.checkpoint.sources import Sources, check, find_sources, require_floats, template_folder, tokenizer_folder
from paddlemix.settings.model import ImageConfig, LlavaConfig, VisionConfig
from paddlemix.settings.published.config import TEMPLATE_KEY, load_config
from paddlemix.settings.published.tower import Pixels, is_published, known_tower, pixels_for
from paddlemix.settings.towers.table import TOWERS
from paddlemix.text.model_template import CHAT_TEMPLATE, CONVERSION, file_of, template_for
from paddlemix.utils import options
from paddlemix.utils.dtypes import dtype_named
from paddlemix.utils.errors import CheckpointError
from paddlemix.utils.files import publish_folder

TARGETS = ("original", "llava-hf", "paddlemix", "own", "projector")

_FORMS = {"original": "llava", "llava-hf": "llava_hf", "paddlemix": "paddlemix", "own": "paddlemix"}
_HF_FORMS = ("llava_hf", "llava_hf_new", "llava_hf_5")


@dataclass(frozen=True)
class Converted:
    """Where the result lies and what it holds. ``notes`` are for the person."""

    folder: Path
    to: str
    tensors: int
    nbytes: int
    dtypes: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass
class _Job:
    """One conversion: what is read, and what the target has to know of it."""

    sources: Sources
    to: str
    dtype: str | None
    memory: dict[str, Any]
    """``conversion.json`` of the source, or empty."""
    notes: list[str] = field(default_factory=list)
    delta: "Mapping[str, LoadEntry]" = field(default_factory=dict)
    bits: int | None = None
    """8 or 4: the result holds its weights in so many bits."""
    few: "Mapping[str, int]" = field(default_factory=dict)
    """Bits of each weight that is held in few."""

    @property
    def config(self) -> LlavaConfig:
        return self.sources.config

    @property
    def came_from_here(self) -> bool:
        """Whether the source was once made of a folder in the target's layout."""
        form = str(self.memory.get("form", ""))
        return form == _FORMS[self.to] or (self.to == "llava-hf" and form in _HF_FORMS)

    @property
    def tower_outside(self) -> str | None:
        """Name of the tower's folder when the target is to name it instead of holding it."""
        outside = self.sources.tower is not None or self.memory.get("tower") == "outside"
        return self.tower_name if self.to == "original" and outside else None

    @property
    def tower_name(self) -> str | None:
        """What the tower is called; llava-hf does not say, but where the weights came from may have."""
        return self.config.vision_tower_name or tower_name(self.memory.get("config") or {})


def convert(
    src: str | Path,
    dst: str | Path,
    to: str,
    *,
    dtype: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    base: str | Path | None = None,
    vision_tower: str | Path | None = None,
    projector: str | Path | None = None,
    delta_base: str | Path | None = None,
    bits: int | None = None,
) -> Converted:
    """Write the model in ``src`` to the new folder ``dst`` in the layout ``to`` (see ``TARGETS``).

    ``dtype`` None keeps every tensor's own. ``base``, ``vision_tower`` and ``projector`` are those of ``load_model``.
    ``delta_base``: the weights in ``src`` are differences to this language model and are added to it. An adapter stays
    an adapter: ``original`` and ``llava-hf`` write peft's form, ``own`` and ``paddlemix`` ours and PaddleMIX's.

    ``bits``: 8 or 4, for ``own``: the weights are rounded to so many bits, for inference alone.

    One tensor is in memory at a time. The folder appears when it is complete, or not at all. CheckpointError when
    something is missing or left over, and for what the target's layout cannot express.
    """
    if to not in TARGETS:
        raise CheckpointError(f'"{to}": no layout of that name (known: {", ".join(TARGETS)})')
    dtype = None if dtype is None else dtype_named(dtype)
    folder = resolve(src, "the model")
    refuse_target(folder, Path(dst))
    kind = kind_of(folder)
    if bits is not None and (to != "own" or bits not in (8, 4) or kind in ADAPTERS):
        if kind in ADAPTERS:
            raise CheckpointError(f"{folder}: {bits} bits: an adapter is not written in few bits; merge it first")
        if to == "own":
            raise CheckpointError(f"{folder}: {bits} bits: own is written in 8 or 4 bits; give one of them, or none")
        raise CheckpointError(f"{folder}: {bits} bits: the layout {to} is not written in few bits; own is, in 8 or 4")
    if to == "projector" or kind in ADAPTERS:
        with publish_folder(dst) as staging:
            notes: list[str] = []
            if to == "projector":
                tensors = write_projector(folder, staging, dtype)
            else:
                tensors = write_adapter(folder, staging, Path(dst), to, dtype, base, notes)
            return _converted(Path(dst), to, tensors, notes)
    job = _open(folder, to, dtype, base, vision_tower, projector, delta_base, bits)
    with publish_folder(dst) as staging:
        return _write(job, staging, Path(dst), max_shard_bytes)


def refuse_target(source: Path, target: Path) -> None:
    """CheckpointError when there is something at ``target`` already, or when it lies inside ``source``."""
    another = options.current().target or "another folder"
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target}: exists already; choose {another} or remove it")
    if source.absolute() in target.absolute().parents:
        raise CheckpointError(f"{target}: lies inside the source {source}; choose a folder beside it")


def _open(
    folder: Path,
    to: str,
    dtype: str | None,
    base: str | Path | None,
    tower: str | Path | None,
    projector: str | Path | None,
    delta_base: str | Path | None,
    bits: int | None = None,
) -> _Job:
    sources = find_sources(folder, base=base, vision_tower=tower, projector=projector)
    require_floats(sources)
    if to == "llava-hf":
        convert_config.require_hf(sources.config)
    from paddlemix.models.llava import build_empty
    from paddlemix.ops.linear import linear_layers

    model = build_empty(sources.config)
    check(sources, {name: tuple(parameter.shape) for name, parameter in model.named_parameters()})
    job = _Job(sources, to, dtype, _memory(sources))
    if bits is not None:
        names = [name for name, _ in linear_layers(model)]
        found = bits_of_weights(names, bits, sources.config.text).items()
        job.bits, job.few = bits, {name: number for name, number in found if name in sources.plan.entries}
        job.dtype = job.dtype or "float32"
    job.notes += [*sources.plan.report.warnings, *sources.plan.report.notes]
    if delta_base is not None:
        job.delta = delta_entries(sources, resolve(delta_base, "the base of the delta weights"))
        job.notes.append(f"{len(job.delta)} tensors are {delta_base} plus the difference")
    return job


def _write(job: _Job, staging: Path, dst: Path, max_shard_bytes: int) -> Converted:
    vocabulary = _vocabulary(job)
    tensors = list(_tensors(job, vocabulary))
    if job.to == "paddlemix":
        write_pdparams(staging / "model_state.pdparams", tensors)
    else:
        metadata = {} if job.to == "own" else {"format": "pt"}
        write_weights(staging, tensors, max_shard_bytes, metadata)
    _write_config(job, staging, vocabulary)
    _write_generation(job, staging)
    keep_tokenizer(vocabulary, tokenizer_folder(job.sources.parts), staging, job.notes)
    _keep_chat_template(job, staging)
    if job.to == "llava-hf":
        layout = template_for(template_folder(job.sources.parts), job.config.template)
        write_for_transformers(staging, job.sources.parts.folder, layout, job.config, job.notes)
    if job.to != "original":
        write_json(staging / CONVERSION, job.memory)
    return _converted(dst, job.to, tensors, job.notes)


def _converted(folder: Path, to: str, tensors: list[Stored], notes: list[str]) -> Converted:
    dtypes = tuple(sorted({item.dtype for item in tensors}))
    return Converted(folder, to, len(tensors), sum(item.nbytes for item in tensors), dtypes, tuple(notes))


def _vocabulary(job: _Job) -> TokenizerPlan:
    rows = job.config.text.vocab_size
    where = tokenizer_folder(job.sources.parts)
    known = job.memory.get("rows") if job.came_from_here else None
    if job.to == "llava-hf":
        return plan_for_hf(where, rows, known, video=convert_config.knows_videos(job.config))
    if job.to == "original":
        return plan_without_image_token(where, rows, known)
    return TokenizerPlan(rows)


def _tensors(job: _Job, vocabulary: TokenizerPlan) -> Iterator[Stored]:
    form = _FORMS[job.to]
    remembered = job.memory.get("form")
    if job.to == "llava-hf" and remembered in _HF_FORMS:
        form = remembered
    last: list[LoadEntry] = []
    for name, entry in sorted(job.sources.plan.entries.items()):
        if name.startswith(keymap.PREFIX_TOWER) and job.tower_outside:
            continue
        target = keymap.theirs(name, form)
        if target is None:
            raise CheckpointError(f'the layout "{job.to}" has no name for "{name}"')
        if name in job.few:
            yield from few_bits_of(name, entry, job.few[name], last, job.delta.get(name))
            continue
        yield stored(name, entry, target, job.dtype, vocabulary.rows, last, job.delta.get(name))


def _write_config(job: _Job, staging: Path, vocabulary: TokenizerPlan) -> None:
    dtype = job.dtype or job.config.dtype
    if job.to == "own":
        write_config(staging, job.config.with_changes(dtype=dtype), few_bits_note(job.bits))
        return
    if job.to == "llava-hf":
        pixels, processor = convert_config.hf_processor(job.config)
        write_json(staging / PREPROCESSOR, pixels)
        write_json(staging / "processor_config.json", processor)
        generated = convert_config.hf_data(
            job.config,
            vocabulary=vocabulary.rows,
            image_id=vocabulary.image_id or 0,
            pad_id=vocabulary.pad_id,
            video_id=vocabulary.video_id,
            dtype=dtype,
        )
    else:
        generated = _original(job, staging, vocabulary, dtype)
    remembered = _remembered_config(job, dtype)
    differences: list[str] = []
    for data in [remembered, generated] if remembered else [generated]:
        write_json(staging / CONFIG, data)
        differences = _differences(job.config, staging)
        if "template" in differences:
            write_json(staging / CONFIG, {**data, TEMPLATE_KEY: job.config.template})
            differences.remove("template")
        if not differences:
            return
    if any(name in _ARCHITECTURE for name in differences):
        raise CheckpointError(f'the layout "{job.to}" cannot express {", ".join(differences)} of this model')
    job.notes.append(f'the layout "{job.to}" has no place for {", ".join(differences)}; give them where they are used')


def _remembered_config(job: _Job, dtype: str) -> dict[str, Any] | None:
    """The config.json that the weights once had in the target's layout, with the dtype of now."""
    # PaddleMIX keeps the original's config.json as it is.
    same = job.came_from_here or (job.to == "paddlemix" and job.memory.get("form") == "llava")
    found = job.memory.get("config") if same else None
    if not isinstance(found, dict):
        return None
    return {**found, "torch_dtype": dtype} if job.dtype else found


def _original(job: _Job, staging: Path, vocabulary: TokenizerPlan, dtype: str) -> dict[str, Any]:
    config, image = job.config, job.config.image
    name = job.tower_name
    if config.vision is not None and not name:
        name = convert_config.TOWER_FOLDER
        _write_tower(job, staging / name, weights=True)
    elif name and not job.tower_outside and not _is_known_as(job.config.vision, name):
        # The weights are inside; what is left to know of the tower goes along under the last part of its name.
        _write_tower(job, staging / Path(name).name, weights=False)
    if image is not None and _pixels_of(image) != pixels_for(config.vision, []):
        write_json(staging / PREPROCESSOR, _pixels(config))
    config = config.with_changes(text=replace(config.text, vocab_size=vocabulary.rows))
    return convert_config.original_data(config, tower=name, tower_inside=job.tower_outside is None, dtype=dtype)


def _is_known_as(vision: VisionConfig | None, name: str) -> bool:
    """Whether whoever reads ``name`` knows a tower of this depth; LLaVA-NeXT cuts off SigLIP's last layer."""
    known = known_tower(name)
    depth = None if known is None else known.num_hidden_layers
    return is_published(name) and (vision is None or depth == vision.num_hidden_layers)


def _write_tower(job: _Job, folder: Path, *, weights: bool) -> None:
    """The tower as a folder of its own, which LLaVA's loader opens before it takes the weights of the checkpoint."""
    folder.mkdir()
    write_json(folder / CONFIG, convert_config.tower_data(job.config.vision))
    write_json(folder / PREPROCESSOR, _pixels(job.config))
    if weights:
        last: list[LoadEntry] = []
        form = TOWERS.get(job.config.vision.model_type).form_name
        entries = sorted(job.sources.plan.entries.items())
        names = [(name, entry) for name, entry in entries if name.startswith(keymap.PREFIX_TOWER)]
        tensors = [stored(name, entry, keymap.theirs(name, form), job.dtype, 0, last) for name, entry in names]
        write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})


def _pixels_of(image: ImageConfig) -> Pixels:
    return Pixels(image.crop_size, image.resize_size, image.mean, image.std, stretch=image.stretch)


def _pixels(config: LlavaConfig) -> dict[str, Any]:
    left_out = ("image_aspect_ratio", "image_grid_pinpoints")
    return {key: value for key, value in processor_data(config.image).items() if key not in left_out}


_ARCHITECTURE = ("text", "vision", "image", "projector_type", "has_image_newline")
_FREE = {"vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "initializer_range", "model_type"}


def _differences(config: LlavaConfig, folder: Path) -> list[str]:
    """What the config.json in ``folder`` says otherwise, read as any checkpoint is read."""
    with tempfile.TemporaryDirectory() as place:
        tower = None
        if config.vision is not None:
            write_json(Path(place) / CONFIG, convert_config.tower_data(config.vision))
            write_json(Path(place) / PREPROCESSOR, _pixels(config))
            tower = Path(place)
        found = load_config(folder, tower_folder=None if _is_hf(folder) else tower)
    ours, theirs = config.to_dict(), found.to_dict()
    for side in (ours, theirs):
        side["text"] = {key: value for key, value in side["text"].items() if key not in _FREE}
        side["text"]["head_dim"] = _head(side["text"])
    free = {"dtype", "vision_tower_name"}
    return [name for name in ours if name not in free and ours[name] != theirs[name]]


def _head(text: dict[str, Any]) -> int:
    return text["head_dim"] or text["hidden_size"] // text["num_attention_heads"]


def _is_hf(folder: Path) -> bool:
    return "text_config" in read_json(folder / CONFIG)


def _write_generation(job: _Job, staging: Path) -> None:
    found = generation_file(job.sources.parts.folder, job.sources.parts.base)
    if found is not None:
        read_json(found)  # an error here and not in the chat with the new folder
        shutil.copyfile(found, staging / GENERATION)
        return
    write_json(staging / GENERATION, generation_data(job.config))


def _keep_chat_template(job: _Job, staging: Path) -> None:
    """A PaddleNLP template goes along; in llava-hf's layout it has its place in conversion.json."""
    data = file_of(template_folder(job.sources.parts))
    if job.to == "llava-hf":
        job.memory |= {} if data is None else {"chat_template": data}
    elif data is not None:
        write_json(staging / CHAT_TEMPLATE, data)


def _memory(sources: Sources) -> dict[str, Any]:
    """What the way back needs. A source that was converted itself hands its own on."""
    parts = sources.parts
    if (parts.folder / CONVERSION).is_file():
        found = read_json(parts.folder / CONVERSION)
        return {key: value for key, value in found.items() if key not in ("chat_template", "template")}
    raw = read_json(parts.folder / CONFIG) if parts.kind == "full" else {}
    if raw.get("model_type") == MODEL_TYPE or not raw:
        return {"rows": sources.config.text.vocab_size}
    return {
        "form": sources.form,
        "config": raw,
        "tower": "outside" if sources.tower is not None else "inside",
        "rows": sources.config.text.vocab_size,
    }
