# SPDX-License-Identifier: Apache-2.0
"""The key and value cache of rows that come and go: each slot holds one row, of its own length."""

from dataclasses import dataclass

import numpy as np
import paddle
from paddle import Tensor

from paddlemix.models.llm.cache import give_back_beside
from paddlemix.models.llm.static_cache import StaticCache
from paddlemix.ops.runtime import Runtime
from paddlemix.utils.errors import ConfigError


@dataclass(frozen=True, eq=False)
class RowCache:
    """Keys and values of one row, of which nobody writes to the tensors: ``[1, Hk, M, D]`` or ``[1, M, Hk, D]``.

    One pair a layer, in the layout of the caches of the device; the first ``length`` of M places are filled.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    length: int

    @property
    def bytes(self) -> int:
        """Memory that the tensors hold, empty places included."""
        return sum(int(held.size) * held.element_size() for held in (*self.keys, *self.values))


class SlotCache(StaticCache):
    """``slots`` rows of ``capacity`` places. Only rows that ``put`` brought in and ``free`` did not take out count.

    A step covers all slots, so its shapes change only with ``resize``; what it computes for a free slot is thrown away.

    >>> cache.put(2, row)                       # what a prefill of its own left in a RowCache
    >>> model.decode(embeds, positions, Mask(causal=True, offset=cache.offset), cache)     # embeds [slots, 1, D]
    >>> cache.free(2)
    """

    def __init__(self, row: RowCache, slots: int, capacity: int, runtime: Runtime) -> None:
        """``row`` says how many layers there are, of which shape and dtype; it is not taken in."""
        super().__init__(len(row.keys), capacity, str(row.keys[0].dtype).rpartition(".")[2], runtime)
        self._on_cpu = self._leaves_free = runtime.device == "cpu"
        self.slots = slots
        self.filled = np.zeros(slots, dtype=np.int64)
        self.active = np.zeros(slots, dtype=bool)
        shape = list(row.keys[0].shape)
        shape[0], shape[self._axis] = slots, capacity
        self.keys = [paddle.zeros(shape, dtype=self._dtype) for _ in row.keys]
        self.values = [paddle.zeros(shape, dtype=self._dtype) for _ in row.values]

    def put(self, slot: int, row: RowCache) -> None:
        """The places of ``row`` become those of a free slot. ConfigError when it has more than the capacity."""
        if row.length > self.capacity:
            raise ConfigError(f"slot cache of {self.capacity} places was given a row of {row.length}; resize it first")
        index = self._places_of(slot, row)
        for layer, (keys, values) in enumerate(zip(row.keys, row.values, strict=True)):
            self.keys[layer] = self._written(self.keys[layer], self._first(keys, row.length), index)
            self.values[layer] = self._written(self.values[layer], self._first(values, row.length), index)
        self.filled[slot], self.active[slot] = row.length, True
        self._leaves_free = self._on_cpu  # what the prompt took beside its places
        self._set(self.filled.copy())

    def take(self, slot: int) -> RowCache:
        """A copy of what a slot holds."""
        length = int(self.filled[slot])
        rows = [
            [paddle.assign(self._first(held[slot : slot + 1], length)) for held in side]
            for side in (self.keys, self.values)
        ]
        return RowCache(tuple(rows[0]), tuple(rows[1]), length)

    def free(self, slot: int) -> None:
        """The slot holds nothing any more."""
        self.filled[slot], self.active[slot] = 0, False
        self._set(self.filled.copy())

    def resize(self, rows: list[int], slots: int, capacity: int) -> None:
        """``slots`` slots of ``capacity`` places, of which the first ones hold what the slots ``rows`` held.

        ``capacity`` must not be below the length of any of them.
        """
        places, self.capacity = min(capacity, self.capacity), capacity
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):  # one of them twice at a time
            self.keys[layer] = self._resized(keys, rows, slots, places)
            self.values[layer] = self._resized(values, rows, slots, places)
        self._leaves_free = self._on_cpu
        spare = slots - len(rows)
        self.filled = np.concatenate([self.filled[rows], np.zeros(spare, dtype=np.int64)])
        self.active = np.concatenate([self.active[rows], np.zeros(spare, dtype=bool)])
        self.slots = slots
        self._set(self.filled.copy())

    def advance(self, count: int) -> None:
        """``count`` more places are filled in every row that is in use."""
        if self._leaves_free:
            self._leaves_free = False
            give_back_beside(self.keys, self.values)
        self.filled = self.filled + count * self.active
        self._set(self.filled.copy())

    def _first(self, held: Tensor, length: int) -> Tensor:
        return held[:, :, :length] if self.heads_first else held[:, :length]

    def _resized(self, held: Tensor, rows: list[int], slots: int, places: int) -> Tensor:
        """The first ``places`` of ``rows``, and zeros up to ``slots`` and the capacity."""
        held = self._first(held, places)
        parts, shape = [held[row : row + 1] for row in rows], list(held.shape)
        if slots > len(rows):
            shape[0] = slots - len(rows)
            parts.append(paddle.zeros(shape, dtype=held.dtype))
        held = paddle.concat(parts)
        return held if places == self.capacity else self._filled_up(held)

    def _places_of(self, slot: int, row: RowCache) -> Tensor:
        """Int64: for each row of D values of ``row`` the one of the cache that it replaces."""
        places = paddle.arange(row.length)
        if self.heads_first:
            heads = paddle.arange(row.keys[0].shape[1]).unsqueeze(1)
            return ((slot * row.keys[0].shape[1] + heads) * self.capacity + places).reshape([-1])
        heads = row.keys[0].shape[2]
        return ((slot * self.capacity + places).unsqueeze(1) * heads + paddle.arange(heads)).reshape([-1])

    def _written(self, held: Tensor, new: Tensor, index: Tensor) -> Tensor:
        write = paddle.scatter_ if self._in_place else paddle.scatter
        width = held.shape[3]
        return write(held.reshape([-1, width]), index, new.reshape([-1, width])).reshape(held.shape)
