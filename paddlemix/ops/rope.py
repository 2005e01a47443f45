# SPDX-License-Identifier: Apache-2.0
"""Rotary position tables and their application."""

import math
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from paddlemix.utils.errors import ConfigError


class RotaryTables:
    """Angles of every position, for the convention in which the first and second half of a head form the pairs.

    Tables are made from the positions of a step, in float32, so there is no longest position and nothing to grow.
    """

    def __init__(self, head_dim: int, theta: float, scaling: dict[str, Any] | None = None) -> None:
        self.head_dim = head_dim
        self.frequencies = rotary_frequencies(head_dim, theta, scaling)

    def at(self, positions: Tensor, dtype: str = "float32") -> tuple[Tensor, Tensor]:
        """(cos, sin) of ``positions`` [B, L], each ``[B, L, 1, D]``; sin carries the sign of the rotation."""
        angles = positions.astype("float32").unsqueeze([2, 3]) * paddle.to_tensor(
            self.frequencies, place=positions.place
        )
        cos, sin = paddle.cos(angles), paddle.sin(angles)
        cos = paddle.concat([cos, cos], axis=-1)
        sin = paddle.concat([-sin, sin], axis=-1)
        return cos.astype(dtype), sin.astype(dtype)


def widen(tables: tuple[Tensor, Tensor], heads: int) -> tuple[Tensor, Tensor]:
    """Repeat ``[B, L, 1, D]`` tables over ``heads``. A multiply that broadcasts costs 7 times as much on a CPU."""
    batch, length, _, width = tables[0].shape
    cos, sin = (table.expand([batch, length, heads, width]).contiguous() for table in tables)
    return cos, sin


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Turn ``x`` [B, L, H, D] by tables of the same shape (or ``[B, L, 1, D]``). Done in float32, given back in x's dtype."""
    cos, sin = tables
    half = x.shape[-1] // 2
    wide = x.astype("float32")
    swapped = paddle.concat([wide[..., half:], wide[..., :half]], axis=-1)
    return (wide * cos + swapped * sin).astype(x.dtype)


def rotary_frequencies(head_dim: int, theta: float, scaling: dict[str, Any] | None) -> np.ndarray:
    """Float32 ``[head_dim / 2]``: radians per position. ConfigError for a scaling that is not known here."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    base = (np.float32(1.0) / np.power(np.float32(theta), exponents, dtype=np.float32)).astype(np.float32)
    if not scaling:
        return base
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind in (None, "default"):
        return base
    if kind == "linear":
        return (base / np.float32(_number(scaling, "factor"))).astype(np.float32)
    if kind == "llama3":
        return _llama3(base, scaling)
    hint = " (it re-bases keys that are already in the cache)" if kind == "dynamic" else ""
    raise ConfigError(f'rope_scaling type "{kind}" is not supported{hint}; known: default, linear, llama3')


def _llama3(base: np.ndarray, scaling: dict[str, Any]) -> np.ndarray:
    """Slow turns are stretched by ``factor``, fast ones kept, those between blended (Llama 3.1)."""
    factor = _number(scaling, "factor")
    low, high = _number(scaling, "low_freq_factor"), _number(scaling, "high_freq_factor")
    window = _number(scaling, "original_max_position_embeddings")
    turns = window * base.astype(np.float64) / (2 * math.pi)
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return ((1 - blend) * base / factor + blend * base).astype(np.float32)


def _number(scaling: dict[str, Any], key: str) -> float:
    value = scaling.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ConfigError(f'rope_scaling "{key}": expected a number above 0, got {value!r}')
    return float(value)
