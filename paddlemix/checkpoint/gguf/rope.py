# SPDX-License-Identifier: Apache-2.0
"""Scaled positions as GGUF has them: fields for ``linear`` scaling, a tensor of factors for that of Llama-3."""

import math

import numpy as np

from paddlemix.checkpoint.gguf.package import Field
from paddlemix.settings.model import TextConfig
from paddlemix.utils.errors import CheckpointError

_KNOWN = ("default", "linear", "llama3")


def kind_of(text: TextConfig) -> str:
    """``default`` or the kind of ``rope_scaling``."""
    scaling = text.rope_scaling or {}
    return str(scaling.get("rope_type", scaling.get("type", "default")))


def require_known(text: TextConfig) -> None:
    """CheckpointError for a kind of scaling that has no GGUF form here."""
    if kind_of(text) not in _KNOWN:
        raise CheckpointError(
            f'rope_scaling of the kind "{kind_of(text)}" has no GGUF form here (known: {", ".join(_KNOWN)})'
        )


def scaling_fields(text: TextConfig) -> dict[str, Field]:
    """The fields of ``linear`` scaling, without the name of the architecture in front."""
    if kind_of(text) != "linear" or text.rope_scaling is None:
        return {}
    return {"rope.scaling.type": "linear", "rope.scaling.factor": float(text.rope_scaling["factor"])}


def frequency_factors(text: TextConfig) -> np.ndarray | None:
    """What llama.cpp divides each frequency by, ``[head_dim / 2]`` float32 (``rope_freqs``); None but for ``llama3``.

    Llama-3.1's rule: waves that fit into the old context often stay, long ones are stretched by ``factor``, those
    between go over from one to the other.
    """
    scaling = text.rope_scaling
    if scaling is None or kind_of(text) != "llama3":
        return None
    width, old = text.width_per_head, float(scaling["original_max_position_embeddings"])
    low, high, factor = (float(scaling[key]) for key in ("low_freq_factor", "high_freq_factor", "factor"))
    waves = 2 * math.pi * text.rope_theta ** (np.arange(0, width, 2, dtype=np.float64) / width)
    smooth = np.clip((old / waves - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)
