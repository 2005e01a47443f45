# SPDX-License-Identifier: Apache-2.0
"""Which folders make up a model, and which stored tensor fills which of its parameters. Needs no paddle."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddlemix.checkpoint import keymap
from paddlemix.checkpoint.few_bits import EMBEDDING, fault
from paddlemix.checkpoint.folders import (
    CONFIG,
    MODEL_TYPE,
    OWN_TOWER,
    SHARE4V,
    find,
    kind_of,
    projector_file,
    read_json,
    resolve,
    tower_name,
)
from paddlemix.checkpoint.formats.base import FLOATS
from paddlemix.checkpoint.formats.source import WEIGHT_FILES, TensorSource, open_file, open_folder
from paddlemix.checkpoint.lora.base import doubts, require_base
from paddlemix.checkpoint.lora.read import Adapter, check_targets, read_adapter
from paddlemix.checkpoint.plan import LoadEntry, LoadPlan
from paddlemix.checkpoint.report import LoadReport
from paddlemix.settings.model import LlavaConfig, VisionConfig
from paddlemix.settings.published.config import load_config
from paddlemix.settings.published.reader import KeyReader
from paddlemix.settings.published.tower import refuse_model, tower_like
from paddlemix.settings.towers.base import Tower
from paddlemix.settings.towers.table import TOWERS, towers
from paddlemix.text.model_template import CHAT_TEMPLATE, CONVERSION, file_of
from paddlemix.text.tokenizer_files import has_tokenizer
from paddlemix.utils import options
from paddlemix.utils.errors import CheckpointError
from paddlemix.utils.paths import machine_path

INIT = "init"
"""``projector=INIT``: start a projector anew, as the first training stage does."""
_COMPARED = 64
"""Rows of a head that are compared with those of the embeddings, at least."""


@dataclass
class Parts:
    """The folders that make up a model."""

    folder: Path
    kind: str
    base: Path
    adapter: Adapter | None
    projector: Path | None
    init: bool
    new_newline: bool = False
    """The settings turn a model without a newline row to a merge that has one, so it begins anew."""


@dataclass
class Sources:
    """A model that is found, but not loaded."""

    parts: Parts
    plan: LoadPlan
    config: LlavaConfig
    tower: Path | None
    """Folder of the tower when its weights come from one of its own."""
    form: str
    """How the names of the base (or whole) model are written."""

    @property
    def bits(self) -> int | None:
        """Bits of the weights of the base when they are few (8 or 4); None: floats."""
        return self.plan.bits


def find_sources(
    folder: str | Path,
    *,
    base: str | Path | None = None,
    vision_tower: str | Path | None = None,
    projector: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    config: LlavaConfig | None = None,
) -> Sources:
    """Open everything that the model in ``folder`` is made of; see ``load.load_model`` for the arguments.

    Only headers are read. CheckpointError when a folder, a shard or the base is not what it should be.
    """
    parts = _find_parts(resolve(folder, "the model"), base, projector)
    plan = LoadPlan(LoadReport(str(parts.folder)))
    source, form = _open_base(plan, parts)
    tower = _find_tower(parts, plan, vision_tower)
    if config is None:
        read = functools.partial(_read_config, parts, tower, inside=_tower_inside(plan))
        config = read(overrides)
        parts.new_newline = config.has_image_newline and not read(None).has_image_newline
    elif overrides:
        raise CheckpointError(f"{parts.folder}: give either config= or overrides=")
    tower = _add_tower(plan, config, tower, parts)
    if parts.adapter is not None:
        if plan.bits is None:  # rounded values agree with no fingerprint
            require_base(parts.adapter, parts.base, source, form)
        plan.report.warnings += _doubts(parts, base, config)
    _add_later_sources(plan, parts, newline=config.has_image_newline)
    config = _fit_depth(plan, _fit_positions(plan, config))
    return Sources(parts, plan, config, tower, form)


def _doubts(parts: Parts, base: str | Path | None, config: LlavaConfig) -> list[str]:
    named = parts.projector is not None or parts.init
    return doubts(parts.adapter, parts.base, base, blind=config.vision is None, projector=named)


def _find_parts(folder: Path, base: str | Path | None, projector: str | Path | None) -> Parts:
    kind = kind_of(folder)
    init = projector == INIT
    projector_path = None if projector is None or init else projector_file(Path(projector))
    if kind == "full":
        if base is not None:
            raise CheckpointError(f"{folder}: it is a whole model, so the base {base} has no use; leave it out")
        return Parts(folder, kind, folder, None, projector_path, init)
    if kind == "projector":
        base_folder = _projector_base(folder, base)
        return Parts(folder, kind, base_folder, None, projector_path or projector_file(folder), init)
    adapter = read_adapter(folder)
    base_folder = adapter.find_base(base)
    if kind_of(base_folder) != "full":
        raise CheckpointError(f"{base_folder}: the base of an adapter must be a whole model; merge that adapter first")
    return Parts(folder, kind, base_folder, adapter, projector_path, init)


def _projector_base(folder: Path, base: str | Path | None) -> Path:
    name = base if base is not None else read_json(folder / CONFIG).get("_name_or_path")
    if not name:
        raise CheckpointError(
            f"{folder}: it holds a projector only; name the language model with {options.current().base}"
        )
    remedy = f"name it with {options.current().base}"
    return resolve(name, f"the base model of {folder}", near=folder, remedy=remedy)


def _open_base(plan: LoadPlan, parts: Parts) -> tuple[TensorSource, str]:
    source = open_folder(parts.base)
    form = keymap.detect(source.infos())
    if form is None or form in keymap.tower_forms():
        first = next(iter(source.infos()), "nothing")
        what = "a vision tower alone" if form else f'names of no known layout (the first is "{first}")'
        raise CheckpointError(f"{parts.base}: it holds {what}; expected a language model or a LLaVA model")
    plan.add(source, form)
    return source, form


def _find_tower(parts: Parts, plan: LoadPlan, given: str | Path | None) -> Path | None:
    """The tower's folder, or None when nothing of it is needed."""
    near = [parts.folder, parts.base]
    if given is not None:
        return resolve(given, "the vision tower", near=near)
    raw = read_json(_config_folder(parts) / CONFIG)
    if raw.get("model_type") == MODEL_TYPE:
        if plan.has(keymap.PREFIX_TOWER) or _brings_tower(parts.adapter):
            return None
        return parts.adapter.find_tower(parts.base) if parts.adapter is not None else None
    name = tower_name(raw)
    if raw.get("model_type") == SHARE4V and (parts.folder / OWN_TOWER / CONFIG).is_file():
        # share4v's training writes a tower that it has tuned there; config.json goes on naming the one it began with.
        return parts.folder / OWN_TOWER
    if name is None:
        return None
    if plan.has(keymap.PREFIX_TOWER):
        # Only the configuration is wanted of the folder, and the settings know that of published towers.
        return find(name, near=near)
    refuse_model(KeyReader(raw, _config_folder(parts) / CONFIG))
    remedy = f"name it with {options.current().vision_tower}"
    what = f"the vision tower of {_config_folder(parts) / CONFIG}"
    found = resolve(name, what, near=near, remedy=remedy)
    if machine_path(name).is_absolute() and found != machine_path(name):
        plan.report.notes.append(f"the vision tower {name} is not on this machine; {found} is taken")
    return found


def _tower_inside(plan: LoadPlan) -> VisionConfig | None:
    """The published tower whose shapes the weights in the plan have; None when they hold no such tower."""
    found = ((tower, _sizes_inside(plan, tower)) for tower in towers() if tower.weight_sizes)
    return next(filter(None, (tower_like(sizes, tower) for tower, sizes in found if sizes is not None)), None)


def _sizes_inside(plan: LoadPlan, tower: Tower) -> dict[str, int] | None:
    """Sizes of a tower of this kind, read off the shapes in the plan."""
    prefix, sizes = keymap.tower_prefix(tower), {}
    for size, (name, axis) in tower.weight_sizes.items():
        entry = plan.entries.get(f"{prefix}{name}")
        shape = () if entry is None else entry.source.infos()[entry.name].shape
        if not shape:
            return None
        sizes[size] = shape[axis]
    layers = itertools.count()
    depth = next(n for n in layers if not plan.has(f"{prefix}{tower.layers}{n}."))
    side = math.isqrt(max(sizes.pop("positions") - tower.class_token, 0))
    return {**sizes, "num_hidden_layers": depth, "image_size": side * sizes["patch_size"]}


def _brings_tower(adapter: Adapter | None) -> bool:
    others = adapter.others if adapter is not None else []
    return any(name.startswith(keymap.PREFIX_TOWER) for _, form, names in others for name in names if form)


def template_folder(parts: Parts) -> Path:
    """The folder whose chat_template.json counts: the one that says which template the model was trained with."""
    return parts.folder if (parts.folder / CONVERSION).is_file() else _config_folder(parts)


def _config_folder(parts: Parts) -> Path:
    return parts.folder if (parts.folder / CONFIG).is_file() else parts.base


def _read_config(
    parts: Parts, tower: Path | None, overrides: Mapping[str, Any] | None, inside: VisionConfig | None
) -> LlavaConfig:
    given = dict(overrides or {})
    if not (parts.folder / CONFIG).is_file() and (parts.folder / CONVERSION).is_file():
        # An adapter in the form of peft for llava-hf has no config.json; its base may have been trained otherwise.
        given = {"template": read_json(parts.folder / CONVERSION).get("template"), **given}
    if file_of(template_folder(parts)) is not None and given.get("template") is None:
        given["template"] = CHAT_TEMPLATE
    return load_config(_config_folder(parts), tower_folder=tower, overrides=given or None, inside=inside)


def _add_tower(plan: LoadPlan, config: LlavaConfig, tower: Path | None, parts: Parts) -> Path | None:
    """Enter the tower's weights unless the checkpoint holds its own, which may differ (v1.6 trains its tower)."""
    if config.vision is None or tower is None:
        return None
    if plan.has(keymap.PREFIX_TOWER) and _tower_beside_wins(config, tower, parts):
        plan.drop(keymap.PREFIX_TOWER, f"the vision tower comes from {tower}, as in the original")
    if plan.has(keymap.PREFIX_TOWER):
        plan.report.notes.append(
            f"the vision tower inside the checkpoint is used; {tower} gives its configuration only"
        )
        return None
    source = open_folder(tower)
    form = keymap.detect(source.infos())
    if form is None:
        raise CheckpointError(f"{tower}: it holds no vision tower that is known")
    names = [name for name in source.infos() if not _is_foreign(name, form)]
    plan.add(source, form, names)
    return tower


def _tower_beside_wins(config: LlavaConfig, tower: Path, parts: Parts) -> bool:
    """Some originals (InternVL-Chat, share4v) load the tower that config.json names, whatever the checkpoint holds."""
    if not any((tower / name).is_file() for name in WEIGHT_FILES):
        return False
    share4v = read_json(_config_folder(parts) / CONFIG).get("model_type") == SHARE4V
    return share4v or TOWERS.get(config.vision.model_type).folder_wins


def _fit_positions(plan: LoadPlan, config: LlavaConfig) -> LlavaConfig:
    """A resizable position table that is really there: its side counts, not the image_size of config.json."""
    tower = None if config.vision is None else TOWERS.get(config.vision.model_type)
    if tower is None or tower.position_table is None:
        return config
    entry = plan.entries.get(f"{keymap.tower_prefix(tower)}{tower.position_table}")
    if entry is None:
        return config
    info = entry.source.infos()[entry.name]
    rows = info.shape[-2] - tower.class_token if len(info.shape) > 1 else 0
    side = math.isqrt(max(rows, 0))
    if side == config.vision.position_grid or side == 0 or side * side != rows:
        return config  # a table of an impossible shape is reported with the other shapes
    plan.report.notes.append(f"the position table of the vision tower is {side} x {side} ({info.file.name})")
    extra = {**config.vision.extra, "position_grid": side}
    return config.with_changes(vision=dataclasses.replace(config.vision, extra=extra))


def _fit_depth(plan: LoadPlan, config: LlavaConfig) -> LlavaConfig:
    """The layers of the tower that are really there, when only some are missing that no feature needs.

    LLaVA-NeXT cuts the last layer of SigLIP off, and its checkpoints hold 26 of the 27 that their config.json names.
    """
    vision = config.vision
    if vision is None:
        return config
    tower = TOWERS.get(vision.model_type)
    numbers = (tower.layer_of(name.removeprefix(keymap.PREFIX_TOWER)) for name in plan.entries)
    depth = max((number + 1 for number in numbers if number is not None), default=0)
    if not vision.feature_layer <= depth < vision.num_hidden_layers:
        return config
    plan.report.notes.append(
        f"the vision tower has {depth} of its {vision.num_hidden_layers} layers, all that the features need"
    )
    layer = vision.feature_layer - depth - 1
    return config.with_changes(vision=dataclasses.replace(vision, num_hidden_layers=depth, select_layer=layer))


def _is_foreign(name: str, form: str) -> bool:
    """A tensor of a whole model that stands in for a tower's folder and is not part of its tower."""
    target = keymap.ours(name, form)
    return isinstance(target, keymap.Target) and not target.name.startswith(keymap.PREFIX_TOWER)


def _add_later_sources(plan: LoadPlan, parts: Parts, *, newline: bool) -> None:
    if parts.adapter is not None:
        for source, form, names in parts.adapter.others:
            plan.add(source, form, names)
    if parts.projector is not None:
        plan.add_projector(open_file(parts.projector), more=parts.kind == "projector", newline=newline)


def check(sources: Sources, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compare the plan with a model's ``shapes``: every parameter filled once, every tensor used, every shape right.

    CheckpointError lists what does not fit.
    """
    plan, parts, config = sources.plan, sources.parts, sources.config
    report = plan.report
    if config.text.tie_word_embeddings and "lm_head.weight" in plan.entries:
        entry = plan.entries.pop("lm_head.weight")
        report.ignored[entry.name] = "the head is tied to the embeddings"
        if _differs(entry, plan.entries.get(EMBEDDING)):
            report.warnings.append(
                f'"{entry.name}" is not what the embeddings are, but "tie_word_embeddings" of {parts.folder} is true: '
                "the embeddings are the head, as in transformers 4. If the model was trained with a head of its own, "
                'which transformers 5 takes, write "tie_word_embeddings": false in config.json'
            )
    for name, entry in list(plan.entries.items()):
        infos = entry.source.infos()[entry.name]
        if name not in shapes:
            report.left_over[entry.name] = infos.file.name
            continue
        wrong = _fault(entry, name, shapes[name])
        (report.loaded if wrong is None else report.mis_shaped)[name] = wrong or infos.file.name
    for name in shapes:
        if name not in plan.entries:
            _missing(report, name, parts)
    if parts.adapter is not None:
        check_targets(parts.adapter, shapes)
    report.require_clean()


def _differs(head: LoadEntry, table: LoadEntry | None) -> bool:
    """Whether a head holds other values than the embeddings of the same files; some rows tell it."""
    if table is None or table.source is not head.source or head.bits or table.bits:
        return False
    rows, other = table.source.view(table.name), head.source.view(head.name)
    other = other if head.transpose else other.T
    if rows.shape != other.shape or rows.dtype != other.dtype:
        return False
    step = max(1, len(rows) // _COMPARED)
    return not np.array_equal(rows[::step], other[::step])


def require_floats(sources: Sources) -> None:
    """CheckpointError when the weights are of few bits: they open for inference, and nothing else."""
    if sources.bits is not None:
        raise CheckpointError(
            f"{sources.parts.base}: its weights have {sources.bits} bits, which serve inference alone; give the folder "
            "that they were made of"
        )


def _fault(entry: LoadEntry, name: str, shape: tuple[int, ...]) -> str | None:
    """What is wrong with the tensor that fills the parameter ``name`` of this ``shape``; None when it fits."""
    if entry.bits is not None:
        return fault(entry, name, shape)
    info = entry.source.infos()[entry.name]
    found = info.shape[::-1] if entry.transpose else info.shape
    if info.dtype not in FLOATS:
        wanted = f"weights must be one of {', '.join(FLOATS)} (quantised checkpoints are not read)"
        return f'{info.file.name}: "{entry.name}" is {info.dtype}; {wanted}'
    return None if found == shape else f"{info.file.name} has {list(found)}, the model {list(shape)}"


def _missing(report: LoadReport, name: str, parts: Parts) -> None:
    if name == keymap.NEWLINE and parts.new_newline:
        report.initialised[name] = "mm_patch_merge_type asks for it, and the model had none"
        return
    if parts.init and (name.startswith(keymap.PREFIX_PROJECTOR) or name == keymap.NEWLINE):
        report.initialised[name] = "a new projector was asked for"
        return
    report.missing[name] = _hint(name)


def _hint(name: str) -> str:
    """What to do about a parameter that is missing."""
    here = options.current()
    if name == keymap.NEWLINE:
        return (
            'config.json asks for a row behind each line of tiles ("mm_patch_merge_type" with unpad), which the '
            'weights lack: write "flat" there, or take the weights that belong to it.'
        )
    if name.startswith(keymap.PREFIX_PROJECTOR):
        new = f", or begin a new one with {here.new_projector}" if here.new_projector else ""
        return (
            "There is no projector between the tower and the language model: "
            f"give one (mm_projector.bin) with {here.projector}{new}."
        )
    if name.startswith(keymap.PREFIX_TOWER):
        return f"The vision tower is incomplete: give its folder with {here.vision_tower}."
    if name == "lm_head.weight":
        return (
            "A model whose embeddings are its head too says so in config.json, beside the other keys of its language "
            'model: "tie_word_embeddings": true.'
        )
    return ""


def tokenizer_folder(parts: Parts) -> Path:
    """Where the tokenizer is: beside the weights, else with the base."""
    return parts.folder if has_tokenizer(parts.folder) else parts.base
