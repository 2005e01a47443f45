# SPDX-License-Identifier: Apache-2.0
"""Is this the base that an adapter belongs to, and is the adapter in it already?"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from paddlemix.checkpoint import keymap
from paddlemix.checkpoint.folders import read_optional
from paddlemix.checkpoint.formats.base import to_float32
from paddlemix.checkpoint.formats.source import TensorSource
from paddlemix.checkpoint.lora.read import Adapter
from paddlemix.settings.places import published_name
from paddlemix.utils import options
from paddlemix.utils.errors import CheckpointError

MERGED_MARKER = "lora_merged.json"
"""Lists the adapters that were folded into a model folder, so that none is folded in twice."""

_SAMPLED_TENSORS = 32
_SAMPLED_VALUES = 4


def fingerprint(source: TensorSource, form: str) -> dict[str, list[float]]:
    """A few values of the language model's weights, the same whatever layout and float dtype they are stored in.

    The whole weights need not be read for it. The projector and the tower do not count: adapters bring their own.
    """
    weights = {}
    for name in source.infos():
        target = keymap.ours(name, form)
        if isinstance(target, keymap.Target) and target.name.startswith("llama.layers."):
            weights[target.name] = (name, target.transpose)
    chosen = sorted(weights)[:: max(1, len(weights) // _SAMPLED_TENSORS)]
    sample = {}
    for ours in chosen:
        name, transpose = weights[ours]
        values = source.view(name).T if transpose else source.view(name)
        places = [tuple((17 * k + 5) % size for size in values.shape) for k in range(_SAMPLED_VALUES)]
        picked = np.array([values[place] for place in places], values.dtype)
        sample[ours] = [float(value) for value in to_float32(picked, source.infos()[name].dtype)]
    return sample


def require_base(adapter: Adapter, base: Path, source: TensorSource, form: str) -> None:
    """CheckpointError when ``base`` is not the model that the adapter was trained on, or contains it already.

    Values may differ by the rounding of bfloat16; other weights of the same shape do not come that close.
    """
    marker = base / MERGED_MARKER
    if adapter.sha256 in read_optional(marker).get("adapters", []):
        raise CheckpointError(f"{base}: the adapter {adapter.folder} is merged into it already; use {base} as it is")
    expected = adapter.fingerprint
    if not expected:
        return
    found = fingerprint(source, form)
    wanted = np.array([value for name in expected for value in expected[name]])
    given = np.array([value for name in expected for value in found.get(name, [math.nan] * len(expected[name]))])
    close = np.abs(wanted - given) <= 0.01 * np.abs(wanted) + 1e-7
    if np.mean(close) < 0.9:
        raise CheckpointError(
            f"{adapter.folder}: the adapter was trained on another base than {base} "
            f"({np.mean(close):.0%} of {close.size} sampled weights agree); it was {adapter.base}"
        )


def doubts(adapter: Adapter, base: Path, given: str | Path | None, *, blind: bool, projector: bool) -> list[str]:
    """What is taken although it may not be what was meant, each with the way out.

    ``given``: the base that the caller named; ``blind``: the model has no vision tower; ``projector``: the caller named
    one. An adapter with a fingerprint of its base has proved it (``require_base``).
    """
    found = []
    if not projector and not brings_projector(adapter):
        missing = f"{adapter.folder}: the adapter brings no projector"
        run = (
            "LLaVA saves the projector at the end of a run and not in checkpoint-N: then take the finished run's folder"
        )
        if blind:
            found.append(f"{missing} and {base} has no vision tower, so this is a model without images. {run}")
        else:
            found.append(
                f"{missing}; that of {base} is used, which is right unless it was trained with the adapter. {run}, or "
                f"give the trained one with {options.current().projector}"
            )
    named = adapter.base
    same = Path(named or "").name.lower() == Path(published_name(base)).name.lower()
    if given is not None and named and not adapter.fingerprint and not same:
        found.append(
            f"{adapter.folder}: the adapter was trained on {named}, and {base} is used because it was given; "
            "if that is another model, its answers are of no use"
        )
    return found


def brings_projector(adapter: Adapter) -> bool:
    """Whether a projector is stored with the adapter."""
    return any(
        isinstance(target, keymap.Target) and target.name.startswith(keymap.PREFIX_PROJECTOR)
        for _, form, names in adapter.others
        for target in (keymap.ours(name, form) for name in names)
    )


def merged_marker(adapter: Adapter, base: Path) -> dict[str, Any]:
    """What the folder of a merged model records, so that the same adapter is not folded in again."""
    marker = base / MERGED_MARKER
    before = read_optional(marker).get("adapters", [])
    return {"adapters": [*before, adapter.sha256], "adapter": str(adapter.folder), "base": str(base)}
