# SPDX-License-Identifier: Apache-2.0
"""Frequencies of rotary positions, and the ways to stretch them to longer texts, as transformers computes them.

``linear`` divides every frequency; ``llama3`` (Llama 3.1) and ``yarn`` (arXiv 2309.00071) keep the fast ones and divide
the slow ones, ``yarn`` also scales the attention; ``dynamic`` raises the base with the length of the text.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from paddlemix.utils.errors import ConfigError

KINDS = ("default", "linear", "llama3", "dynamic", "yarn")


def kind_of(scaling: dict[str, Any] | None) -> str:
    """The kind of a ``rope_scaling`` object, by its old key or its new one."""
    found = (scaling or {}).get("rope_type", (scaling or {}).get("type"))
    return "default" if found is None else str(found)


def rotary_frequencies(head_dim: int, theta: float, scaling: dict[str, Any] | None) -> np.ndarray:
    """Float32 ``[head_dim / 2]``: radians per position. ConfigError for a scaling that is not known here.

    Those of ``dynamic`` hold for texts within ``max_position_embeddings``; see ``GrowingBase``.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    base = (np.float32(1.0) / np.power(np.float32(theta), exponents, dtype=np.float32)).astype(np.float32)
    kind = kind_of(scaling)
    if kind in ("default", "dynamic"):
        return base
    if kind == "linear":
        return (base / np.float32(_number(scaling, "factor"))).astype(np.float32)
    if kind == "llama3":
        return _llama3(base, scaling)
    if kind == "yarn":
        return _yarn(base, theta, scaling)
    raise ConfigError(f'rope_scaling type "{kind}" is not supported; known: {", ".join(KINDS)}')


def attention_scaling(scaling: dict[str, Any] | None) -> float:
    """What cosine and sine are multiplied by: ``yarn`` sharpens the attention of a stretched text; 1 elsewhere."""
    if kind_of(scaling) != "yarn":
        return 1.0
    given = scaling.get("attention_factor")
    if given is not None:
        return _number(scaling, "attention_factor")
    factor = _number(scaling, "factor")
    both = [scaling.get(key) for key in ("mscale", "mscale_all_dim")]
    if all(both):
        return _sharper(factor, _number(scaling, "mscale")) / _sharper(factor, _number(scaling, "mscale_all_dim"))
    return _sharper(factor, 1.0)


def _sharper(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


@dataclass(frozen=True)
class GrowingBase:
    """The scaling ``dynamic``: a text longer than ``longest`` positions gets a larger base, by its own length.

    A row's length is its largest position in the step + 1, so keys that are in a cache already keep the base of the
    step that made them, as in transformers. There the longest row of a batch counts for all; here each its own.
    """

    head_dim: int
    theta: float
    factor: float
    longest: int

    @classmethod
    def of(cls, head_dim: int, theta: float, scaling: dict[str, Any] | None, longest: int) -> "GrowingBase | None":
        """The base of a model; None when it does not grow."""
        if kind_of(scaling) != "dynamic":
            return None
        if longest < 1:
            raise ConfigError('rope_scaling type "dynamic" needs max_position_embeddings')
        return cls(head_dim, theta, _number(scaling, "factor"), longest)

    def at(self, positions: Tensor) -> Tensor:
        """Radians per position, float32 ``[B, 1, 1, head_dim / 2]``, for int64 ``positions`` [B, L]."""
        length = (positions.max(axis=1, keepdim=True) + 1).astype("float32").clip(min=float(self.longest))
        stretch = length * (self.factor / self.longest) - (self.factor - 1)
        base = self.theta * stretch ** (self.head_dim / (self.head_dim - 2))
        exponents = np.arange(0, self.head_dim, 2, dtype=np.float32) / np.float32(self.head_dim)
        return 1.0 / base.unsqueeze([2, 3]).pow(paddle.to_tensor(exponents))


def _llama3(base: np.ndarray, scaling: dict[str, Any]) -> np.ndarray:
    """Slow turns are stretched by ``factor``, fast ones kept, those between blended (Llama 3.1)."""
    factor = _number(scaling, "factor")
    low, high = _number(scaling, "low_freq_factor"), _number(scaling, "high_freq_factor")
    window = _number(scaling, "original_max_position_embeddings")
    turns = window * base.astype(np.float64) / (2 * math.pi)
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return ((1 - blend) * base / factor + blend * base).astype(np.float32)


def _yarn(base: np.ndarray, theta: float, scaling: dict[str, Any]) -> np.ndarray:
    """Dimensions that turn more than ``beta_fast`` times in the original window are kept, those that turn less than
    ``beta_slow`` times are stretched by ``factor``, those between blended by their number.
    """
    pairs = len(base)
    window = _number(scaling, "original_max_position_embeddings")
    fast = _number(scaling, "beta_fast") if scaling.get("beta_fast") else 32.0
    slow = _number(scaling, "beta_slow") if scaling.get("beta_slow") else 1.0
    ends = [2 * pairs * math.log(window / (turns * 2 * math.pi)) / (2 * math.log(theta)) for turns in (fast, slow)]
    if scaling.get("truncate", True):
        ends = [math.floor(ends[0]), math.ceil(ends[1])]
    first, last = max(ends[0], 0), min(ends[1], 2 * pairs - 1)
    last += 0.001 if first == last else 0
    ramp = np.clip((np.arange(pairs, dtype=np.float32) - first) / (last - first), 0, 1).astype(np.float32)
    return (base / np.float32(_number(scaling, "factor")) * ramp + base * (1 - ramp)).astype(np.float32)


def _number(scaling: dict[str, Any], key: str) -> float:
    value = scaling.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ConfigError(f'rope_scaling "{key}": expected a number above 0, got {value!r}')
    return float(value)
