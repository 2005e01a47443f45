# SPDX-License-Identifier: Apache-2.0
"""One tensor on its way into another layout: cast, turned, cut to the vocabulary, added to its base."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from paddlemix.checkpoint import keymap
from paddlemix.checkpoint.convert.vocab import with_rows
from paddlemix.checkpoint.few_bits import rounded, rounded_values, shape_of
from paddlemix.checkpoint.formats.base import ARRAY_TYPES, FLOATS, cast, fill
from paddlemix.checkpoint.formats.safetensors import Stored
from paddlemix.checkpoint.formats.source import open_folder
from paddlemix.checkpoint.plan import LoadEntry
from paddlemix.checkpoint.sources import Sources
from paddlemix.ops.low_bits.form import CODES, SCALES, Packed, shapes_of
from paddlemix.utils.errors import CheckpointError


def stored(
    name: str,
    entry: LoadEntry,
    target: keymap.Target,
    dtype: str | None,
    rows: int,
    last: list[LoadEntry],
    base: LoadEntry | None = None,
) -> Stored:
    """Our tensor ``name``, stored as ``entry`` says, as it is to be written under the name of ``target``.

    ``dtype`` None keeps its own; ``rows``: of the target's vocabulary; ``base`` is added to the values. ``last`` is
    shared by the tensors of one file: the pages of the one before are given back when the next is asked for.
    """
    info = entry.source.infos()[entry.name]
    if info.dtype not in FLOATS:
        raise CheckpointError(
            f'{info.file}: tensor "{entry.name}" is {info.dtype}; weights must be one of {", ".join(FLOATS)}'
        )
    wanted = dtype or info.dtype
    turn = entry.transpose != target.transpose
    shape = info.shape[::-1] if turn else info.shape
    axis = _vocabulary_axis(name, target.transpose)
    if axis is not None:
        shape = tuple(rows if place == axis else size for place, size in enumerate(shape))

    def values() -> np.ndarray:
        while last:
            done = last.pop()
            done.source.release(done.name)
        last.append(entry)
        return _values(name, entry, base, wanted, turn, (axis, rows) if axis is not None else None)

    return Stored(target.name, wanted, shape, values)


def few_bits_of(
    name: str, entry: LoadEntry, bits: int, last: list[LoadEntry], base: LoadEntry | None
) -> Iterator[Stored]:
    """Codes and scales of our weight ``name`` in ``bits``; ``last`` and ``base``: see ``stored``.

    They are rounded twice, for the one and for the other, so that no more than one tensor is in memory.
    """
    info = entry.source.infos()[entry.name]
    shape = shape_of(name, info.shape[::-1] if entry.transpose else info.shape)
    codes, scales = shapes_of(shape, bits)

    def values() -> Packed:
        while last:
            done = last.pop()
            done.source.release(done.name)
        last.append(entry)
        if base is None:
            return rounded(entry, name, shape, bits)
        whole = _values(name, entry, base, "float32", entry.transpose, None)
        return rounded_values(whole, entry, name, bits)

    yield Stored(name, CODES[bits], codes, lambda: values().codes)
    yield Stored(name + SCALES, "bfloat16", scales, lambda: values().scales)


def _vocabulary_axis(name: str, transposed: bool) -> int | None:
    if name == "llama.embed_tokens.weight":
        return 0
    if name == "lm_head.weight":
        return 0 if transposed else 1
    return None


def _values(
    name: str, entry: LoadEntry, base: LoadEntry | None, dtype: str, turn: bool, rows: tuple[int, int] | None
) -> np.ndarray:
    info = entry.source.infos()[entry.name]
    view = entry.source.view(entry.name)
    if base is not None:
        view = _add_base(view, info.dtype, base, entry, name)
    if dtype != info.dtype or turn:
        made = np.empty(view.shape[::-1] if turn else view.shape, ARRAY_TYPES[dtype])
        fill(view, info.dtype, made, dtype, transpose=turn)
        view = made
    return view if rows is None else with_rows(view, dtype, *rows)


def _add_base(view: np.ndarray, dtype: str, base: LoadEntry, entry: LoadEntry, name: str) -> np.ndarray:
    """Difference plus base; where the base is smaller (new tokens) its corner is added, as LLaVA's apply_delta does."""
    info = base.source.infos()[base.name]
    other = base.source.view(base.name)
    if base.transpose != entry.transpose:
        other = other.T
    if other.ndim != view.ndim or any(theirs > ours for theirs, ours in zip(other.shape, view.shape, strict=True)):
        raise CheckpointError(
            f'{info.file}: "{base.name}" is {list(other.shape)}, its difference is {list(view.shape)}; '
            "the delta weights belong to another base"
        )
    if other.shape != view.shape and _vocabulary_axis(name, entry.transpose) is None:
        raise CheckpointError(f'{info.file}: "{base.name}" is {list(other.shape)}, its difference {list(view.shape)}')
    made = np.array(view, order="C")
    step = max(1, (1 << 20) // max(1, other.size // len(other)))
    for start in range(0, len(other), step):
        block = other[start : start + step]
        place = (slice(start, start + len(block)), *(slice(size) for size in block.shape[1:]))
        total = cast(made[place], dtype, "float32") + cast(block, info.dtype, "float32")
        made[place] = cast(total, "float32", dtype)
    base.source.release(base.name)
    return made


def delta_entries(sources: Sources, base: Path) -> dict[str, LoadEntry]:
    """The base's tensors by our names. CheckpointError when the base has a weight that the delta lacks."""
    source = open_folder(base)
    form = keymap.detect(source.infos())
    found = {}
    for name in source.infos() if form else ():
        target = keymap.ours(name, form or "")
        if isinstance(target, keymap.Target) and target.name in sources.plan.entries:
            found[target.name] = LoadEntry(source, name, target.transpose, False)
    if not any(name.startswith("llama.layers.") for name in found):
        raise CheckpointError(f"{base}: it holds no weight that {sources.parts.folder} has a difference to")
    return found
