# SPDX-License-Identifier: Apache-2.0
"""Names of tensors in every published layout and in ours, as tables that are walked both ways.

A *form* is a way of naming: ``paddlemix`` (ours), ``llava`` (the original, and plain language models), ``llava_hf``,
``llava_hf_new`` and ``llava_hf_5`` (transformers before 4.52, since then, and 5), ``peft``, ``peft_hf`` and
``peft_hf_5`` (what peft makes of the original's names and of llava-hf's, under transformers 4 and 5), and one for the
folders of each kind of vision tower. A form is a list of parts: their prefix, our prefix, and the table of the tails
below both. The tables of towers and decoders stand with their descriptions (``settings/towers``,
``settings/decoders``).
"""

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from paddlemix.settings.decoders.table import DECODERS, decoders
from paddlemix.settings.key_rows import PLACE, KeyRow, insert, same
from paddlemix.settings.towers.base import Tower
from paddlemix.settings.towers.table import TOWERS, towers

PREFIX_LLM = "llama."
PREFIX_TOWER = "llama.vision_tower.vision_tower."
PREFIX_PROJECTOR = "llama.mm_projector."
NEWLINE = "llama.image_newline"


@dataclass(frozen=True)
class Target:
    """Where a tensor goes. ``transpose``: a Linear weight, ``[out, in]`` there and ``[in, out]`` here."""

    name: str
    transpose: bool


@dataclass(frozen=True)
class Ignored:
    """A tensor that is known and not needed."""

    reason: str


_HEAD = (KeyRow("lm_head.weight", "lm_head.weight", transpose=True),)
_NEWLINE = same(("image_newline",))
_PROJECTOR = (*same(("{n}.bias", "bias")), *same(("{n}.weight", "weight"), transpose=True))
_PROJECTOR_HF = (
    KeyRow("linear_1.weight", "0.weight", transpose=True),
    KeyRow("linear_1.bias", "0.bias"),
    KeyRow("linear_2.weight", "2.weight", transpose=True),
    KeyRow("linear_2.bias", "2.bias"),
)

_Parts = tuple[tuple[str, str, tuple[KeyRow, ...]], ...]


def _decoder() -> tuple[KeyRow, ...]:
    return tuple(dict.fromkeys(row for decoder in decoders() for row in decoder.rows))


def _towers(prefix: str) -> _Parts:
    """The towers as LLaVA's layout has them, below ``prefix``."""
    return tuple((f"{prefix}{tower.published_prefix}", tower_prefix(tower), tower.rows) for tower in towers())


def _hf_towers(prefix: str, *, newest: bool = False) -> _Parts:
    return tuple(
        (f"{prefix}{tower.hf_5_prefix if newest else tower.hf_prefix}", tower_prefix(tower), tower.rows)
        for tower in towers()
        if tower.hf_prefix is not None
    )


def _llava() -> _Parts:
    return (
        ("model.", PREFIX_LLM, _decoder()),
        ("model.", PREFIX_LLM, _NEWLINE),
        ("", "", _HEAD),
        ("model.mm_projector.", PREFIX_PROJECTOR, _PROJECTOR),
        *_towers("model.vision_tower.vision_tower."),
    )


def _llava_hf(*, newest: bool = False) -> _Parts:
    return (
        ("language_model.model.", PREFIX_LLM, _decoder()),
        ("language_model.", "", _HEAD),
        ("", PREFIX_LLM, _NEWLINE),
        ("multi_modal_projector.", PREFIX_PROJECTOR, _PROJECTOR_HF),
        *_hf_towers("vision_tower.", newest=newest),
    )


def _llava_hf_new(*, newest: bool = False) -> _Parts:
    """``newest``: with the towers' names as transformers 5 has them only; it leaves vision_model out."""
    towers_of_4 = () if newest else _hf_towers("model.vision_tower.")
    return (
        ("model.language_model.", PREFIX_LLM, _decoder()),
        ("", "", _HEAD),
        ("model.", PREFIX_LLM, _NEWLINE),
        ("model.multi_modal_projector.", PREFIX_PROJECTOR, _PROJECTOR_HF),
        *towers_of_4,
        *_hf_towers("model.vision_tower.", newest=True),  # beside the others, read only
    )


def _paddlemix() -> _Parts:
    parts = (
        (PREFIX_LLM, PREFIX_LLM, _decoder()),
        (PREFIX_LLM, PREFIX_LLM, _NEWLINE),
        ("", "", _HEAD),
        (PREFIX_PROJECTOR, PREFIX_PROJECTOR, _PROJECTOR),
        *((tower_prefix(tower), tower_prefix(tower), tower.rows) for tower in towers()),
    )
    return tuple((theirs, ours, same(dict.fromkeys(row.ours for row in rows))) for theirs, ours, rows in parts)


def _peft() -> _Parts:
    return (
        *_below("base_model.model.", _llava()),
        *_below("base_model.", _llava()),  # read only: older adapters
        *_below("base_model.model.", _llava_hf_new()),  # read only, like the next: adapters of llava-hf models
        *_below("base_model.model.", _llava_hf()),
    )


def _below(prefix: str, parts: _Parts) -> _Parts:
    return tuple((f"{prefix}{theirs}", ours, rows) for theirs, ours, rows in parts)


def _alone(form: str) -> _Parts:
    found = (tower for tower in towers() if tower.form_name == form)
    return tuple((tower.published_prefix, tower_prefix(tower), tower.rows) for tower in found)


_FORMS = {
    "paddlemix": _paddlemix,
    "llava": _llava,
    "peft": _peft,
    "peft_hf": lambda: _below("base_model.model.", _llava_hf_new()),
    "peft_hf_5": lambda: _below("base_model.model.", _llava_hf_new(newest=True)),
    "llava_hf": _llava_hf,
    "llava_hf_new": _llava_hf_new,
    "llava_hf_5": lambda: _llava_hf(newest=True),
}

_IGNORED = (
    (r"(.*\.)?rotary_emb\.inv_freq", "rotary tables are computed from rope_theta"),
    (r"(.*\.)?position_ids", "a buffer of consecutive numbers"),
)


def forms() -> list[str]:
    """All ways of naming, those of towers alone at the end."""
    return [*_FORMS, *tower_forms()]


def tower_forms() -> list[str]:
    """Forms of folders that hold a vision tower alone."""
    return list(dict.fromkeys(tower.form_name for tower in towers()))


def tower_prefix(tower: Tower) -> str:
    """What all our names of a tower's tensors begin with."""
    return f"{PREFIX_TOWER}{tower.prefix}"


def is_position_table(name: str) -> bool:
    """Whether our ``name`` is a table of positions that is resized, so that its size may differ from config.json's."""
    tables = (f"{tower_prefix(tower)}{tower.position_table}" for tower in towers() if tower.position_table)
    return name in tables


def _parts(form: str) -> _Parts:
    return _parts_of(form, (*TOWERS, *DECODERS))


@functools.lru_cache(maxsize=64)
def _parts_of(form: str, registered: tuple[str, ...]) -> _Parts:
    """Their prefix, our prefix, rows. Where two parts could write a name, the first one does.

    ``registered``: what the tables held, so that a tower that is entered later counts from then on.
    """
    parts = _FORMS[form]() if form in _FORMS else _alone(form)
    return tuple(dict.fromkeys(parts))


@functools.lru_cache(maxsize=4)
def _ignored(registered: tuple[str, ...]) -> tuple[tuple[re.Pattern[str], str], ...]:
    """Names that nobody needs, with the reason; ``registered`` as in ``_parts_of``."""
    of_towers = (item for tower in towers() for item in tower.ignored_tensors.items())
    return tuple((re.compile(pattern), reason) for pattern, reason in (*_IGNORED, *of_towers))


_ANY_PROJECTOR = re.compile(r"((?:.*\.)?)((?:mm_projector|multi_modal_projector)\..+|image_newline)")


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    text, position = "", 0
    for match in PLACE.finditer(template):
        words = r"0|[1-9][0-9]{0,3}" if match[1] == "n" else match[1]
        text += re.escape(template[position : match.start()]) + f"({words})"
        position = match.end()
    return re.compile(text + re.escape(template[position:]))


def _match(name: str, prefix: str, template: str) -> tuple[str, ...] | None:
    if not name.startswith(prefix):
        return None
    found = _pattern(template).fullmatch(name, len(prefix))
    return found.groups() if found else None


def detect(names: Iterable[str]) -> str | None:
    """The form that a set of names is written in, or None."""
    names = list(names)
    return next((form for form, begins in _signatures() if any(name.startswith(begins) for name in names)), None)


def _signatures() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Beginnings of names by form: the first form counts one of whose beginnings is that of any name."""
    yield "paddlemix", (PREFIX_LLM,)
    yield "peft", ("base_model.",)
    yield "llava_hf_new", ("model.language_model.", "model.multi_modal_projector.")
    yield "llava_hf_5", _hf_5_signature()
    yield "llava_hf", ("language_model.", "multi_modal_projector.")
    yield "llava", ("model.embed_tokens.", "model.layers.", "model.mm_projector.", "model.norm.", "model.image_newline")
    for tower in towers():
        yield tower.form_name, tower.signature or _beginnings(tower)


def _beginnings(tower: Tower, prefix: str | None = None) -> tuple[str, ...]:
    """What the names of a tower begin with, below ``prefix`` (None: that of its own folder)."""
    below = tower.published_prefix if prefix is None else prefix
    return tuple(f"{below}{PLACE.split(row.theirs)[0]}" for row in tower.rows)


def _hf_5_signature() -> tuple[str, ...]:
    """Beginnings of the towers' names that transformers 5 writes otherwise than the versions before it."""
    changed = (tower for tower in towers() if tower.hf_prefix not in (None, tower.hf_5_prefix))
    return tuple(name for tower in changed for name in _beginnings(tower, f"vision_tower.{tower.hf_5_prefix}"))


def ours(name: str, form: str) -> Target | Ignored | None:
    """Our name for ``name`` of ``form``; Ignored with the reason; None for a name that nobody knows."""
    for prefix, our_prefix, rows in _parts(form):
        for row in rows:
            places = _match(name, prefix, row.theirs)
            if places is not None:
                return Target(our_prefix + insert(row.ours, places), row.transpose)
    for pattern, reason in _ignored(tuple(TOWERS)):
        if pattern.fullmatch(name):
            return Ignored(reason)
    return None


def projector(name: str) -> Target | None:
    """Our name for a tensor of a projector file, whatever stands in front of it; None for any other tensor.

    LLaVA takes what follows ``mm_projector.``, so its files may say ``model.mm_projector.0.weight``,
    ``mm_projector.0.weight`` or ``module.model.mm_projector.0.weight``.
    """
    found = _ANY_PROJECTOR.fullmatch(name)
    if found is None:
        return None
    before, part = found.groups()
    if before.endswith(PREFIX_LLM):
        target = ours(f"{PREFIX_LLM}{part}", "paddlemix")
    elif part.startswith("multi_modal_projector."):
        target = ours(part, "llava_hf")
    else:
        target = ours(f"model.{part}", "llava")
    return target if isinstance(target, Target) else None


def theirs(name: str, form: str) -> Target | None:
    """The name in ``form`` for our ``name``, and whether the values are transposed; None for a name not ours."""
    for prefix, our_prefix, rows in _parts(form):
        for row in rows:
            places = _match(name, our_prefix, row.ours)
            if places is not None:
                return Target(prefix + insert(row.theirs, places), row.transpose)
    return None
