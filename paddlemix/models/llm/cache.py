# SPDX-License-Identifier: Apache-2.0
"""The key and value cache of a decoder: what every one offers, and the one that grows by blocks of places."""

from collections.abc import Sequence
from typing import Protocol

import paddle
from paddle import Tensor

from paddlemix.ops import few_rows
from paddlemix.ops.attention.contract import swap_heads
from paddlemix.ops.attention.select import cache_keeps_heads_first
from paddlemix.ops.runtime import Runtime
from paddlemix.settings.model import TextConfig
from paddlemix.utils.device import give_memory_back
from paddlemix.utils.errors import ConfigError

BLOCK = 128
"""Places that are added at a time. The unused tail is hidden by the causal rule of the mask."""
BLOCK_ON_CPU = 64
"""The same for one cache on a CPU, where a step reads the tail too: twice the copying takes what it saves there."""

LARGE = 16 << 20
"""Bytes of a cache from which on what it leaves behind is worth giving back."""


class Cache(Protocol):
    """Keys and values of all layers. A step writes behind the filled places of every row.

    ``heads_first``: keys and values lie as ``[B, Hk, L, D]`` and not as ``[B, L, Hk, D]``. ``own_lengths``: rows
    may hold different numbers of places.
    """

    heads_first: bool
    own_lengths: bool

    @property
    def capacity(self) -> int:
        """Places of a row that are allocated."""

    @property
    def offset(self) -> int | Tensor:
        """What the mask of the next step counts as cached: a number, or int64 [B] (or []) where rows differ."""

    def held(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values of a layer as they lie (``[B, Hk, M, D]`` if ``heads_first``); None before the first step."""

    def room(self) -> Sequence[tuple[Tensor, Tensor]] | None:
        """What ``held`` gives of every layer, ``[B, Hk, M, D]`` or ``[B, M, Hk, D]`` in the dtype of the cache.

        For a step that writes a place more of each row itself, instead of ``append``; None: it must not.
        """

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write ``[B, L, Hk, D]`` behind the filled places of one layer; give what the step attends to.

        Both are kept and given in the dtype of the cache.
        """

    def advance(self, count: int | Tensor) -> None:
        """``count`` more places (a whole number, or an int64 scalar in a graph) are filled in every row and layer."""

    def trim(self, length: int) -> None:
        """Keep the first ``length`` places."""

    def reorder(self, rows: list[int]) -> None:
        """Row i becomes a copy of what row ``rows[i]`` was."""


class KVCache:
    """The cache that grows: all rows have the same ``length`` filled places (unequal ones are padded on the left).

    ``append`` gives whole blocks back, tail included, so that a step reads them without a copy: use them with a
    causal mask whose ``offset`` is the ``length`` before the step. ``heads_first`` says how they lie.
    """

    def __init__(
        self, config: TextConfig, batch: int, dtype: str = "float32", capacity: int = 0, *, runtime: Runtime
    ) -> None:
        self.length = 0
        self.own_lengths = False
        self.batch = batch
        self.dtype = dtype
        self.heads_first = cache_keeps_heads_first(runtime)
        self._on_npu = runtime.device == "npu"
        self._slots: tuple[tuple[int, int, int], Tensor] | None = None
        self._on_cpu = runtime.device == "cpu"
        self._block = BLOCK_ON_CPU if self._on_cpu else BLOCK
        self._wanted = self._blocks(capacity)
        self._keys: list[Tensor | None] = [None] * config.num_hidden_layers
        self._values: list[Tensor | None] = [None] * config.num_hidden_layers
        self._lent: set[int] = set()
        self._rebuilt = self._leaves_free = False

    @property
    def capacity(self) -> int:
        """Places that are allocated."""
        held = self._keys[0]
        return 0 if held is None else held.shape[self._axis]

    @property
    def offset(self) -> int:
        """``length``."""
        return self.length

    def held(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values of a layer as they lie (``[B, Hk, M, D]`` if ``heads_first``); None before the first step."""
        keys, values = self._keys[layer], self._values[layer]
        return None if keys is None or values is None else (keys, values)

    def room(self) -> list[tuple[Tensor, Tensor]] | None:
        """See ``Cache``: ``[B, Hk, M, D]`` or ``[B, M, Hk, D]`` in ``dtype``; None: full, or lent."""
        if self._lent or self.length >= self.capacity:
            return None
        return list(zip(self._keys, self._values, strict=True))

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write ``[B, L, Hk, D]`` after the filled places of one layer; give all keys and values back, in ``dtype``.

        ``length`` grows only with ``advance``, when all layers are written.
        """
        if k.shape[0] != self.batch:
            raise ConfigError(f"KV cache of {self.batch} rows was given {k.shape[0]} rows; create one per batch")
        if self.heads_first:
            k, v = swap_heads(k), swap_heads(v)
        end = self.length + k.shape[self._axis]
        keys = self._write(self._keys[layer], k, end, 2 * layer)
        values = self._write(self._values[layer], v, end, 2 * layer + 1)
        self._keys[layer], self._values[layer] = keys, values
        return keys, values

    def advance(self, count: int) -> None:
        """``count`` more places are filled in every layer.

        A step that makes the tensors anew frees the old ones, and a prompt what its many rows took beside them, some of
        it after this call. It would stay with the process for good, so the next step gives it back.
        """
        self.length += count
        if self._leaves_free and not self._rebuilt:
            give_back_beside(self._keys, self._values)
        self._leaves_free, self._rebuilt = self._rebuilt and self._on_cpu, False

    def trim(self, length: int) -> None:
        """Keep the first ``length`` places. What lies behind is overwritten by the next step."""
        if not 0 <= length <= self.length:
            raise ConfigError(f"KV cache: cannot trim {self.length} filled places to {length}")
        self.length = length

    def reorder(self, rows: list[int]) -> None:
        """Row i becomes a copy of what row ``rows[i]`` was; their number is the new batch (beam search)."""
        if not all(0 <= row < self.batch for row in rows):
            raise ConfigError(f"KV cache of {self.batch} rows: cannot take rows {rows}")
        self._keys = [None if held is None else take_rows(held, rows) for held in self._keys]
        self._values = [None if held is None else take_rows(held, rows) for held in self._values]
        self.batch = len(rows)

    def lend(self) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values of all layers (shapes: ``held``); this cache writes to them no more, its next step copies."""
        self._lent = set(range(2 * len(self._keys)))
        return list(self._keys), list(self._values)

    def borrow(self, keys: Sequence[Tensor], values: Sequence[Tensor], length: int) -> None:
        """Go on behind the first ``length`` places of what another cache of one row lent; that is not written to.

        A layer's keys and values have the shape that ``held`` tells.
        """
        self._keys, self._values = list(keys), list(values)
        self._lent = set(range(2 * len(self._keys)))
        self.length = length

    @property
    def _axis(self) -> int:
        return 2 if self.heads_first else 1

    def _blocks(self, places: int) -> int:
        return -(-places // self._block) * self._block

    def _write(self, held: Tensor | None, new: Tensor, end: int, number: int) -> Tensor:
        size = 0 if held is None else held.shape[self._axis]
        if end > size and self._on_cpu and new.shape[self._axis] > 1:
            end += 1  # a prompt is followed by a token, which would copy all of a cache that is just full
        if end > size or new.shape[self._axis] >= BLOCK or number in self._lent:
            self._lent.discard(number)
            return self._rebuild(held, new, max(self._blocks(end), self._wanted, size))
        if self._on_npu:
            return self._put(held, new) if new.shape[1] == 1 else self._rebuild(held, new, size)
        if self.heads_first:
            if not few_rows.put([held], [new], self.length):
                held[:, :, self.length : end] = new
        else:
            held[:, self.length : end] = new
        return held

    def _put(self, held: Tensor, new: Tensor) -> Tensor:
        """One place a row on an NPU, where assigning to a slice is computed on the host (CUSTOM_DEVICE_BLACK_LIST).

        A scatter has the same shapes at every step, and the plug-in has it in bfloat16.
        """
        batch, size, heads, width = held.shape
        key = (self.length, batch, size)
        if self._slots is None or self._slots[0] != key:
            self._slots = key, paddle.arange(self.length, batch * size, size)
        rows = held.reshape([batch * size, heads, width])
        news = new.astype(self.dtype).reshape([batch, heads, width])
        return paddle.scatter(rows, self._slots[1], news).reshape([batch, size, heads, width])

    def _rebuild(self, held: Tensor | None, new: Tensor, size: int) -> Tensor:
        """Filled places, new ones and an empty tail in one concat: 40 times as fast as writing a long piece into place.

        The tail is zeros, because a weight of exactly 0 still meets the value: 0 * NaN would be NaN.
        """
        self._rebuilt = True
        parts = [new.astype(self.dtype)]
        if self.length:
            parts.insert(0, held[:, :, : self.length] if self.heads_first else held[:, : self.length])
        shape = list(new.shape)
        shape[self._axis] = size - self.length - new.shape[self._axis]
        if shape[self._axis]:
            parts.append(paddle.zeros(shape, dtype=self.dtype))
        return parts[0] if len(parts) == 1 else paddle.concat(parts, axis=self._axis)


def give_back_beside(keys: Sequence[Tensor | None], values: Sequence[Tensor | None]) -> None:
    """After these tensors (of one shape) took the place of others on a CPU: free memory goes back to the system.

    Small ones leave little behind, and the question itself takes time.
    """
    first = keys[0]
    if first is None or not paddle.in_dynamic_mode():
        return
    if (len(keys) + len(values)) * int(first.size) * first.element_size() >= LARGE:
        give_memory_back()


def take_rows(held: Tensor, rows: list[int]) -> Tensor:
    """``held`` [B, ...] with its rows in another order, in its dtype.

    Plug-ins of the NPU lack index_select in bfloat16, but slice and join.
    """
    if held.dtype == paddle.float32:
        return paddle.index_select(held, paddle.to_tensor(rows, dtype="int64"))
    return paddle.concat([held[row : row + 1] for row in rows])
