# SPDX-License-Identifier: Apache-2.0
"""The plan of a load: which stored tensor fills which parameter, and what became of every other one."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from paddlemix.checkpoint import keymap
from paddlemix.checkpoint.formats.base import TensorInfo
from paddlemix.checkpoint.formats.source import TensorSource
from paddlemix.checkpoint.report import LoadReport
from paddlemix.ops.low_bits.form import CODES, SCALES
from paddlemix.utils.errors import CheckpointError

_PROJECTOR_WORD = "mm_projector."


def _bits(infos: Mapping[str, TensorInfo], name: str) -> int | None:
    """Bits of the codes under ``name``; None for anything else."""
    if name not in infos or name + SCALES not in infos:
        return None
    return next((bits for bits in (8, 4) if CODES[bits] == infos[name].dtype), None)


@dataclass(frozen=True)
class LoadEntry:
    """A stored tensor that fills a parameter."""

    source: TensorSource
    name: str
    transpose: bool
    own: bool
    """Whether the file is of our own form, whose values were checked when they were made."""
    bits: int | None = None
    """8 or 4: the tensor holds codes (``ops.low_bits.form``), whose scales lie beside it."""


@dataclass
class LoadPlan:
    """Which stored tensor fills which parameter. Later sources replace earlier ones, and the report says so."""

    report: LoadReport
    entries: dict[str, LoadEntry] = field(default_factory=dict)

    def add(self, source: TensorSource, form: str, names: Iterable[str] | None = None) -> None:
        """Enter the tensors of a source."""
        infos = source.infos()
        chosen = infos if names is None else names
        own = form == "paddlemix"
        scales = {name for name in infos if own and _bits(infos, name.removesuffix(SCALES)) and name.endswith(SCALES)}
        self._enter(source, {name: keymap.ours(name, form) for name in chosen if name not in scales}, own=own)

    def _enter(
        self, source: TensorSource, targets: Mapping[str, keymap.Target | keymap.Ignored | None], own: bool = False
    ) -> None:
        infos = source.infos()
        replaced = 0
        for name, target in targets.items():
            if target is None:
                self.report.left_over[name] = infos[name].file.name
            elif isinstance(target, keymap.Ignored):
                self.report.ignored[name] = target.reason
            else:
                replaced += target.name in self.entries
                turned = target.transpose and len(infos[name].shape) == 2  # a projector may begin with a LayerNorm
                self.entries[target.name] = LoadEntry(source, name, turned, own, _bits(infos, name) if own else None)
        self.report.notes += source.notes
        if replaced:
            self.report.notes.append(f"{replaced} tensors come from {source.where} instead of the base")

    def add_projector(self, source: TensorSource, *, more: bool, newline: bool) -> None:
        """Enter the projector of a file, and nothing else that it may hold: it may be a shard of a whole model.

        InternVL-Chat's files bring the positions of the tower along. ``more``: a table of tokens counts too, as for
        LLaVA's loader in the folder of a first stage. ``newline``: the model has a newline row; without one, that of
        the file has no use (files of LLaVA-1.6 for a model that pads).
        """
        found = {name: keymap.projector(name) for name in source.infos()}
        targets = [target.name for target in found.values() if target is not None]
        if not set(targets) - {keymap.NEWLINE}:
            raise CheckpointError(f"{source.where}: it holds no projector that is known")
        if len(set(targets)) < len(targets):
            raise CheckpointError(f"{source.where}: it holds several projectors, so it does not say which one is meant")
        if not newline:
            rows = [name for name, target in found.items() if target is not None and target.name == keymap.NEWLINE]
            found |= dict.fromkeys(rows, keymap.Ignored("this model has no newline row"))
        for name in [name for name, target in found.items() if target is None and _PROJECTOR_WORD not in name]:
            target = keymap.ours(name, "llava")
            positions = isinstance(target, keymap.Target) and keymap.is_position_table(target.name)
            if positions or (more and name.endswith("embed_tokens.weight")):
                found[name] = target
            else:
                found[name] = keymap.Ignored("only the projector is taken from this file")
        self._enter(source, found)

    @property
    def bits(self) -> int | None:
        """The fewest bits of a stored weight, which is what its model is called by; None when all are floats."""
        return min((entry.bits for entry in self.entries.values() if entry.bits), default=None)

    def drop(self, prefix: str, reason: str) -> None:
        """Leave out what was entered below ``prefix``; the report says why."""
        for name in [name for name in self.entries if name.startswith(prefix)]:
            self.report.ignored[self.entries.pop(name).name] = reason

    def has(self, prefix: str) -> bool:
        """Whether any tensor below ``prefix`` is there."""
        return any(name.startswith(prefix) for name in self.entries)
