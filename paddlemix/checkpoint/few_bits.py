# SPDX-License-Identifier: Apache-2.0
"""Which weights of a model are held in few bits, and how they come out of a file, or out of floats while loading.

Needs no paddle.

A folder of ours says so in its config.json (``settings.published.config.FEW_BITS``). There the codes of a weight have
its name and the scales that name with ``_scales`` (``ops.low_bits.form``).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from paddlemix.checkpoint.formats.base import to_float32
from paddlemix.checkpoint.keymap import PREFIX_PROJECTOR, PREFIX_TOWER
from paddlemix.checkpoint.plan import LoadEntry
from paddlemix.ops.low_bits import form
from paddlemix.ops.low_bits.form import SCALES, Packed
from paddlemix.settings.model import TextConfig
from paddlemix.settings.published.config import FEW_BITS
from paddlemix.utils.errors import CheckpointError

EMBEDDING = "llama.embed_tokens.weight"
HEAD = "lm_head.weight"
FEWEST = {16: 16, 8: 8, 4: 8}
"""Bits of what is small, or decides more.

That is the projector, the head (the table of tokens where it is one), and keys and values that several heads share.
"""
_SHARED = ("k_proj", "v_proj")


def bits_of_weights(linear: Iterable[str], bits: int, text: TextConfig, *, table: bool = True) -> dict[str, int]:
    """Bits of each weight that is held in few, by its name, in a model of ``bits`` (16, 8 or 4).

    All of the layers ``linear`` (``ops.linear.linear_layers``) and, with ``table``, the table of tokens. The rest
    (norms, biases, patches, positions) is float. ``text``: the decoder, which says whether heads share keys and values.
    """
    careful = _SHARED if text.num_key_value_heads < text.num_attention_heads else ()
    found = {f"{name}.weight": _bits_of(name, bits, careful) for name in linear}
    if table:
        found[EMBEDDING] = bits if HEAD in found else FEWEST[bits]
    return found


def bytes_held(shapes: Mapping[str, tuple[int, ...]], linear: Iterable[str], bits: int, text: TextConfig) -> int:
    """Bytes of parameters of these ``shapes`` on a CPU when the weights are held in ``bits``."""
    few = bits_of_weights(linear, bits, text)
    return sum(
        form.nbytes_of(shape_of(name, shape), few[name]) if name in few else 4 * math.prod(shape)
        for name, shape in shapes.items()
    )


def _bits_of(name: str, bits: int, careful: tuple[str, ...]) -> int:
    """``careful``: ends of names of layers of the decoder."""
    near = f"{name}."
    if near.startswith(PREFIX_TOWER):
        return bits
    decides = near.startswith(PREFIX_PROJECTOR) or f"{name}.weight" == HEAD or name.endswith(careful)
    return FEWEST[bits] if decides else bits


def shape_of(name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """(out, in) of the parameter ``name``, whose ``shape`` is [in, out], or [V, D] for the table of tokens."""
    return (shape[0], shape[1]) if name == EMBEDDING else (shape[1], shape[0])


def few_bits_note(bits: int | None) -> dict[str, Any]:
    """What config.json says of weights in ``bits``; nothing for floats."""
    if bits is None:
        return {}
    return {FEW_BITS: {"quant_method": "paddlemix", "bits": bits, "group_size": form.GROUP}}


def fault(entry: LoadEntry, name: str, shape: tuple[int, ...]) -> str | None:
    """What is wrong with the stored codes and scales of the parameter ``name`` of this ``shape``, or None."""
    infos = entry.source.infos()
    info, scales = infos[entry.name], infos[entry.name + SCALES]
    if len(shape) != 2:
        return f"{info.file.name} has codes of {entry.bits} bits, the model values of the shape {list(shape)}"
    wanted = form.shapes_of(shape_of(name, shape), entry.bits)
    for found, what, right in zip((info, scales), ("codes", "scales"), wanted, strict=True):
        if found.shape != right:
            return f"{found.file.name} has {what} {list(found.shape)}, the model {list(right)}"
    return None if scales.dtype == "bfloat16" else f"{scales.file.name} has scales of {scales.dtype}, not of bfloat16"


def stored(entry: LoadEntry, name: str, shape: tuple[int, ...]) -> Packed:
    """The weight as it lies in the file, mapped. CheckpointError: a scale is NaN or infinite."""
    parts = []
    for part in (entry.name, entry.name + SCALES):
        mapped = entry.source.mapped(part)
        parts.append(entry.source.read(part) if mapped is None else mapped)
    if not form.are_finite(parts[1]):
        info = entry.source.infos()[entry.name + SCALES]
        raise CheckpointError(
            f'{info.file}: "{entry.name + SCALES}" holds NaN or infinity; convert or download the weights again'
        )
    return Packed(entry.bits, shape_of(name, shape), parts[0], parts[1])


def rounded(entry: LoadEntry, name: str, shape: tuple[int, int], bits: int) -> Packed:
    """The stored floats of the parameter ``name``, a weight (out, in), in ``bits``, a portion at a time.

    What is stored as it is to be held (bfloat16) is mapped. CheckpointError: NaN or infinity.
    """
    stored_as = entry.source.infos()[entry.name].dtype
    if bits == 16 and stored_as == form.CODES[bits] and not turned(entry, name) and shape[1] % form.GROUP == 0:
        mapped = entry.source.mapped(entry.name)
        if mapped is not None:
            return Packed(bits, shape, mapped, None)
    read = rows_of(entry.source.view(entry.name), entry.source.infos()[entry.name].dtype, turned(entry, name))
    return _packed(read, shape, bits, entry)


def rounded_values(values: np.ndarray, entry: LoadEntry, name: str, bits: int) -> Packed:
    """The same for float32 ``values`` of the parameter's shape, which were made of the entry."""
    read = rows_of(values, "float32", name != EMBEDDING)
    return _packed(read, shape_of(name, values.shape), bits, entry)


def turned(entry: LoadEntry, name: str) -> bool:
    """Whether the stored array has the outputs in its columns."""
    return name != EMBEDDING and not entry.transpose


def rows_of(values: np.ndarray, dtype: str, columns: bool) -> Callable[[slice], np.ndarray]:
    """What gives rows of a weight [out, in] as float32; ``columns``: ``values`` is [in, out]."""

    def read(rows: slice) -> np.ndarray:
        return np.ascontiguousarray(to_float32(values[:, rows].T if columns else values[rows], dtype))

    return read


def _packed(read: Callable[[slice], np.ndarray], shape: tuple[int, int], bits: int, entry: LoadEntry) -> Packed:
    try:
        return form.packed(read, shape, bits)
    except ValueError as error:
        file = entry.source.infos()[entry.name].file
        raise CheckpointError(
            f'{file}: "{entry.name}" holds {error}, which {bits} bits cannot; download the checkpoint again'
        ) from error
